"""The speed table's harness: both sides do the same work on every row, in small, and what is made of the seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import speed
import speed_growth
import speed_ours
from speed_data import Source
from speed_growth import straightness
from speed_measure import agreement, check_ours, fastest, last_words, summary
from speed_process import Local, Peer
from speed_replay import Replay, check, generate
from speed_report import verdict, write_report
from speed_rows import ROWS
from speed_smoke import tiny_model, tiny_work
from speed_work import Demonstration, Pair, Work

trl = pytest.importorskip("trl", reason="trl absent: pip install 'tutelage[test]'")
import speed_trl  # noqa: E402

ROLLOUTS = {"natural": False, "forced": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def sampled(folder: Path) -> dict[str, Work]:
    """Works with answers that our decoder samples."""
    works = {name: tiny_work("rollouts", folder, forced=forced) for name, forced in ROLLOUTS.items()}
    for name, work in works.items():
        unit = Local.run(speed_ours.decode, work).reports[0]
        works[name] = replace(work, answers=unit["answers"], listened=unit["listened"])
    return works


def same(ours: dict[str, Any], rival: dict[str, Any], *names: str) -> None:
    """Figures of the two sides that must agree: to 1e-5, the rounding of float32."""
    for name in names:
        assert ours[name] == pytest.approx(rival[name], rel=1e-5, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROLLOUTS)
def test_decoders_say_the_same(kind: str, sampled: dict[str, Work]) -> None:
    """`generate` says our answers, row by row, and gives their tokens the log-probs that our decoder gave."""
    work = sampled[kind]
    lengths = [len(answer) for group in work.answers for answer in group]
    assert (set(lengths) == {work.max_tokens}) is work.forced
    ours = Local.run(speed_ours.decode, work).reports[0]
    rival = Local.run(generate, work).reports[0]
    assert ours["answers"] == work.answers, "the same seed, the same answers"
    assert ours["tokens"] == rival["tokens"] == sum(lengths)
    same(ours, rival, "logprob")


def test_generate_is_held_to_its_prompts_and_answers(sampled: dict[str, Work]) -> None:
    work = sampled["natural"]
    replay = Replay(work)
    with pytest.raises(AssertionError, match="other prompts"):
        replay(torch.zeros(12, 40, dtype=torch.long), torch.zeros(12, 259))
    said = [answer for group in work.answers for answer in group]
    check(said, work)
    with pytest.raises(AssertionError, match="something else"):
        check([*said[1:], said[0]], work)
    with pytest.raises(AssertionError, match="went on"):
        check([[*answer, 1] for answer in said], work)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROLLOUTS)
def test_grpo_steps_are_the_same(kind: str, sampled: dict[str, Work]) -> None:
    """Loss and gradient of two units each; every prompt went through the layers once, and no padding did."""
    work = sampled[kind]
    ours = Local.run(speed_ours.grpo, work, 2)
    rival = Local.run(speed_trl.grpo, work.with_settings({"per_device_train_batch_size": 6}), 2)
    for a, b in zip(ours.reports, rival.reports, strict=True):
        same(a, b, "loss", "gradient_norm")
        assert a["gradient_norm"] > 1
        assert a["trained_tokens"] == work.counts["tokens"] < work.counts["tokens_prompts_repeated"]
        assert a["answers_as_given"] == 1.0
        assert 0 < sum(a["floor"].values()) < a["seconds"]


SUPERVISED = {
    "sft": ("demonstrations", speed_ours.sft, speed_trl.sft, {"per_device_train_batch_size": 2}),
    "sft by length": (
        "demonstrations",
        speed_ours.sft,
        speed_trl.sft,
        {"per_device_train_batch_size": 3, "by_length": True},
    ),
    "sft packed": ("demonstrations", speed_ours.sft, speed_trl.sft_packed, {"max_length": 64}),
    "dpo": ("pairs", speed_ours.dpo, speed_trl.dpo, {"per_device_train_batch_size": 2}),
    "reward": ("scored", speed_ours.reward, speed_trl.reward, {"per_device_train_batch_size": 3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_steps_are_the_same(name: str, folder: Path) -> None:
    kind, ours_side, rival_side, settings = SUPERVISED[name]
    work = tiny_work(kind, folder)
    ours = Local.run(ours_side, work, 2).reports
    for a, b in zip(ours, Local.run(rival_side, work.with_settings(settings), 2).reports, strict=True):
        same(a, b, "loss", "gradient_norm")
        assert a["gradient_norm"] > 0.1
        assert a["trained_tokens"] == work.counts["tokens"]


def test_counts_by_hand(tmp_path: Path) -> None:
    pairs = Work("m", pairs=[Pair([1, 2, 3], [4], [5, 6]), Pair([7], [8, 9], [8])])
    assert pairs.counts == {
        "prompts": 2, "rows": 4, "prompt_tokens": 4, "answer_tokens": 6, "tokens": 10, "tokens_prompts_repeated": 14,
    }  # fmt: skip
    groups = Work("m", prompts=[[1, 2], [3]], answers=[[[4], [5, 6]], [[7], [8]]], rewards=[[0.0, 1.0], [1.0, 0.0]])
    assert (groups.counts["tokens"], groups.counts["tokens_prompts_repeated"]) == (8, 11)
    cut = groups.trial(2, 1)
    assert (cut.prompts, cut.answers, cut.rewards, cut.max_tokens) == ([[1, 2]], [[[4], [5]]], [[0.0, 1.0]], 1)
    rows = Work("m", demonstrations=[Demonstration([1], [2, 3])], settings={"a": 1})
    for work in (pairs, groups, rows):
        assert Work.read(work.write(tmp_path / "work.json")) == work


def unit(seconds: float, **figures: Any) -> dict[str, Any]:
    return {"seconds": seconds, "peak_mb": 100 * seconds, "loss": 1.0, "gradient_norm": 2.0, **figures}


def test_a_summary_by_hand() -> None:
    floor = {"machine": {}, "floor": {"update": 1.5, "optimizer": 0.25}}
    taken = [(2.0, 5.0), (2.5, 10.0), (4.0, 8.0)]
    found = summary(ROWS[1], [{"ours": unit(a, **floor), "rival": unit(b)} for a, b in taken])
    assert found["seconds"] == {"ours": 2.5, "rival": 8.0}
    assert found["ratio"] == {"median": 2.5, "min": 2.0, "max": 4.0}
    assert found["peak_mb"] == {"ours": 400.0, "rival": 1000.0}
    assert found["fraction_of_limit"] == pytest.approx(0.7)
    assert "fraction_of_unit" not in found
    faster = {"floor_of_unit": {"update": 0.75, "optimizer": 0.25}, "unit_flops": 6e11}
    found = summary(ROWS[1], [{"ours": unit(2.5, **floor, **faster), "rival": unit(8.0)}])
    assert found["fraction_of_unit"] == pytest.approx(0.4)
    with pytest.raises(RuntimeError, match="below the floor"):
        summary(ROWS[1], [{"ours": unit(1.0, **floor), "rival": unit(2.0)}])


def test_sides_that_differ_are_refused() -> None:
    compared = {"loss": (0.01, 0.1)}
    found = agreement(compared, {"ours": {"loss": 1.1}, "rival": {"loss": 1.0}})
    assert found["loss"]["allowed"] == pytest.approx(0.11)
    for other in (1.12, float("nan")):
        with pytest.raises(RuntimeError, match="loss: ours is"):
            agreement(compared, {"ours": {"loss": other}, "rival": {"loss": 1.0}})


def test_our_side_is_held_to_the_work() -> None:
    work = Work("m", prompts=[[1, 2]], answers=[[[3], [4, 5]]])  # 5 tokens
    check_ours(unit(1.0, trained_tokens=6, answers_as_given=0.95), work)
    with pytest.raises(RuntimeError, match="7 tokens went through the layers for 5 real ones"):
        check_ours(unit(1.0, trained_tokens=7), work)
    with pytest.raises(RuntimeError, match="only 50% of our answers"):
        check_ours(unit(1.0, answers_as_given=0.5), work)


def test_the_rival_is_the_fastest_that_runs() -> None:
    tried = [{"seconds": 3.0}, {"failed": "no compiler"}, {"seconds": 2.0, "settings": {"a": 1}}]
    assert fastest(tried) == tried[2]
    with pytest.raises(RuntimeError, match="no compiler"):
        fastest(tried[1:2])


def test_an_error_keeps_no_folder_of_the_machine() -> None:
    error = RuntimeError("f ended without an answer\nImportError: cannot open /a/b.c/lib-1.so.6: No such file 1/2")
    assert last_words(error) == "ImportError: cannot open lib-1.so.6: No such file 1/2"


def test_verdicts_by_hand() -> None:
    assert verdict(3.0, 3.0) == "met"
    assert verdict(2.7, 3.0) == "missed by 10%"
    assert verdict(2.4, 3.0) == "missed by 20% (more than 15 %)"
    assert verdict(0.4, 0.5, at_most=True) == "met"
    assert verdict(0.625, 0.5, at_most=True) == "missed by 20% (more than 15 %)"


def test_how_straight_a_line_is() -> None:
    assert straightness([1, 2, 4], [3.0, 5.0, 9.0]) == pytest.approx(0, abs=1e-9)
    # 0, 1, 4 at 0, 1, 2: the line -1/3 + 2 x is 1/3, 2/3, 1/3 away
    assert straightness([0, 1, 2], [0.0, 1.0, 4.0]) == pytest.approx((2 / 3) / 4)


def test_every_target_of_the_table_has_a_row() -> None:
    aims = {row.name: (row.target, row.limit, row.memory) for row in ROWS if not row.alone}
    assert aims == {
        "grpo-natural": (3.0, None, 0.5),
        "grpo-forced": (2.5, 0.62, 0.5),
        "sft": (2.0, None, None),
        "sft-packed": (1.2, None, None),
        "dpo": (2.5, 0.6, 0.5),
        "reward": (2.0, 0.6, None),
        "decode-generate": (3.3, 0.55, None),
        "decode-vllm": (2.3, 0.55, None),
    }


def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    path = Work("m", prompts=[[1]], answers=[[[2]]]).write(tmp_path / "work.json")
    with pytest.raises(RuntimeError, match=r"speed_nowhere:f ended without an answer(?s:.)*No module named"):
        Peer("speed_nowhere:f", path, log=tmp_path / "log").__enter__()


@pytest.mark.slow
def test_a_row_from_the_command_to_the_page(tmp_path: Path, capsys) -> None:
    """Workers in their own processes, the result's file, and nothing run twice."""
    words = ["--smoke", "--only", "grpo-natural", "--results", str(tmp_path)]
    assert speed.main(words) == 0
    found = json.loads((tmp_path / "grpo-natural.json").read_text())
    assert len(found["repetitions"]) == 3
    assert all(seconds > 0 for seconds in found["facts"]["first_seconds"].values())
    assert found["work"]["rows"] == 12
    ours, rival = found["repetitions"][0]["ours"], found["repetitions"][0]["rival"]
    assert ours["gradient_norm"] == pytest.approx(rival["gradient_norm"], rel=1e-4)
    assert found["rival"]["settings"] == {"per_device_train_batch_size": 2}
    assert found["ratio"]["min"] <= found["ratio"]["median"] <= found["ratio"]["max"]
    assert 0 < found["fraction_of_limit"] < 1
    page = (tmp_path / "performance.md").read_text()
    assert f"**{found['ratio']['median']:.2f}**" in page
    assert "Not run yet: decode-generate, grpo-forced" in page
    assert (tmp_path / "performance" / "phases.svg").is_file()
    capsys.readouterr()
    assert speed.main(words) == 0
    assert capsys.readouterr().out.startswith("grpo-natural: there already")


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    floor = {"machine": {"name": "a processor", "flops": 1e11, "bandwidth": 2e10, "memory": 8e9, "dtype": "float32"}}
    floor["floor"] = {"update": 1.0}
    row = next(row for row in ROWS if row.name == "dpo")
    measured = [{"ours": unit(2.0, **floor), "rival": unit(4.0)}] * 3
    trial = {"settings": {"per_device_train_batch_size": 2}, "environment": {}, "seconds": 1.0, "peak_mb": 10.0}
    by_hand = {**trial, "settings": {"by_length": True}, "seconds": 3.0, "why": "sorted"}
    result = {
        "row": "dpo", "title": row.title, "command": "make bench", "commit": "abc", "threads": 2,
        "rival": {"name": "TRL", "version": "1.16", **trial, "tried": [trial], "listed": [by_hand]},
        "facts": {"ours": {"environment": {"packages": {"torch": "2.13"}}}},
        "repetitions": measured, **summary(row, measured),
    }  # fmt: skip
    (tmp_path / "dpo.json").write_text(json.dumps(result))
    axes = {"group": {str(n): {"seconds": float(n), "peak_mb": 100.0 + n} for n in (2, 4, 8)}}
    (tmp_path / "growth.json").write_text(json.dumps({"axes": axes}))
    write_report(tmp_path, tmp_path / "performance.md")
    page = (tmp_path / "performance.md").read_text()
    for line in (
        f"| {row.title} | TRL 1.16 | 2.0 s | 4.0 s | **2.00** [2.00, 2.00] | >= 2.5 | missed by 20% (more than 15 %) |",
        "| the same, as a share of the limit | the floor | 2.0 s | 1.0 s | **50%** | >= 60% | missed by 17% (more than",
        "| dpo | 200 MB | 400 MB | 0.50 | <= 0.5 | met |",
        "| dpo | per_device_train_batch_size 2 | 1.0 | 10 MB | **taken** |",
        "| dpo | by_length True | 3.0 | 10 MB | whole unit; sorted: 1.50 x ours |",
        "| group | 2, 8 | 2.00 to 8.00 | 102 to 108 MB | 0.0% of the largest time |",
        "Not run yet: decode-generate, grpo-natural, grpo-forced, sft, reward, decode-vllm, sft-packed, decode-int8,",
    ):
        assert line in page
    assert "<!--" not in page
    for name in ("growth", "phases"):
        assert (tmp_path / "performance" / f"{name}.svg").stat().st_size > 3_000


