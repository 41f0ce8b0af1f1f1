"""Log-probs, entropies, values and scores: the fused head against plain torch, each number where it belongs."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from tutelage.data.batch import sequences
from tutelage.models import label_head
from tutelage.models.heads import new_scalar_model
from tutelage.models.label_head import _LabelHead, _plain_head, head_of, label_logprobs
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.tiny import tiny

ROW_TEMPERATURES = torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0, 0.9, 1.1]).double()
SIZE = {"hidden": 16, "heads": 2, "kv_heads": 1, "std": 0.3}
BATCH = sequences(
    [(5, 6, 7), (8,)],
    [0, 1, 0, 1],
    [[20, 21, 22, 23], [30], [40, 41, 42], []],
    [[True, False, True, True], [True], [True] * 3, []],
)


def inputs(labels: int = 7, hidden: int = 5, vocabulary: int = 11):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(labels, hidden, generator=generator, dtype=torch.float64)
    w = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64)
    y = torch.randint(0, vocabulary, (labels,), generator=generator)
    return h.requires_grad_(), w.requires_grad_(), y


def plain(h, w, y, temperature):
    rows = temperature[:, None] if isinstance(temperature, torch.Tensor) and temperature.ndim == 1 else temperature
    logp = (h @ w.T / rows).log_softmax(-1)
    return logp.gather(1, y[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def in_pieces_of(monkeypatch, rows, words):
    """Pieces of so many labels, parts of the vocabulary of so many tokens."""
    monkeypatch.setattr(label_head, "ROWS", rows)
    monkeypatch.setattr(label_head, "WORDS", words)


@pytest.mark.parametrize(("rows", "words"), [(2, 4), (7, 11), (3, 1), (1024, 5), (4, 2048)])
@pytest.mark.parametrize("temperature", [0.6, 1.0, ROW_TEMPERATURES])
def test_fused_is_plain(rows, words, temperature, monkeypatch):
    """Values and both gradients, for upstream gradients into log p, into the entropy and into both."""
    in_pieces_of(monkeypatch, rows, words)
    h, w, y = inputs()
    up = torch.randn(2, len(y), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        found = []
        for head in (_LabelHead.apply, plain):
            logp, entropy = head(h, w, y, temperature)
            loss = (a * up[0] * logp).sum() if not b else (a * up[0] * logp + b * up[1] * entropy).sum()
            found.append((logp.detach(), entropy.detach(), *torch.autograd.grad(loss, (h, w))))
        for fused, exact in zip(*found, strict=True):
            assert_close(fused, exact, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("words", [4, 2048])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_gradcheck(words, temperature, monkeypatch):
    in_pieces_of(monkeypatch, 3, words)
    h, w, y = inputs()
    assert gradcheck(lambda h, w: _LabelHead.apply(h, w, y, temperature), (h, w))
    assert gradcheck(lambda h: _LabelHead.apply(h, w.detach(), y, temperature), (h,))
    assert gradcheck(lambda h: _LabelHead.apply(h, w.detach(), y, temperature)[0], (h,))


def test_labels_at_the_borders_of_parts(monkeypatch):
    """Every token of the vocabulary is a label once: first and last of each part, and of the short part at the end."""
    in_pieces_of(monkeypatch, 4, 4)
    h, w, _ = inputs(labels=11)
    found = []
    for head in (_LabelHead.apply, plain):
        logp, _ = head(h, w, torch.arange(11), 1.0)
        found.append((logp.detach(), *torch.autograd.grad(logp.sum(), (h, w))))
    for fused, exact in zip(*found, strict=True):
        assert_close(fused, exact, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_large_logit_costs_no_digits(frozen, monkeypatch):
    """The same 3,000 added to every logit changes no p: the slopes of a label still add up to 0 in fp32.

    3,000 leaves a norm 2e-4 to be wrong by; p made from a rounded norm would be wrong by as much.
    """
    in_pieces_of(monkeypatch, 3, 4)
    h, w, y = (x.detach() for x in inputs())
    h, w = torch.cat([torch.full_like(h[:, :1], 3000), h], 1), torch.cat([torch.ones_like(w[:, :1]), w], 1)
    h, w = h.float().requires_grad_(), w.float().requires_grad_(not frozen)
    _LabelHead.apply(h, w, y, 1.0)[0].sum().backward()
    assert h.grad is not None
    assert_close(h.grad[:, 0], torch.zeros(len(y)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.6, 1.0, ROW_TEMPERATURES])
def test_a_frozen_head_makes_its_gradient_in_forward(temperature, monkeypatch):
    """Its logits are made once for log p; the entropy's gradient needs them again. Temperatures of rows too."""
    in_pieces_of(monkeypatch, 3, 4)
    h, w, y = inputs()
    w, rows = w.detach(), torch.as_tensor(temperature, dtype=torch.float64).expand(len(y))[:, None]
    up = torch.randn(2, len(y), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = []
    logits = label_head._logits
    monkeypatch.setattr(label_head, "_logits", lambda *args: made.append(args) or logits(*args))
    for a, b, again in ((1.0, 0.0, 0), (0.0, 1.0, 9), (1.0, 1.0, 9)):
        exact = torch.autograd.grad(
            (a * up[0] * plain(h, w, y, rows)[0] + b * up[1] * plain(h, w, y, rows)[1]).sum(), h
        )
        logp, entropy = _LabelHead.apply(h, w, y, temperature)
        made.clear()
        loss = (a * up[0] * logp).sum() if not b else (a * up[0] * logp + b * up[1] * entropy).sum()
        assert_close(torch.autograd.grad(loss, h), exact, atol=1e-12, rtol=1e-12)
        assert len(made) == again, "3 pieces of the labels and 3 parts of the vocabulary"


def test_gradients_into_one_side_only():
    """A frozen head gets none, and frozen hidden states get none."""
    h, w, y = inputs()
    expected = torch.autograd.grad(plain(h, w, y, 1.0)[0].sum(), (h, w))
    into_h = torch.autograd.grad(_LabelHead.apply(h, w.detach(), y, 1.0)[0].sum(), h)[0]
    into_w = torch.autograd.grad(_LabelHead.apply(h.detach(), w, y, 1.0)[0].sum(), w)[0]
    assert_close(into_h, expected[0])
    assert_close(into_w, expected[1])


def test_more_labels_than_a_piece_and_more_vocabulary_than_a_part():
    h, w, y = inputs(labels=label_head.ROWS + 89, hidden=4, vocabulary=label_head.WORDS + 9)
    for fused, exact in zip(_LabelHead.apply(h, w, y, 0.8), plain(h, w, y, 0.8), strict=True):
        assert_close(fused, exact)


def test_by_hand():
    """Logits (0, ln 3): p = (1/4, 3/4); at temperature 1/2 they double: p = (1/10, 9/10). Entropies of these."""
    h, w = torch.ones(1, 1), torch.tensor([[1.0], [3.0]]).log()
    for temperature, p in ((1.0, 0.75), (0.5, 0.9)):
        logp, entropy = _LabelHead.apply(h, w, torch.tensor([1]), temperature)
        exact = torch.tensor([p, 1 - p])
        assert_close(logp.exp(), exact[:1])
        assert_close(entropy, -(exact * exact.log()).sum()[None])


@pytest.mark.parametrize("chunk", [3, 512])
def test_any_other_head_is_plain_too(chunk, monkeypatch):
    """The path of biased or soft-capped heads; it stays in float64."""
    monkeypatch.setattr(label_head, "CHUNK", chunk)
    h, w, y = inputs()
    found = []
    for logp, entropy in (_plain_head(lambda x: x @ w.T, h, y, 0.7), plain(h, w, y, 0.7)):
        found.append((logp, entropy, *torch.autograd.grad((logp + 2 * entropy).sum(), (h, w))))
    for ours, exact in zip(*found, strict=True):
        assert_close(ours, exact, atol=1e-12, rtol=1e-12)


def test_low_precision_hidden_states_are_judged_in_fp32():
    """Two labels whose logits bfloat16 cannot tell apart: 200 and 200.5."""
    head = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[200.0, 0.0], [200.0, 0.5]]))

    class Model(torch.nn.Module):
        config = type("Config", (), {"model_type": "none"})()

        def get_output_embeddings(self):
            return head

    logp, _ = label_logprobs(Model(), torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([1]), 1.0)
    assert logp.dtype == torch.float32
    assert logp.item() == pytest.approx(torch.tensor([200.0, 200.5]).log_softmax(-1)[1].item(), abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_model_against_its_own_logits(tied):
    """Value and every weight's gradient, through one plain call of the model a row; tied weights get both contributions."""
    model, _ = tiny(**SIZE, tied=tied, float64=True)
    weights = torch.rand(BATCH.tokens.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logp, entropy = CausalModel(model, 0.7).logprobs_and_entropy(BATCH)
    (weights * (logp + 0.1 * entropy)).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for b, (p, n) in enumerate(zip(BATCH.prompt_of.tolist(), BATCH.lengths.tolist())):
        start = len(BATCH.prompts.tokens[p])
        row = torch.tensor([[*BATCH.prompts.tokens[p], *BATCH.tokens[b, :n].tolist()]])
        exact = (model(row).logits[0] / 0.7).log_softmax(-1)
        for t in range(n):
            if BATCH.mask[b, t]:
                here = exact[start + t - 1]
                assert_close(logp[b, t], here[row[0, start + t]], atol=1e-10, rtol=0)
                assert_close(entropy[b, t], -(here.exp() * here).sum(), atol=1e-10, rtol=0)
                total = total + weights[b, t] * (here[row[0, start + t]] - 0.1 * (here.exp() * here).sum())
    total.backward()
    assert ("lm_head.weight" in ours) is not tied
    for name, parameter in model.named_parameters():
        assert_close(ours[name], parameter.grad, atol=1e-10, rtol=1e-10)
    assert not logp[~BATCH.mask].any()
    assert not entropy[~BATCH.mask].any()


def test_values_before_each_token_scores_after_the_last():
    """V of token t is the head on the hidden state one before it; the score on the last real token (or the prompt's end)."""
    backbone = tiny(**SIZE, float64=True)[0].model
    module = new_scalar_model(backbone, seed=1)
    module.head.shift, module.head.scale = 0.25, 2.0
    model = HeadedModel(module)
    with torch.no_grad():
        values, scores = model.values(BATCH), model.scores(BATCH)
        for b, (p, n) in enumerate(zip(BATCH.prompt_of.tolist(), BATCH.lengths.tolist())):
            prompt = BATCH.prompts.tokens[p]
            row = torch.tensor([[*prompt, *BATCH.tokens[b, :n].tolist()]])
            exact = (backbone(row).last_hidden_state[0] @ module.head.weight[0] - 0.25) / 2.0
            assert_close(scores[b], exact[-1], atol=1e-10, rtol=0)
            for t in range(n):
                expected = exact[len(prompt) + t - 1] if BATCH.mask[b, t] else torch.zeros((), dtype=torch.float64)
                assert_close(values[b, t], expected, atol=1e-10, rtol=0)


def test_without_gradient_a_batch_is_cut_and_comes_back_in_order():
    """Rows out of prompt order, pieces of every size."""
    model, _ = tiny(**SIZE, float64=True)
    scalar = new_scalar_model(tiny(**SIZE, float64=True, seed=1)[0].model)
    expected = CausalModel(model).logprobs(BATCH).detach()
    scores = HeadedModel(scalar).scores(BATCH).detach()
    assert scores.unique().numel() == len(BATCH)
    with torch.no_grad():
        for tokens in (1, 8, 12, 10**6):
            assert_close(CausalModel(model, tokens_per_pass=tokens).logprobs(BATCH), expected, atol=1e-10, rtol=0)
            assert_close(HeadedModel(scalar, tokens_per_pass=tokens).scores(BATCH), scores, atol=1e-10, rtol=0)


def test_rows_with_nothing_to_train_on_have_a_gradient_of_zero():
    """A micro-batch of masked rows alone goes through backward like any other."""
    model, _ = tiny(**SIZE)
    batch = sequences([(5, 6)], [0, 0], [[20, 21], []], [[False, False], []])
    CausalModel(model).logprobs(batch).sum().backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_adapter_off_is_the_start():
    """The reference's log-probs are the plain model's, bit for bit, while the policy's have moved."""
    model, _ = tiny(**SIZE)
    before = CausalModel(model).logprobs(BATCH).detach()
    policy = add_lora(model, LoRA(rank=2, alpha=4))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    assert torch.equal(CausalModel(policy, context=reference_mode).logprobs(BATCH), before)
    assert (CausalModel(policy).logprobs(BATCH) - before).abs().max() > 0.01


def test_head_of_an_adapted_model_is_its_own():
    model, _ = tiny(**SIZE)
    assert head_of(add_lora(model, LoRA(rank=2, alpha=4))) is model.get_output_embeddings()
