"""A whole step of kernels is a step of PyTorch's operations, in each family, while rows come and go."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from tests.models.test_brief import SHAPE, model_of
from torch.testing import assert_close
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from tutelage.models import fused
from tutelage.models.drawing import Decoding
from tutelage.models.sampling import Decoder
from tutelage.models.stepping import Stepping

FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "llama, in whole tiles": LlamaConfig(**SHAPE | {"intermediate_size": 96}),
    "mistral, a window": MistralConfig(**SHAPE, sliding_window=3, head_dim=16),
    "qwen2, biases": Qwen2Config(**SHAPE),
    "qwen3, norms of heads": Qwen3Config(**SHAPE, head_dim=16),
}
WITH_AMX = pytest.mark.skipif(bool(fused.no_matrix_unit()), reason=f"hardware: {fused.no_matrix_unit()}")
PROMPTS = [[5, 6, 7, 8], [11, 12], list(range(20, 41)), [3]]


def sampled(model, kernels: str):
    """Answers, and how many steps were whole ones."""
    decoder = Decoder(model, (2,), lambda tokens: "", rows=9)
    with (
        fused.running(kernels),
        patch.object(Stepping, "__call__", autospec=True, side_effect=Stepping.__call__) as step,
    ):
        groups = decoder.sample(PROMPTS, 5, Decoding(24), "7/0")
    return [answer for group in groups for answer in group], step.call_count


@pytest.mark.parametrize("kernels", ["numba", pytest.param("amx", marks=WITH_AMX)])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_answers_are_those_of_pytorch(name, adapted, kernels):
    """Rows end, others enter: more of them than at first, and fewer."""
    assert fused.missing() == ""
    model = model_of(FAMILIES[name], adapted)
    exact, none = sampled(model, "torch")
    ours, whole = sampled(model, kernels)
    assert none == 0
    assert whole > 24, "every step but those that read prompts"
    assert len({len(answer.tokens) for answer in exact}) > 2, "rows end at several places"
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.tokens == theirs.tokens
        assert_close(mine.logprobs, theirs.logprobs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, mlp_bias=True),
        LlamaConfig(**SHAPE, attention_bias=True),
        LlamaConfig(**SHAPE, hidden_act="gelu"),
    ],
    ids=["a bias in the gate", "a bias behind attention", "another activation"],
)
@torch.no_grad()
def test_what_the_kernels_do_not_know_runs_one_operation_at_a_time(config):
    model = model_of(config)
    exact, _ = sampled(model, "torch")
    ours, whole = sampled(model, "numba")
    assert whole == 0
    assert [answer.tokens for answer in ours] == [answer.tokens for answer in exact]
