"""The law: however a step's rows are cut, ordered, laid out or padded, its gradient and its metrics are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.best_of_n import BestOfN
from tutelage.algorithms.distill import Distill
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.nash_md import NashMD
from tutelage.algorithms.online_dpo import OnlineDPO
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.algorithms.policy_gradient import RunningMean
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.preference import DPO, IPO
from tutelage.algorithms.preference_model import PreferenceModel
from tutelage.algorithms.reinforce import Reinforce
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.config import union_members
from tutelage.data.batch import Rows, Sequences
from tutelage.stages import prefer, reward, rl, sft
from tutelage.training.update import accumulate, minibatches

METHODS: dict[str, tuple[str, Any]] = {
    "sft": ("answers", SFT()),
    "sft sequence": ("answers", SFT(average="sequence")),
    "distill": ("answers", Distill()),
    "distill reverse": ("answers", Distill(divergence="reverse_kl", average="sequence")),
    "distill jensen_shannon": ("answers", Distill(divergence="jensen_shannon", beta=0.3)),
    "distill on policy": ("sampled", Distill(divergence="jensen_shannon")),
    "distill answers": ("answers", Distill(level="sequence")),
    "bradley_terry": ("pairs", BradleyTerry()),
    "bradley_terry off-centre": ("pairs", BradleyTerry(centering=0.0)),
    "dpo": ("pairs", DPO(beta=0.5)),
    "dpo smoothed": ("pairs", DPO(beta=0.5, label_smoothing=0.2)),
    "dpo with ties": ("pairs", DPO(beta=0.5, label_smoothing=0.1, margin_scale=0.3, nu=0.7)),
    "bradley_terry with ties": ("pairs", BradleyTerry(nu=1.5)),
    "ipo": ("pairs", IPO()),
    "ipo per token": ("pairs", IPO(tau=0.5, length="mean")),
    "kto": ("labelled", KTO(beta=0.5)),
    "kto weighted": ("labelled", KTO(beta=0.3, desirable_weight=2.0, undesirable_weight=0.5)),
    "preference_model": ("two answers", PreferenceModel()),
    "classifier": ("labelled", Classifier()),
    "regression": ("labelled", Regression()),
    "outcome_value": ("labelled", OutcomeValue()),
    "outcome_value as a probability": ("labelled", OutcomeValue(loss="cross_entropy")),
    "reinforce": ("rollouts", Reinforce(baseline="none", discount=0.9)),
    "reinforce running_mean": ("rollouts", Reinforce(baseline="running_mean", kl_coefficient=0.0)),
    "reinforce group_mean": ("rollouts", Reinforce(baseline="group_mean")),
    "rloo": ("rollouts", Reinforce(baseline="leave_one_out", kl_coefficient=0.3)),
    "rloo with one action": (
        "rollouts",
        Reinforce(credit="answer", baseline="leave_one_out", kl="k3", normalize="step"),
    ),
    "reinforce with values": ("rollouts", Reinforce(baseline="value", kl="k2", kl_in="loss", normalize="running")),
    "reinforce with a value of the prompt": (
        "rollouts",
        Reinforce(credit="answer", baseline="value", kl="ratio_k3", kl_in="loss", whiten_advantages=True),
    ),
    "reinforce by steps": ("steps", Reinforce(baseline="leave_one_out", kl="k2")),
    "nash_md": ("rollouts", NashMD()),
    "nash_md leave_one_out": ("rollouts", NashMD(baseline="leave_one_out", kl_coefficient=0.3, pool_every=2)),
    "best_of_n": ("rollouts", BestOfN()),
    "best_of_n half sequence": ("sampled", BestOfN(fraction=0.5, equal_groups="share", average="sequence")),
    "best_of_n sum": ("rollouts", BestOfN(fraction=0.3, average="sum")),
    "online_dpo": ("rollouts", OnlineDPO(beta=0.5)),
    "online_dpo at temperatures": ("sampled", OnlineDPO(beta=0.5, label_smoothing=0.1)),
    "grpo": ("rollouts", GRPO()),
    "grpo sequence k3": ("rollouts", GRPO(average="sequence", kl="k3", kl_coefficient=0.3)),
    "dr_grpo k2": ("rollouts", GRPO(advantage="center", average="constant", max_length=10, kl="k2", clip_high=0.28)),
    "grpo center without kl": ("rollouts", GRPO(advantage="center", kl_coefficient=0.0)),
    "grpo reused": ("rollouts", GRPO(passes=2, minibatches=3, kl_coefficient=0.3)),
    "grpo reused sequence": ("rollouts", GRPO(minibatches=2, average="sequence", kl="k2")),
    "dapo by groups": ("rollouts", GRPO(average="group", clip_high=0.28, overlong=0.5, max_length=6, minibatches=2)),
    "gspo": ("rollouts", GRPO(ratio="sequence", average="sequence", minibatches=2, kl_coefficient=0.0)),
    "cispo": ("rollouts", GRPO(objective="cispo", clip_low=1.0, clip_high=0.1, minibatches=2, kl_coefficient=0.0)),
    "grpo to the old policy": ("rollouts", GRPO(kl_to="old", kl_coefficient=0.5, passes=2, entropy_coefficient=0.1)),
    "grpo by steps": ("steps", GRPO(kl_coefficient=0.0, passes=2)),
    "grpo at temperatures": ("sampled", GRPO(kl_coefficient=0.3, passes=2)),
    "ppo": ("rollouts", PPO()),
    "ppo with a bonus": ("sampled", PPO(entropy_coefficient=0.1, missing_end_penalty=1.0, kl_target=0.5)),
    "ppo one minibatch": ("rollouts", PPO(minibatches=1, discount=0.9, value_clip=None, bootstrap_truncated=True)),
    "ppo without kl": ("rollouts", PPO(kl_coefficient=0.0, whiten_advantages=False, gae_lambda=1.0)),
}
MERGED = (
    "sft",
    "distill",
    "classifier",
    "regression",
    "outcome_value",
    "bradley_terry",
    "preference_model",
    "nash_md",
    "best_of_n",
    "online_dpo",
    "dpo",
    "ipo",
    "kto",
    "rloo",
    "grpo",
    "ppo",
)
QUICK = {type(algorithm): name for name, (_, algorithm) in reversed(METHODS.items())}
"""Each method's first setting is in the quick gate; the others are slow for their number."""
QUICK_LORA = ("sft", "bradley_terry", "dpo", "kto", "preference_model", "ppo")
"""With an adapter, one method for each kind of batch and network."""


