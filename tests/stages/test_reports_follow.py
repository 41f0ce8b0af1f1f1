"""A run's report is drawn when there is something new to see, after the step that it shows is on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.config import build
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.stages import training
from tutelage.stages.prefer import Prefer, main


@pytest.mark.slow
def test_reports_are_drawn_at_checkpoints_and_looks_with_the_newest_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy(*tiny(), tmp_path / "model")
    pairs, answers = tmp_path / "pairs.jsonl", tmp_path / "answers.jsonl"
    rows = [{"prompt": f"Name {n}.", "chosen": f"{n} it is.", "rejected": "No."} for n in range(4)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    messages = [{"role": "user", "content": "Name 9."}]
    answer = {"text": "No.", "tokens": [78], "logprobs": [-1.0], "ended": "length"}
    answers.write_text(json.dumps({"prompt": {"messages": messages}, "answers": [answer]}))
    given = {
        "model": str(tmp_path / "model"),
        "data": [str(pairs)],
        "out": str(tmp_path / "run"),
        "steps": 7,
        "batch_size": 1,
        "algorithm": {"name": "dpo"},
        "monitor": {"against": str(answers), "judges": ["gold"], "every": 3, "prompts": 1, "max_new_tokens": 2},
        "optimization": {"save_every": 5},
    }
    shown: list[int] = []
    draw = training.training_report

    def drawn(folder: Path) -> Path:
        shown.append(len((folder / "metrics.jsonl").read_text().splitlines()))
        return draw(folder)

    monkeypatch.setattr(training, "training_report", drawn)
    followed: list[int] = []
    with training.following(lambda: followed.append(shown[-1])):
        main(build(Prefer, given, "test"))
    assert shown == [3, 5, 6, 7, 7], "looks after 3 and 6 steps, a checkpoint after 5, and the end"
    assert followed == [3, 5, 6, 7]
    assert not training._followers
