"""Where metrics go besides metrics.jsonl: TensorBoard, Weights & Biases or trackio, by name; none is imported unasked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol


class Sink(Protocol):
    """Takes a step's metrics (finite numbers only)."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step."""
        ...

    def close(self) -> None:
        """No more steps: write what is held back."""
        ...


class TensorBoard:
    """Event files in the run folder, `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an interrupted run logged beyond its last checkpoint
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None, flush_secs=10)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


class WandB:
    """A W&B run named after the folder; a resumed one goes on under the same id (W&B keeps the first value of a step)."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], step: int) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(
            project="tutelage", name=folder.name, id=name, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait for what is on its way."""
        self._run.finish()


class Trackio:
    """A local trackio run; a resumed one goes on under the same name (steps after the last checkpoint appear twice)."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], step: int) -> None:
        import trackio  # type: ignore[import-not-found]

        self._run = trackio.init(project="tutelage", name=name, config=dict(config), resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait for what is on its way."""
        self._run.finish()


SINKS: Mapping[str, type[TensorBoard] | type[WandB] | type[Trackio]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_sinks(names: Sequence[str]) -> None:
    """ValueError for a name that is not known or whose package is not installed."""
    for name in names:
        if name not in SINKS:
            raise ValueError(f"unknown place for metrics {name!r}; known: {', '.join(SINKS)}")
        spec = find_spec(name)  # the extras, the packages and the names are called alike
        if spec is None or spec.origin is None:  # no origin: a mere folder, such as the ./wandb that W&B leaves behind
            raise ValueError(f"{name} is not installed; install it with `pip install 'tutelage[{name}]'`")


def open_sinks(names: Sequence[str], folder: Path, name: str, config: Mapping[str, Any], step: int) -> list[Sink]:
    """The named sinks, ready for `step`; `name` identifies the run and stays the same when it is resumed."""
    return [SINKS[kind](folder, name, config, step) for kind in names]
