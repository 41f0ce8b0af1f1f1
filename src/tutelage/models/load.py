"""From a name to a model in memory, and from a model to a directory that every tool loads."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file

from tutelage.models.builtin import BUILTIN_PREFIX, NAMES, atomic_directory, hub_in_reach, resolve_builtin, unreached
from tutelage.models.lora import LoRA, add_lora, merged_state, unwrapped
from tutelage.models.quiet import quiet

RUN_PARTS = ("policy", "reward_model")
"""What a finished run folder holds."""
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve_model(name: str | Path, parts: tuple[str, ...] = RUN_PARTS) -> Path | str:
    """`builtin:NAME`, a Hugging Face directory, a run folder or a hub id -> what `from_pretrained` takes.

    Of a run folder, the first of `parts` that it, or the last of its stages, holds. Raises ValueError for an unknown built-in model, a missing
    directory, one without a model in it, and a hub id that the switched-off hub has not in its cache.
    """
    name = str(name)
    if name.startswith(BUILTIN_PREFIX):
        return resolve_builtin(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _model_inside(path, parts)
    if path.exists():
        raise ValueError(f"model: {name} is a file; give the directory that holds config.json")
    allowed = f"a Hugging Face directory, a run folder, a hub id or {NAMES}"
    if not _HUB_ID.fullmatch(name) or ("/" in name and path.parent.is_dir()):
        raise ValueError(f"model: no such directory: {name}; allowed: {allowed}")
    if not hub_in_reach() and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ValueError(f"model: {name} is no directory here, and the hub is off (HF_HUB_OFFLINE); allowed: {allowed}")
    return name


def _model_inside(directory: Path, parts: tuple[str, ...]) -> Path:
    """Of a run of several stages (its `stages.json` lists them in order), the last one that holds such a part."""
    ledger = directory / "stages.json"
    stages = [directory / name for name in json.loads(ledger.read_text())] if ledger.is_file() else []
    for candidate in (directory, *(place / part for place in (directory, *reversed(stages)) for part in parts)):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return candidate
    wanted = ", ".join(f"{part}/" for part in parts)
    found = sorted(p.name for p in directory.iterdir())[:8]
    raise ValueError(f"model: {directory} holds neither config.json nor {wanted} of a finished run; got {found}")


def load_tokenizer(name: str | Path, parts: tuple[str, ...] = RUN_PARTS) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the model `name`. Raises ValueError where there is none."""
    path = resolve_model(name, parts)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model: no tokenizer that loads in {path}: {error}{unreached(str(name))}") from None


def load_policy(
    name: str | Path,
    *,
    lora: LoRA | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    seed: int = 0,
) -> PreTrainedModel | PeftModel:
    """A causal language model without dropout; with `lora`, frozen below a fresh adapter drawn from `seed`.

    A directory that holds an adapter is merged into its base in float32 first, so that 'adapter off' is always the model
    that training started from. `dtype="auto"` is for frozen weights: full fine-tuning wants float32 (bfloat16 weights round
    small updates away). Raises ValueError for what `resolve_model` refuses, a classifier, and absent weights.
    """
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    model = pretrained(AutoModelForCausalLM, resolve_model(name, ("policy",)), precision)
    model = model.to(place)  # type: ignore[arg-type]
    return add_lora(model, lora, seed=seed, task="CAUSAL_LM") if lora else model


def load_backbone(
    name: str | Path,
    *,
    lora: LoRA | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    seed: int = 0,
    layers: int | None = None,
) -> PreTrainedModel | PeftModel:
    """The same without the language-model head: tokens -> hidden states, for a head of another kind.

    `layers` keeps only the first so many blocks. Raises ValueError where the model has fewer.
    """
    place = choose_device(device)
    model = pretrained(AutoModel, resolve_model(name), choose_dtype(dtype, place)).to(place)  # type: ignore[arg-type]
    if layers is not None:
        keep_layers(model, layers)
    return add_lora(model, lora, seed=seed) if lora else model


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Leaves the first `count` blocks of a decoder, and says so in its config, which is what a saved directory loads by.

    Raises ValueError for a model that has fewer blocks, or none that can be counted.
    """
    blocks = getattr(model, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not 1 <= count <= len(blocks):
        has = len(blocks) if isinstance(blocks, nn.ModuleList) else "no list of"
        raise ValueError(f"layers: {type(model).__name__} has {has} blocks; got {count}")
    model.layers = blocks[:count]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]


def save_policy(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Writes a full Hugging Face directory atomically; an adapter is merged into a copy, the live weights stay as they are.

    `dtype` (default: the live one) is what the weights are stored in: float32 keeps adapters on bfloat16 weights unrounded.
    """
    inner = unwrapped(model)
    with torch.device("meta"):
        plain = type(inner)(deepcopy(inner.config))
    plain.generation_config = inner.generation_config
    write_model(plain, merged_state(model, dtype), tokenizer, directory)


