"""KL terms, exact by enumeration: the gradient that each estimator really has in each place, and where training ends.

Expectations are sums over all answers through the shipped `prepare`, `weights` and `losses`, as in
test_enumeration_policy.py; the divergences on the right are computed from whole tables, without any estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tabular import Words, World, ascent, grad_return, gradient, make_world, sampled_by_another, state_number, step_loss
from tutelage.algorithms import policy_gradient
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.policy_gradient import RunningMean
from tutelage.algorithms.reinforce import Reinforce
from tutelage.functional.kl import estimate, k1, k2, k3

BETA, LONGEST, EXACT = 0.3, 5, 1e-7
world = lru_cache(partial(make_world, 3, 2, 3))


@lru_cache
def silent(vocabulary: int = 3, length: int = 2) -> World:
    """No task reward: what moves the policy is the KL alone."""
    spoken = make_world(vocabulary, length, 3)
    return replace(spoken, rewards=torch.zeros_like(spoken.rewards))


def visits(world: World, model: Any = None) -> Tensor:
    """How often each state is reached by an answer that goes on, [S]; a constant for the gradient."""
    reached = torch.zeros(len(world.logits), dtype=torch.float64)
    for p, answer in zip(world.probabilities(model).tolist(), world.answers, strict=True):
        for t in range(len(answer)):
            reached[state_number(answer[:t], world.logits.shape[1])] += p
    return reached


def at_visited_states(world: World, backwards: bool = False, model: Any = None) -> Tensor:
    """sum over states of d(s) grad KL(pi, ref at s), `backwards` of KL(ref, pi at s); d, of `model`, held fixed."""
    pi, ref = world.logits.log_softmax(-1), world.reference.logits.log_softmax(-1)
    divergence = (ref.exp() * (ref - pi)).sum(-1) if backwards else (pi.exp() * (pi - ref)).sum(-1)
    return torch.autograd.grad((visits(world, model) * divergence).sum(), world.logits)[0]


def of_answers(world: World, backwards: bool = False) -> Tensor:
    """grad KL(pi, ref) between the distributions of whole answers; `backwards` grad KL(ref, pi)."""
    q = world.probabilities(world.reference)
    if backwards:
        return gradient(world, lambda p: (q * (q.log() - p.log())).sum())
    return gradient(world, lambda p: (p * (p.log() - q.log())).sum())


def mean_of_k2(world: World, per_answer: bool) -> Tensor:
    """grad E[(log pi/ref)^2 / 2]: of the whole answer, or summed over its tokens; the values move too."""
    gap = torch.where(world.batch.mask, world.policy.logprobs(world.batch) - world.reference.logprobs(world.batch), 0.0)
    squares = gap.sum(-1).square() / 2 if per_answer else (gap.square() / 2).sum(-1)
    return torch.autograd.grad((world.probabilities() * squares).sum(), world.logits)[0]


def nothing(world: World) -> Tensor:
    return torch.zeros_like(world.logits)


BACKWARDS = partial(at_visited_states, backwards=True)
TABLE: dict[tuple[str, str, str], Callable[[World], Tensor]] = {
    # credit, place, estimator: what the term descends
    ("token", "loss", "k1"): nothing,
    ("token", "loss", "k2"): at_visited_states,
    ("token", "loss", "k3"): BACKWARDS,
    ("token", "loss", "ratio_k3"): at_visited_states,
    ("token", "reward", "k1"): of_answers,
    ("token", "reward", "k2"): lambda w: mean_of_k2(w, per_answer=False) - at_visited_states(w),
    ("token", "reward", "k3"): lambda w: of_answers(w) - BACKWARDS(w),
    ("token", "reward", "ratio_k3"): lambda w: of_answers(w) - BACKWARDS(w),
    ("answer", "loss", "k1"): nothing,
    ("answer", "loss", "k2"): of_answers,
    ("answer", "loss", "k3"): partial(of_answers, backwards=True),
    ("answer", "loss", "ratio_k3"): of_answers,
    ("answer", "reward", "k1"): of_answers,
    ("answer", "reward", "k2"): lambda w: mean_of_k2(w, per_answer=True) - of_answers(w),
    ("answer", "reward", "k3"): lambda w: of_answers(w) - of_answers(w, backwards=True),
    ("answer", "reward", "ratio_k3"): lambda w: of_answers(w) - of_answers(w, backwards=True),
}
DIRECTIONS = {
    "KL(pi, ref) of answers": of_answers,
    "KL(ref, pi) of answers": partial(of_answers, backwards=True),
    "KL(pi, ref) at states": at_visited_states,
    "KL(ref, pi) at states": BACKWARDS,
}


def test_the_instance_tells_every_direction_apart() -> None:
    found = [
        truth(world()) for truth in [*DIRECTIONS.values(), *(truth for truth in TABLE.values() if truth != nothing)]
    ]
    assert min(float(g.norm()) for g in found) > 0.01
    four = [truth(world()) for truth in DIRECTIONS.values()]
    assert min(float((a - b).norm()) for n, a in enumerate(four) for b in four[:n]) > 0.01


@pytest.mark.parametrize("size", [(3, 2), (4, 3)], ids=str)
@pytest.mark.parametrize("cell", TABLE, ids=" ".join)
def test_the_table_of_gradients(cell: tuple[str, str, str], size: tuple[int, int]) -> None:
    """functional/kl.py's table, and that at the level of whole answers."""
    where = silent(*size)
    credit, place, name = cell
    method = Reinforce(baseline="none", credit=credit, kl=name, kl_in=place, kl_coefficient=BETA)  # type: ignore[arg-type]
    assert float((ascent(method, where, 1) + BETA * TABLE[cell](where)).norm()) < EXACT


