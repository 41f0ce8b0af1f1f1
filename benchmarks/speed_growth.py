"""How time and memory of our GRPO step grow with each size of the work, and how straight the lines are."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from checkout import commit
from speed_data import Source, fixed_rewards
from speed_process import Peer
from speed_work import Work
from tutelage.console import track
from tutelage.training.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
UNITS = 3


@dataclass(frozen=True)
class Point:
    """A GRPO step's sizes; `layers` is the model's depth, 0 all of it."""

    prompts: int = 2
    group: int = 4
    prompt_tokens: int = 64
    answer_tokens: int = 32
    layers: int = 0


AXES: dict[str, tuple[int, ...]] = {
    "group": (2, 4, 8, 16, 32),
    "answer_tokens": (16, 32, 64, 128, 256),
    "prompt_tokens": (32, 64, 128, 256, 512),
    "prompts": (1, 2, 4, 8, 16),
    "layers": (10, 20, 30),
}
"""Each is varied alone."""


def run(source: Source, results: Path, *, again: bool = False, axes: dict[str, tuple[int, ...]] = AXES) -> None:
    """Every point that is not there yet, each in a process of its own, into `results`/growth.json."""
    path = results / "growth.json"
    found = json.loads(path.read_text()) if path.is_file() and not again else {"commit": commit(ROOT), "axes": {}}
    wanted = [(axis, value) for axis, values in axes.items() for value in values]
    with track(len(wanted), "growth", "point") as bar:
        for axis, value in wanted:
            points = found["axes"].setdefault(axis, {})
            if str(value) not in points:
                points[str(value)] = measure(replace(Point(), **{axis: value}), source)
                results.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps({**found, "threads": source.threads}, indent=1) + "\n")
            bar.advance()


def measure(point: Point, source: Source) -> dict[str, Any]:
    """Seconds (median) and peak memory of the step at a point."""
    path = work_of(point, source).write(source.cache / "works" / "growth.json")
    threads = {"OMP_NUM_THREADS": str(source.threads), "MKL_NUM_THREADS": str(source.threads), "HF_HUB_OFFLINE": "1"}
    with Peer("speed_ours:grpo", path, log=source.cache / "logs" / "growth.log", environment=threads) as peer:
        units = [peer.unit() for _ in range(UNITS)]
        return {
            **asdict(point),
            "seconds": median(unit["seconds"] for unit in units),
            "phases": units[-1]["phases"],
            "peak_mb": max(unit["peak_mb"] for unit in units),
            "loaded_mb": peer.loaded_mb,
        }


def work_of(point: Point, source: Source) -> Work:
    """Prompts and answers of exactly these lengths; which tokens they hold changes nothing of the work."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(100, 250) for _ in range(count)]

    work = source.work(
        prompts=[tokens(point.prompt_tokens) for _ in range(point.prompts)],
        messages=[[{"role": "user", "content": str(n)}] for n in range(point.prompts)],
        answers=[[tokens(point.answer_tokens) for _ in range(point.group)] for _ in range(point.prompts)],
        rewards=fixed_rewards(point.prompts, point.group),
        group=point.group,
        max_tokens=point.answer_tokens,
        forced=True,
        settings={"settled": True},
    )
    return replace(work, model=cut(source, point.layers)) if point.layers else work


def cut(source: Source, layers: int) -> str:
    """A directory with the model's first blocks only."""
    from tutelage.models.load import keep_layers, load_policy, load_tokenizer, save_policy
    from tutelage.models.packing import backbone_of

    folder = source.cache / f"layers-{layers}"
    if not (folder / "config.json").is_file():
        model = load_policy(source.path, dtype="float32", device="cpu")
        keep_layers(backbone_of(model), layers)
        save_policy(model, load_tokenizer(source.path), folder)
    return str(folder)


def straightness(sizes: Sequence[float], values: Sequence[float]) -> float:
    """How far the values are from their least-squares line: the largest distance, as a share of the largest value."""
    slope, start = np.polyfit(np.asarray(sizes, float), np.asarray(values, float), 1)
    distance = np.abs(slope * np.asarray(sizes) + start - np.asarray(values)).max()
    return float(distance / max(values))
