"""One trunk for policy and value: one forward says what two would; per-row temperatures; what reaches the shared weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.testing import assert_close

from tutelage.algorithms.base import Models
from tutelage.algorithms.ppo import PPO
from tutelage.data.batch import Rollouts, Sequences, sequences
from tutelage.data.sampled import at_temperature
from tutelage.models.actor_critic import ActorCriticModel
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.lora import LoRA, add_lora
from tutelage.models.tiny import tiny
from tutelage.training.update import accumulate

ROWS = sequences(
    [(5, 6, 7), (8,)], [0, 0, 1, 1], [[20, 21, 22], [30], [40, 41], []],
    [[True, False, True], [True], [True, True], []],
)  # fmt: skip
BATCH = Rollouts(
    ROWS, torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64), torch.full((4, 3), -3.0, dtype=torch.float64),
    torch.tensor([True, True, False, True]),
)  # fmt: skip
METHOD = PPO(kl_coefficient=0.0, bootstrap_truncated=True)


def shared(lora: bool = False, plain: bool = False) -> ActorCriticModel:
    module = tiny(hidden=16, heads=2, kv_heads=1, float64=True, std=0.3)[0]
    policy = add_lora(module, LoRA(rank=2), task="CAUSAL_LM") if lora else module
    headed = HeadedModel(new_scalar_model(policy, seed=3), plain=plain)
    return ActorCriticModel(policy, 0.8, plain=plain, value=headed)


def apart(both: ActorCriticModel) -> Models:
    """The same weights as two models, each with a forward of its own."""
    return Models(policy=CausalModel(both.module, 0.8), value=both.value)


def gradient(models: Models, module: torch.nn.Module, tokens: int) -> list[torch.Tensor]:
    module.zero_grad()
    prepared = METHOD.prepare(models, BATCH, METHOD.initial_state())[0]
    accumulate(METHOD, models, prepared, tokens)
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("lora", [False, True])
def test_one_forward_says_what_two_would(lora):
    both = shared(lora)
    two = apart(both)
    assert two.policy is not None
    assert two.value is not None
    for rows in (ROWS, ROWS[[1, 3]], ROWS[[3]]):
        found = both.logprobs_entropy_values(rows)
        for x, y in zip(found, (*two.policy.logprobs_and_entropy(rows), two.value.values(rows)), strict=True):
            assert_close(x, y, rtol=0, atol=1e-12)
    assert_close(both.values(ROWS), two.value.values(ROWS))
    assert_close(both.scores(ROWS), two.value.scores(ROWS))
    with torch.no_grad():
        assert_close(replace(both, tokens_per_pass=3).logprobs_entropy_values(ROWS), both.logprobs_entropy_values(ROWS))


@pytest.mark.parametrize("lora", [False, True])
def test_ppo_on_a_shared_trunk_obeys_the_law(lora):
    """Any split, packed or padded, one forward or two: the same gradient, and both losses reach the trunk."""
    both = shared(lora)
    module = both.value.module
    expected = gradient(Models(policy=both, value=both), module, 10**6)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    padded = replace(both, plain=True, value=replace(both.value, plain=True))
    for models, tokens in (
        (Models(policy=both, value=both), 1),
        (apart(both), 10**6),
        (Models(policy=padded, value=padded), 5),
    ):
        assert_close(gradient(models, module, tokens), expected, rtol=1e-9, atol=1e-11)


@dataclass(frozen=True, kw_only=True)
class Counting(ActorCriticModel):
    """Counts the forwards of each kind."""

    seen: list[str]

    def logprobs_entropy_values(self, answers: Sequences):
        self.seen.append("both")
        return super().logprobs_entropy_values(answers)

    def logprobs_and_entropy(self, answers: Sequences):
        raise AssertionError("a second forward")


def test_the_update_computes_the_trunk_once():
    both = shared()
    counted = Counting(both.module, 0.8, value=both.value, seen=[])
    gradient(Models(policy=counted, value=counted), both.value.module, 10**6)
    assert counted.seen == ["both"]


def test_the_value_loss_moves_the_policys_trunk():
    """With no advantage at all only the value learns, and on a shared trunk the policy's weights feel it."""
    both = shared()
    models = Models(policy=both, value=both)
    prepared = METHOD.prepare(models, BATCH, METHOD.initial_state())[0]
    silent = replace(prepared, advantages=torch.zeros_like(prepared.advantages))
    both.module.zero_grad()
    accumulate(METHOD, models, silent, 10**6)
    assert max(float(p.grad.abs().max()) for p in both.module.parameters() if p.grad is not None) > 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_read_at_the_temperature_they_were_drawn_at(tied):
    """Row by row the same as a model of that temperature; the model's own counts for rows that do not say."""
    module = tiny(hidden=16, heads=2, kv_heads=1, float64=True, std=0.3, tied=tied)[0]
    temperatures = (0.5, 1.0, 1.7, 2.0)
    rows = replace(at_temperature(ROWS, 1.0), temperature=temperatures)
    logp, entropy = CausalModel(module, 0.8).logprobs_and_entropy(rows)
    for row, temperature in enumerate(temperatures):
        other = CausalModel(module, temperature).logprobs_and_entropy(ROWS[[row]])
        assert_close((logp[[row]], entropy[[row]]), other, rtol=0, atol=1e-12)
    logp.sum().backward()
    mixed = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    sum(CausalModel(module, t).logprobs(ROWS[[row]]).sum() for row, t in enumerate(temperatures)).backward()  # type: ignore[union-attr]
    assert_close(mixed, [p.grad for p in module.parameters() if p.grad is not None], rtol=1e-9, atol=1e-11)
    assert_close(CausalModel(module, 0.8).logprobs(ROWS), CausalModel(module, 0.8).logprobs(at_temperature(ROWS, 0.8)))