@pytest.mark.parametrize(
    ("credit", "baseline"),
    [("token", "running_mean"), ("token", "leave_one_out"), ("token", "value"), ("answer", "leave_one_out")],
)
def test_k1_in_the_reward_beside_a_task_reward(credit: str, baseline: str) -> None:
    """grad (J - beta KL(pi, ref)) whatever the baseline, which sees the KL too."""
    method = Reinforce(baseline=baseline, credit=credit, kl_coefficient=BETA)  # type: ignore[arg-type]
    truth = grad_return(world()) - BETA * of_answers(world())
    state = RunningMean(0.7, 12) if baseline == "running_mean" else None
    assert float((ascent(method, world(), 2, state) - truth).norm()) < EXACT
    assert min(float((truth - other).norm()) for other in (grad_return(world()), 0 * truth)) > 0.01


@pytest.mark.parametrize(
    ("name", "truth"), [("k2", at_visited_states), ("ratio_k3", at_visited_states), ("k3", BACKWARDS)]
)
def test_grpo_descends_a_kl_that_the_group_mean_makes_stronger(name: str, truth: Callable[[World], Tensor]) -> None:
    """The baseline shrinks the reward's gradient by 1 - 1/G and leaves the KL's alone: beta acts as beta G / (G - 1)."""
    size = 3
    method = GRPO(
        advantage="center", average="constant", max_length=LONGEST, kl_coefficient=BETA, kl=name,  # type: ignore[arg-type]
    )  # fmt: skip
    expected = ((1 - 1 / size) * grad_return(world()) - BETA * truth(world())) / LONGEST
    assert float((ascent(method, world(), size) - expected).norm()) < EXACT


@pytest.mark.parametrize("name", ["ratio_k3", "k2"])
def test_answers_of_an_old_policy(name: str) -> None:
    """ratio_k3 knows who sampled: grad KL(pi, ref) at the states that the old policy visits. k2 does not."""
    old = sampled_by_another(silent(), 5)
    method = GRPO(
        advantage="center", average="constant", max_length=LONGEST, passes=2, kl_coefficient=BETA, kl=name,  # type: ignore[arg-type]
    )  # fmt: skip
    gap = LONGEST * ascent(method, old, 2) + BETA * at_visited_states(old, model=old.sampler)
    assert (float(gap.norm()) < EXACT) == (name == "ratio_k3")
    assert float((at_visited_states(old, model=old.sampler) - at_visited_states(old)).norm()) > 1e-3


def test_discounting_spoils_the_kl() -> None:
    """With gamma < 1 the first tokens answer for less of it."""
    method = Reinforce(baseline="none", kl_coefficient=BETA, discount=0.5)
    assert float((ascent(method, silent(), 1) + BETA * of_answers(silent())).norm()) > 1e-3


