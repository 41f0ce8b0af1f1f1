"""Our losses and gradients are TRL 1.16's: its own collators, loss code and fused head on the weights that ours run on.

Values, and gradients of every weight, to 1e-5 of the largest entry (TRL's head rounds to float32) on a random model with
ragged rows. Nothing of TRL's is retyped: a
trainer is made without its constructor and given the settings that its loss reads.
"""

from __future__ import annotations

import os
from collections import defaultdict
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from tutelage.algorithms.base import Models
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.preference import DPO, IPO, answer_logprobs
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Pairs, Rows, Sequences, sequences
from tutelage.data.labelled import LabelledWithPartner
from tutelage.functional.preference import hinge, orpo, simpo
from tutelage.models.heads import ScalarHead, ScalarModel
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.tiny import tiny
from tutelage.training.update import accumulate

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl", reason="trl absent: pip install 'tutelage[test]'")
from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer import dpo_trainer, kto_trainer, reward_trainer, sft_trainer  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402

CLOSE = {"rtol": 1e-5, "atol": 1e-8}
PROMPTS = ((5, 6, 7), (8,), (9, 10, 11, 12, 13), (14, 15))
PROMPT_OF = (0, 1, 2, 3, 0)
FIRST, SECOND, OTHER = (4, 1, 2, 6, 3), (2, 5, 2, 1, 7), (3, 4, 1, 2, 6)
PAD = 258
SMALL = 30  # tokens in a micro-batch of ours: TRL's step is one batch


@lru_cache
def policy() -> nn.Module:
    return _fused(seed=0)


@lru_cache
def reference() -> nn.Module:
    return _fused(seed=1)


def _fused(seed: int) -> nn.Module:
    model = tiny(hidden=16, heads=2, kv_heads=1, std=0.3, float64=True, seed=seed)[0]
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def said(lengths: tuple[int, ...], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(20, 250, (n,), generator=generator).tolist() for n in lengths]


def rows(answers: list[list[int]]) -> Sequences:
    return sequences(PROMPTS, PROMPT_OF, answers)


