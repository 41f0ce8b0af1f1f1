"""Low-rank adapters: put them on, prove that they bind, take them off for the reference, merge a copy of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from tutelage.models.quiet import quiet


@dataclass(frozen=True)
class LoRA:
    """W x + (alpha / rank) B A x with W frozen, A [rank, in] random and B [out, rank] zero at the start (arXiv:2106.09685)."""

    rank: int = 16
    """Rows of A: 16 is enough for preference training, SFT on much data wants 64 or more."""
    alpha: int = 32
    """Scale of the update; alpha / rank multiplies it."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the linear modules that get an adapter; `all-linear` is every one except the output layer."""


def add_lora(model: PreTrainedModel, lora: LoRA, *, seed: int = 0, task: str | None = None) -> PeftModel:
    """Freezes `model` and puts a fresh adapter on it (A from `seed`, B zero: the outputs do not change yet).

    Without an error the adapter is known to be bound: with B filled in for a moment, the outputs changed.
    Raises ValueError where the targets match no linear module, or an embedding that input and output share.
    """
    if lora.rank < 1 or lora.alpha <= 0:
        raise ValueError(f"lora: rank and alpha must be positive; got rank={lora.rank}, alpha={lora.alpha}")
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0, task_type=task)
    linear = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            wrapped = cast(PeftModel, get_peft_model(model, settings))
        except ValueError as error:
            raise ValueError(
                f"lora: targets {lora.targets!r} do not fit; allowed: all-linear, {linear}: {error}"
            ) from None
    if not _adapters(wrapped):
        raise ValueError(f"lora: targets {lora.targets!r} bind to no linear module; allowed: all-linear, {linear}")
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if model.config.tie_word_embeddings and any(isinstance(end, LoraLayer) for end in ends):
        raise ValueError(
            f"lora: targets {lora.targets!r} include the embedding that input and output share; leave it out"
        )
    _prove_bound(wrapped)
    return wrapped


@contextmanager
def reference_mode(policy: nn.Module) -> Iterator[nn.Module]:
    """Inside the block `policy` is the reference: its adapter is off, so it is exactly the model it started from.

    That holds after a LoRA SFT too, because `load_policy` merges the adapter it starts from into the base weights.
    A policy without adapter has no such switch: its reference is `frozen_copy(policy)`, taken before the first step.
    """
    assert isinstance(policy, PeftModel), "only an adapter can be switched off; take frozen_copy(policy) at the start"
    with policy.disable_adapter():
        yield policy


def frozen_copy(model: nn.Module) -> nn.Module:
    """The weights as they are now, in memory of their own, never trained: the reference of full fine-tuning."""
    return deepcopy(model).requires_grad_(False).eval()


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The transformers module inside (with adapter layers in it, where there are any)."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


@torch.no_grad()
def merged_state(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict of the plain model with the active adapters added in; no live tensor is written.

    W + (alpha / rank) B A is summed in float32 (float64 for float64 weights) and rounded once, to `dtype` (default: that
    of W). Tensors that need no change are the live ones, not copies.
    """
    inner = unwrapped(model)
    adapters = _adapters(model)
    merged: dict[str, Tensor] = {}
    for key, tensor in inner.state_dict().items():
        name, base, leaf = key.partition(".base_layer.")
        if not base:
            if not any(part.startswith("lora_") for part in key.split(".")):
                merged[key] = tensor
            continue
        if leaf == "weight":
            tensor = merged_weight(adapters[name]).to(dtype or tensor.dtype)
        merged[f"{name}.{leaf}"] = tensor
    if dtype is None:
        return merged
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in merged.items()}


@torch.no_grad()
def merged_weight(layer: LoraLayer) -> Float[Tensor, "O I"]:
    """W + (alpha / rank) B A of the active adapters, in memory of its own, in float32 (float64 for float64 weights)."""
    whole = cast(Any, layer)
    exact = torch.promote_types(whole.base_layer.weight.dtype, torch.float32)
    total = whole.base_layer.weight.to(exact, copy=True)
    for adapter in layer.active_adapters:
        if adapter in whole.lora_A:
            total += whole.get_delta_weight(adapter).to(exact)
    return total


def _adapters(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapted linear layers by their name inside the transformers module."""
    return {n: m for n, m in unwrapped(model).named_modules() if isinstance(m, LoraLayer) and len(m.lora_B)}


@torch.no_grad()
def _prove_bound(model: PeftModel) -> None:
    """With B non-zero the outputs must change; B is zero again afterwards."""
    tokens = torch.arange(4, device=next(model.parameters()).device)[None]
    matrices = [cast(Tensor, b.weight) for layer in _adapters(model).values() for b in layer.lora_B.values()]
    before = model(input_ids=tokens)[0]
    for matrix in matrices:
        assert not matrix.any(), "a fresh adapter starts with B = 0"
        matrix.fill_(0.01)
    after = model(input_ids=tokens)[0]
    for matrix in matrices:
        matrix.zero_()
    assert not torch.equal(before, after), f"the adapter on {len(matrices)} modules does not change the model's outputs"