def test_one_action_has_nothing_to_discount() -> None:
    with pytest.raises(ValueError, match="nothing to discount"):
        Reinforce(credit="answer", discount=0.5)


# Where training ends


def everything_at_once(method: Any, world: World) -> Tensor:
    """`ascent` on groups of one as a single step: every answer a row, each loss counting p(y) times the rows."""
    rollouts = world.rollouts(*((n,) for n in range(len(world.answers))))
    share = len(world.answers) * world.probabilities().detach()

    @dataclass(frozen=True)
    class Weighted:
        prepare, losses, initial_state = method.prepare, method.losses, method.initial_state

        def weights(self, batch: Any) -> Tensor:
            return method.weights(batch) * share[:, None]

    return -torch.autograd.grad(step_loss(Weighted(), world, rollouts), world.logits)[0]


def trained(method: Any, world: World, steps: int = 50) -> Tensor:
    """The answers' probabilities after ascent along the natural gradient: each cell's divided by d(s) pi(a|s).

    Against KL(ref, pi), which soars where pi is small, by d(s) max(pi, ref): shorter steps to the same end.
    """
    world = replace(world, policy=replace(world.policy, logits=world.logits.detach().clone().requires_grad_()))
    for _ in range(steps):
        now = replace(world, sampler=world.policy)  # a new object: what it has computed is of these logits
        move = everything_at_once(method, now)
        with torch.no_grad():
            pi, ref = world.logits.softmax(-1), world.reference.logits.softmax(-1)
            reached = visits(now)[:, None] * (torch.maximum(pi, ref) if method.kl == "k3" else pi)
            world.logits.add_(torch.where(reached > 0, move / reached, 0.0))
    return world.probabilities().detach()


def tilted(world: World, beta: float) -> Tensor:
    """pi* = pi_ref exp(R / beta) / Z: the optimum of J - beta KL(pi, ref)."""
    tilt = world.probabilities(world.reference).detach() * torch.exp(world.rewards / beta)
    return tilt / tilt.sum()


