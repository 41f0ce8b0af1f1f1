"""The chunked distillation head against the plain computation over [B, T, V]: values and every weight's gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tutelage.data.batch import sequences
from tutelage.data.sampled import at_temperature
from tutelage.functional.distill import forward_kl, jensen_shannon, reverse_kl
from tutelage.models import distribution
from tutelage.models.distribution import DistributionModel, compare_distributions, spread
from tutelage.models.logprobs import CausalModel
from tutelage.models.tiny import tiny

SIZE = {"heads": 2, "kv_heads": 1, "std": 0.3}
BATCH = sequences(
    [(5, 6, 7), (8,)],
    [0, 1, 0, 1],
    [[20, 21, 22, 23], [30], [40, 41, 42], []],
    [[True, False, True, True], [True], [True] * 3, []],
)
DISTANCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": lambda p, q: jensen_shannon(p, q, 0.3),
}


def models(tied: bool = True, float64: bool = True, student_vocabulary: int = 259):
    """A student and a wider teacher whose embedding has more rows."""
    student = tiny(vocabulary=student_vocabulary, hidden=16, tied=tied, float64=float64, **SIZE)[0]
    teacher = tiny(vocabulary=264, hidden=24, float64=float64, seed=5, **SIZE)[0]
    return student, teacher.requires_grad_(False)


def chunked(student, teacher, distance, batch=BATCH, temperature=0.7):
    pupil, master = DistributionModel(student, temperature), DistributionModel(teacher, temperature)
    with torch.no_grad():
        states = master.states(batch)
    readouts = master.readout(batch, states), pupil.readout(batch, pupil.states(batch))
    found = compare_distributions(*readouts, int(batch.mask.sum()), lambda p, q: (distance(p, q),))
    return spread(found[0], batch.mask)


def plain(student, teacher, distance, batch=BATCH, temperatures=(0.7,) * 4):
    """Row by row, all logits at once, straight from the models; the teacher's extra columns cut away."""
    out = torch.zeros(batch.tokens.shape, dtype=torch.float64)
    for b, (p, n) in enumerate(zip(batch.prompt_of.tolist(), batch.lengths.tolist(), strict=True)):
        prompt = batch.prompts.tokens[p]
        row = torch.tensor([[*prompt, *batch.tokens[b, :n].tolist()]])
        width = min(student.config.vocab_size, teacher.config.vocab_size)
        logp = [(m(row).logits[0, :, :width] / temperatures[b]).log_softmax(-1) for m in (teacher, student)]
        at = torch.arange(len(prompt) - 1, len(prompt) - 1 + n)
        here = distance(logp[0][at], logp[1][at])
        out[b, :n] = torch.where(batch.mask[b, :n], here, 0.0)
    return out


@pytest.mark.parametrize("piece", [1, 3, 128])
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("tied", [True, False])
def test_chunked_is_plain(piece, name, tied, monkeypatch):
    monkeypatch.setattr(distribution, "PIECE", piece)
    student, teacher = models(tied)
    up = torch.rand(BATCH.tokens.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for way in (chunked, plain):
        student.zero_grad()
        losses = way(student, teacher, DISTANCES[name])
        (up * losses).sum().backward()
        found.append((losses.detach(), {n: p.grad.clone() for n, p in student.named_parameters()}))
    (ours, gradients), (exact, expected) = found
    assert_close(ours, exact, atol=1e-10, rtol=0)
    assert ours[BATCH.mask].min() > 1e-3
    for parameter, gradient in expected.items():
        assert_close(gradients[parameter], gradient, atol=1e-10, rtol=0, msg=parameter)


def test_each_row_at_the_temperature_it_was_drawn_at():
    student, teacher = models()
    temperatures = (0.5, 0.8, 1.0, 1.5)
    drawn = replace(at_temperature(BATCH, 1.0), temperature=temperatures)
    ours = chunked(student, teacher, forward_kl, drawn)
    assert_close(ours, plain(student, teacher, forward_kl, BATCH, temperatures), atol=1e-10, rtol=0)


def test_a_smaller_teacher_vocabulary_is_cut_the_same_way():
    """264 rows against 270: only ids that both have are compared."""
    student, teacher = models(student_vocabulary=270)
    assert_close(chunked(student, teacher, reverse_kl), plain(student, teacher, reverse_kl), atol=1e-10, rtol=0)


def test_any_other_head():
    """A biased head goes through the module itself."""
    student, teacher = models(tied=False)
    student.lm_head.bias = nn.Parameter(torch.linspace(-1, 1, 259, dtype=torch.float64))
    ours, exact = (way(student, teacher, forward_kl) for way in (chunked, plain))
    assert_close(ours, exact, atol=1e-10, rtol=0)


def test_no_more_logits_at_once_than_a_piece(monkeypatch):
    """Forward and backward: what the house promises of memory."""
    monkeypatch.setattr(distribution, "PIECE", 3)
    student, teacher = models()
    seen = []

    def watched(p, q):
        seen.append(p.shape[0])
        return forward_kl(p, q)

    chunked(student, teacher, watched).sum().backward()
    assert max(seen) == 3
    assert sum(seen) == 2 * int(BATCH.mask.sum()), "each piece once forward and once again in backward"


def test_low_precision_states_are_compared_in_fp32():
    student, teacher = models(float64=False)
    for model in (student, teacher):
        model.to(torch.bfloat16)
    losses = chunked(student, teacher, forward_kl)
    assert losses.dtype == torch.float32
    losses.sum().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


def test_states_without_gradient_come_back_in_order():
    student, _ = models()
    exact = DistributionModel(student).states(BATCH).detach()
    with torch.no_grad():
        for tokens in (1, 8, 10**6):
            pieces = DistributionModel.of(CausalModel(student, tokens_per_pass=tokens)).states(BATCH)
            assert_close(pieces, exact, atol=1e-10, rtol=0)
    assert not exact[~BATCH.mask].any()


@pytest.mark.parametrize(("name", "beta"), [("forward_kl", 0), ("reverse_kl", 1), ("jensen_shannon", 0.3)])
def test_agrees_with_trl(name, beta):
    """TRL's own generalised Jensen-Shannon loss (GKD) on random logits, with gradients."""
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer", reason="TRL absent: the test extra installs it")
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 5, 11, generator=generator)
    labels = torch.tensor([[1, -100, 1, 1, -100]] * 3)
    found = []
    for ours in (True, False):
        student = logits[1].clone().requires_grad_()
        if ours:
            p, q = (x.div(0.7).log_softmax(-1) for x in (logits[0], student))
            loss = DISTANCES[name](p, q)[labels != -100].sum()
        else:
            loss = gkd.GKDTrainer.generalized_jsd_loss(student, logits[0], labels, beta, 0.7, reduction="sum")
        loss.backward()
        found.append((loss.detach(), student.grad))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, atol=1e-5, rtol=1e-5)
