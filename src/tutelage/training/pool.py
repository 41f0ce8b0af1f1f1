"""Past policies on the disk, each a directory that every tool loads, and how the live weights wear one of them for a while."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.models.builtin import atomic_directory
from tutelage.models.load import save_policy
from tutelage.training.checkpoint import trainable_tensors

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class PolicyPool:
    """`step-000010/` and so on under `folder`: with LoRA the adapter alone, otherwise the whole model, and the tokenizer.

    `base` is what an adapter goes on. Members are never deleted: a resumed run may need any of them.
    """

    folder: Path
    tokenizer: Any
    base: str

    def path(self, member: int) -> Path:
        """The directory of a member, named by the steps it had been trained for."""
        return self.folder / f"step-{member:06d}"

    def keep(self, member: int, policy: nn.Module) -> Path:
        """Save the live weights as a member, whole or not at all; one of the same name is replaced."""
        target = self.path(member)
        if not isinstance(policy, PeftModel):
            save_policy(policy, self.tokenizer, target)
            return target
        settings = policy.peft_config["default"].to_dict()
        settings |= {"base_model_name_or_path": self.base, "inference_mode": True}
        with atomic_directory(target) as partial:
            save_file({n: t.detach().cpu().contiguous() for n, t in adapter_tensors(policy).items()}, partial / ADAPTER)
            (partial / "adapter_config.json").write_text(json.dumps(settings, indent=1, default=_plain))
            self.tokenizer.save_pretrained(partial)
        return target

    def check(self, members: Sequence[int]) -> None:
        """Raises ValueError for the first member that a resumed run counts on and that is not there."""
        for member in members:
            if not self.path(member).is_dir():
                raise ValueError(
                    f"{self.path(member)}: the run's pool has this past policy, and it is gone; put it back, or start a "
                    "new run with --out"
                )

    @torch.no_grad()
    def tensors(self, member: int, policy: nn.Module) -> dict[str, Tensor]:
        """A member's weights from the disk, by the names of the policy's trainable ones. Raises ValueError where they differ."""
        place = self.path(member)
        try:
            found = {k: t for file in sorted(place.glob("*.safetensors")) for k, t in load_file(file).items()}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{place}: this past policy cannot be read: {error}") from None
        names = _file_names(policy)
        unlike = sorted(set(names.values()) ^ set(found))
        if unlike:
            raise ValueError(f"{place}: this past policy is not of this model; missing or unknown: {unlike[:3]}")
        return {name: found[file] for name, file in names.items()}

    @contextmanager
    def worn(self, policy: nn.Module, member: int) -> Iterator[nn.Module]:
        """Inside the block the live policy has a member's weights, loaded now; afterwards its own, bit for bit."""
        live = trainable_tensors(policy)
        past = self.tensors(member, policy)
        own = {name: tensor.clone() for name, tensor in live.items()}
        try:
            _copy(live, past)
            yield policy
        finally:
            _copy(live, own)


def adapter_tensors(policy: PeftModel) -> dict[str, Tensor]:
    """The adapter by the names that PEFT saves it under."""
    return dict(get_peft_model_state_dict(policy))


def _file_names(policy: nn.Module) -> dict[str, str]:
    """Trainable parameter -> its name in the saved file (PEFT leaves the adapter's own name out)."""
    names = trainable_tensors(policy)
    if isinstance(policy, PeftModel):
        return {name: name.replace(".default.", ".") for name in names}
    return {name: name for name in names}


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in into.items():
        tensor.copy_(values[name])


def _plain(value: Any) -> Any:
    """PEFT's settings hold sets and enumerations."""
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))
