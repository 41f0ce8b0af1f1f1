"""report.html: what a run folder holds, drawn for people; works mid-run, after a crash and on an empty folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.evaluation import figures, page
from tutelage.evaluation.captions import METRICS, SHARES
from tutelage.evaluation.figures import Line
from tutelage.evaluation.page import Html, Page, number, percent
from tutelage.evaluation.quickstart_exam import conclude
from tutelage.evaluation.quickstart_parts import Story
from tutelage.evaluation.quickstart_story import tell

Data = Mapping[str, Any]

ORDER = (
    "",
    "reward",
    "accuracy",
    "reasoning",
    "exam",
    "policy",
    "value",
    "answer",
    "eval",
    "optim",
    "time",
    "fraction_of_limit",
    "tokens_per_second",
)
HEADINGS = {
    "": "Loss, and the whole step",
    "exam": "Exam on held-out prompts",
    "ptx": "Pretraining mix",
    "optim": "Optimiser",
    "time": "Where the time goes",
    "eval": "Evaluation",
    "fraction_of_limit": "How near to the machine's limit",
    "tokens_per_second": "Speed",
}
TOGETHER = {
    "time": ("Seconds a step", "Sampling and scoring answers is part of drawing the batch."),
    "fraction_of_limit": (
        "Share of the machine's limit",
        "The least seconds that each phase could take (operations and bytes that it needs, at the speeds measured at the start), "
        "as a share of what it took; 1 would be perfect.",
    ),
    "tokens_per_second": ("Tokens a second", "Tokens that a phase needs, each prompt once; of sampling, tokens said."),
}
"""Groups of metrics that share one figure: its title, and a sentence below it."""
ONLY_WHERE_SEEN = ("fallback", "recomputed")
"""Metrics that are drawn only where they were ever above 0."""


def training_report(folder: Path) -> Path:
    """Draw any run folder from config.yaml, metrics.jsonl and samples.jsonl, whatever of them is there.

    Returns the path of `report.html`, replaced in one move. Unreadable lines are counted on the page, never raised.
    """
    rows, broken = read_rows(folder / "metrics.jsonl")
    samples, lost = read_rows(folder / "samples.jsonl")
    curves, gaps = metric_curves(rows)
    last = max((int(row["step"]) for row in rows if "step" in row), default=None)
    report = Page(f"Training run: {folder.resolve().name}", "No step yet" if last is None else f"Up to step {last}")
    if broken or lost:
        report.top(
            page.callout(f"{broken + lost} lines of metrics.jsonl and samples.jsonl could not be read.", warning=True)
        )
    if gaps:
        worst = ", ".join(f"{name} ({count})" for name, count in gaps.items())
        report.top(page.callout(f"Not finite in some steps, so left out of the curves: {worst}.", warning=True))
    newest = {
        name: curve
        for name, curve in curves.items()
        if name in ("loss", "reward/mean", *METRICS) and "time" not in name
    }
    report.top(
        page.tiles(*((name, _show(name)(curve.y[-1]), "newest step") for name, curve in list(newest.items())[:6]))
    )
    for title, blocks in metric_sections(curves):
        report.section(title, "", page.side_by_side(*blocks))
    if not curves:
        report.section("Metrics", "Nothing has been logged yet; this page is rewritten while the run goes on.")
    if samples:
        _newest_samples(report, samples)
    if (config := folder / "config.yaml").is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        report.section("Configuration", "The settings of this run; the file is itself a recipe.", page.listing(text))
    return report.write(folder / "report.html")


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a file that may still be written to, and how many whole lines could not be read."""
    if not path.is_file():
        return [], 0
    *lines, unfinished = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = [_object(line) for line in lines if line.strip()]
    good = [row for row in (*rows, _object(unfinished)) if row is not None]
    return good, rows.count(None)


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def metric_curves(rows: Iterable[Data]) -> tuple[dict[str, Line], dict[str, int]]:
    """A curve for each metric (null and non-finite values are gaps; of a repeated step the last row counts), and the gaps."""
    steps = {row["step"]: row for row in rows if isinstance(row.get("step"), int)}
    found: dict[str, list[tuple[int, float | None]]] = {}
    for step in sorted(steps):
        for name, value in steps[step].items():
            if name != "step" and (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
                found.setdefault(name, []).append((step, value if value is not None and math.isfinite(value) else None))
    curves = {name: Line(name, [s for s, _ in points], [v for _, v in points]) for name, points in found.items()}
    gaps = {name: curve.y.count(None) for name, curve in curves.items() if None in curve.y}
    return curves, gaps


def metric_sections(curves: Mapping[str, Line]) -> list[tuple[str, list[Html]]]:
    """A heading and its figures for each group of metrics, each figure with a sentence where the metric is known."""
    curves = {name: curve for name, curve in curves.items() if name not in ONLY_WHERE_SEEN or any(curve.y)}
    groups = sorted({_group(name) for name in curves}, key=lambda g: (ORDER.index(g) if g in ORDER else len(ORDER), g))
    sections = []
    for group in groups:
        members = [name for name in curves if _group(name) == group]
        if group in TOGETHER:
            title, note = TOGETHER[group]
            labels = {name: name.removeprefix(f"{group}/") if name != group else "whole step" for name in members}
            parts = [Line(labels[name], curves[name].x, curves[name].y) for name in members]
            blocks = [page.figure(figures.lines(title, parts, shares=group in SHARES), note)]
        else:
            blocks = [metric_figure(curves[name]) for name in members]
        sections.append((HEADINGS.get(group, group.replace("_", " ").capitalize()), blocks))
    return sections


def metric_figure(curve: Line) -> Html:
    """One metric over the steps."""
    short = curve.label.rsplit("/", 1)[-1]
    caption = METRICS.get(curve.label) or METRICS.get(short, "")
    return page.figure(figures.lines(curve.label, [curve], shares=short in SHARES), caption)


def _group(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name or name in TOGETHER else ""


def _show(name: str) -> Any:
    return percent if name.rsplit("/", 1)[-1] in SHARES else number


def _newest_samples(report: Page, samples: Sequence[Data], most: int = 8) -> None:
    step = samples[-1].get("step")
    newest = [row for row in samples if row.get("step") == step]
    rewards = [
        a["reward"] for row in newest for a in row.get("answers", ()) if isinstance(a.get("reward"), int | float)
    ]
    blocks = (
        [page.figure(figures.histogram("Rewards of these answers", rewards, x="reward"))] if len(rewards) >= 8 else []
    )
    cards = [
        page.card(_prompt_text(row.get("prompt", "")), map(_sampled, row.get("answers", ()))) for row in newest[:most]
    ]
    report.section("Newest samples", f"What the model said at step {step}, and what it earned for it.", *blocks, *cards)


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, Mapping):
        prompt = prompt.get("messages", "")
    if isinstance(prompt, str):
        return prompt
    return "\n".join(
        f"{turn.get('role')}: {turn.get('content')}" if len(prompt) > 1 else str(turn.get("content")) for turn in prompt
    )


def _sampled(answer: Data) -> tuple[str, str, dict[str, str]]:
    facts = {"reward": answer.get("reward"), **(answer.get("parts") or {})}
    return (
        "Answer",
        str(answer.get("text", "")),
        {name: number(value) for name, value in facts.items() if value is not None},
    )


def quickstart_report(folder: Path) -> Path:
    """Draw the story of `tutelage quickstart` from quickstart.json and the metrics of its sub-runs, as far as it has got.

    With real feedback nothing of the gold rule is drawn; a quick run shows no win rate. Returns the path of the page.
    """
    data = _quickstart(folder / "quickstart.json")
    hidden = "gold" if (data.get("feedback") or {}).get("kind") == "real" else "win" if data.get("quick") else None
    training = {}
    for run in ("reward", "rl", "prefer"):
        curves, _ = metric_curves(read_rows(folder / run / "metrics.jsonl")[0])
        kept = [
            curve for name, curve in curves.items() if _group(name) not in TOGETHER and not (hidden and hidden in name)
        ]
        training[run] = [metric_figure(curve) for curve in kept]
    facts = (
        data.get("model"),
        str(data.get("algorithm", "")).upper(),
        f"seed {data['seed']}" if "seed" in data else "",
    )
    report = Page("A language model learns from preferences", " · ".join(str(fact) for fact in facts if fact))
    story = Story(data, folder, training)
    tell(report, story)
    conclude(report, story)
    return report.write(folder / "report.html")


def _quickstart(path: Path) -> dict[str, Any]:
    found = _object(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    return _finite(found or {"status": "running"})


def _finite(value: Any) -> Any:
    """The same data with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