def case(name: str, tuning: str) -> Any:
    """Every method is in the quick gate, and every setting of it in `make test`."""
    quick = QUICK_LORA if tuning == "lora" else QUICK.values() if tuning == "full" else ()
    return pytest.param(name, tuning, marks=() if name in quick else pytest.mark.slow)


CASES = [
    *(case(name, tuning) for name in METHODS for tuning in ("full", "lora")),
    *(case(name, "merged") for name in MERGED),
]
TOLERANCE = 1e-10
ALL = 10**9


@dataclass(frozen=True)
class Step:
    """What a step did: per optimiser step its gradient and metrics, and what `prepare` measured."""

    gradients: list[dict[str, Tensor]]
    metrics: list[dict[str, float]]
    prepared: dict[str, float]


def take_step(
    algorithm: Any, nets: Any, batch: Rows, assignment: list[Tensor], tokens: int = ALL, plain: bool = False,
    edit: Callable[[Any], Any] = lambda prepared: prepared,
) -> Step:  # fmt: skip
    """`prepare`, then each minibatch's gradient from the same weights (no optimiser between them)."""
    models = nets.as_seen(plain)
    state = RunningMean(0.3, 12) if isinstance(algorithm, Reinforce) else algorithm.initial_state()
    prepared, _, measured = algorithm.prepare(models, batch, state)
    prepared = edit(prepared)
    gradients, metrics = [], []
    # A method may make rows of its own (pairs) out of the batch's: one optimiser step takes all of them
    for rows in assignment if len(assignment) > 1 else [torch.arange(len(prepared))]:
        for parameter in nets.parameters.values():
            parameter.grad = None
        loss, averages = accumulate(algorithm, models, prepared[rows], tokens)
        found = {n: p.grad.clone() for n, p in nets.parameters.items() if p.grad is not None}
        gradients.append(found)
        metrics.append({**averages.means(), "summed loss": loss})
    return Step(gradients, metrics, dict(measured))


