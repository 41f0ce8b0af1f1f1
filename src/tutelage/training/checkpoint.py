"""Checkpoints that are whole or absent: safetensors and JSON, each file with its size and hash; never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.console import warn
from tutelage.training.files import clear_disk_errors, sha256, sync_file, sync_folder

Named = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
"""Parameters by name: a mapping, or what `module.named_parameters()` gives."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose every byte was checked. `step` steps are done; the next one is number `step`."""

    step: int
    path: Path
    info: Mapping[str, Any]
    groups: tuple[str, ...]

    def tensors(self, group: str) -> dict[str, Tensor]:
        """A group's tensors on the CPU; ValueError that lists the groups where it is not there."""
        if group not in self.groups:
            raise ValueError(f"{self.path}: no tensor group {group!r}; it holds {', '.join(self.groups)}")
        return load_file(self.path / f"{group}.safetensors")


class Checkpoints:
    """The checkpoints of a run, `step-000120/` and so on under `folder`; the newest `keep` stay.

    A checkpoint is built in a hidden folder beside the others, flushed to the disk and renamed, so `latest` finds a whole one
    after a kill or a power cut at any moment. Nothing is written before the first `save`.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        assert keep >= 1, keep
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]) -> Path:
        """Save tensor groups by name and plain JSON data (tuples come back as lists), then delete what is too old.

        Raises OSError, in one sentence, for a full disk or a folder that cannot be written; older checkpoints still work.
        """
        assert all(re.fullmatch(r"\w+", group) for group in tensors), list(tensors)
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".saving-step-{step:06d}"
        info = json.loads(json.dumps(info))  # what JSON cannot hold is our own bug: it shows before anything is touched
        try:
            with clear_disk_errors(final):
                self._make_folder()
                self._remove(".saving-*", ".deleting-*")
                temporary.mkdir()
                files = {f"{g}.safetensors": _write(temporary / f"{g}.safetensors", t) for g, t in tensors.items()}
                _write_info(temporary / "info.json", {"step": step, "files": files, "info": info})
                sync_folder(temporary)
                self._publish(temporary, final)
                self._prune(step)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def latest(self) -> Saved | None:
        """The newest checkpoint that is intact, None where there is none; a damaged one is warned of and passed over.

        Raises ValueError where there are checkpoints and all are damaged.
        """
        problems = []
        for path in reversed(self._found()):
            try:
                saved = _read(path)
            except (ValueError, OSError) as error:
                problems.append(f"{path}: {error}")
                continue
            for problem in problems:
                warn(f"damaged checkpoint passed over: {problem}; going on from step {saved.step}")
            return saved
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} is intact; start again in a new folder with --out, or put a copy back:\n"
                + "\n".join(problems)
            )
        return None

    def _make_folder(self) -> None:
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)

    def _found(self) -> list[Path]:
        """Checkpoints, oldest first. One being replaced counts, before its successor of the same step."""
        found = [p for p in self.folder.glob("*step-*") if re.fullmatch(r"(\.replaced-)?step-\d+", p.name)]
        return sorted(found, key=lambda p: (_step(p), not p.name.startswith(".")))

    def _publish(self, temporary: Path, final: Path) -> None:
        if final.exists():  # a step is saved anew, say after its first version was found damaged
            aside = self.folder / f".replaced-{final.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
        os.rename(temporary, final)
        sync_folder(self.folder)

    def _prune(self, step: int) -> None:
        """Keep the newest `keep` up to `step`; later ones belong to a future that was given up (they were damaged)."""
        current = [p for p in self._found() if not p.name.startswith(".") and _step(p) <= step]
        for path in set(self._found()) - set(current[-self.keep :]):
            doomed = self.folder / f".deleting-{path.name.lstrip('.')}"
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(path, doomed)  # first out of sight: a checkpoint half deleted must not look like a damaged one
        self._remove(".deleting-*")

    def _remove(self, *patterns: str) -> None:
        for path in [p for pattern in patterns for p in self.folder.glob(pattern)]:
            shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _write(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write one group; returns its size and hash as they are on the disk."""
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses tensors that share memory
        storages.add(storage)
    save_file(plain, path)
    sync_file(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _write_info(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps({**body, "sha256": _hash_of(body)}, indent=1), encoding="utf-8")
    sync_file(path)


def _hash_of(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Saved:
    """A checkpoint after comparing every size and hash; ValueError (or OSError) says what is wrong with it."""
    try:
        body = json.loads((path / "info.json").read_text(encoding="utf-8"))
        stated = body.pop("sha256")
        step, files, info = body["step"], body["files"], body["info"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"info.json is not readable ({error!r})") from None
    if stated != _hash_of(body):
        raise ValueError("info.json was changed after it was saved")
    if step != _step(path):
        raise ValueError(f"info.json is of step {step}")
    for name, expected in files.items():
        size = (path / name).stat().st_size
        if size != expected["size"]:
            raise ValueError(f"{name} has {size} bytes instead of {expected['size']}")
        if sha256(path / name) != expected["sha256"]:
            raise ValueError(f"{name} was changed after it was saved (its SHA-256 differs)")
    return Saved(step, path, info, tuple(name.removesuffix(".safetensors") for name in files))


def trainable_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that training moves, by name (a tied weight once); views, not copies."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trainable(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `trainable_tensors` back; ValueError unless names, shapes and dtypes are exactly the module's."""
    own = trainable_tensors(module)
    _same_names(own, tensors, "weights")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            raise ValueError(
                f"checkpoint: {name} is {tensor.dtype} {list(tensor.shape)}; "
                f"the model's is {own[name].dtype} {list(own[name].shape)}"
            )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Named) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state by parameter name: tensors as `name/exp_avg`, the rest (rates, betas) as JSON data."""
    names = {id(p): name for name, p in dict(named).items()}
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            where = tensors if isinstance(value, Tensor) else values
            where[f"{names[id(parameter)]}/{key}"] = value
    groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
    return tensors, {"groups": groups, "values": values}


def load_optimizer(
    optimizer: torch.optim.Optimizer, named: Named, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
) -> None:
    """Put `optimizer_tensors` back; ValueError unless the optimiser has the same parameters in the same groups."""
    names = {id(p): name for name, p in dict(named).items()}
    own = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    saved = [group["params"] for group in info["groups"]]
    _same_names([n for g in own for n in g], [n for g in saved for n in g], "optimizer")
    if own != saved:
        raise ValueError("checkpoint: the optimizer's parameters are in other groups or another order")
    numbers = {name: i for i, name in enumerate(name for group in own for name in group)}
    state: dict[int, dict[str, Any]] = {}
    for full, value in [*tensors.items(), *info["values"].items()]:
        name, _, key = full.rpartition("/")
        # a copy: what `load_file` gives is mapped from the checkpoint's file, and the optimiser works in place
        state.setdefault(numbers[name], {})[key] = value.clone() if isinstance(value, Tensor) else value
    groups = [_unlisted({**group, "params": [numbers[n] for n in group["params"]]}) for group in info["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _unlisted(group: dict[str, Any]) -> dict[str, Any]:
    """JSON made lists of tuples such as AdamW's betas; back again."""
    return {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}


def _same_names(own: Iterable[str], saved: Iterable[str], what: str) -> None:
    missing, extra = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    if missing or extra:
        raise ValueError(
            f"checkpoint: its {what} are of another model; missing {len(missing)} {missing[:3]}, unknown {len(extra)} {extra[:3]}"
        )
