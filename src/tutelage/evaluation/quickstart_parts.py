"""What the quickstart's report is drawn from: the numbers of its stages, as far as it has got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tutelage.evaluation import page
from tutelage.evaluation.figures import Line
from tutelage.evaluation.page import Html, number

NOT_YET = "Nothing here yet: this stage has not finished."


@dataclass(frozen=True)
class Story:
    """quickstart.json, the run folder and the figures of the sub-runs (`reward`, `rl`, `prefer`); `real`: people's own labels."""

    data: Mapping[str, Any]
    folder: Path
    training: Mapping[str, Sequence[Html]] = field(default_factory=dict)

    @property
    def real(self) -> bool:
        return self.part("feedback").get("kind") == "real"

    @property
    def quick(self) -> bool:
        return bool(self.data.get("quick"))

    @property
    def judges(self) -> dict[str, str]:
        """Who says which answer is better, by the key of the win rate; the one that counts comes first."""
        return ({} if self.real else {"win_gold": "hidden rule"}) | {"win_reward": "reward model"}

    def part(self, name: str) -> Mapping[str, Any]:
        """A stage's numbers; empty while it has not run."""
        return self.data.get(name) or {}


def line(curve: Sequence[Mapping[str, Any]], key: str, label: str, x: Sequence[float] | None = None) -> Line:
    """One number of every checkpoint, with its band where the checkpoints carry one."""
    bands = [[row.get(f"{key}_{end}") for row in curve] for end in ("low", "high")]
    low, high = bands if all(any(v is not None for v in band) for band in bands) else ([], [])
    return Line(label, [row["step"] for row in curve] if x is None else x, [row.get(key) for row in curve], low, high)


def left_out(story: Story, kind: str) -> list[Html]:
    """A warning where rows of the user's file were skipped."""
    found = story.part("left_out").get(kind)
    if not found:
        return []
    text = (
        f"{number(found['left_out'])} of {number(found['rows'])} rows of {found['source']} could not be read, such as "
    )
    return [page.callout(f"{text}{found['such_as']}", stressed="Rows were left out.", warning=True)]