def assert_same(one: Step, other: Step) -> None:
    for a, b in zip(one.gradients, other.gradients, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).abs().max() <= TOLERANCE * max(1.0, float(a[name].abs().max())), name
    for a, b in zip([one.prepared, *one.metrics], [other.prepared, *other.metrics], strict=True):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-10)


def assert_alive(step: Step, algorithm: Any) -> None:
    """The comparison says nothing about gradients of zero."""
    trained = {"reward"} if "reward" in algorithm.needs else {"policy", "value"} & set(algorithm.needs)
    for found in step.gradients:
        assert {name.split("/")[0] for name in found} == trained
        assert max(float(g.abs().max()) for g in found.values()) > 1e-4


def whole(batch: Rows) -> Rows:
    """The same rows in a batch of their own."""
    return batch[list(range(len(batch)))]


def edit_sequences(batch: Any, change: Callable[[Sequences], Sequences], wide: Callable[[Tensor], Tensor]) -> Any:
    """`change` on every `Sequences` of a batch and `wide` on its other [B, T] fields."""
    if isinstance(batch, Sequences):
        return change(batch)
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    edited = {n: change(v) if isinstance(v, Sequences) else wide(v) if v.ndim == 2 else v for n, v in values.items()}
    return replace(batch, **edited)


def padded(batch: Any) -> Any:
    """Three more columns; what stands in them is no padding id but some token."""

    def wide(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full((len(x), 3), 77 if x.dtype == torch.long else 0, dtype=x.dtype)], dim=1)

    return edit_sequences(batch, lambda s: replace(s, tokens=wide(s.tokens), mask=wide(s.mask)), wide)


def own_prompts(batch: Any) -> Any:
    """Every row with a prompt of its own: nothing is shared."""

    def change(s: Sequences) -> Sequences:
        prompts = replace(s.prompts, tokens=tuple(s.prompts.tokens[p] for p in s.prompt_of.tolist()))
        return replace(s, prompts=prompts, prompt_of=torch.arange(len(s)))

    return edit_sequences(batch, change, lambda x: x)


@pytest.mark.parametrize(("name", "tuning"), CASES)
def test_the_law(name, tuning, nets, batch_of):
    kind, algorithm = METHODS[name]
    net, batch = nets(tuning), batch_of(kind, tuning)
    assignment = list(minibatches(len(batch), getattr(algorithm, "minibatches", 1), "seed"))
    expected = take_step(algorithm, net, batch, assignment)
    assert_alive(expected, algorithm)

    def same(changed: Rows = batch, rows: list[Tensor] = assignment, **how: Any) -> None:
        assert_same(expected, take_step(algorithm, net, changed, rows, **how))

    for tokens in (1, 13, 40):
        same(tokens=tokens)
    for order in (
        torch.arange(len(batch)).flip(0),
        torch.randperm(len(batch), generator=torch.Generator().manual_seed(4)),
    ):
        place = torch.argsort(order)  # row r of the batch now stands at place[r]; its minibatch stays the same
        same(batch[order], [place[rows] for rows in assignment], tokens=30)
    same(padded(batch))
    same(plain=True)
    if getattr(algorithm, "average", None) != "group":  # there the prompt names the group that a token is averaged over
        same(edit=own_prompts)
    if kind in ("answers", "pairs"):
        same(own_prompts(batch), tokens=20)


def test_every_method_is_here():
    """Each member of the commands' unions, and each choice that changes the maths, has a case."""
    commands = (prefer.Prefer, reward.Reward, rl.RL, sft.Sft)
    known = {m for command in commands for m in union_members(get_type_hints(command)["algorithm"]).values()}
    listed = [algorithm for _, algorithm in METHODS.values()]
    assert known == {type(algorithm) for algorithm in listed}
    assert {METHODS[name][1].name for name in MERGED} >= {kind.name for kind in known}
    assert set(QUICK) == known
    for kind in known:
        for field, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal:
                assert {getattr(a, field) for a in listed if isinstance(a, kind)} == set(get_args(hint)), (kind, field)
