"""From comparisons to an exploitability: preference model, Nash-MD with a pool, a best response, the evaluation; all tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.config import build
from tutelage.models.load import save_policy
from tutelage.models.tiny import tiny
from tutelage.records import read_jsonl
from tutelage.stages import evaluate, reward, rl
from tutelage.stages.exploit import expanded
from tutelage.training.meter import MEASURED

PAIRS = [
    {
        "prompt": f"Question {n}?",
        "chosen": "yes" * (n % 3 + 1),
        "rejected": "no",
        "preference": 0.5 if n % 5 == 0 else 1.0,
    }
    for n in range(12)
]
PROMPTS = [{"prompt": f"Ask {n}"} for n in range(6)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, comparisons, prompts, and a preference model trained on them."""
    folder = tmp_path_factory.mktemp("nash")
    save_policy(*tiny(hidden=32), folder / "model")
    for name, rows in (("pairs", PAIRS), ("prompts", PROMPTS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward.main(
        build(
            reward.Reward,
            {
                **shared(folder, "pairs", "preference"),
                "algorithm": "preference_model",
                "steps": 3,
                "batch_size": 4,
                "heldout_share": 0.3,
            },
            "test",
        )
    )
    return folder


def shared(folder: Path, data: str, out: str) -> dict:
    return {"model": str(folder / "model"), "data": [str(folder / f"{data}.jsonl")], "out": str(folder / out)}


def play(folder: Path, out: str, **changes) -> Path:
    settings = {
        **shared(folder, "prompts", out),
        "reward": [str(folder / "preference")],
        "algorithm": {"name": "nash_md", "group_size": 2, "mixing": 0.3, "pool_every": 2, "pool_share": 0.6},
        "steps": 5,
        "batch_size": 2,
        "max_new_tokens": 6,
        "max_tokens": 256,
        "optimization": {"save_every": 1, "learning_rate": 0.01},
        **changes,
    }
    return rl.main(build(rl.RL, settings, "test"))


def rows_of(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in read_jsonl(run / "metrics.jsonl")]


@pytest.mark.slow
def test_the_whole_way_and_resuming_it(place):
    report = json.loads((place / "preference" / "reward.json").read_text())
    assert 0 <= report["accuracy"]["estimate"] <= 1
    whole = play(place, "whole")
    assert sorted(p.name for p in (whole / "pool").iterdir()) == ["step-000000", "step-000002", "step-000004"]
    rows = rows_of(whole)
    assert {row["pool/past_rival"] for row in rows} == {0.0, 1.0}
    assert [row["pool/size"] for row in rows] == [1, 1, 2, 2, 3]
    assert all("rival" in answer for row in read_jsonl(whole / "samples.jsonl") for answer in row["answers"])
    play(place, "broken", steps=3)
    broken = play(place, "broken", steps=5, resume=True)
    assert rows_of(broken)[3:] == rows[3:], "the same rivals, answers and updates after a resume"
    for path in (broken / "pool" / "step-000000").glob("*"):
        path.unlink()
    (broken / "pool" / "step-000000").rmdir()
    with pytest.raises(ValueError, match="step-000000: the run's pool has this past policy, and it is gone"):
        play(place, "broken", steps=7, resume=True)


@pytest.mark.slow
def test_a_best_response_and_exploitability_of_a_language_policy(place):
    policy = play(place, "nash", steps=3)
    response = play(place, "response", model=str(policy), algorithm={"name": "best_response", "group_size": 2}, steps=2)
    settings = {
        **shared(place, "prompts", "exam"),
        "model": str(policy),
        "against": str(place / "model"),
        "judge": [str(place / "preference")],
        "rivals": [str(policy / "pool")],
        "responses": [str(response)],
        "answers": 2,
        "max_new_tokens": 6,
    }
    folder = evaluate.main(build(evaluate.Evaluate, settings, "test"))
    found = json.loads((folder / "evaluation.json").read_text())
    game = found["exploitability"]
    members = [str(policy / "pool" / f"step-00000{n}") for n in (0, 2)]
    assert game["policies"] == ["policy", *members, str(response)]
    assert game["prompts"] == 6
    for i in range(4):
        for j in range(i):
            assert game["beats"][i][j]["estimate"] + game["beats"][j][i]["estimate"] == pytest.approx(1)
    assert list(game["exploitability"]["best_responses"]) == [str(response)]
    one = game["exploitability"]["best_responses"][str(response)]
    assert one["low"] <= one["estimate"] <= one["high"]
    assert one["estimate"] == pytest.approx(game["beats"][3][0]["estimate"] - 0.5)
    assert sum(game["maximin"]["mixture"].values()) == pytest.approx(1, abs=1e-4)
    judged = found["judges"]["preference"]
    assert judged["score"]["estimate"] + judged["against_score"]["estimate"] == pytest.approx(1)


@pytest.mark.slow
def test_what_does_not_fit_together_is_said_before_anything_runs(place):
    with pytest.raises(
        ValueError, match="is a preference model, which compares two answers and scores none; use --algorithm nash_md"
    ):
        play(place, "never", algorithm="grpo")
    with pytest.raises(ValueError, match="a preference model stands alone"):
        play(place, "never", reward=[str(place / "preference"), "brevity"])
    with pytest.raises(ValueError, match="compares two answers; give --against, --rivals or --responses"):
        evaluate.main(
            build(evaluate.Evaluate, {**shared(place, "prompts", "never"), "judge": [str(place / "preference")]}, "t")
        )
    (place / "pool").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="holds no past policy"):
        expanded([str(place / "pool")])
    assert not (place / "never").exists()