def by_states(world: World, rule: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The fixed point of a rule (Q at a state, ref at the state) -> pi at the state, solved from the last state back.

    Q is what the task alone will pay: a loss at each state does not know of the KL that later states will cost.
    """
    ref = world.reference.logits.softmax(-1)
    rewards = dict(zip(world.answers, world.rewards.tolist(), strict=True))
    chosen: dict[int, Tensor] = {}

    def value(said: Words) -> float:
        number = state_number(said, ref.shape[1])
        ahead = [(*said, a) for a in range(ref.shape[1])]
        q = torch.tensor([rewards[s] if s in rewards else value(s) for s in ahead], dtype=ref.dtype)
        chosen[number] = rule(q, ref[number])
        return float((chosen[number] * q).sum())

    value(())
    table = torch.stack([chosen.get(n, row) for n, row in enumerate(ref)]).log()
    return world.probabilities(replace(world.policy, logits=table))


def softmax_rule(q: Tensor, ref: Tensor, beta: float) -> Tensor:
    """ref exp(Q / beta) / Z: the optimum of E[Q] - beta KL(pi, ref) at one state."""
    return (ref.log() + q / beta).softmax(-1)


def backwards_rule(q: Tensor, ref: Tensor, beta: float) -> Tensor:
    """beta ref / (lambda - Q): the optimum of E[Q] - beta KL(ref, pi) at one state, lambda by bisection."""
    low, high = float(q.max()), float(q.max()) + beta * len(q)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float((beta * ref / (middle - q)).sum()) > 1 else (low, middle)
    return beta * ref / (high - q)


STRONG = 0.6
ENDS: dict[str, tuple[dict[str, Any], Callable[[World], Tensor]]] = {
    "k1 in the reward": ({"kl": "k1", "kl_in": "reward"}, partial(tilted, beta=STRONG)),
    "k1 in the reward of one action": ({"credit": "answer"}, partial(tilted, beta=STRONG)),
    "k2 in the loss of one action": ({"credit": "answer", "kl": "k2", "kl_in": "loss"}, partial(tilted, beta=STRONG)),
    "k2 in the loss": ({"kl": "k2", "kl_in": "loss"}, partial(by_states, rule=partial(softmax_rule, beta=STRONG))),
    "ratio_k3 in the loss": (
        {"kl": "ratio_k3", "kl_in": "loss"}, partial(by_states, rule=partial(softmax_rule, beta=STRONG))
    ),
    "k3 in the loss": ({"kl": "k3", "kl_in": "loss"}, partial(by_states, rule=partial(backwards_rule, beta=STRONG))),
}  # fmt: skip
SLIPS: dict[str, tuple[str, Any]] = {
    "k1 in the place of the estimator": ("estimate", lambda name, logp, ref, old=None: k1(logp, ref)),
    "k2 in the place of the estimator": ("estimate", lambda name, logp, ref, old=None: k2(logp, ref)),
    "k3 in the place of the estimator": ("estimate", lambda name, logp, ref, old=None: k3(logp, ref)),
    "wrong sign": ("estimate", lambda *a: -estimate(*a)),
    "policy and reference exchanged": ("estimate", lambda name, logp, ref, old=None: estimate(name, ref, logp)),
}
REJECTED = {
    "k1 in the reward": ("k2 in the place of the estimator", "wrong sign", "policy and reference exchanged"),
    "k1 in the reward of one action": ("k3 in the place of the estimator", "wrong sign"),
    "k2 in the loss of one action": ("k1 in the place of the estimator", "k3 in the place of the estimator"),
    "k2 in the loss": ("k1 in the place of the estimator", "k3 in the place of the estimator"),
    "ratio_k3 in the loss": ("k1 in the place of the estimator", "k3 in the place of the estimator"),
    "k3 in the loss": ("k1 in the place of the estimator", "k2 in the place of the estimator"),
}


def method_of(name: str) -> Reinforce:
    return Reinforce(baseline="none", kl_coefficient=STRONG, **ENDS[name][0])


def furthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().nan_to_num(1.0).max())


def test_one_step_over_every_answer_is_the_expected_step() -> None:
    for name in ENDS:
        method = method_of(name)
        assert float((everything_at_once(method, world()) - ascent(method, world(), 1)).norm()) < EXACT


def test_the_ends_differ_from_each_other_and_from_the_start() -> None:
    ends = [tilted(world(), STRONG), *(ENDS[name][1](world()) for name in ("k2 in the loss", "k3 in the loss"))]
    ends += [world().probabilities().detach(), world().probabilities(world().reference)]
    assert all(float(end.sum()) == pytest.approx(1) for end in ends)
    assert min(furthest(a, b) for n, a in enumerate(ends) for b in ends[:n]) > 0.01


@pytest.mark.parametrize("name", ENDS)
def test_where_training_ends(name: str) -> None:
    """k1 in the reward reaches pi*; a KL held in the loss ends elsewhere, at a point that can be computed."""
    assert furthest(trained(method_of(name), world()), ENDS[name][1](world())) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slip"), [(name, slip) for name, slips in REJECTED.items() for slip in slips])
def test_slips_end_elsewhere(name: str, slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attribute, mutant = SLIPS[slip]
    monkeypatch.setattr(policy_gradient, attribute, mutant)
    assert furthest(trained(method_of(name), world(), steps=60), ENDS[name][1](world())) > 0.01


def no_reward_to_go(rewards: Tensor, mask: Tensor, discount: float) -> Tensor:
    return torch.where(mask, rewards, 0.0)


@pytest.mark.parametrize(("cell", "slip"), [
    (("token", "reward", "k1"), "each token its own KL only"),
    (("token", "loss", "k2"), "k1 in the place of the estimator"),
    (("token", "loss", "k3"), "wrong sign"),
    (("answer", "loss", "ratio_k3"), "k3 in the place of the estimator"),
    (("answer", "reward", "k2"), "k1 in the place of the estimator"),
    (("token", "reward", "k3"), "policy and reference exchanged"),
])  # fmt: skip
def test_the_table_rejects_slips(cell: tuple[str, str, str], slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if slip in SLIPS:
        monkeypatch.setattr(policy_gradient, *SLIPS[slip])
    else:
        monkeypatch.setattr("tutelage.algorithms.reinforce.reward_to_go", no_reward_to_go)
    credit, place, name = cell
    method = Reinforce(baseline="none", credit=credit, kl=name, kl_in=place, kl_coefficient=BETA)  # type: ignore[arg-type]
    assert float((ascent(method, silent(), 1) + BETA * TABLE[cell](silent())).norm()) > 0.01
