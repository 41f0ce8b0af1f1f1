"""One optimiser step: losses and metrics over the whole of it, gradients that are finite, rates by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import sequences
from tutelage.models.logprobs import CausalModel
from tutelage.models.tiny import tiny
from tutelage.training.optim import Optimization, adamw, learning_rate, named_trainable, set_learning_rate
from tutelage.training.update import Averages, accumulate, clip_gradients, minibatches


def model():
    return tiny(hidden=16, heads=2, kv_heads=1)[0]


BATCH = sequences([(5, 6), (7,)], [0, 1, 1], [[20, 21, 22, 23, 24], [30], [40, 41]])


@pytest.mark.parametrize("tokens", [1, 5, 10**6])
def test_the_loss_is_over_the_step_not_over_the_pieces(tokens):
    """Mean over 8 tokens; the mean of the rows' means, which a loop over micro-batches suggests, is another number."""
    module = model()
    with torch.no_grad():
        logp = CausalModel(module).logprobs(BATCH)
    loss, averages = accumulate(SFT(), Models(policy=CausalModel(module)), BATCH, tokens)
    assert loss == pytest.approx(-float(logp.sum()) / 8, abs=1e-6)
    rows = -logp.sum(1) / BATCH.lengths
    assert abs(loss - float(rows.mean())) > 0.01
    assert averages.means()["loss"] == pytest.approx(loss, abs=1e-6)
    assert averages.means()["accuracy/likely"] == float((logp[BATCH.mask] > math.log(0.5)).float().mean())
    assert averages.weight == pytest.approx(1.0)


def test_a_batch_that_trains_nothing_is_refused():
    masked = sequences([(5, 6)], [0, 0], [[20, 21], []], [[False, False], []])
    with pytest.raises(ValueError, match="every label is masked"):
        accumulate(SFT(), Models(policy=CausalModel(model())), masked, 100)


def test_pieces_that_count_for_nothing_cost_nothing():
    """A row without trained tokens that stands alone in its micro-batch is not computed, and changes nothing."""
    module, seen = model(), []
    module.model.register_forward_hook(lambda *_: seen.append(1))
    rows = [[20, 21], [30, 31, 32]]
    half = sequences([(5,), (6,)], [0, 1], rows, [[False, False], [True, False, True]])
    loss, _ = accumulate(SFT(), Models(policy=CausalModel(module)), half, 1)
    assert len(seen) == 1
    gradient = module.lm_head.weight.grad.clone()
    module.zero_grad()
    alone, _ = accumulate(SFT(), Models(policy=CausalModel(module)), half[[1]], 1)
    assert alone == loss
    assert torch.equal(module.lm_head.weight.grad, gradient)


def test_averages_by_hand():
    """Weights .25 and .75 of one piece, 1 of another: metric (2, 6) and 8 -> (.5 + 4.5 + 8) / 2; weight 0 hides a NaN."""
    averages = Averages()
    assert averages.means() == {}
    averages.add({"a": torch.tensor([2.0, 6.0, float("nan")])}, torch.tensor([0.25, 0.75, 0.0]))
    averages.add({"a": torch.tensor([8.0]), "flag": torch.tensor([True])}, torch.tensor([1.0]))
    assert averages.means() == {"a": 6.5, "flag": 0.5}


@given(st.integers(1, 40), st.integers(1, 9), st.text(max_size=5))
def test_minibatches_partition(count, parts, seed):
    """Every row once, sizes that differ by at most one, the same for the same seed."""
    pieces = [piece.tolist() for piece in minibatches(count, parts, seed)]
    assert sorted(row for piece in pieces for row in piece) == list(range(count))
    assert len(pieces) == min(count, parts)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert pieces == [piece.tolist() for piece in minibatches(count, parts, seed)]


def test_minibatches_are_shuffled_by_their_seed():
    def drawn(parts, seed):
        return [row for piece in minibatches(30, parts, seed) for row in piece.tolist()]

    assert drawn(3, "a") != drawn(3, "b") != sorted(drawn(3, "b"))
    assert drawn(1, "a") == list(range(30)), "one piece is the batch as it is"


def test_clipping_by_hand():
    """Gradient (3, 4) has norm 5; to norm 1 it is (.6, .8); below the limit it stays."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([weight], 10.0) == 5.0
    assert weight.grad.tolist() == [3.0, 4.0]
    assert clip_gradients([weight], 1.0) == 5.0
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(bad):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, bad])
    with pytest.raises(ValueError, match=r"gradient's norm is (nan|inf)"):
        clip_gradients([weight], 1.0)


def rates(steps: int, **settings) -> list[float]:
    return [learning_rate(Optimization(**settings), step, steps, 1.2) for step in range(steps)]


def test_learning_rates_by_hand():
    """Peak 1.2: two warm-up steps are a third and two thirds of it; `linear` and `cosine` reach the end on the last step."""
    assert rates(5) == pytest.approx([0.4, 0.8, 1.2, 1.2, 1.2])
    linear = rates(7, schedule="linear", final_fraction=0.5)
    assert linear == pytest.approx([0.4, 0.8, 1.2, 1.05, 0.9, 0.75, 0.6])
    cosine = rates(5, schedule="cosine", warmup_steps=0, final_fraction=0.0)
    assert cosine == pytest.approx([1.2, 0.6 * (1 + math.sqrt(0.5)), 0.6, 0.6 * (1 - math.sqrt(0.5)), 0.0])
    assert rates(1, schedule="linear", warmup_steps=0) == [1.2]
    assert rates(3, schedule="cosine", warmup_steps=5) == pytest.approx([0.2, 0.4, 0.6]), "a run that is all warm-up"


def test_adamw_takes_what_is_trainable():
    """One step of AdamW moves each weight by the rate against the sign of its gradient, beside the decay."""
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    before = module.weight.detach().clone()
    optimizer = adamw(module.parameters(), Optimization(weight_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    module.weight.grad = torch.tensor([[3.0, -0.2]])
    optimizer.step()
    expected = before * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(module.weight.detach(), expected)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_named_trainable_names_each_tensor_once():
    shared = nn.Linear(2, 2, bias=False)
    other = nn.Sequential(shared, nn.Linear(2, 1))
    other[1].bias.requires_grad_(False)
    assert list(named_trainable({"policy": shared, "value": other})) == ["policy/weight", "value/1.weight"]
