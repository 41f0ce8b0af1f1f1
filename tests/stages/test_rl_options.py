"""`tutelage rl` with its options, on a tiny model: each is wired to what it says, resumes exactly, and is refused where it means nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tutelage.config import build, parse
from tutelage.data.batch import sequences
from tutelage.models.heads import load_reward_model, new_scalar_model, save_reward_model
from tutelage.models.load import load_backbone, save_policy
from tutelage.models.logprobs import HeadedModel
from tutelage.models.tiny import tiny as make_tiny
from tutelage.records import read_jsonl
from tutelage.stages.rl import RL, main, temperature_at
from tutelage.training.loop import Task
from tutelage.training.meter import MEASURED
from tutelage.training.rollouts import RolloutSource

SMALL = {"batch_size": 2, "max_new_tokens": 6, "seed": 3, "optimization": {"save_every": 1}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with solutions, texts, a model, another model as the reference, and a reward model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("rl")
    model, tokenizer = make_tiny()
    save_policy(model, tokenizer, folder / "model")
    save_policy(make_tiny(seed=1)[0], tokenizer, folder / "other")
    reward_model = new_scalar_model(load_backbone(folder / "model"), seed=5)
    with torch.no_grad():
        reward_model.head.weight.fill_(0.5)
    save_reward_model(reward_model, tokenizer, folder / "judge")
    prompts = [{"prompt": f"{n} + {n}?", "solution": str(2 * n)} for n in range(1, 7)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": f"Number {n} is good."}) + "\n" for n in range(9)))
    return folder


def settings(place: Path, out: Path | str, **options: Any) -> RL:
    base = {"model": str(place / "model"), "data": [str(place / "prompts.jsonl")], "reward": ["brevity"], "steps": 2}
    return build(RL, {**SMALL, **base, "out": str(out), **options}, "test")


def run(place: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    folder = main(settings(place, out, **options))
    return list(read_jsonl(folder / "metrics.jsonl"))


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in rows]


PPO_IN_FULL: dict[str, Any] = {
    "algorithm": {"name": "ppo", "group_size": 2, "kl_target": 0.001, "kl_rate": 0.5, "missing_end_penalty": 1.0,
                  "entropy_coefficient": 0.01},
    "value": {"trunk": "shared", "read_out": True},
    "final_temperature": 0.5,
}  # fmt: skip


@pytest.mark.slow
def test_ppo_in_full_and_the_same_after_a_resume(place: Path, tmp_path: Path) -> None:
    """Shared trunk, adaptive KL, PPO-ptx, a falling temperature: three steps at once, and two with the third later."""
    options = PPO_IN_FULL | {"ptx": [str(place / "texts.jsonl")], "reference": str(place / "other")}
    rows = run(place, tmp_path / "whole", steps=3, **options)
    assert [row["sample/temperature"] for row in rows] == [1.0, 0.75, 0.5]
    betas = [row["policy/kl_coefficient"] for row in rows]
    assert betas[1] == pytest.approx(0.05 * 1.1), "far above the target: + 50 % of 20 %"
    assert betas[2] == pytest.approx(0.05 * 1.1**2)
    assert all(row["ptx/loss"] > 1 for row in rows)
    assert rows[0]["policy/kl"] > 0.1, "the reference is another model: the KL is not 0 at the start"
    config = tmp_path / "whole" / "config.yaml"
    assert "kl_target: 0.001" in config.read_text()
    sample = next(iter(read_jsonl(tmp_path / "whole" / "samples.jsonl")))["answers"][0]
    assert "".join(piece for piece, _ in sample["values"]).startswith(sample["text"])
    assert all(isinstance(value, float) for _, value in sample["values"])

    # The temperature's way depends on how many steps there will be, so the run that stops early is one of three steps too
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-000003")
    (tmp_path / "cut" / "finished.json").unlink()
    again = run(place, tmp_path / "cut", steps=3, resume=True, **options)
    assert plain(again) == plain(rows)
    one, two = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_dapo_draws_again_where_nothing_differs(place: Path, tmp_path: Path) -> None:
    """`sums` is never right here: every attempt is used, what is left is constant, and the penalty still tells answers apart."""
    rows = run(
        place, tmp_path / "run", reward=["sums"], algorithm={"name": "dapo", "group_size": 2, "minibatches": 1}, steps=1
    )
    assert rows[0]["sample/attempts"] == 3
    assert rows[0]["sample/replaced"] == 3.0
    assert rows[0]["reward/equal_groups"] == 1.0
    assert rows[0]["reward/overlong"] <= 0
    assert rows[0]["reasoning/accuracy"] == 0.0
    assert {"reasoning/maj_at_k", "reasoning/pass_at_k", "reasoning/length", "reasoning/reflection"} <= rows[0].keys()


@pytest.mark.slow
def test_an_exam_on_held_out_prompts(place: Path, tmp_path: Path) -> None:
    data = str(place / "prompts.jsonl")
    exam = {"data": [data], "every": 2, "answers": 3, "prompts": 2}
    rows = run(place, tmp_path / "run", reward=["sums"], algorithm={"name": "grpo", "group_size": 2}, exam=exam)
    assert "exam/accuracy" not in rows[0]
    assert rows[1]["exam/accuracy"] <= rows[1]["exam/pass_at_k"]
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(f"exam/{name}" in report for name in ("accuracy", "maj_at_k", "pass_at_k", "length", "reflection"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "reinforce"])
def test_process_rewards_reach_the_samples(method: str, place: Path, tmp_path: Path) -> None:
    run(place, tmp_path / "run", process_reward=["brevity"], algorithm={"name": method, "group_size": 2}, steps=1)
    for row in read_jsonl(tmp_path / "run" / "samples.jsonl"):
        for answer in row["answers"]:
            end, score = answer["steps"][-1]
            assert end <= 6
            assert score == pytest.approx(answer["reward"]), "the last step is the whole answer"


def task_of(place: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Task:
    """What would be trained."""
    seen: list[Task] = []
    monkeypatch.setattr(
        "tutelage.stages.rl.run_task", lambda cfg, command, ready, hooks: seen.append(ready.task) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        main(settings(place, "never", **options))
    return seen[0]


def test_the_value_starts_as_the_reward_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any update V after an answer is its score; from the policy's backbone and a fresh head it is not."""
    rows = sequences([(5, 6)], [0, 0], [[20, 21, 22], [30]])
    ppo = {"name": "ppo", "group_size": 2}
    task = task_of(place, monkeypatch, algorithm=ppo, value={"start": str(place / "judge")})
    fresh = task_of(place, monkeypatch, algorithm=ppo)
    assert task.models.value is not None
    assert fresh.models.value is not None
    score = HeadedModel(load_reward_model(place / "judge", dtype="float32")).scores(rows)
    assert torch.allclose(task.models.value.scores(rows), score, atol=1e-5)
    assert not torch.allclose(fresh.models.value.scores(rows), score, atol=0.1)
    assert any(p.requires_grad for p in task.trained["value"].parameters())


