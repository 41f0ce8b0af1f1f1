"""The mixture decoder against the plain forwards of both models, token by token."""

from __future__ import annotations

import pytest
import torch

from tutelage.functional.nash import geometric_mixture
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.mixture import MixtureDecoder, rival_decoder
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny

SIZE = {"hidden": 16, "heads": 2, "kv_heads": 1, "std": 0.4, "float64": True}
STOPS = (257, *range(40))
"""Many tokens end an answer, so that lengths differ and rows leave, move and enter."""
PROMPTS = [[65, 66, 67], [68], [69, 70, 71, 72, 73]]
DECODING = Decoding(9, 1.3)


def decoder(module, context=None, rows=96):
    return Decoder(module, STOPS, lambda ids: "", rows, context)


def two_models():
    policy, reference = tiny(**SIZE, seed=0)[0], tiny(**SIZE, seed=1, layers=3)[0]
    return policy, decoder(policy), decoder(reference)


def one_with_an_adapter():
    policy = add_lora(tiny(**SIZE, seed=0)[0], LoRA(rank=2, alpha=4), task="CAUSAL_LM")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return policy, decoder(policy), decoder(policy, reference_mode)


def plain_logprobs(side, prompt, answer):
    """log p of every token of the vocabulary at each of the answer's places, by the model's own forward.  [T, V]"""
    ids = torch.tensor([[*prompt, *answer.tokens]])
    with torch.no_grad():
        if side.context is None:
            logits = side.module(ids).logits
        else:
            with side.context(side.module):
                logits = side.module(ids).logits
    return (logits[0, len(prompt) - 1 : -1] / DECODING.temperature).log_softmax(-1)


@pytest.mark.parametrize("models", [two_models, one_with_an_adapter])
@pytest.mark.parametrize("mixing", [0.125, 0.7])
def test_it_samples_the_mixture_normalised_at_every_token(models, mixing):
    _, policy, reference = models()
    groups = MixtureDecoder(policy.module, STOPS, policy.decode, 4, None, other=reference, mixing=mixing).sample(
        PROMPTS, 5, DECODING, "s"
    )
    assert len({len(answer.tokens) for group in groups for answer in group}) > 3, "rows must leave at different times"
    apart = 0.0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for answer in group:
            sides = [plain_logprobs(side, prompt, answer) for side in (policy, reference)]
            mixed = geometric_mixture(*sides, mixing)
            at = torch.arange(len(answer.tokens)), torch.tensor(answer.tokens)
            assert torch.allclose(mixed[at], torch.tensor(answer.logprobs, dtype=torch.float64), atol=1e-10)
            apart = max(apart, float((mixed - sides[0]).abs().max()), float((mixed - sides[1]).abs().max()))
    assert apart > 0.1, "the mixture is neither of the two"


def test_an_answer_does_not_depend_on_the_rows_beside_it():
    policy, mine, theirs = two_models()
    few, many = (
        MixtureDecoder(policy, STOPS, mine.decode, rows, None, other=theirs, mixing=0.3).sample(
            PROMPTS, 4, DECODING, "s"
        )
        for rows in (2, 96)
    )
    assert [[a.tokens for a in g] for g in few] == [[a.tokens for a in g] for g in many]


def test_the_ends_are_the_policy_and_the_reference():
    _, mine, theirs = one_with_an_adapter()
    assert rival_decoder(mine, theirs, 0.0) is mine
    assert rival_decoder(mine, theirs, 1.0) is theirs
    for mixing, alone in ((1e-13, mine), (1 - 1e-13, theirs)):
        mixed = rival_decoder(mine, theirs, mixing)
        assert isinstance(mixed, MixtureDecoder)
        drawn, expected = (one.sample(PROMPTS, 3, DECODING, "t") for one in (mixed, alone))
        assert [[a.tokens for a in g] for g in drawn] == [[a.tokens for a in g] for g in expected]
    one, other = (side.sample(PROMPTS, 3, DECODING, "t") for side in (mine, theirs))
    assert one != other
