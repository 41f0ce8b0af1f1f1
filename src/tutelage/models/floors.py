"""The least seconds that each phase of post-training can take on a machine: operations over F, bytes over BW.

Legend: N0 parameters of a network's body, N with its head; P prompts, G answers, Lp/Lr prompt/answer tokens. Attention's own
products, norms, sampling and Python count nothing: what is left out of a floor only lowers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import PretrainedConfig

from tutelage.models.hardware import Machine
from tutelage.models.lora import unwrapped

FORWARD, ADAPTER, FULL = 2, 4, 6
"""k: operations a parameter and token. Forward 2; backward to the inputs 2 more; to the weights, where they are trained, 2 more."""
OPTIMIZER_BYTES = 28
"""AdamW in float32, a parameter: weight, gradient and two moments are read, all but the gradient written; 4 bytes each."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Network:
    """What the floors need to know of a decoder."""

    body: int
    """N0: parameters without embedding and head, adapters not counted."""
    head: int
    """Parameters of the language-model head; 0 without one (a scalar head is as good as none)."""
    trained: int
    """Parameters that the optimiser moves."""
    factor: int
    """k of an update: 6 where the body is trained, 4 with an adapter, 2 where nothing is."""
    weight_bytes: int
    kv_bytes: int
    """kappa: bytes of keys and values that a token adds to the cache, over all layers."""

    @property
    def parameters(self) -> int:
        """N: what a token of an answer goes through."""
        return self.body + self.head

    @staticmethod
    def of(module: nn.Module) -> Network | None:
        """A Hugging Face decoder, with or without adapters, with a language-model head, a scalar one or none.

        None for a mixture of experts: how many of its parameters a token goes through is not known from outside.
        """
        inner = unwrapped(getattr(module, "backbone", module))
        if any(getattr(inner.config, name, None) for name in EXPERTS):
            return None
        head, embedding = inner.get_output_embeddings(), inner.get_input_embeddings()
        ends = {id(p) for end in (head, embedding) if end is not None for p in end.parameters()}
        base = [(n, p) for n, p in inner.named_parameters() if "lora_" not in n and id(p) not in ends]
        body = sum(p.numel() for _, p in base)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        full = any(p.requires_grad for _, p in base)
        return Network(
            body=body,
            head=0 if head is None or inner is not unwrapped(module) else _size(head),
            trained=trained,
            factor=FULL if full else ADAPTER if trained else FORWARD,
            weight_bytes=max((p for _, p in base), key=Tensor.numel).element_size(),
            kv_bytes=kv_bytes(inner.config, next(inner.parameters()).element_size()),
        )


def _size(head: Any) -> int:
    """Parameters of a head that may be adapted: of the layer below the adapter."""
    return getattr(head, "base_layer", head).weight.numel()


def kv_bytes(config: PretrainedConfig, element: int) -> int:
    """kappa: keys and values, of every layer and key-value head."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * element


def prefill(machine: Machine, network: Network, tokens: int) -> float:
    """Seconds to read prompts of `tokens` tokens together, each prompt once: 2 N0 a token."""
    return FORWARD * network.body * tokens / machine.flops


def decode(
    machine: Machine, network: Network, prompts: Sequence[int], answers: Sequence[Sequence[int]], rows: int
) -> float:
    """Seconds to say the answers, of `answers[p][g]` tokens to a prompt of `prompts[p]`, at most `rows` at a time.

    An answer's first token comes from the prompt's own pass; each of the others takes a step. A step reads the weights and
    every active row's keys and values, and multiplies: max(bytes / BW, B 2 N / F). Longest answers begin first, and a row
    that ends is replaced at once.
    """
    active, context = schedule(prompts, answers, rows)
    moved = network.parameters * network.weight_bytes * (active > 0) + context * network.kv_bytes
    computed = FORWARD * network.parameters * active
    return float(np.maximum(moved / machine.bandwidth, computed / machine.flops).sum())


def schedule(prompts: Sequence[int], answers: Sequence[Sequence[int]], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """At each decoding step: active rows, and the tokens that they look back on, all together."""
    lengths = sorted(
        ((n - 1, p) for p, group in zip(prompts, answers, strict=True) for n in group if n > 1), reverse=True
    )
    free = [0] * min(rows, len(lengths))
    heapify(free)
    spans = []
    for length, prompt in lengths:
        begin = free[0]
        heapreplace(free, begin + length)
        spans.append((begin, begin + length, prompt))
    steps = max(free, default=0)
    active, context = np.zeros(steps + 1), np.zeros(steps + 1)
    for begin, end, prompt in spans:  # differences: a row's context at step t is prompt + t - begin
        active[begin] += 1
        active[end] -= 1
        context[begin] += prompt - begin
        context[end] -= prompt - begin
    active, context = active.cumsum()[:-1], context.cumsum()[:-1]
    return active, context + active * np.arange(steps)


def passes(machine: Machine, network: Network, tokens: int, labels: int, factor: int | None = None) -> float:
    """Seconds of forwards, and backwards where something is trained: k N0 a token, k V D a label; k = `factor`.

    `tokens` are real ones with each prompt once. The default factor is the network's: an update. `FORWARD` is a pass of a
    reference, a value model or a reward model.
    """
    k = network.factor if factor is None else factor
    return k * (network.body * tokens + network.head * labels) / machine.flops


def optimizer(machine: Machine, trained: int, steps: int = 1) -> float:
    """Seconds of `steps` AdamW steps over `trained` float32 parameters."""
    return OPTIMIZER_BYTES * trained * steps / machine.bandwidth
