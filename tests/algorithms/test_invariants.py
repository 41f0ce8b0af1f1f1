"""Zero in, zero out: no advantage, no gradient; step 0 is on policy; what is masked has no say; odd groups are defined."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import get_type_hints

import pytest
import torch
from torch import Tensor

from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.base import Models
from tutelage.algorithms.best_of_n import BestOfN
from tutelage.algorithms.distill import Distill
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.nash_md import NashMD
from tutelage.algorithms.online_dpo import OnlineDPO
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.preference import DPO, IPO
from tutelage.algorithms.preference_model import PreferenceModel
from tutelage.algorithms.reinforce import Reinforce
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.config import union_members
from tutelage.data.batch import Rollouts, Sequences, sequences
from tutelage.functional.prefixes import prefix_mask
from tutelage.stages import prefer, reward, rl, sft
from tutelage.training.update import accumulate

ALL = 10**9


def gradients(algorithm, nets, prepared, tokens=ALL):
    """Loss, metrics and gradients by name, None where nothing reached a parameter."""
    for parameter in nets.parameters.values():
        parameter.grad = None
    loss, averages = accumulate(algorithm, nets.as_seen(), prepared, tokens)
    found = {name: None if p.grad is None else p.grad.clone() for name, p in nets.parameters.items()}
    return loss, averages.means(), found


def largest(found, prefix):
    return max(float(g.abs().max()) for name, g in found.items() if name.startswith(prefix) and g is not None)


@pytest.mark.parametrize(
    "algorithm",
    [
        Reinforce(baseline="none", kl_coefficient=0.0),
        GRPO(kl_coefficient=0.0, minibatches=2),
        GRPO(kl_coefficient=0.0, average="sequence"),
        GRPO(kl_coefficient=0.0, average="sequence", ratio="sequence", minibatches=2),
        GRPO(kl_coefficient=0.0, average="group", objective="cispo", minibatches=2),
        PPO(kl_coefficient=0.0),
    ],
    ids=lambda a: a.name,
)
def test_zero_advantages_give_exactly_zero_policy_gradient(algorithm, nets, batch_of):
    net, batch = nets("lora"), batch_of("rollouts", "lora")
    prepared = algorithm.prepare(net.as_seen(), batch, algorithm.initial_state())[0]
    assert largest(gradients(algorithm, net, prepared)[2], "policy") > 1e-4
    silent = replace(prepared, advantages=torch.zeros_like(prepared.advantages))
    found = gradients(algorithm, net, silent)[2]
    assert largest(found, "policy") == 0.0
    if isinstance(algorithm, PPO):
        assert largest(found, "value") > 1e-4, "the value model learns all the same"


@pytest.mark.parametrize(
    "algorithm",
    [
        Reinforce(baseline="leave_one_out", kl_coefficient=0.0),
        Reinforce(baseline="group_mean", kl_coefficient=0.0),
        GRPO(kl_coefficient=0.0),
        GRPO(kl_coefficient=0.0, advantage="center"),
    ],
    ids=["rloo", "group_mean", "standardize", "center"],
)
@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, 1 / 3])
def test_equal_rewards_give_exactly_zero_gradient(algorithm, reward, nets, batch_of):
    """Of three: the mean of three floats of .7 is another float, and dividing by their deviation would amplify the 1e-8."""
    net, batch = nets("full", float64=False), batch_of("rollouts", "full", float64=False)[[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    full = replace(batch.answers, lengths=batch.answers.lengths.clamp(min=1))
    mask = full.mask.clone()
    mask[:, 0] = True  # every answer says something, so every answer's reward counts
    batch = replace(batch, answers=replace(full, mask=mask), rewards=torch.full_like(batch.rewards, reward))
    prepared = algorithm.prepare(net.as_seen(), batch, algorithm.initial_state())[0]
    assert not prepared.advantages.any()
    assert largest(gradients(algorithm, net, prepared)[2], "policy") == 0.0


@pytest.mark.parametrize("tuning", ["full", "lora", "merged"])
def test_step_zero_is_on_policy(tuning, nets, batch_of):
    """Invariant 1 in fp32: where old log-probs are the trainer's, ratio 1, nothing clipped and KL 0, exactly.

    Every row is alive: an update leaves dead ones out, the rest is then laid out in other pieces and rounds differently.
    """
    net, batch = nets(tuning, float64=False, moved=False), batch_of("alive", tuning, float64=False, moved=False)
    mask = batch.answers.mask
    for kl in ("ratio_k3", "k3", "k2"):
        for passes in (1, 2):
            algorithm = GRPO(kl=kl, passes=passes, kl_coefficient=1000.0)
            prepared, _, measured = algorithm.prepare(net.as_seen(), batch, algorithm.initial_state())
            assert measured["policy/kl"] == 0.0
            assert measured["policy/kl_per_token"] == 0.0
            _, metrics, found = gradients(algorithm, net, prepared)
            assert metrics["policy/clipped"] == 0.0
            without = GRPO(passes=passes, kl_coefficient=0.0)
            _, expected, same = gradients(without, net, prepared)
            assert metrics["loss"] == expected["loss"], "the KL term is 0"
            assert largest(found, "policy") > 0
            if kl != "ratio_k3":  # its gradient is a sum of (k3 = 0) * grad log pi and grad k3 = 0
                assert all(torch.equal(g, same[name]) for name, g in found.items() if g is not None)
            losses = without.losses(net.as_seen(), prepared)[0]
            assert torch.equal(losses[mask], -prepared.advantages[mask]), "ratio 1: the loss is -A"
    ppo = PPO(kl_coefficient=5.0, whiten_advantages=False)
    prepared, _, measured = ppo.prepare(net.as_seen(), batch, ppo.initial_state())
    _, metrics, _ = gradients(ppo, net, prepared)
    assert measured["policy/kl"] == metrics["policy/clipped"] == metrics["policy/moved"] == 0.0
    reinforce = Reinforce(kl_coefficient=5.0, baseline="none")
    plain = Reinforce(kl_coefficient=0.0, baseline="none")
    with_kl, without_kl = (a.prepare(net.as_seen(), batch, a.initial_state())[0].advantages for a in (reinforce, plain))
    assert torch.equal(with_kl, without_kl)


def test_step_zero_in_small_passes(nets, batch_of):
    """Cut into other pieces than the old log-probs were, fp32 rounds differently: invariant 3's tolerance holds."""
    net, batch = nets("lora", float64=False, moved=False), batch_of("rollouts", "lora", float64=False, moved=False)
    ppo = PPO()
    prepared, _, _ = ppo.prepare(net.as_seen(), batch, ppo.initial_state())
    _, metrics, _ = gradients(ppo, net, prepared, tokens=9)
    assert metrics["policy/clipped"] == 0.0
    assert abs(metrics["policy/moved"]) < 1e-5


