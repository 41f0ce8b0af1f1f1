"""What a command chooses by measurement or by the machine: a resumed run keeps what it was begun with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tutelage.config import read_yaml
from tutelage.training.pass_tokens import shape_of, tokens_of_a_pass


def recorded(cfg: Any) -> dict[str, Any]:
    """The settings that a run was begun with, where it is resumed: measured anew a choice might be another one."""
    path = Path(cfg.out or "") / "config.yaml"
    return read_yaml(path) if cfg.out and getattr(cfg, "resume", False) and path.is_file() else {}


def with_pass_tokens(cfg: Any, begun: Mapping[str, Any], device: torch.device) -> Any:
    """Settings that state the tokens of a pass: as the run was begun with, or by the machine's memory."""
    settings = getattr(cfg, "optimization", None)
    if settings is None or settings.tokens_per_pass is not None:
        return cfg
    tokens = (begun.get("optimization") or {}).get("tokens_per_pass")
    shape = None if tokens else shape_of(cfg.model)
    if shape is not None:
        tokens = tokens_of_a_pass(shape, cfg.full, device)
    return replace(cfg, optimization=replace(settings, tokens_per_pass=tokens or settings.pass_tokens))
