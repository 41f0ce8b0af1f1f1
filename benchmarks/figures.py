"""Figures of the pages in docs/, from the code itself, real data and committed results: python benchmarks/figures.py [NAME ...]"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.readers import load_records
from tutelage.evaluation.gold import features, gold_score
from tutelage.models.load import load_tokenizer
from tutelage.records import Answer, group_from_json, read_jsonl, user
from tutelage.rewards.rules import brevity, length_penalty
from tutelage.statistics import wilson

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results" / "figures"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "tutelage", "font.size": 8, "axes.titlesize": 8}
"""Text stays text, and the same numbers give the same bytes."""
BAND = 0.2
REAL = {
    "GSM8K, question and solution": ("gsm8k/test.jsonl", "demonstration"),
    "HH-RLHF harmless, the better answer": ("hh-rlhf-harmless-test/test.jsonl.gz", "demonstration"),
    "instructions (raschka)": ("raschka-instructions/instruction-data.json", "demonstration"),
}
Curve = tuple[list[float], list[float]]


def quickstart(axes: Any) -> None:
    """The win rate on the way, by the rule and by the reward model that is trained against."""
    curve = json.loads((ROOT / "benchmarks" / "results" / "quickstart.json").read_text())["runs"][0]["curve"]
    steps = [point["step"] for point in curve]
    for key, label in (("win_gold", "by the hidden rule (the truth here)"), ("win_reward", "by the reward model")):
        low, high = ([point.get(f"{key}_{end}", point[key]) for point in curve] for end in ("low", "high"))
        axes.plot(steps, [point[key] for point in curve], marker="o", markersize=3, label=label)
        axes.fill_between(steps, low, high, alpha=BAND, linewidth=0)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps of GRPO", ylabel="preferred to the reference", ylim=(0.4, 1))


def evaluate(axes: Any) -> None:
    """Win rates with their intervals: of the quickstart's runs and controls, by each judge."""
    runs = json.loads((ROOT / "benchmarks" / "results" / "quickstart.json").read_text())["runs"]
    judges = {
        "win_gold": "by the rule",
        "matched_length": "by the rule, at equal length",
        "win_reward": "by the reward",
    }
    for number, (key, label) in enumerate(judges.items()):
        found = [(place, run["evaluation"][key]) for place, run in enumerate(runs) if key in run["evaluation"]]
        middle = [one["estimate"] for _, one in found]
        reach = [
            [one["estimate"] - one["low"] for _, one in found],
            [one["high"] - one["estimate"] for _, one in found],
        ]
        places = [place + (number - 1) * 0.2 for place, _ in found]
        axes.errorbar(middle, places, xerr=reach, fmt="o", markersize=3, linewidth=1, label=label)
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="preferred to the reference, 95 % interval", yticks=range(len(runs)), xlim=(0.3, 1))
    axes.set_yticklabels([run["name"].replace("_", " ") for run in runs])
    axes.invert_yaxis()


def recipes(axes: Any) -> None:
    """Right sums while GRPO trains on others, and in the exams before and after it, of each seed."""
    runs = json.loads((ROOT / "benchmarks" / "results" / "sums.json").read_text())["runs"]
    for number, run in enumerate(runs):
        steps, right = zip(*run["curve"], strict=True)
        line = axes.plot(steps, smoothed(right), linewidth=1, label=f"seed {run['command'].split()[-1]}")[0]
        for place, exam in ((-2, "after SFT"), (len(steps) + 1, "after GRPO")):
            score, at = run["exams"][exam], place + number - 1
            reach = [[score["estimate"] - score["low"]], [score["high"] - score["estimate"]]]
            axes.errorbar(at, score["estimate"], yerr=reach, fmt="o", markersize=3, color=line.get_color())
    axes.set(xlabel="steps of GRPO (lines: mean of five steps; dots: exams)", ylabel="right sums", ylim=(0, 1))