@pytest.mark.slow
def test_growth_goes_on_point_by_point(folder: Path, tmp_path: Path, monkeypatch) -> None:
    source, seen = Source(tiny_model(folder), Path(), folder / "cache", 1), list[speed_growth.Point]()

    def measured(point: speed_growth.Point, source: Source) -> dict[str, float]:
        seen.append(point)
        return {"seconds": 1.0, "peak_mb": 1.0}

    monkeypatch.setattr(speed_growth, "measure", measured)
    speed_growth.run(source, tmp_path, axes={"group": (2, 4)})
    speed_growth.run(source, tmp_path, axes={"group": (2, 4, 8), "prompts": (3,)})
    assert [(point.group, point.prompts) for point in seen] == [(2, 2), (4, 2), (8, 2), (4, 3)]
    work = speed_growth.work_of(replace(speed_growth.Point(), group=3, prompt_tokens=5, answer_tokens=7), source)
    assert work.counts["prompt_tokens"] == 2 * 5
    assert work.counts["answer_tokens"] == 2 * 3 * 7
    shallow = speed_growth.work_of(replace(speed_growth.Point(), layers=1), source)
    assert json.loads((Path(shallow.model) / "config.json").read_text())["num_hidden_layers"] == 1
    unit = Local.run(speed_ours.grpo, shallow).reports[0]
    assert unit["trained_tokens"] == shallow.counts["tokens"]