def test_a_shared_trunk_trains_one_module_for_both(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(place, monkeypatch, algorithm="ppo", value={"trunk": "shared"})
    assert task.models.policy is task.models.value
    names = [name for name, p in task.trained["policy"].named_parameters() if p.requires_grad]
    assert list(task.trained) == ["policy"]
    assert "head.weight" in names
    assert sum("lora_" in name for name in names) == len(names) - 1


def test_another_vocabulary_is_refused_in_plain_words(place: Path, tmp_path: Path) -> None:
    model, tokenizer = make_tiny(vocabulary=300)
    tokenizer.add_tokens(["hello"])
    save_policy(model, tokenizer, tmp_path / "strange")
    save_reward_model(new_scalar_model(load_backbone(tmp_path / "strange")), tokenizer, tmp_path / "judge")
    ppo = {"name": "ppo", "group_size": 2}
    with pytest.raises(ValueError, match=r"--value\.start .*judge has another vocabulary.*'hello' is None and 259"):
        main(settings(place, tmp_path / "run", algorithm=ppo, value={"start": str(tmp_path / "judge")}))
    with pytest.raises(ValueError, match=r"--reference .*strange has another vocabulary"):
        main(settings(place, tmp_path / "run", reference=str(tmp_path / "strange")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"process_reward": ["brevity"], "algorithm": "ppo"},
            "process_reward: rewards of steps are for grpo and reinforce",
        ),
        (
            {"process_reward": ["brevity"], "algorithm": {"name": "reinforce", "normalize": "step"}},
            "normalize: 'step' is",
        ),
        ({"algorithm": {"name": "ppo", "kl_target": 1.0, "kl_coefficient": 0.0}}, "algorithm.kl_target"),
        ({"value": {"trunk": "shared"}}, "value: grpo has no value model"),
        ({"algorithm": {"name": "grpo", "overlong": 0.01}}, "algorithm.overlong: less than a token of 6"),
        ({"algorithm": "ppo", "value": {"trunk": "shared", "start": "x"}}, "value.start: a value on the policy's own"),
        ({"exam": {"data": ["{prompts}"]}}, "exam.data: an exam needs a reward that compares"),
    ],
)
def test_settings_that_mean_nothing_together(place: Path, tmp_path: Path, options: dict, message: str) -> None:
    filled = json.loads(json.dumps(options).replace("{prompts}", str(place / "prompts.jsonl")))
    with pytest.raises(ValueError, match=message):
        main(settings(place, tmp_path / "run", **filled))
    assert not (tmp_path / "run").exists()


def test_the_temperatures_way(place: Path) -> None:
    def way(**options: Any) -> list[float] | None:
        found = temperature_at(settings(place, "x", steps=5, temperature=1.2, **options))
        return found and [round(found(step), 3) for step in (0, 1, 2, 4, 9)]

    assert way() is None
    assert way(final_temperature=0.8) == [1.2, 1.1, 1.0, 0.8, 0.8]
    # (1 + cos(pi / 4)) / 2 = .854 of the way is left after a quarter of it
    assert way(final_temperature=0.8, temperature_schedule="cosine") == [1.2, 1.141, 1.0, 0.8, 0.8]


def test_flags_reach_the_nested_settings() -> None:
    words = ["--algorithm", "gspo", "--ptx", "a", "--ptx", "b", "--ptx-coefficient", "0.1", "--value.trunk", "shared"]
    cfg = parse(RL, [*words, "--reference", "runs/sft", "--exam.data", "task:sums/eval", "--exam.every", "3"])
    assert (cfg.algorithm.ratio, cfg.ptx, cfg.ptx_coefficient) == ("sequence", ("a", "b"), 0.1)  # type: ignore[union-attr]
    assert (cfg.value.trunk, cfg.reference, cfg.exam.data, cfg.exam.every) == (
        "shared",
        "runs/sft",
        ("task:sums/eval",),
        3,
    )


def test_the_source_and_the_task_know_the_limits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """max_length is the command's unless the recipe says otherwise; attempts reach the source."""
    methods = ({"name": "dapo"}, {"name": "dapo", "max_length": 99})
    seen = [task_of(place, monkeypatch, algorithm=method) for method in methods]
    assert [task.algorithm.max_length for task in seen] == [6, 99]  # type: ignore[attr-defined]
    assert all(isinstance(task.draw, RolloutSource) and task.draw.attempts == 3 for task in seen)