def test_dpo_and_bradley_terry_start_at_log_two(nets, batch_of):
    """pi = ref: every h is exactly 0, so every loss is log 2, whatever the label."""
    net, batch = nets("lora", float64=False, moved=False), batch_of("pairs", float64=False)
    dpo = DPO()
    prepared, _, _ = dpo.prepare(net.as_seen(), batch, dpo.initial_state())
    losses, metrics = dpo.losses(net.as_seen(), prepared)
    assert torch.equal(losses, torch.full_like(losses, math.log(2)))
    assert not metrics["reward/chosen"].any()
    assert metrics["accuracy/implicit"].tolist() == [0.5] * len(batch)


def test_ipo_and_kto_start_where_nothing_has_moved(nets, batch_of):
    """pi = ref: IPO misses every lead by 1/(2 tau) = 2; z0 is exactly 0 and KTO's sigmoid 1/2, whatever the label."""
    net, batch = nets("lora", float64=False, moved=False), batch_of("pairs", float64=False)
    ipo = IPO(tau=0.25)
    losses, _ = ipo.losses(net.as_seen(), ipo.prepare(net.as_seen(), batch, ipo.initial_state())[0])
    assert torch.equal(losses, torch.full_like(losses, 4.0))
    kto, rows = KTO(undesirable_weight=3.0), batch_of("labelled", float64=False)
    prepared, _, measured = kto.prepare(net.as_seen(), rows, kto.initial_state())
    assert measured["kto/z0"] == 0.0
    losses, metrics = kto.losses(net.as_seen(), prepared)
    assert torch.equal(losses, torch.where(rows.labels == 1, 0.5, 1.5))
    assert not metrics["reward/margin"].any()


def garbage(batch, everywhere: bool):
    """NaN in every float cell under the mask, and other tokens where no token is (or, `everywhere`, after the last action)."""
    mask = batch.mask if isinstance(batch, Sequences) else getattr(batch, "answers", None)
    mask = mask.mask if isinstance(mask, Sequences) else mask

    def tokens(rows: Sequences) -> Sequences:
        columns = torch.arange(rows.tokens.shape[1])
        last = torch.where(rows.mask, columns, -1).amax(1) + 1 if everywhere else rows.lengths
        other = (rows.tokens * 7 + 13) % 250
        return replace(rows, tokens=torch.where(columns >= last[:, None], other, rows.tokens))

    def spoiled(value):
        if isinstance(value, Sequences):
            return tokens(value)
        if isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point():
            return torch.where(mask, value, float("nan"))
        return value

    if isinstance(batch, Sequences):
        return tokens(batch)
    return replace(batch, **{f.name: spoiled(getattr(batch, f.name)) for f in dataclasses.fields(batch)})


