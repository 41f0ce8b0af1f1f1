"""The run folder: its settings, environment, metrics, samples and checkpoints; refused, resumed and cut back safely."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tutelage.console import say, warn
from tutelage.records import write_jsonl
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.environment import differences, environment
from tutelage.training.files import clear_disk_errors, write_whole
from tutelage.training.opening import check_opening, resume_command
from tutelage.training.sinks import Sink, open_sinks


class Run:
    """An open run folder. `open` makes it, so it is called once the data are known to be good.

    >>> run = Run.open(Path("runs/first"), config, "rl", resume=False)
    >>> run.truncate(0)
    >>> run.log(0, {"reward/mean": 0.5})
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any], keep: int, sinks: Sequence[str]) -> None:
        self.folder, self.recipe = folder, recipe
        self.checkpoints = Checkpoints(folder / "checkpoints", keep)
        self._sink_names, self._sinks = tuple(sinks), list[Sink]()
        self._next: int | None = None
        self._not_finite: set[str] = set()
        self._facts: dict[str, Any] = {}

    @classmethod
    def open(
        cls, folder: Path | str, config: Any, command: str, resume: bool, *, keep: int = 2, sinks: Sequence[str] = ()
    ) -> Self:
        """Begin a run in a folder that is new or empty, or go on with the one that is there.

        Raises ValueError for a folder in use without `resume`, one that is no run folder, one that cannot be written, or
        settings that differ from those it was started with (all but `opening.MAY_CHANGE`), and for a sink that is not installed.
        """
        folder = Path(folder)
        recipe, before = check_opening(folder, config, command, resume, sinks=sinks)
        if resume and before is None:
            say(f"nothing to resume in {folder} yet: starting from the beginning")
        run = cls(folder, recipe, keep, sinks)
        try:
            run._begin(before)
        except OSError as error:
            raise ValueError(str(error)) from error
        return run

    @property
    def resume_command(self) -> str:
        """The command line that goes on with this run."""
        return resume_command(self.recipe["command"], self.folder)

    def choice(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` found when the run first asked (plain JSON data): a resumed run must not choose anew."""
        choices = self._facts["choices"]
        if name not in choices:
            choices[name] = json.loads(json.dumps(measure()))  # the same lists and keys now as when it is read back
            self._write_facts()
        return choices[name]

    def truncate(self, step: int) -> None:
        """Go on from `step`: cut metrics and samples back to the steps before it. Call it before the first `log`.

        A kill leaves rows after the last checkpoint, and perhaps half a line: they are dropped, for they are made again.
        """
        kept = [_keep_before(self.folder / name, step) for name in ("metrics.jsonl", "samples.jsonl")]
        if kept[0] != step:
            warn(f"{self.folder / 'metrics.jsonl'} has {kept[0]} rows of the {step} steps that the checkpoint has done")
        self._next = step

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a step's row to metrics.jsonl (and the sinks); steps ascend, one row each. Log, then save.

        A number that is not finite is written as null, with a warning the first time.
        """
        assert self._next is not None, "truncate(step) says where the log goes on; call it first"
        assert step >= self._next, f"step {step} is logged after step {self._next - 1}: a step has one row"
        if self._sink_names and not self._sinks:
            self._sinks = open_sinks(self._sink_names, self.folder, self._facts["name"], self.recipe, step)
        values = {name: _number(value) for name, value in metrics.items()}
        for name in [n for n, v in values.items() if v is None and n not in self._not_finite]:
            self._not_finite.add(name)
            warn(f"step {step}: {name} is {metrics[name]}, not a finite number; metrics.jsonl has null")
        self._append("metrics.jsonl", [{"step": step, **values}])
        for sink in self._sinks:
            sink.log(step, {name: value for name, value in values.items() if value is not None})
        self._next = step + 1

    def sample(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append conversations with their reward parts to samples.jsonl; each row gets `step`, the number `log` has for it.

        So what is sampled after step 9 (when ten are done) is of step 9: a checkpoint of ten steps keeps it.
        """
        self._append("samples.jsonl", [{"step": step, **row} for row in rows])

    @property
    def finished(self) -> dict[str, Any] | None:
        """What `finish` was given, None while the run goes on."""
        path = self.folder / "finished.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, outputs: Mapping[str, Any]) -> None:
        """Mark the run as done: `outputs` by name, paths relative to the folder. Closes the sinks."""
        self.close()
        write_whole(self.folder / "finished.json", json.dumps(_relative(outputs, self.folder), indent=1) + "\n")

    def close(self) -> None:
        """Let the sinks write what they hold back."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with clear_disk_errors(self.folder / name):
            write_jsonl(self.folder / name, rows, append=True)

    def _begin(self, before: Mapping[str, Any] | None) -> None:
        with clear_disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if before is not None and before.get("steps") != self.recipe.get("steps"):
            (self.folder / "finished.json").unlink(missing_ok=True)  # it was done for the old number of steps
        text = yaml.safe_dump(self.recipe, sort_keys=False, allow_unicode=True, width=120)
        write_whole(self.folder / "config.yaml", text)
        facts, now = self.folder / "environment.json", environment()
        if before is not None and facts.is_file():
            self._facts = json.loads(facts.read_text(encoding="utf-8"))
            self._note_changes(differences(self._facts["environment"], now))
        else:
            stem = re.sub(r"[^\w.-]", "-", self.folder.resolve().name)
            self._facts = {"name": f"{stem}-{uuid.uuid4().hex[:8]}", "environment": now, "choices": {}}
            self._write_facts()
        if before is None:
            self._next = 0

    def _note_changes(self, changes: Mapping[str, tuple[Any, Any]]) -> None:
        for key, (was, now) in changes.items():
            warn(f"{key} was {was}, is {now}: the run goes on, perhaps not with the same bits")
        if changes:
            self._facts.setdefault("changes", []).append({k: {"was": w, "is": n} for k, (w, n) in changes.items()})
            self._write_facts()

    def _write_facts(self) -> None:
        write_whole(self.folder / "environment.json", json.dumps(self._facts, indent=1) + "\n")


def _keep_before(path: Path, step: int) -> int:
    """Rewrite a file of JSON lines with the rows before `step`; returns how many."""
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # not splitlines: text may hold U+2028
    kept = [line for line in lines[:-1] if _step(line) < step]  # what follows the last newline is half a line
    if len(kept) != len(lines) - 1 or lines[-1]:
        write_whole(path, "".join(line + "\n" for line in kept))
    return len(kept)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _number(value: Any) -> float | int | None:
    value = value.item() if hasattr(value, "item") else value
    return value if math.isfinite(value) else None


def _relative(outputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if not isinstance(value, Path):
            return value
        return str(value.relative_to(folder)) if value.is_relative_to(folder) else str(value)

    return {name: plain(value) for name, value in outputs.items()}