def write_model(
    plain: PreTrainedModel,
    state: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
) -> None:
    """Saves `state` through `plain`, a model of the right class without memory (device meta), beside the tokenizer."""
    plain.load_state_dict(dict(state), assign=True)
    plain.tie_weights()
    with quiet(), atomic_directory(Path(directory)) as partial:
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def choose_device(device: str = "auto") -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU. Raises ValueError for one that is not here."""
    here = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if device == "auto":
        return torch.device(here[-1])
    if device.split(":")[0] not in here:
        raise ValueError(f"device: {device!r} is not on this machine; allowed: auto, {', '.join(here)}")
    return torch.device(device)


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the hardware multiplies it natively (CUDA, CPUs with AVX512-BF16 or AMX), else float32."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in named:
            raise ValueError(f"dtype: got {dtype!r}; allowed: auto, {', '.join(named)}")
        return named[dtype]
    native = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    return torch.bfloat16 if native.get(device.type, lambda: False)() else torch.float32


def describe(model: nn.Module) -> str:
    """One line to print: class, size, what is trained, precision and device."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = max(model.parameters(), key=Tensor.numel)
    kind = type(unwrapped(getattr(model, "backbone", model))).__name__
    moved = f"{trained / 1e6:,.1f} M trained" if trained else "none trained"
    return (
        f"{kind}, {total / 1e6:,.1f} M parameters, {moved}, "
        f"{str(weights.dtype).removeprefix('torch.')} on {weights.device}"
    )


@quiet()
def pretrained(auto: Any, path: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    """`auto.from_pretrained` from safetensors only, dropout off, an adapter merged in; refuses weights that would be random."""
    try:
        adapter = find_adapter_config_file(str(path))
        if adapter is not None:
            return _merged_adapter(auto, path, json.loads(Path(adapter).read_text("utf-8"))).to(dtype)  # type: ignore[arg-type]
        config = AutoConfig.from_pretrained(path)
        kind = next(iter(config.architectures or []), "")
        if auto is AutoModelForCausalLM and kind.endswith("ForSequenceClassification"):
            raise ValueError(f"model: {path} is a classifier or reward model ({kind}), not a policy")
        _switch_dropout_off(config)
        model, loading = cast(Any, auto).from_pretrained(
            path, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model: cannot load {path}: {error}") from None
    absent = sorted(loading["missing_keys"])
    if absent:
        raise ValueError(f"model: {path} ({kind}) has no weights for {absent[:4]} of {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _merged_adapter(auto: Any, path: Path | str, settings: dict[str, Any]) -> PreTrainedModel:
    """The base model in float32 with the LoRA adapter in `path` merged into its weights."""
    if settings.get("peft_type") != "LORA" or settings.get("task_type") not in (None, "CAUSAL_LM"):
        got = f"{settings.get('peft_type')} for {settings.get('task_type')}"
        raise ValueError(f"model: the adapter in {path} must be LORA for CAUSAL_LM; got {got}; merge it first")
    base = pretrained(AutoModelForCausalLM, resolve_model(settings["base_model_name_or_path"]), torch.float32)
    adapted = PeftModel.from_pretrained(base, str(path))
    unlike = set(get_peft_model_state_dict(adapted)) ^ set(load_peft_weights(str(path), device="cpu"))
    if unlike:
        raise ValueError(f"model: the adapter in {path} does not fit its base; unlike weights: {sorted(unlike)[:4]}")
    merged = cast(PreTrainedModel, adapted.merge_and_unload())  # type: ignore[operator]
    return merged if auto is AutoModelForCausalLM else getattr(merged, merged.base_model_prefix)


def _switch_dropout_off(config: PretrainedConfig) -> None:
    """Every probability of dropping something becomes 0: with dropout the ratio of a policy to itself is not 1."""
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
