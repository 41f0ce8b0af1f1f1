"""A step's phases in the log: seconds that add up, counts that are exact, fractions of the limit between 0 and 1."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO
from tutelage.data.batch import sequences
from tutelage.models.floors import Network
from tutelage.models.hardware import machine
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.lora import frozen_copy
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny
from tutelage.records import Answer, read_jsonl, user
from tutelage.training.limits import Limit
from tutelage.training.loop import Task, train
from tutelage.training.meter import MEASURED, Meter
from tutelage.training.optim import Optimization
from tutelage.training.rollouts import RolloutSource
from tutelage.training.run import Run
from tutelage.training.work import Passes

CPU = torch.device("cpu")
PROMPTS, LONGEST = [[5, 6, 7, 8], [9, 10]], 6


def a_task(method: GRPO | PPO, budget: int = 1024) -> Task:
    """Two prompts of 4 and 2 tokens, three answers each of at most 6 tokens; never ended, never rewarded alike."""
    module = tiny(hidden=32)[0]
    value = new_scalar_model(tiny(hidden=32, seed=1)[0].model) if isinstance(method, PPO) else None
    source = RolloutSource(
        draw_prompts=lambda step: [user("first"), user("second")],
        encode=lambda prompt: PROMPTS[prompt.text == "second"],
        sampler=Decoder(module, (), lambda ids: " ".join(map(str, ids))),
        score=lambda prompts, groups: ([[float(g) for g, _ in enumerate(group)] for group in groups], {}),
        decoding=Decoding(LONGEST),
        group_size=3,
        seed=0,
        keep_samples=lambda step, rows: None,
    )
    models = Models(
        policy=CausalModel(module),
        reference=CausalModel(frozen_copy(module)),
        value=None if value is None else HeadedModel(value),
    )
    trained = {"policy": module} | ({} if value is None else {"value": value})
    return Task(models, method, source, trained, 2, 1e-3, Optimization(tokens_per_pass=budget))


def run(task: Task, folder, limited: bool = True):
    """The log of two steps under a meter."""
    limit = Limit(machine(torch.float32, CPU, torch.get_num_threads())) if limited else None
    meter = Meter(Passes(task.models, require_packed=True), limit, trained=10**5)
    assert isinstance(task.draw, RolloutSource)
    task = replace(task, draw=replace(task.draw, said=meter.said))
    train(task, Run.open(folder, {"steps": 2}, "rl", resume=False), meter=meter)
    return list(read_jsonl(folder / "metrics.jsonl"))


@pytest.mark.parametrize("method", [GRPO(group_size=3), PPO(group_size=3)], ids=["grpo", "ppo"])
def test_a_run_logs_its_limits(method, tmp_path):
    for row in run(a_task(method), tmp_path):
        fractions = {k.partition("/")[2]: v for k, v in row.items() if k.startswith("fraction_of_limit")}
        assert fractions.keys() == {"", "sample", "prepare", "update", "optimizer"}
        assert all(0 < value <= 1 for value in fractions.values()), fractions
        assert row["fallback"] == 0
        assert 0.01 < row["memory_gb"] < 1000
        parts = [row[f"time/{name}"] for name in ("draw", "prepare", "update", "optimizer")]
        shares = {"prepare": parts[1], "update": parts[2], "optimizer": parts[3], "sample": row["time/sample"]}
        whole = sum(fractions[name] * seconds for name, seconds in shares.items()) / sum(parts)
        assert fractions[""] == pytest.approx(whole), "the whole is the seconds' mean of the parts"
        assert row["time/sample"] < row["time/draw"]
        answered = 6 * LONGEST
        assert row["tokens_per_second/sample"] == pytest.approx(answered / row["time/sample"])
        updates = 4 if isinstance(method, PPO) else 1
        assert row["tokens_per_second/prepare"] == pytest.approx((6 + answered) / row["time/prepare"])
        if updates == 1:
            assert row["tokens_per_second/update"] == pytest.approx((6 + answered) / row["time/update"])
            assert row["recomputed"] == 0, "tokens through the linear layers = real tokens with each prompt once"
        assert "tokens_per_second/optimizer" not in row


def test_what_small_passes_compute_again_shows(tmp_path):
    """Passes of 16 tokens: a group of 4 + 18 is cut after two rows of 6, and its prompt read twice; 2 + 18 stay together."""
    for row in run(a_task(GRPO(group_size=3), budget=16), tmp_path, limited=False):
        assert row["recomputed"] == pytest.approx(1 - 42 / (42 + 4))
        assert not any(name.startswith("fraction_of_limit") for name in row)


def test_only_named_metrics_depend_on_the_machine(tmp_path):
    """What `MEASURED` does not name repeats with the seed."""
    rows = [run(a_task(GRPO(group_size=3)), tmp_path / name) for name in "ab"]
    plain = [[{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in log] for log in rows]
    assert plain[0] == plain[1]
    assert all(name in plain[0][0] for name in ("loss", "fallback", "recomputed", "reward/mean"))


def test_phases_take_their_seconds_and_do_not_nest():
    meter = Meter(Passes(Models()))
    with meter.phase("draw"):
        time.sleep(0.02)
        with pytest.raises(AssertionError, match="prepare begins inside draw"), meter.phase("prepare"):
            pass
    with meter.phase("update"):
        time.sleep(0.01)
    with meter.phase("update"):
        time.sleep(0.01)
    metrics = meter.finish({"time/sample": 0.5}, 1)
    assert 0.02 <= metrics["time/draw"] < 5
    assert 0.02 <= metrics["time/update"] < 5
    assert meter.finish({}, 1).keys() == {"memory_gb"}, "the next step begins with nothing"


def test_who_is_counted_when():
    """Reward models while the batch is drawn, the policy's own forwards after it (its decoding is counted by what it says)."""
    meter = Meter(Passes(Models()))
    assert meter.present(False) is meter.present(True) is None
    with meter.phase("draw"):
        assert meter.present(False) is None
        assert meter.present(True) is meter.work["reward"]
    for name in ("prepare", "update"):
        with meter.phase(name):
            assert meter.present(False) is meter.work[name]
            assert meter.present(True) is None


def test_what_is_sampled_in_fewer_bits_counts_and_has_no_floor():
    meter = Meter(Passes(Models()))
    meter.said([[1, 2]], [[Answer("", (3, 4, 5)), Answer("", (6,))]], exact=False)
    assert meter.work["sample"].tokens == 4
    assert meter.step(1).said == []
    meter.said([[1, 2]], [[Answer("", (3, 4, 5))]])
    assert meter.step(1).said == [([2], [[3]])]


def test_more_answers_of_the_same_prompt_cost_only_their_own_tokens():
    """The floor of sampling and updating grows by the answers alone: prompts are read once."""
    network = Network.of(tiny()[0])
    assert network is not None
    needed = []
    for group in (1, 2, 3):
        meter = Meter(Passes(Models()))
        with meter.phase("update"):
            meter.need(sequences([(1, 2, 3)], [0] * group, [[4, 5]] * group))
        needed.append(meter.work["update"].tokens)
    assert needed[0] == 5
    assert all(b - a == 2 for a, b in pairwise(needed))
