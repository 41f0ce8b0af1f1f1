"""How the quickstart ended: the exam on held-out requests, what to do next and what it took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tutelage.evaluation import figures, page
from tutelage.evaluation.page import Html, Page, number, percent, within
from tutelage.evaluation.quickstart_parts import NOT_YET, Story, line


def conclude(report: Page, story: Story) -> None:
    """Add stages 6 and 7 and the cost to the page; what has not run yet says so."""
    for stage in (_evaluation, _next, _cost):
        stage(report, story)


def _evaluation(report: Page, story: Story) -> None:
    evaluation, curve = story.part("evaluation"), story.data.get("curve") or ()
    title = "6. The exam"
    cards = [
        page.card(row.get("prompt", ""), _before_after(row, story.real)) for row in story.data.get("samples") or ()
    ]
    if not (evaluation or curve or cards):
        report.section(title, NOT_YET)
        return
    if story.quick:
        text = "The starting model and the trained one answered the requests kept aside. No claim is made from so short a run."
    else:
        text = (
            "On requests kept aside, the trained model's answer is put beside the starting model's and the better one wins; "
            "a tie counts one half. A win rate of 50 % means that nothing changed; brackets hold the 95 % interval."
        )
    known = evaluation.get("before") and evaluation.get("after")
    ends = [_table(evaluation, story.real)] if known else []
    blocks = [] if story.quick else _verdict(story)
    blocks.append(page.side_by_side(*ends) if story.quick else page.side_by_side(*_final(story), *ends))
    blocks.append(page.side_by_side(*([] if story.quick else _win_rates(story)), *_scores(story)))
    if story.real:
        command = next((line for line in story.data.get("next") or () if "--compare" in line), "")
        shown = [page.callout("Judge it yourself without knowing which model speaks:"), page.listing(command)]
        blocks += shown if command else []
    if cards:
        blocks.append(page.details(f"{len(cards)} requests, answered before and after", *cards, unfolded=True))
    report.section(title, text, *blocks)


def _verdict(story: Story) -> list[Html]:
    evaluation = story.part("evaluation")
    key, name = next(iter(story.judges.items()))
    found, blocks = evaluation.get(key), []
    if found and found.get("low") is not None and found.get("high") is not None:
        better, worse = found["low"] > 0.5, found["high"] < 0.5
        result = "better than before" if better else "worse than before" if worse else "not told apart from before"
        text = f"The trained model wins {within(found)} of {number(found.get('n'))} comparisons."
        if story.real:
            text += " That is the judge it was trained to please: only people can say whether the answers are better."
        blocks.append(page.callout(text, stressed=f"Result by the {name}: {result}.", warning=not better))
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    change = [None if None in (before.get(k), after.get(k)) else after[k] - before[k] for k in ("reward", "gold")]
    if not story.real and change[0] is not None and change[1] is not None and change[0] > 0 > change[1]:
        text = "The reward model's score rose while the hidden rule's fell: the model learned to please its judge."
        blocks.append(page.callout(text, stressed="Reward hacking.", warning=True))
    return blocks


def _final(story: Story) -> list[Html]:
    evaluation = story.part("evaluation")
    rows = [(f"by the {name}", evaluation[key]) for key, name in story.judges.items() if evaluation.get(key)]
    if evaluation.get("matched_length"):
        rows.append(("at equal length of both answers", evaluation["matched_length"]))
    note = "Dots are estimates, lines their 95 % intervals."
    return [page.figure(figures.intervals("Win rate at the end", rows), note)] if rows else []


def _win_rates(story: Story) -> list[Html]:
    curve = story.data.get("curve") or ()
    drawn = [(key, name) for key, name in story.judges.items() if any(row.get(key) is not None for row in curve)]
    if not drawn:
        return []
    drawing = figures.lines(
        "Win rate over training", [line(curve, *judge) for judge in drawn], shares=True, reference=0.5
    )
    blocks = [page.figure(drawing, "A point for each checkpoint; a band is its 95 % interval.")]
    if at := [row for row in curve if row.get("kl") is not None]:
        roots = [math.sqrt(max(0.0, row["kl"])) for row in at]
        paths, steps = [line(at, *judge, x=roots) for judge in drawn], [row["step"] for row in at]
        title, x = "Win rate against the distance from the start", "square root of KL"
        drawing = figures.lines(title, paths, x=x, shares=True, reference=0.5, steps=steps)
        blocks.append(
            page.figure(drawing, "What moving away from the starting model bought; the small numbers are steps.")
        )
    return blocks


def _scores(story: Story) -> list[Html]:
    curve = story.data.get("curve") or ()
    wanted = [("reward", "Score by the reward model", "What the training sees.")]
    if not story.real:
        note = "What the training never sees. Falling here while the other rises would be reward hacking."
        wanted.append(("gold", "Score by the hidden rule", note))
    return [
        page.figure(figures.lines(title, [line(curve, key, title)]), note)
        for key, title, note in wanted
        if any(row.get(key) is not None for row in curve)
    ]


def _table(evaluation: Mapping[str, Any], real: bool) -> Html:
    before, after = evaluation["before"], evaluation["after"]
    names = {
        "reward": "Reward model's score",
        "gold": "Hidden rule's score",
        "length": "Tokens an answer",
        "finished": "Answers it ends itself",
    }
    shown = {
        key: percent if key == "finished" else number for key in names if key in after and not (real and key == "gold")
    }
    rows = [(names[key], show(before.get(key)), show(after[key])) for key, show in shown.items()]
    if evaluation.get("kl"):
        rows.append(("Distance from the start (KL, nats)", "0", within(evaluation["kl"], number)))
    return page.table(("", "Before", "After"), rows, "Before and after, on the requests kept aside")


def _before_after(row: Mapping[str, Any], real: bool) -> list[tuple[str, str, dict[str, str]]]:
    judges = {"reward": "reward"} if real else {"reward": "reward", "gold": "hidden rule"}
    return [
        (
            when.capitalize(),
            str(row.get(when, "")),
            {name: number(row[f"{j}_{when}"]) for j, name in judges.items() if row.get(f"{j}_{when}") is not None},
        )
        for when in ("before", "after")
    ]


def _next(report: Page, story: Story) -> None:
    commands = "\n".join(map(str, story.data.get("next") or ()))
    text = "Talk to the trained model, or bring your own requests and your own feedback." if commands else NOT_YET
    report.section("7. What to do next", text, page.listing(commands) if commands else "")


def _cost(report: Page, story: Story) -> None:
    minutes, tokens = story.part("minutes"), story.part("tokens")
    if not minutes:
        return
    rows = [(phase.replace("_", " "), number(spent), number(tokens.get(phase))) for phase, spent in minutes.items()]
    rows.append(
        ("total", number(round(sum(v or 0 for v in minutes.values()), 1)), number(sum(v for v in tokens.values() if v)))
    )
    picture = page.figure(
        figures.stacked(
            "Where the minutes went", [(k.replace("_", " "), v or 0) for k, v in minutes.items()], unit="min"
        )
    )
    machine = f"On {story.data['machine']}." if story.data.get("machine") else ""
    report.section(
        "What it took", machine, page.side_by_side(picture, page.table(("Phase", "Minutes", "Tokens"), rows))
    )