def trainer(kind: type, **settings: Any) -> Any:
    """A trainer as far as its loss looks at it, in one process."""
    made = kind.__new__(kind)
    same = lambda x: x  # noqa: E731
    settings = {
        "model": policy(), "ref_model": reference(), "aux_loss_enabled": False, "precompute_ref_logps": False,
        "accelerator": SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same, num_processes=1, parallelism_config=None),
        "_metrics": {mode: defaultdict(list) for mode in ("train", "eval")}, "_total_train_tokens": 0, "_tp_size": 1,
        **settings,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def theirs(loss: Tensor, model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def ours(algorithm: Any, models: Models, batch: Rows, model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    """The shipped step, cut into micro-batches."""
    prepared, _, _ = algorithm.prepare(models, batch, algorithm.initial_state())
    model.zero_grad()
    loss, _ = accumulate(algorithm, models, prepared, SMALL)
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    assert max(float(g.abs().max()) for g in other[1].values()) > 1e-4, "a gradient of zero agrees with anything"
    for name, gradient in other[1].items():
        assert (one[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def language_models() -> Models:
    return Models(policy=CausalModel(policy()), reference=CausalModel(reference()))


def pairs(chosen: list[list[int]], rejected: list[list[int]], **fields: list[float]) -> Pairs:
    better, worse = rows(chosen), rows(rejected)
    values = {"preference": [1.0] * 5, "weight": [1.0] * 5, "margin": [0.0] * 5, **fields}
    return Pairs(better, worse, **{name: torch.tensor(x, dtype=torch.float64) for name, x in values.items()})


CHOSEN, REJECTED = said(FIRST, 1), said(SECOND, 2)


def trl_dpo(loss: str, beta: float, chosen: list[list[int]], rejected: list[list[int]]) -> Tensor:
    peer = trainer(
        dpo_trainer.DPOTrainer, beta=beta, loss_types=[loss], loss_weights=[1.0], f_divergence_type="reverse_kl", ld_alpha=None,
        use_weighting=False, args=SimpleNamespace(gradient_checkpointing_kwargs=None), label_smoothing=0.0,
    )  # fmt: skip
    examples = [
        {"prompt_ids": list(PROMPTS[p]), "chosen_ids": a, "rejected_ids": b}
        for p, a, b in zip(PROMPT_OF, chosen, rejected, strict=True)
    ]
    inputs = dpo_trainer.DataCollatorForPreference(pad_token_id=PAD)(examples)
    return peer._compute_loss(policy(), inputs, return_outputs=False)


def test_dpo() -> None:
    expected = theirs(trl_dpo("sigmoid", 0.3, CHOSEN, REJECTED), policy())
    assert_same(ours(DPO(beta=0.3), language_models(), pairs(CHOSEN, REJECTED), policy()), expected)


def test_soft_labels_smoothing_and_ties_are_means_of_their_loss_both_ways_round() -> None:
    """TRL's sigmoid loss has no soft label: the label's share of its loss on the pair, the rest of its loss on the swapped pair."""
    for p, smoothing, share in ((1.0, 0.2, 0.8), (0.5, 0.0, 0.5), (0.7, 0.0, 0.7), (0.0, 0.1, 0.1)):
        loss = share * trl_dpo("sigmoid", 0.3, CHOSEN, REJECTED) + (1 - share) * trl_dpo(
            "sigmoid", 0.3, REJECTED, CHOSEN
        )
        batch = pairs(CHOSEN, REJECTED, preference=[p] * 5)
        assert_same(
            ours(DPO(beta=0.3, label_smoothing=smoothing), language_models(), batch, policy()), theirs(loss, policy())
        )


def test_ipo_per_token() -> None:
    expected = theirs(trl_dpo("ipo", 0.4, CHOSEN, REJECTED), policy())
    batch = pairs(CHOSEN, REJECTED)
    assert_same(ours(IPO(tau=0.4, length="mean"), language_models(), batch, policy()), expected)
    assert ours(IPO(tau=0.4), language_models(), batch, policy())[0] != pytest.approx(expected[0], rel=0.1)


def test_ipo_of_whole_answers_is_the_same_where_answers_have_one_token() -> None:
    chosen, rejected = said((1,) * 5, 3), said((1,) * 5, 4)
    expected = theirs(trl_dpo("ipo", 0.4, chosen, rejected), policy())
    assert_same(ours(IPO(tau=0.4), language_models(), pairs(chosen, rejected), policy()), expected)


def test_hinge() -> None:
    """Some pairs are beyond the margin, some are not."""
    expected = theirs(trl_dpo("hinge", 0.3, CHOSEN, REJECTED), policy())
    models, batch = language_models(), pairs(CHOSEN, REJECTED)
    assert models.policy is not None
    assert models.reference is not None
    h = [answer_logprobs(models.policy, s) - answer_logprobs(models.reference, s).detach() for s in (batch.chosen, batch.rejected)]  # fmt: skip
    losses = hinge(h[0], h[1], 0.3)
    assert 0 < int((losses == 0).sum()) < 5
    assert_same(theirs(losses.mean(), policy()), expected)


def trl_kto(labels: list[int], answers: list[list[int]], partners: list[list[int]], weights: tuple[float, float]) -> tuple[Tensor, float]:  # fmt: skip
    peer = trainer(
        kto_trainer.KTOTrainer, beta=0.3, loss_type="kto", calculate_KL=True, desirable_weight=weights[0],
        undesirable_weight=weights[1], args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    examples = [
        {"prompt_ids": list(PROMPTS[p]), "completion_ids": a, "KL_completion_ids": b, "label": bool(label)}
        for p, a, b, label in zip(PROMPT_OF, answers, partners, labels, strict=True)
    ]
    inputs = kto_trainer.DataCollatorForUnpairedPreference(pad_token_id=PAD)(examples)
    loss = peer._compute_loss(policy(), inputs, return_outputs=False)
    return loss, [*peer._metrics["train"]["kl"], *peer._metrics["eval"]["kl"]][0]


@pytest.mark.parametrize(("seed", "moved"), [(5, True), (8, False)], ids=["z0 above 0", "z0 cut at 0"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
def test_kto(seed: int, moved: bool, weights: tuple[float, float]) -> None:
    """With TRL's partners; the mean log-ratio of the mismatched answers is above 0 for one set of them, below for the other."""
    labels, partners = [1, 0, 0, 1, 1], said(OTHER, seed)
    loss, z0 = trl_kto(labels, CHOSEN, partners, weights)
    assert (z0 > 0) is moved
    answers = rows(CHOSEN)
    mismatched = sequences(answers.prompts.tokens, PROMPT_OF, partners)
    numbers = torch.tensor(labels, dtype=torch.float64)
    batch = LabelledWithPartner(answers, numbers, torch.ones_like(numbers), mismatched)
    method = KTO(beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    assert_same(ours(method, language_models(), batch, policy()), theirs(loss, policy()))
    assert method.prepare(language_models(), batch, method.initial_state())[2]["kto/z0"] == pytest.approx(z0, rel=1e-5)


@pytest.mark.parametrize("margin", [None, [0.5, 0.0, 1.0, 0.25, 2.0]], ids=["plain", "margins"])
@pytest.mark.parametrize("centering", [0.0, 0.05])
def test_reward_model(margin: list[float] | None, centering: float) -> None:
    """Their forward is transformers' classifier, which finds the last token by the padding id."""
    backbone = tiny(hidden=16, heads=2, kv_heads=1, std=0.3, float64=True, seed=2)[0]
    config = backbone.config
    config.num_labels = 1
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
    classifier.model = backbone.model
    classifier.score = ScalarHead(config.hidden_size, torch.float64)
    generator = torch.Generator().manual_seed(0)
    classifier.score.weight.data.normal_(generator=generator)
    peer = trainer(
        reward_trainer.RewardTrainer, model=classifier, args=SimpleNamespace(center_rewards_coefficient=centering or None)
    )  # fmt: skip
    heads = [list(PROMPTS[p]) for p in PROMPT_OF]
    examples: list[dict[str, Any]] = [
        {"chosen_ids": h + a, "rejected_ids": h + b} for h, a, b in zip(heads, CHOSEN, REJECTED, strict=True)
    ]
    if margin is not None:
        examples = [{**example, "margin": m} for example, m in zip(examples, margin, strict=True)]
    inputs = reward_trainer.DataCollatorForPreference(pad_token_id=PAD)(examples)
    inputs = {name: x.double() if name == "margin" else x for name, x in inputs.items() if name != "return_loss"}
    expected = theirs(peer.compute_loss(classifier, inputs), classifier)
    models = Models(reward=HeadedModel(ScalarModel(classifier.model, classifier.score)))
    batch = pairs(CHOSEN, REJECTED, **({} if margin is None else {"margin": margin}))
    assert_same(ours(BradleyTerry(centering=centering), models, batch, classifier), expected)


def test_sft() -> None:
    """The global token mean over a step, a user's turn in the middle of one row."""
    masks = [[t != 1 for t in range(len(a))] for a in CHOSEN]
    examples = []
    for p, answer, mask in zip(PROMPT_OF, CHOSEN, masks, strict=True):
        own = [token if keep else -100 for token, keep in zip(answer, mask, strict=True)]
        examples.append({"input_ids": [*PROMPTS[p], *answer], "labels": [-100] * len(PROMPTS[p]) + own})
    args = SimpleNamespace(loss_type="nll", average_tokens_across_devices=False)
    peer = trainer(sft_trainer.SFTTrainer, compute_loss_func=None, label_smoother=None, args=args)
    inputs = sft_trainer.DataCollatorForLanguageModeling(pad_token_id=PAD)(examples)
    expected = theirs(peer.compute_loss(policy(), inputs), policy())
    batch = sequences(PROMPTS, PROMPT_OF, CHOSEN, masks)
    assert_same(ours(SFT(), language_models(), batch, policy()), expected)


def mean_logprobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = -3 * torch.rand(2, 6, generator=generator, dtype=torch.float64)
    return chosen.requires_grad_(), rejected.requires_grad_()


def test_simpo() -> None:
    peer = trainer(CPOTrainer, alpha=0.0, loss_type="simpo", beta=2.0, simpo_gamma=0.7, label_smoothing=0.0)
    chosen, rejected = mean_logprobs()
    expected = peer.cpo_loss(chosen, rejected)[0]
    losses = simpo(chosen, rejected, 2.0, 0.7)
    torch.testing.assert_close(losses, expected, **CLOSE)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (chosen, rejected)) for x in (losses, expected)), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_orpo() -> None:
    """TRL subtracts beta log sigma(log odds ratio), which it computes in float32, from the likelihood of the chosen answer."""
    peer = trainer(ORPOTrainer, beta=0.4)
    chosen, rejected = mean_logprobs()
    expected = -chosen - peer.odds_ratio_loss(chosen, rejected)[0]
    losses = orpo(chosen, rejected, 0.4)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6, check_dtype=False)
    for a, b in zip(*(torch.autograd.grad(x.sum(), (chosen, rejected)) for x in (losses, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, check_dtype=False)
