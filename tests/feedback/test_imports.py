"""Other tools' files: what a person said there is what comes out here, down to sides, ties, users and times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.feedback.imports import alpaca_eval, argilla, from_record, guess_tool, label_studio
from tutelage.feedback.label_imports import import_labels
from tutelage.feedback.label_store import read_labels
from tutelage.feedback.pair_labels import pair_labels
from tutelage.records import Comparison, Rating, user

FILES = Path(__file__).with_name("imports")


def rows(name: str) -> list[dict]:
    return json.loads((FILES / name).read_text(encoding="utf-8"))


def test_label_studio_pairs_keep_sides_people_and_times() -> None:
    left, right = label_studio(rows("label_studio.json")[0])
    assert [a.text for a in left.answers] == ["Rayleigh scattering.", "Because it is."]
    assert (left.payload, right.payload) == ({"choice": "first"}, {"choice": "second"})
    assert (left.annotator, right.annotator) == ("10", "bo@example.org")  # the third cancelled
    assert (left.seconds, left.shown, left.prompt.id) == (4.288, True, "1")
    assert left.at == pytest.approx(1773094568.728353)


def test_label_studio_ranker_and_single_answers() -> None:
    (ranking,) = label_studio(rows("label_studio.json")[1])
    assert dict(zip([a.text for a in ranking.answers], ranking.payload["ranks"], strict=True)) == {
        "There is nothing worse.": 3,
        "A compact alternative.": 1,
        "<b>Arrows</b> are bolts.": 2,
    }
    found = {one.kind: one.payload for one in label_studio(rows("label_studio.json")[2])}
    assert found == {
        "rating": {"value": 4},
        "yesno": {"value": True},
        "critique": {"text": "Short,\nbut right.", "spans": []},
    }


def test_argilla_rankings_with_and_without_ranks_and_discarded_ones() -> None:
    strict, tied = argilla(rows("argilla.json")[0])
    named = {"response-1": "Red.", "response-2": "A banana.", "response-3": "Blue."}
    assert [a.text for a in strict.answers] == list(named.values())
    assert (strict.payload["ranks"], tied.payload["ranks"]) == ([2, 3, 1], [1, 3, 1])
    assert strict.annotator.endswith("1")
    assert not strict.shown


def test_argilla_chat_prompts_ratings_and_flat_records() -> None:
    (rating,) = argilla(rows("argilla.json")[1])
    assert ([m.role for m in rating.prompt.messages], rating.payload) == (["user", "assistant", "user"], {"value": 2})
    first, tie = argilla(rows("argilla.json")[2])
    assert (first.prompt.text, first.payload, first.annotator) == ("Say no.", {"choice": "first"}, "u1")
    assert (tie.payload, tie.annotator) == ({"choice": "tie"}, "u2")


def test_alpaca_eval_preferences_are_one_to_two() -> None:
    found = [one for row in rows("alpaca_eval.json") for one in alpaca_eval(row)]
    assert [one.payload["choice"] for one in found] == ["first", "second", "tie", "second"]
    assert [one.annotator for one in found] == ["alpaca_eval_gpt4", "13", "13", "w"]
    assert found[0].answers[1].author == "gpt4"
    assert found[1].prompt.text == "Sum up.\n\nA long\ntext"


def test_tools_are_known_by_their_keys() -> None:
    assert [guess_tool(rows(f"{name}.json")[0]) for name in ("label_studio", "argilla", "alpaca_eval")] == [
        "label_studio",
        "argilla",
        "alpaca_eval",
    ]
    assert guess_tool(rows("argilla.json")[2]) == "argilla"
    assert guess_tool({"chosen": "a", "rejected": "b"}) == "pairs"


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (alpaca_eval, {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 3}, "`preference`: 3"),
        (alpaca_eval, {"instruction": "", "output_1": "b", "output_2": "c", "preference": 1}, "`instruction`: ''"),
        (label_studio, {"data": [], "annotations": []}, "key `data`: list"),
        (argilla, {"fields": {"text": "x"}, "responses": {}}, "no prompt"),
        (
            argilla,
            {"fields": {"prompt": "x", "a": "y"}, "responses": {"q": [{"value": ["b"], "user_id": "u"}]}},
            "'b' is no field; allowed: a",
        ),
    ],
)
def test_rows_that_are_not_as_documented_are_named(read, row, message) -> None:
    with pytest.raises(ValueError, match=message):
        read(row)


def test_imported_judgments_come_back_from_the_database(place) -> None:
    imported = label_studio(rows("label_studio.json")[0])
    imported += from_record(
        Comparison(user("One?"), imported[0].answers[1], imported[0].answers[0], 0.5, annotator="10")
    )
    with place.db.write() as c:
        made = import_labels(c, "from elsewhere", imported, "label_studio.json")
    with place.db.read() as c:
        labels = read_labels(c, made)
    assert [(j.payload["choice"], j.permutation) for j in labels.judgments] == [
        ("first", (0, 1)),
        ("second", (0, 1)),
        ("tie", None),  # nobody knows on which side it stood
    ]
    assert sorted(person.name for person in labels.people.values()) == ["10", "bo@example.org"]
    assert labels.judgments[0].active_seconds == pytest.approx(4.288)
    assert [label.first_shown is None for label in pair_labels(labels.judgments)] == [False, False, True]


def test_an_import_is_one_task_and_nothing_else(lite) -> None:
    mixed = label_studio(rows("label_studio.json")[2])
    with (
        pytest.raises(ValueError, match="judgments of critique, rating, yesno; allowed: one task"),
        lite.db.write() as c,
    ):
        import_labels(c, "mixed", mixed, "x.json")
    with pytest.raises(ValueError, match="judgments of no task"), lite.db.write() as c:
        import_labels(c, "none", [], "x.json")
    with pytest.raises(ValueError, match="Rating: no judgment"):
        from_record(Rating(user("a"), mixed[0].answers[0], 3.0, (1.0, 5.0)))
