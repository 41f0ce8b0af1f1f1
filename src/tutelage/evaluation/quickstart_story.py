"""The quickstart told to someone who has never seen RLHF: from the requests to the trained policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tutelage.evaluation import figures, page
from tutelage.evaluation.page import Html, Page, number, percent
from tutelage.evaluation.quickstart_parts import NOT_YET, Story, left_out, line

METHODS = {
    "dpo": "The model learns from the comparisons directly (DPO): the preferred answer becomes likelier than the other one, "
    "measured against the starting model, which also keeps it from drifting too far.",
    "": "The model practises: it answers, the reward model gives each answer a number, and answers that beat the average "
    "become likelier. A penalty on the distance from the starting model (KL) keeps it from drifting into nonsense that "
    "merely scores well.",
}


def tell(report: Page, story: Story) -> None:
    """Add banners, key figures and stages 1 to 5, each with two sentences and a picture; what has not run says so."""
    for stage in (_opening, _prompts, _answers, _feedback, _reward_model, _policy):
        stage(report, story)


def _opening(report: Page, story: Story) -> None:
    if story.data.get("status") == "running":
        report.top(page.callout("This run is still going on: load the page again to see more."))
    if story.part("feedback") and not story.real:
        report.top(page.callout("The feedback in this run comes from simulated labellers, not people; see part 3."))
    if story.quick:
        text = "It proves that every part works together. It is far too short to learn anything and claims nothing."
        report.top(page.callout(text, stressed="A quick run.", warning=True))
    evaluation, reward = story.part("evaluation"), story.part("reward_model").get("accuracy") or {}
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    shown = []
    for key, name in story.judges.items():
        if evaluation.get(key) and not story.quick:
            rate = evaluation[key]
            shown.append((f"Win rate by the {name}", percent(rate["estimate"]), f"{_bounds(rate)}, 50 % = no change"))
    if reward:
        shown.append(("Reward model is right", percent(reward["estimate"]), f"{_bounds(reward)}, 50 % = a coin"))
    if after.get("finished") is not None:
        shown.append(("Ends its answers", percent(after["finished"]), f"{percent(before.get('finished'))} before"))
    if minutes := story.part("minutes"):
        shown.append(
            (
                "Time",
                f"{number(round(sum(v or 0 for v in minutes.values()), 1))} min",
                str(story.data.get("machine", "")),
            )
        )
    if shown:
        report.top(page.tiles(*shown))


def _prompts(report: Page, story: Story) -> None:
    prompts = story.part("prompts")
    text = (
        f"{number(prompts.get('train'))} requests are used for learning and {number(prompts.get('heldout'))} others are kept "
        "aside. The model never learns from those: they are its exam."
    )
    kinds = sorted((prompts.get("categories") or {}).items(), key=lambda pair: -pair[1])
    rows = [(kind.replace("_", " "), {"estimate": count}) for kind, count in kinds]
    blocks = left_out(story, "prompt")
    blocks += [page.figure(figures.bars("Requests of each kind", rows, shares=False))] if rows else []
    if prompts.get("examples"):
        blocks.append(page.details("Some of the requests", page.bullets(prompts["examples"])))
    report.section("1. The requests", text if prompts else NOT_YET, *blocks)


def _answers(report: Page, story: Story) -> None:
    answers = story.part("answers")
    title = "2. The first answers"
    if not answers:
        brought = "The comparisons that you brought hold their own answers, so none were drawn from the model."
        report.section(title, brought if story.real else NOT_YET)
        return
    text = (
        f"Before any learning the model answered the requests several times: {number(answers.get('count'))} answers of "
        f"{number(answers.get('mean_tokens'))} tokens (word pieces) on average. Some are better than others, and that "
        "difference is all that the next stages need."
    )
    blocks: list[Html] = []
    if (finished := answers.get("finished")) is not None:
        parts = [("ended by the model itself", finished), ("cut at the length limit", 1 - finished)]
        blocks.append(page.figure(figures.stacked("How the answers end", parts)))
    cards = []
    for row in answers.get("examples") or ():
        drawn = [(f"Answer {i}", text, {}) for i, text in enumerate(row.get("answers") or (), start=1)]
        cards.append(page.card(row.get("prompt", ""), drawn))
    report.section(title, text, *blocks, *([page.details("Some of the answers", *cards)] if cards else []))


def _feedback(report: Page, story: Story) -> None:
    feedback = story.part("feedback")
    if not feedback:
        report.section("3. Feedback", NOT_YET)
        return
    agreement, blocks = feedback.get("agreement") or {}, []
    if story.real:
        text = (
            f"{number(feedback.get('comparisons'))} comparisons were read from the file you named: of two answers to one "
            "request, which is better? Some are kept aside to test the reward model on."
        )
        rows = [("Two labellers agree", agreement)] if agreement else []
    else:
        text = (
            f"Of two answers to one request, which is better? {number(feedback.get('comparisons'))} such comparisons were "
            "collected; like people's, they contain mistakes."
        )
        warning = (
            "No person judged these answers. Small programs did, by a hidden rule (the gold rule), with built-in faults: noise "
            "(close answers are mixed up), lapses (a random choice) and a liking for one side of the screen. The learning "
            "model never sees the rule, so the rule can check at the end what was really learned."
        )
        blocks = [page.callout(warning, stressed="The labellers are simulated.", warning=True)]
        agrees = [
            (a["name"], a["agreement_with_gold"])
            for a in feedback.get("annotators") or ()
            if a.get("agreement_with_gold")
        ]
        rows = [(f"{name} agrees with the hidden rule", row) for name, row in agrees]
        rows += [("two labellers agree with each other", agreement)] if agreement else []
        blocks.append(_labellers(feedback.get("annotators") or ()))
    numbers = [("Comparisons", number(feedback.get("comparisons")), "")]
    if feedback.get("alpha") is not None:
        numbers.append(
            ("Krippendorff's alpha", number(feedback["alpha"]), "agreement beyond chance; 1 is perfect, 0 is chance")
        )
    if feedback.get("ceiling") is not None:
        numbers.append(("Best possible accuracy", percent(feedback["ceiling"]), "on labels as noisy as these"))
    if rows:
        blocks.append(page.figure(figures.intervals("How far the labels can be trusted", rows)))
    report.section("3. Feedback", text, page.tiles(*numbers), *left_out(story, "comparison"), *blocks)


def _labellers(annotators: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        (a.get("name", ""), number(a.get("temperature")), percent(a.get("lapse")), number(a.get("side_bias")))
        for a in annotators
    ]
    head = ("Simulated labeller", "Noise (temperature)", "Lapses", "Side bias (log-odds)")
    return page.table(head, rows) if rows else Html("")


def _reward_model(report: Page, story: Story) -> None:
    model = story.part("reward_model")
    title = "4. The reward model"
    accuracy, ceiling = model.get("accuracy"), model.get("ceiling")
    if not accuracy:
        report.section(title, NOT_YET, _learning(story, "reward"))
        return
    best = "" if ceiling is None else f", and labels this noisy allow {percent(ceiling)} at best"
    text = (
        "A second model learned from the comparisons alone to give any answer a number: its reward. On requests that it "
        f"had not seen it picks the preferred answer in {percent(accuracy['estimate'])} of the cases; a coin gets 50 %{best}."
    )
    rules = [
        (f"the {word} answer", model[key])
        for word, key in (("longer", "longer_wins"), ("shorter", "shorter_wins"))
        if model.get(key) is not None
    ]
    rows = [
        ("reward model", accuracy),
        *((label, value if isinstance(value, Mapping) else {"estimate": value}) for label, value in rules),
    ]
    if model.get("gold_accuracy") and not story.real:
        rows.insert(1, ("by the hidden rule", model["gold_accuracy"]))
    caption = "Picking the preferred answer on held-out requests, beside two rules that only look at the length."
    blocks = [page.figure(figures.bars("How often it is right", rows, reference=0.5, ceiling=ceiling), caption)]
    if model.get("reliability"):
        bins = [{"estimate": b.get("observed"), **b} for b in model["reliability"]]
        drawing = figures.reliability("Does it know how sure it is?", bins)
        blocks.append(page.figure(drawing, "On the diagonal, what it calls 80 % sure is right in 80 % of the cases."))
    report.section(title, text, page.side_by_side(*blocks), _learning(story, "reward"))


def _learning(story: Story, run: str) -> Html:
    shown = story.training.get(run) or ()
    return page.details("How it learned, step by step", page.side_by_side(*shown)) if shown else Html("")


def _policy(report: Page, story: Story) -> None:
    method = str(story.data.get("algorithm", ""))
    curve = story.data.get("curve") or ()
    pictures = [
        page.figure(figures.lines(title, [line(curve, key, title)], shares=key == "finished"), caption)
        for key, title, caption in (
            ("reward", "Reward", "The reward model's score on held-out requests: this is what the training raises."),
            ("kl", "Distance from the start (KL)", "In nats an answer. 0 is the starting model itself."),
            ("length", "Length of an answer", "In tokens. A reward can be won by length alone, so it is watched."),
            ("finished", "Answers the model ends itself", "The others were cut at the length limit."),
        )
        if any(row.get(key) is not None for row in curve)
    ]
    text = METHODS.get(method, METHODS[""]) + (
        f" The method here is {method.upper()}." if method not in ("", "dpo") else ""
    )
    run = "prefer" if method == "dpo" else "rl"
    started = bool(pictures or story.training.get(run))
    report.section(
        f"5. Learning from the {'comparisons' if method == 'dpo' else 'reward'}",
        text if started else NOT_YET,
        page.side_by_side(*pictures),
        _learning(story, run),
    )


def _bounds(interval: Mapping[str, Any]) -> str:
    if interval.get("low") is None or interval.get("high") is None:
        return "no interval"
    return f"{percent(interval['low'])} to {percent(interval['high'])}"
