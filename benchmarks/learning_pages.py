"""The curves on the pages of docs/algorithms: one small figure a page, drawn from the rows of the learning table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learning_tasks import seeds_of

PAGES: dict[str, tuple[str, ...]] = {
    "sft": ("sft",),
    "distillation": ("distill_token", "distill_sequence", "distill_on_policy"),
    "reward-model": ("bradley_terry",),
    "preference-model": ("preference_model",),
    "direct-assessment": ("classifier", "regression"),
    "outcome-value": ("outcome_value",),
    "dpo": ("dpo",),
    "ipo": ("ipo",),
    "kto": ("kto",),
    "reinforce": ("reinforce", "reinforce_no_baseline", "reinforce_group_mean", "rloo"),
    "credit-assignment": ("reinforce", "reinforce_bandit", "reinforce_value"),
    "ppo": ("ppo", "ppo_shared_trunk"),
    "grpo": ("grpo", "dr_grpo", "dapo", "gspo", "cispo"),
    "kl": ("kl_in_reward", "kl_in_loss"),
    "exploration": ("entropy_bonus", "clip_higher", "temperature_schedule"),
    "best-of-n": ("best_of_n", "self_improvement"),
    "language-feedback": ("language_feedback",),
    "online-dpo": ("online_dpo",),
    "nash-md": ("nash_md", "nash_self_play", "nash_past_policies"),
}
"""A page's name -> the rows whose curves it shows; every row has a page."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small files, and a test can read what is drawn
    "svg.hashsalt": "tutelage",  # the same bytes for the same curves
    "font.size": 7,
    "axes.titlesize": 8,
}
COLOURS = {"trained": "tab:blue", "permuted": "tab:orange"}


SCORING = ("reward-model", "preference-model", "direct-assessment", "outcome-value")
WORDS = {3: "three", 6: "six"}
CONTROLS = {
    "sft": "the demonstrated answers dealt to other prompts",
    "distillation": "a teacher that was taught answers to other prompts",
    "nash-md": "the verdicts of a step's duels dealt to other answers",
    **dict.fromkeys(
        ("dpo", "ipo", "language-feedback", "reward-model", "preference-model"), "a coin for who was preferred"
    ),
    **dict.fromkeys(("kto", "direct-assessment", "outcome-value"), "the labels dealt to other answers"),
}
"""What the control of a page's rows is; of the others, the rewards of a step's answers dealt to other answers."""


def seeds_on(page: str) -> int:
    """How many seeds the rows of a page have."""
    return seeds_of("reward" if page in SCORING else "rl")


def complete(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Pages whose rows have all been run on enough seeds, with their rows."""
    found = {row["row"]: row for row in rows}
    return {
        page: [found[name] for name in names]
        for page, names in PAGES.items()
        if all(name in found and len(found[name]["seeds"]) >= seeds_on(page) for name in names)
    }


def draw_pages(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """`folder`/PAGE.svg for every page that is complete."""
    for page, there in complete(rows).items():
        folder.mkdir(parents=True, exist_ok=True)
        draw(there, folder / f"{page}.svg", columns=len(there))


def curve_section(page: str) -> str:
    """What a page of docs/algorithms says about its curve: the figure, the command under it, what it shows."""
    names = PAGES[page]
    score = "the probability of the right answer to held-out one-digit sums"
    if page in SCORING:
        score = "the share of held-out pairs (a right sum, a wrong one) in which the right one is preferred"
    control = CONTROLS.get(page, "the rewards of a step's answers dealt to other answers")
    return f"""## Curve
![{", ".join(names)}: held-out score over training steps](../../benchmarks/results/learning/curves/{page}.svg)

`make learn ARGS="--only {" ".join(names)}"`: {score};
mean and range of {WORDS[seeds_on(page)]} seeds. Orange is the same run with {control}.
[The learning table](../learning.md) has the intervals, and says what else is held equal.

"""


def write_sections(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """The section of every page in `folder`: before the commonest mistakes where it is complete, none where it is not."""
    there = complete(rows)
    for page in PAGES:
        path = folder / f"{page}.md"
        text = re.sub(r"^## Curve\n.*?(?=^## )", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        if page in there:
            text = text.replace("## Commonest mistakes\n", curve_section(page) + "## Commonest mistakes\n")
        path.write_text(text, encoding="utf-8")


def draw(rows: Sequence[Mapping[str, Any]], path: Path, columns: int) -> None:
    """One small panel a row: the mean over seeds and the band from the worst seed to the best."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-len(rows) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.1 * columns + 0.3, 1.7 * lines + 0.1), layout="constrained")
        FigureCanvasAgg(figure)
        for place, row in enumerate(rows):
            axes = figure.add_subplot(lines, columns, place + 1)
            panel(axes, row)
            if place == 0:
                axes.legend(frameon=False)
        figure.supxlabel("steps", fontsize=8)
        figure.supylabel("held-out score", fontsize=8)
        figure.savefig(path, dpi=90, metadata={"Date": None} if path.suffix == ".svg" else None)


def panel(axes: Any, row: Mapping[str, Any]) -> None:
    """A row's two curves and how many seeds they are of."""
    for kind, colour in COLOURS.items():
        steps, means = curves_of(row, kind)
        axes.plot(steps, means.mean(0), color=colour, label=kind)
        axes.fill_between(steps, means.min(0), means.max(0), color=colour, alpha=0.25, linewidth=0)
    axes.set_title(f"{row['row']} ({len(row['seeds'])} seeds)")
    axes.set_ylim(0, 1)


def curves_of(row: Mapping[str, Any], kind: str) -> tuple[list[int], np.ndarray]:
    """Steps, and each seed's mean score at them [S, points]."""
    curves = [curves[kind] for curves in row["seeds"].values()]
    return [step for step, _ in curves[0]], np.array([[np.mean(scores) for _, scores in curve] for curve in curves])
