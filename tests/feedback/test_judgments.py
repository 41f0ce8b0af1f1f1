"""What was on the screen and what was pressed -> what is exported: a property, for every task, without sharing any code."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.feedback.exports import Options, export_rows
from tutelage.feedback.judgments import Item, Judgment, Labels, Person, canonical_payload, critiques, shown_payload
from tutelage.feedback.pair_labels import pair_labels
from tutelage.feedback.payloads import Task, check
from tutelage.records import Answer, user

TEXTS = ("alpha", "be ta", "gämma", "דלת", "ε", "zeta\nzeta", "eta")
ORDERS = st.integers(2, 7).flatmap(lambda n: st.permutations(range(n)))


def judged(kind: Task, order: tuple[int, ...], payload: dict, texts: tuple[str, ...] = TEXTS) -> Judgment:
    answers = tuple(Answer(text) for text in texts[: len(order)])
    options = {"scale": [1, 7], "ties": True, "both_bad": True}
    stored = check(kind, payload, options, [texts[i] for i in order])
    return Judgment(7, Item(3, kind, user("why?", id="q"), answers, options), "annotator-1", stored, order)


def labels_of(one: Judgment) -> Labels:
    return Labels("p", one.item.kind, (one,), {"annotator-1": Person("annotator-1", "Ann")}, {})


def rows_of(one: Judgment, **options) -> list[dict]:
    labels = labels_of(one)
    if not any_rows(labels, options):
        return []
    return [row.data for row in export_rows(labels, Options(**options)).rows]


def any_rows(labels: Labels, options: dict) -> bool:
    try:
        return bool(export_rows(labels, Options(**options)).rows)
    except ValueError:
        return False


def last(messages: list[dict]) -> str:
    assert messages[-1]["role"] == "assistant"
    return messages[-1]["content"]


@given(order=st.permutations(range(2)), choice=st.sampled_from(["first", "second", "tie", "both_bad"]), data=st.data())
def test_preference(order, choice, data) -> None:
    strength = data.draw(st.sampled_from([1, 2, 3])) if choice in ("first", "second") else None
    one = judged("preference", tuple(order), {"choice": choice, "strength": strength})
    left, right = (TEXTS[i] for i in order)  # what the person saw
    rows = {name: rows_of(one, format=name) for name in ("records", "trl", "trl_implicit", "kto", "sft", "ranking")}
    if choice == "both_bad":
        assert rows["trl"] == rows["trl_implicit"] == rows["sft"] == []
        assert [r.get("preference") for r in rows["records"]] == []
        assert {(last(r["completion"]), r["label"]) for r in rows["kto"]} == {(left, False), (right, False)}
        assert rows["ranking"][0]["none_acceptable"] is True
        return
    (trl,), (implicit,), (record,) = rows["trl"], rows["trl_implicit"], rows["records"]
    assert trl["prompt"] == implicit["chosen"][:-1] == [{"role": "user", "content": "why?"}]
    found = {(last(trl["chosen"]), last(trl["rejected"])), (last(implicit["chosen"]), last(implicit["rejected"]))}
    assert {(record["chosen"]["text"], record["rejected"]["text"])} == found
    if choice == "tie":
        assert trl["preference"] == record["preference"] == 0.5
        assert trl["margin"] == 0
        assert rows["kto"] == rows["sft"] == rows_of(one, format="trl", ties="drop") == []
        assert rows["ranking"][0]["ranks"] == [1, 1]
        return
    better, worse = (left, right) if choice == "first" else (right, left)
    assert found == {(better, worse)}
    assert (trl["preference"], trl["margin"]) == (1.0, strength / 3)
    assert {(last(r["completion"]), r["label"]) for r in rows["kto"]} == {(better, True), (worse, False)}
    assert [last(r["completion"]) for r in rows["sft"]] == [better]
    (ranking,) = rows["ranking"]
    assert dict(zip([a["text"] for a in ranking["answers"]], ranking["ranks"], strict=True)) == {better: 1, worse: 2}


@given(order=ORDERS, data=st.data())
def test_ranking(order, data) -> None:
    scores = data.draw(st.lists(st.integers(1, 4), min_size=len(order), max_size=len(order)))
    pressed = [1 + sum(other < score for other in scores) for score in scores]
    one = judged("ranking", tuple(order), {"ranks": pressed, "none_acceptable": data.draw(st.booleans())})
    rank_of = dict(zip([TEXTS[i] for i in order], pressed, strict=True))  # by what the person saw
    rows = rows_of(one, format="trl")
    assert len(rows) == len(order) * (len(order) - 1) // 2
    assert len({row["group"] for row in rows}) == 1
    assert abs(sum(row["weight"] for row in rows) - 1) < 1e-12
    for row in rows:
        better, worse = rank_of[last(row["chosen"])], rank_of[last(row["rejected"])]
        assert better < worse if row["preference"] == 1.0 else better == worse
    (whole,) = rows_of(one, format="ranking")
    assert dict(zip([a["text"] for a in whole["answers"]], whole["ranks"], strict=True)) == rank_of
    best = [text for text, rank in rank_of.items() if rank == 1]
    written = [last(row["completion"]) for row in rows_of(one, format="sft")]
    assert written == (best if len(best) == 1 and not one.payload["none_acceptable"] else [])
    if one.payload["none_acceptable"]:
        refused = {last(row["completion"]) for row in rows_of(one, format="kto") if not row["label"]}
        assert refused == set(rank_of)


@given(value=st.integers(1, 7))
def test_rating(value) -> None:
    one = judged("rating", (0,), {"value": value, "flags": []})
    (record,) = rows_of(one, format="records")
    assert (record["answer"]["text"], record["score"], record["scale"]) == ("alpha", float(value), [1.0, 7.0])
    unpaired = [(last(row["completion"]), row["label"]) for row in rows_of(one, format="kto")]
    assert unpaired == ([] if value == 4 else [("alpha", value > 4)])


@given(value=st.booleans())
def test_yesno(value) -> None:
    one = judged("yesno", (0,), {"value": value, "flags": ["Hallucination"]})
    (record,) = rows_of(one, format="records")
    assert record["score"] == float(value)
    assert [(last(r["completion"]), r["label"]) for r in rows_of(one, format="kto")] == [("alpha", value)]
    assert len(rows_of(one, format="sft")) == int(value)


@given(start=st.integers(0, 4), length=st.integers(1, 4), rewrite=st.one_of(st.none(), st.just("better")))
def test_critique(start, length, rewrite) -> None:
    text = "zeta\nzeta"
    quote = text[start : start + length]
    span = {"start": start, "end": start + length, "tag": "wrong", "note": "because", "quote": quote}
    one = judged("critique", (0,), {"text": "Not good.", "spans": [span], "rewrite": rewrite}, texts=(text,))
    (row,) = rows_of(one, format="critique")
    assert row["critique"] == f'Not good.\n"{quote}" (wrong): because'
    assert row["spans"] == [span]
    pairs = [(last(r["chosen"]), last(r["rejected"])) for r in rows_of(one, format="trl")]
    assert pairs == ([("better", text)] if rewrite else [])
    assert [last(r["completion"]) for r in rows_of(one, format="sft")] == ([rewrite] if rewrite else [])
    assert (critiques(one)[0].rewritten is None) == (rewrite is None)


@given(
    text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), min_size=1).filter(str.strip)
)
def test_demonstration(text) -> None:
    one = judged("demonstration", (), {"text": text})
    (row,) = rows_of(one, format="sft")
    assert (row["prompt"], last(row["completion"])) == ([{"role": "user", "content": "why?"}], text)
    (record,) = rows_of(one, format="records")
    assert [m["content"] for m in record["messages"]] == ["why?", text]


@given(order=ORDERS, data=st.data())
def test_what_must_be_pressed_is_the_inverse_of_what_was_meant(order, data) -> None:
    ranks = data.draw(st.permutations(range(1, len(order) + 1)))
    pressed = shown_payload("ranking", {"ranks": ranks}, order)
    assert canonical_payload("ranking", pressed, order)["ranks"] == ranks
    assert pressed["ranks"] == [ranks[i] for i in order]


@given(order=st.permutations(range(2)), choice=st.sampled_from(["first", "second"]))
@settings(max_examples=20)
def test_sides_of_a_pair_label_are_those_of_the_screen(order, choice) -> None:
    (label,) = pair_labels([judged("preference", tuple(order), {"choice": choice})])
    picked_left = (label.said == "first") == label.first_shown
    assert picked_left == (choice == "first")
    longer = max(TEXTS[:2], key=len)
    picked_longer = (label.said == "first") == (label.longer > 0)
    assert len(TEXTS[0]) == len(TEXTS[1]) or picked_longer == (TEXTS[order[0 if choice == "first" else 1]] == longer)


def test_skips_give_nothing_and_are_counted() -> None:
    skip = judged("preference", (0, 1), {"skip": "unclear"})
    kept = judged("preference", (1, 0), {"choice": "first"})
    labels = Labels("p", "preference", (skip, kept), {}, {})
    found = export_rows(labels, Options())
    assert (len(found.rows), dict(found.left_out)) == (1, {"skipped": 1})
