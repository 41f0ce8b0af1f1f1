"""Exports: soft labels, weights, splits that leak nothing, checksums, and files that the training commands read."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.data.readers import load_records
from tutelage.feedback.export_files import Split, split_rows, verify, write_export
from tutelage.feedback.exports import LEAST_WEIGHT, Options, Row, export_rows, reliability_weights
from tutelage.feedback.judgments import Item, Judgment, Labels, Person, conversation_root
from tutelage.feedback.pair_labels import pair_unit
from tutelage.records import Answer, Message, Prompt, user

GOOD, BAD = Answer("good ✓"), Answer("bad")


def labels(kind="preference", prompts: int = 40, choices=("first", "second", "tie"), **more) -> Labels:
    """Three people judge every prompt; person k says choices[k] of (good, bad), shown the other way round to person 1."""
    people = {f"annotator-{k}": Person(f"annotator-{k}", "ABC"[k], held_out=k == 2) for k in range(3)}
    judgments = []
    for i in range(prompts):
        item = Item(i, kind, user(f"question {i}", id=f"q{i}"), (GOOD, BAD), {}, **more)
        for k, said in enumerate(choices):
            payload = {"choice": said, "strength": 2 if said in ("first", "second") else None}
            judgments.append(
                Judgment(len(judgments) + 1, item, f"annotator-{k}", payload, (1, 0) if k == 1 else (0, 1))
            )
    return Labels("p", kind, tuple(judgments), people, {1: "Judge."})


def test_votes_become_a_soft_label_by_hand() -> None:
    # canonical votes: person 0 good; person 1 pressed second of (bad, good): good; person 2 a tie: (1 + 1 + 1/2) / 3
    (row, *_) = export_rows(labels(prompts=1), Options(labels="mean")).rows
    assert row.data["chosen"]["text"] == "good ✓"
    assert row.data["preference"] == pytest.approx(5 / 6)
    assert row.data["annotator"] == "annotator-0,annotator-1,annotator-2"
    assert row.data["margin"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_reliable_annotators_weigh_more_and_nobody_nothing() -> None:
    weights = reliability_weights({"annotator-0": 0.9, "annotator-1": 0.5, "annotator-2": 0.2})
    assert weights == {"annotator-0": pytest.approx(0.8), "annotator-1": LEAST_WEIGHT, "annotator-2": LEAST_WEIGHT}
    rows = export_rows(labels(prompts=1), Options(weights=weights)).rows
    assert [row.data["weight"] for row in rows] == [pytest.approx(0.8), 0.05, 0.05]
    split = labels(prompts=1, choices=("first", "first", "tie"))  # good, then bad (the sides were turned), then a tie
    (merged,) = export_rows(split, Options(labels="mean", weights=weights)).rows
    assert merged.data["preference"] == pytest.approx((0.8 * 1 + 0.05 * 0 + 0.05 / 2) / 0.9)


def test_the_model_decides_where_it_is_asked() -> None:
    unit, turned = pair_unit(user("question 0"), GOOD, BAD)
    soft = {unit: 0.7 if turned else 0.3}  # P(good wins) = 0.3
    (row,) = export_rows(labels(prompts=1), Options(labels="model", soft=soft)).rows
    assert (row.data["chosen"]["text"], row.data["preference"]) == ("bad", pytest.approx(0.7))


def test_check_items_and_repeats_are_left_out_and_counted_unless_asked_for() -> None:
    known = labels(prompts=2, check_answer={"choice": "first"})
    again = labels(prompts=3, repeat_of=9)
    both = replace(known, judgments=known.judgments + again.judgments + labels(prompts=1).judgments)
    found = export_rows(both, Options())
    assert (len(found.rows), found.left_out) == (3, Counter({"check items": 6, "repeats by the same person": 9}))
    assert len(export_rows(both, Options(checks=True)).rows) == 18


def test_both_bad_is_counted_and_taken_by_kto() -> None:
    bad = labels(prompts=1, choices=("both_bad", "first", "tie"))
    assert export_rows(bad, Options()).left_out == {"both bad: no comparison (the kto format takes them)": 1}
    rows = export_rows(bad, Options(format="kto")).rows
    assert Counter(row.data["label"] for row in rows) == {False: 3, True: 1}


def test_a_format_that_the_task_cannot_give_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ValueError, match="--format critique: no rows of the task preference: 3 nothing in it for critique"
    ):
        export_rows(labels(prompts=1), Options(format="critique"))


def test_all_turns_of_a_dialogue_are_on_one_side() -> None:
    first = Prompt((Message("system", "s"), Message("user", "Hi")))
    later = Prompt((*first.messages, Message("assistant", "Hello"), Message("user", "More")))
    assert conversation_root(first) == conversation_root(later) != conversation_root(user("Hi"))
    split = Split(valid=0.2, test=0.1)
    sides = Counter(split.side(conversation_root(user(f"question {i}"))) for i in range(5000))
    assert sides["valid"] == pytest.approx(1000, abs=120)
    assert sides["test"] == pytest.approx(500, abs=90)


def test_held_out_annotators_have_files_of_their_own() -> None:
    rows = [Row({"n": n}, f"root {n}", (who,)) for n in range(300) for who in ("in", "out")]
    parts = split_rows(rows, Split(0.3), {"out"})
    assert set(parts) == {"train", "valid", "heldout_annotators_valid", "heldout_annotators_seen_prompts"}
    numbers = {name: {row["n"] for row in found} for name, found in parts.items()}
    assert numbers["heldout_annotators_valid"] == numbers["valid"]
    assert numbers["train"].isdisjoint(numbers["valid"])
    assert sum(map(len, parts.values())) == 600


def test_manifest_card_and_checksums(tmp_path: Path) -> None:
    found = labels()
    exported = export_rows(found, Options())
    manifest = write_export(
        tmp_path / "out", exported, found, Split(0.2), container="jsonl", about={"agreement": {"alpha": "0.5"}}
    )
    assert sum(manifest["rows"].values()) == len(exported.rows) == 120
    assert verify(tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| alpha | 0.5 |" in card
    assert "| annotator-2 | labeller, held out | 40 |" in card
    for name in ("A", "B", "C"):
        assert f"| {name} |" not in card  # numbers, not names
    with (tmp_path / "out" / "valid.jsonl").open("a") as file:
        file.write("{}\n")
    (tmp_path / "out" / "train.jsonl").rename(tmp_path / "out" / "other.jsonl")
    assert verify(tmp_path / "out") == [
        "train.jsonl: missing",
        "valid.jsonl: changed",
        "other.jsonl: not in the manifest",
    ]
    with pytest.raises(ValueError, match="is not empty"):
        write_export(tmp_path / "out", exported, found, Split(), container="jsonl", about={})


@pytest.mark.parametrize("container", ["jsonl", "parquet"])
@pytest.mark.parametrize("wanted", ["records", "trl", "trl_implicit"])
def test_the_reward_and_preference_commands_read_it(tmp_path: Path, container, wanted) -> None:
    found = labels()
    weights = {"annotator-0": 0.8, "annotator-1": 0.6, "annotator-2": 0.05}
    exported = export_rows(found, Options(format=wanted, weights=weights))
    write_export(tmp_path / "out", exported, found, Split(0.0), container=container, about={})
    loaded = load_records(tmp_path / "out" / f"train.{container}", "comparison")
    assert not loaded.skipped
    assert not [key for key in loaded.ignored_keys if key not in ("id", "category")]
    assert len(loaded.records) == 80
    assert {r.chosen.text for r in loaded.records} == {"good ✓"}
    assert {(r.annotator, r.weight, r.margin, r.preference) for r in loaded.records} == {
        ("annotator-0", 0.8, 2 / 3, 1.0),
        ("annotator-1", 0.6, 2 / 3, 1.0),
    }
    assert {r.prompt.text for r in loaded.records} == {f"question {i}" for i in range(40)}
    unseen = load_records(tmp_path / "out" / f"heldout_annotators_seen_prompts.{container}", "comparison")
    assert {r.preference for r in unseen.records} == {0.5}


def test_kto_and_sft_files_are_read_too(tmp_path: Path) -> None:
    found = labels()
    for wanted, kind, count in (("kto", "rating", 160), ("sft", "demonstration", 80)):
        exported = export_rows(found, Options(format=wanted))
        write_export(tmp_path / wanted, exported, found, Split(0.0), container="jsonl", about={})
        loaded = load_records(tmp_path / wanted / "train.jsonl", kind)
        assert len(loaded.records) == count
    yes = [r for r in load_records(tmp_path / "kto" / "train.jsonl", "rating").records if r.score == 1.0]
    assert {r.answer.text for r in yes} == {"good ✓"}
    shown = load_records(tmp_path / "sft" / "train.jsonl", "demonstration").records
    assert {r.messages[-1].content for r in shown} == {"good ✓"}


def test_datasets_come_back(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = labels(prompts=5)
    exported = export_rows(found, Options(format="trl"))
    write_export(tmp_path / "out", exported, found, Split(0.0), container="datasets", about={})
    rows = datasets.load_from_disk(str(tmp_path / "out" / "train")).to_list()
    assert rows == [r.data for r in exported.rows if r.annotators != ("annotator-2",)]
    assert verify(tmp_path / "out") == []