def smoothed(values: Sequence[float], window: int = 5) -> list[float]:
    """Of each value the mean with those before it, `window` at most."""
    parts = [values[max(0, at + 1 - window) : at + 1] for at in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def rewards(axes: Any) -> None:
    """What the two rules of length say of an answer of so many words."""
    for label, (x, y) in rule_curves().items():
        axes.plot(x, y, label=label)
    axes.set(xlabel="words in the answer", ylabel="score")


def rule_curves() -> dict[str, Curve]:
    """Rule -> (words, scores)."""
    lengths = list(range(0, 251, 5))
    answers = [Answer("word " * n) for n in lengths]
    rules: dict[str, Callable[..., list[float]]] = {"brevity": brevity, "length_penalty": length_penalty}
    return {name: ([float(n) for n in lengths], rule(user("q"), answers)) for name, rule in rules.items()}


def chat(axes: Any) -> None:
    """How sure one can be after so many picks, of which 70 % went to one side."""
    picks = list(range(5, 201, 5))
    found = [wilson(0.7 * n, n) for n in picks]
    axes.fill_between(
        picks, [f.low for f in found], [f.high for f in found], alpha=BAND, label="95 % interval (Wilson)"
    )
    axes.axhline(0.7, label="70 % of the picks")
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="picks", ylabel="share that prefers this model", ylim=(0, 1))


def data(axes: Any) -> None:
    """How many rows of real data fit whole into --max-tokens."""
    root = os.environ.get("TUTELAGE_DATA")
    if not root:
        raise ValueError("TUTELAGE_DATA is not set: it names the folder with gsm8k/, hh-rlhf-harmless-test/ ...")
    talk = Chat.of(load_tokenizer("builtin:smollm2-135m-instruct"))
    limits = list(range(32, 1025, 32))
    for label, (path, kind) in REAL.items():
        records: Any = load_records(f"{root}/{path}", kind, "skip").records  # type: ignore[arg-type]
        lengths = [len(row.prompt) + len(row.tokens) for row in (talk.demonstration(r.messages) for r in records)]
        axes.plot(limits, [fitting(lengths, limit) for limit in limits], label=label)
    axes.set(xlabel="--max-tokens", ylabel="share of rows that fit whole", ylim=(0, 1.02))


def fitting(lengths: Sequence[int], limit: int) -> float:
    """The share of rows of at most `limit` tokens."""
    return sum(n <= limit for n in lengths) / len(lengths)


def gold_rule(axes: Any) -> None:
    """How often one measurement alone makes the rule's choice between two reference answers; 75 % is the bound tested."""
    shares = dict(sorted(agreement().items(), key=lambda item: item[1]))
    axes.barh([name.replace("_", " ") for name in shares], [share - 0.5 for share in shares.values()], left=0.5)
    axes.axvline(0.75, color="tab:red", linewidth=0.8, label="the bound tested")
    axes.set(xlabel="agrees with the rule, in its better direction", xlim=(0.5, 1))


def agreement() -> dict[str, float]:
    """Measurement -> the share of the rule's choices that it makes alone (equal values 1/2), in its better direction."""
    agreed: dict[str, float] = {}
    choices = 0
    for row in read_jsonl(ROOT / "tests" / "data" / "reference_answers.jsonl"):
        group = group_from_json(row)
        found = [(gold_score(group.prompt, a), features(group.prompt, a)) for a in group.answers]
        for (gold, mine), (other, theirs) in combinations(found, 2):
            if gold == other:
                continue
            choices += 1
            for name in mine:
                same = 0.5 if mine[name] == theirs[name] else float((mine[name] > theirs[name]) == (gold > other))
                agreed[name] = agreed.get(name, 0.0) + same
    return {name: max(count, choices - count) / choices for name, count in agreed.items()}


FIGURES: dict[str, Callable[[Any], None]] = {
    "quickstart": quickstart,
    "recipes": recipes,
    "evaluate": evaluate,
    "rewards": rewards,
    "chat": chat,
    "data": data,
    "gold-rule": gold_rule,
}
"""Page -> what draws its figure."""


def draw(name: str, folder: Path) -> Path:
    """`folder`/NAME.svg."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        FIGURES[name](axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return folder / f"{name}.svg"


def main(names: Sequence[str]) -> None:
    """Draw the named figures, or all."""
    unknown = set(names) - set(FIGURES)
    if unknown:
        raise SystemExit(f"no such figure: {', '.join(sorted(unknown))}; there are: {', '.join(FIGURES)}")
    for name in names or FIGURES:
        path = draw(name, FOLDER)
        say(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
