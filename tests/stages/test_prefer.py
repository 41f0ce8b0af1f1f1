"""`tutelage prefer` end to end on a tiny model: every method from pairs, KTO from labels too; what it learns and reports."""

from __future__ import annotations

import json

import pytest

from tutelage.config import parse
from tutelage.models.load import save_policy
from tutelage.records import Answer, Rating, user
from tutelage.stages.prefer import Prefer, main
from tutelage.stages.rated import check_labels

PAIRS = [{"prompt": f"Say {i}", "chosen": "yes", "rejected": "no"} for i in range(1, 25)]
LABELS = [{"prompt": f"Say {i}", "completion": "yes" if i % 3 else "no", "label": bool(i % 3)} for i in range(1, 25)]


@pytest.fixture
def place(tiny, tmp_path, monkeypatch):
    save_policy(*tiny, tmp_path / "model")
    for name, rows in {"pairs": PAIRS, "labels": LABELS}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(data: str, *flags: str):
    base = ["--model", "model", "--data", f"{data}.jsonl", "--steps", "6", "--heldout-share", "0.3", "--out", "run"]
    folder = main(parse(Prefer, [*base, *flags], prog="prefer"))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return steps, json.loads((folder / "prefer.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "flags"),
    [
        ("pairs", ["--algorithm", "dpo", "--algorithm.nu", "1.0"]),
        ("pairs", ["--algorithm", "ipo", "--algorithm.length", "mean"]),
        ("pairs", ["--algorithm", "kto"]),
        ("labels", ["--algorithm", "kto", "--algorithm.undesirable-weight", "2.0"]),
    ],
    ids=["dpo with ties", "ipo per token", "kto from pairs", "kto from labels"],
)
def test_what_was_preferred_becomes_likelier(place, data, flags):
    steps, report = run(data, *flags)
    assert steps[0]["reward/margin"] == 0.0
    assert steps[-1]["reward/margin"] > 0.01
    assert steps[-1]["accuracy/implicit"] > 0.9
    if "kto" in flags:
        assert steps[0]["kto/z0"] == 0.0
        assert report["auc"]["estimate"] > 0.9
    if data == "pairs":
        assert report["accuracy"]["estimate"] > 0.9


def test_labels_do_not_serve_dpo(place):
    with pytest.raises(ValueError, match=r"prompt/completion/label .* gives no comparison"):
        run("labels", "--algorithm", "dpo")


def test_a_rating_is_no_label():
    rows = [Rating(user("Say 1"), Answer("yes"), 1.0), Rating(user("Say 2"), Answer("yes"), 4.0, scale=(1.0, 7.0))]
    with pytest.raises(
        ValueError, match=r"'Say 2': KTO learns from yes \(1\) and no \(0\); got a score of 4 on the scale 1 to 7"
    ):
        check_labels(rows)
