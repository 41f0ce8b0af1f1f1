"""Lineage: a checkpoint names the labels that it was trained on, through files, reward models and earlier runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.cli import dispatch
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.stages.labels import main as labels
from tutelage.stages.lineage import labels_in, lineage_of

PAIRS = [
    {"prompt": f"Say {n}", "chosen": f"{n} is said", "rejected": f"no, not {n}", "annotator": "ann"} for n in range(12)
]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Twelve labelled pairs, brought into an annotation database and out again as files to train on."""
    data, url = tmp_path / "pairs.jsonl", f"sqlite:///{tmp_path / 'feedback.db'}"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    labels(["import", "--data", str(data), "--db", url, "--project", "spoken"])
    labels(["export", "--db", url, "--out", str(tmp_path / "export"), "--valid-share", "0"])
    return tmp_path / "export"


def sha(path: Path) -> str:
    """Its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings(**given: Any) -> Any:
    """What lineage reads of a command's settings."""
    return SimpleNamespace(**{"model": "builtin:x", "data": ()} | given)


def test_an_export_is_named_by_its_manifest_and_the_last_judgment(export: Path) -> None:
    found = lineage_of(settings(data=(f"{export / 'train.jsonl'}=0.5",)))
    source = found["data"][0]
    assert source["files"] == {"train.jsonl": sha(export / "train.jsonl")}
    manifest = json.loads((export / "manifest.json").read_text())
    assert source["labels"]["manifest"] == sha(export / "manifest.json")
    assert (source["labels"]["project"], source["labels"]["last_judgment"]) == ("spoken", manifest["last_judgment"])
    assert manifest["last_judgment"] == 12
    assert "changed_since" not in source["labels"]
    with (export / "train.jsonl").open("a") as file:
        file.write(json.dumps(PAIRS[0]) + "\n")
    changed = lineage_of(settings(data=(str(export / "train.jsonl"),)))
    assert changed["data"][0]["labels"]["changed_since"] == ["train.jsonl"]


def test_other_files_and_names_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_text(json.dumps(PAIRS[0]) + "\n")
    (tmp_path / "manifest.json").write_text("[1, 2]")
    found = lineage_of(settings(data=(str(tmp_path / "plain.jsonl"), "someone/pairs"), reward=("brevity=0.5",)))
    assert [sorted(one["files"]) for one in found["data"]] == [["plain.jsonl"], []]
    assert labels_in(found) == []
    assert found["rewards"] == [{"name": "brevity"}]


@pytest.mark.slow
def test_a_task_made_on_demand_is_named_and_has_no_files() -> None:
    found = lineage_of(settings(data=("task:sums/train(size=6)=0.5",)))
    assert found["data"] == [{"source": "task:sums/train(size=6)"}]


@pytest.mark.slow
def test_a_policy_names_the_labels_of_its_reward_model(export: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny()
    save_policy(model, tokenizer, tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(4)))
    fixed = ["--model", str(tmp_path / "model"), "--steps", "1", "--batch-size", "2"]
    data = ["--data", str(export / "train.jsonl")]
    assert dispatch("reward", [*fixed, *data, "--out", str(tmp_path / "rm")]) == 0
    judged = [*fixed, "--data", str(prompts), "--reward", str(tmp_path / "rm"), "--max-new-tokens", "4"]
    assert dispatch("rl", [*judged, "--algorithm.group-size", "2", "--out", str(tmp_path / "rl")]) == 0
    for part in (tmp_path / "rl", tmp_path / "rl" / "policy"):
        lineage = json.loads((part / "lineage.json").read_text())
        assert [one["manifest"] for one in labels_in(lineage)] == [sha(export / "manifest.json")]
        assert labels_in(lineage["data"]) == [], "the prompts are nobody's labels"
    again = lineage_of(settings(model=str(tmp_path / "rl" / "policy")))
    assert [one["project"] for one in labels_in(again)] == ["spoken"], "and so does whatever starts from it"
