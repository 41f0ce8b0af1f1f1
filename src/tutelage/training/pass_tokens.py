"""How many packed tokens one forward and backward takes at once: chosen from the machine's memory and the model's shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import find_adapter_config_file

from tutelage.models.builtin import BUILTIN_PREFIX, PACKAGED
from tutelage.models.hardware import total_memory
from tutelage.models.load import resolve_model
from tutelage.training.optim import TOKENS_PER_PASS

MOST = {"cpu": 1024, "other": 16384}
"""On a CPU more is no faster: the products are at their best from some hundred rows on, and buffers leave its caches.
The most for a GPU is a guess that nothing has measured; `--optimization.tokens-per-pass` states another."""
LEAST = 64
SHARE = 0.5
"""Of the machine's memory: the rest is for the sampler's keys and values, reward models, evaluation, and other programs."""
KEPT = (8, 4)
"""Numbers of the hidden size and of the MLP's inner size that a block keeps for backward, per token: two norms and their
inputs, q, k, v and what attention read; gate, up and what comes of them. A backward holds as many again while it runs."""

SIZES = ("num_attention_heads", "num_hidden_layers", "hidden_size", "vocab_size")


def tokens_of_a_pass(config: PretrainedConfig, full: bool, device: torch.device, memory: int | None = None) -> int:
    """The largest power of two (64 to 1,024, on a GPU to 16,384) whose activations fit into half the memory beside weights.

    Of a model of several parts (text and pictures) the part that speaks counts. One whose settings do not state a
    transformer's sizes (a state-space model) takes `TOKENS_PER_PASS`.

    It depends on the machine's memory, never on what is free just now: the same machine chooses the same, and so rounds the
    same. The rehearsal before training tries the heaviest pass, so an estimate that is too large is told before step 0.
    """
    memory = total_memory(device) if memory is None else memory
    most = MOST["cpu" if device.type == "cpu" else "other"]
    config = config.get_text_config()
    if not memory or not stated(config):  # the system does not say, or the model does not
        return TOKENS_PER_PASS
    fixed, each = held(config, full), 4 * activations(config)
    room, tokens = SHARE * memory - fixed, most
    while tokens > LEAST and tokens * each > room:
        tokens //= 2
    return tokens


def stated(config: PretrainedConfig) -> bool:
    """Whether the settings give what the estimate needs."""
    return all(getattr(config, name, None) for name in SIZES)


def held(config: PretrainedConfig, full: bool) -> int:
    """Bytes of the weights in float32, and where all are trained of gradients, two moments and the frozen reference."""
    return 4 * parameters(config) * (5 if full else 1)


def parameters(config: PretrainedConfig) -> int:
    """About how many weights a decoder of this shape has."""
    shape: Any = config
    heads = shape.num_attention_heads
    width = getattr(shape, "head_dim", None) or shape.hidden_size // heads
    kv = getattr(shape, "num_key_value_heads", None) or heads
    block = 2 * shape.hidden_size * width * (heads + kv) + 3 * shape.hidden_size * inner(shape)
    tables = 1 if getattr(shape, "tie_word_embeddings", True) else 2
    return shape.num_hidden_layers * block + tables * shape.vocab_size * shape.hidden_size


def activations(config: PretrainedConfig) -> int:
    """Numbers that a token costs at the peak of forward and backward."""
    shape: Any = config
    hidden, wide = KEPT
    return 2 * shape.num_hidden_layers * (hidden * shape.hidden_size + wide * inner(shape))


def inner(shape: Any) -> int:
    """The MLP's inner size, by any of its names."""
    return getattr(shape, "intermediate_size", None) or getattr(shape, "n_inner", None) or 4 * shape.hidden_size


def shape_of(name: str | Path) -> PretrainedConfig | None:
    """The settings of a model, of a hub id too, and of an adapter's base; None where it is wrong, which is said on loading.

    No built-in model is made for it: data are checked first.
    """
    if str(name).startswith(BUILTIN_PREFIX):
        packaged = PACKAGED.get(str(name).removeprefix(BUILTIN_PREFIX))
        return packaged.shape if packaged else None
    try:
        path = str(resolve_model(name))
        adapter = find_adapter_config_file(path)
        if adapter is not None:
            return shape_of(json.loads(Path(adapter).read_text("utf-8"))["base_model_name_or_path"])
        return AutoConfig.from_pretrained(path)
    except (ValueError, KeyError, OSError):
        return None