MASKED = [
    ("answers", SFT()),
    ("answers", SFT(average="sequence")),
    ("answers", Distill(divergence="jensen_shannon")),
    ("sampled", Distill(divergence="reverse_kl", average="sequence")),
    ("two answers", PreferenceModel()),
    ("labelled", Classifier()),
    ("labelled", Regression()),
    ("labelled", OutcomeValue()),
    ("labelled", OutcomeValue(loss="cross_entropy")),
    ("pairs", BradleyTerry()),
    ("pairs", DPO()),
    ("pairs", DPO(nu=1.0)),
    ("pairs", IPO()),
    ("pairs", IPO(length="mean")),
    ("labelled", KTO()),
    ("rollouts", Reinforce()),
    ("rollouts", NashMD(baseline="leave_one_out")),
    ("rollouts", BestOfN(fraction=0.5, equal_groups="share")),
    ("rollouts", OnlineDPO()),
    ("rollouts", Reinforce(baseline="leave_one_out")),
    ("rollouts", GRPO(minibatches=2)),
    ("rollouts", GRPO(kl="k2", average="sequence")),
    ("rollouts", GRPO(ratio="sequence", average="group", minibatches=2, entropy_coefficient=0.1)),
    ("rollouts", GRPO(objective="cispo", kl_to="old", kl_coefficient=0.2, minibatches=2)),
    ("steps", GRPO(kl_coefficient=0.0)),
    ("rollouts", PPO(bootstrap_truncated=True)),
    ("rollouts", PPO(whiten_advantages=False, value_clip=None, entropy_coefficient=0.1, kl_target=1.0)),
]


def test_every_method_is_masked():
    """Whatever a command can train with is in the list."""
    commands = (prefer.Prefer, reward.Reward, rl.RL, sft.Sft)
    known = {m for command in commands for m in union_members(get_type_hints(command)["algorithm"]).values()}
    assert {type(algorithm) for _, algorithm in MASKED} == known


@pytest.mark.parametrize(("kind", "algorithm"), MASKED, ids=lambda x: getattr(x, "name", x))
def test_what_is_masked_has_no_say(kind, algorithm, nets, batch_of):
    """Invariant 4, bit for bit: NaN log-probs, advantages, returns and values under the mask, other ids on the padding."""
    net, batch = nets("full", float64=False), batch_of(kind, "full", float64=False)
    clean, state, measured = algorithm.prepare(net.as_seen(), batch, algorithm.initial_state())
    # A reward model reads the last real token, said by whomever
    dirty, dirty_state, dirty_measured = algorithm.prepare(
        net.as_seen(), garbage(batch, everywhere=False), algorithm.initial_state()
    )
    assert (dirty_measured, dirty_state) == (measured, state)
    expected = gradients(algorithm, net, clean)
    after_the_end = algorithm.needs[0] == "policy" and not getattr(algorithm, "bootstrap_truncated", False)
    for spoiled in (dirty, garbage(clean, after_the_end), garbage(dirty, after_the_end)):
        loss, metrics, found = gradients(algorithm, net, spoiled)
        assert loss == expected[0]
        assert metrics == expected[1]
        assert found.keys() == expected[2].keys()
        for name, gradient in found.items():
            assert (gradient is None) == (expected[2][name] is None)
            assert gradient is None or torch.equal(gradient, expected[2][name]), name


@dataclasses.dataclass(frozen=True)
class Careless:
    """A model that says any number where nobody asked: 1000 nats, 1000 points."""

    model: object

    def logprobs(self, answers):
        return self.logprobs_and_entropy(answers)[0]

    def logprobs_and_entropy(self, answers):
        found = self.model.logprobs_and_entropy(answers)
        return tuple(torch.where(answers.mask, x, x - 1000.0) for x in found)

    def values(self, answers):
        values = self.model.values(answers)
        return torch.where(answers.mask, values, values + 1000.0)

    def scores(self, answers):
        return self.model.scores(answers)

    def prefix_values(self, answers):
        values = self.model.prefix_values(answers)
        return torch.where(prefix_mask(answers.mask, answers.lengths), values, values + 1000.0)

    def states(self, answers):
        states = self.model.states(answers)
        return torch.where(answers.mask[..., None], states, states + 1000.0)

    def readout(self, answers, states):
        return self.model.readout(answers, states)


@pytest.mark.parametrize(("kind", "algorithm"), MASKED, ids=lambda x: getattr(x, "name", x))
def test_what_a_model_says_under_the_mask_has_no_say(kind, algorithm, nets, batch_of):
    net, batch = nets("full", float64=False), batch_of(kind, "full", float64=False)

    def step(models):
        for parameter in net.parameters.values():
            parameter.grad = None
        prepared, state, measured = algorithm.prepare(models, batch, algorithm.initial_state())
        loss, averages = accumulate(algorithm, models, prepared, ALL)
        found = [p.grad.clone() for p in net.parameters.values() if p.grad is not None]
        return (loss, averages.means(), measured, state), found

    models = net.as_seen()
    figures, found = step(models)
    careless = Models(*(Careless(getattr(models, f.name)) for f in dataclasses.fields(Models)))
    same_figures, same = step(careless)
    assert figures == same_figures
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


def rollouts(lengths, group, rewards, finished=None):
    """Answers of these lengths to len/group prompts of two tokens, from a sampler that was the policy."""
    rows = [[(31 * r + 7 * t) % 250 for t in range(n)] for r, n in enumerate(lengths)]
    answers = sequences([(1, 2 + p) for p in range(len(rows) // group)], [r // group for r in range(len(rows))], rows)
    ended = [True] * len(rows) if finished is None else finished
    return Rollouts(answers, torch.tensor(rewards), torch.full(answers.tokens.shape, -1.0), torch.tensor(ended))


EDGES = {
    "truncated": rollouts([4, 4], 2, [1.0, 0.0], [False, False]),
    "an empty answer": rollouts([0, 3], 2, [-1.0, 1.0]),
    "all equal": rollouts([3, 2, 1, 2], 2, [0.1, 0.1, 0.7, 0.7]),
    "one token": rollouts([1, 1], 2, [1.0, 0.0]),
    "one token in all": rollouts([1], 1, [1.0]),
    "one answer a prompt": rollouts([3, 2], 1, [1.0, 0.0]),
    "one answer": rollouts([3], 1, [2.0]),
    "huge rewards": rollouts([2, 3], 2, [1e6, -1e6]),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    "algorithm",
    [
        *(Reinforce(baseline=b) for b in ("none", "running_mean", "group_mean", "leave_one_out")),
        GRPO(),
        GRPO(advantage="center", average="constant", max_length=4, overlong=0.5, minibatches=2),
        GRPO(ratio="sequence", minibatches=2),
        GRPO(objective="cispo", average="group", minibatches=2),
        GRPO(average="sequence"),
        PPO(),
        PPO(bootstrap_truncated=True, whiten_advantages=False, missing_end_penalty=1.0, kl_target=1.0),
    ],
    ids=lambda a: f"{a.name} {getattr(a, 'baseline', '')}{getattr(a, 'average', '')}",
)
def test_edge_groups_have_finite_gradients(edge, algorithm, nets):
    """Invariant 7."""
    net = nets("lora", float64=False)
    prepared, state, measured = algorithm.prepare(net.as_seen(), EDGES[edge], algorithm.initial_state())
    loss, metrics, found = gradients(algorithm, net, prepared)
    figures = [loss, *measured.values(), *metrics.values(), *dataclasses.asdict(state).values()]
    assert all(math.isfinite(figure) for figure in figures), (measured, metrics)
    assert all(bool(g.isfinite().all()) for g in found.values() if g is not None)
    assert any(g is not None for name, g in found.items() if name.startswith("policy"))


def test_a_group_with_nothing_to_compare_teaches_nothing(nets):
    """GRPO on groups of equal rewards beside one that differs: only the one that differs moves the policy."""
    net, algorithm = nets("lora", float64=False), GRPO(kl_coefficient=0.0)
    batch = rollouts([3, 2, 2, 4], 2, [0.3, 0.3, 1.0, 0.0])
    prepared, _, measured = algorithm.prepare(net.as_seen(), batch, algorithm.initial_state())
    assert measured["reward/equal_groups"] == 0.5
    assert not prepared.advantages[:2].any()
    assert prepared.advantages[2:].any()
    # its tokens stay in the denominator: half of the step's eleven tokens would otherwise count double
    assert algorithm.weights(prepared).sum(1).tolist() == pytest.approx([3 / 11, 2 / 11, 2 / 11, 4 / 11])


def test_models_name_what_is_missing():
    assert Models().missing(PPO().needs) == ["policy", "value", "reference"]
    assert Models().missing(PPO(kl_coefficient=0.0).needs) == ["policy", "value"]
