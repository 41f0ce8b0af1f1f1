"""`tutelage bench` on a model made in memory: exact counts, fractions between 0 and 1, a file that says the same."""

from __future__ import annotations

import json

import pytest

from tutelage.cli import main as command_line
from tutelage.models.floors import Network, optimizer, passes, prefill
from tutelage.models.hardware import Machine
from tutelage.models.load import load_policy, save_policy
from tutelage.models.lora import LoRA
from tutelage.stages.bench import Bench, main
from tutelage.stages.bench_table import Phase, impossible, whole


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tutelage.models.tiny import tiny

    folder = tmp_path_factory.mktemp("tiny")
    save_policy(*tiny(), folder)
    return folder


def bench(model, folder, **changes):
    """The file that a bench of two prompts of 5 tokens, with three answers of 7 tokens each, leaves."""
    shape = {"prompts": 2, "answers": 3, "prompt_tokens": 5, "answer_tokens": 7, "device": "cpu", "dtype": "float32"}
    assert main(Bench(model=str(model), json=str(folder / "bench.json"), **{**shape, **changes})) == 0
    return json.loads((folder / "bench.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_every_phase_has_exact_tokens_and_a_fraction_of_its_floor(model, tmp_path, capsys, full):
    found = bench(model, tmp_path, full=full)
    phases, machine = found["phases"], Machine(**found["machine"])
    tokens = {name: phase["tokens"] for name, phase in phases.items()}
    assert tokens == {"prefill": 10, "decode": 36, "reference": 52, "update": 52, "optimizer": 0, "step": 0}
    assert all(0 < phase["fraction"] <= 1 for phase in phases.values()), phases
    assert found["update_tokens"] == {"needed": 52, "through_linear_layers": 52}
    assert found["fallback"] == 0
    network = Network.of(load_policy(model, lora=None if full else LoRA(), dtype="float32", device="cpu"))
    assert network is not None
    assert network.factor == (6 if full else 4)
    expected = {
        "prefill": prefill(machine, network, 10),
        "reference": passes(machine, network, 52, 42, 2),
        "update": passes(machine, network, 52, 42),
        "optimizer": optimizer(machine, network.trained),
    }
    assert {name: phases[name]["floor"] for name in expected} == pytest.approx(expected)
    parts = [phase for name, phase in phases.items() if name != "step"]
    assert phases["step"]["seconds"] == pytest.approx(sum(part["seconds"] for part in parts))
    assert phases["step"]["floor"] == pytest.approx(sum(part["floor"] for part in parts))
    out = " ".join(capsys.readouterr().out.split())  # a narrow console breaks the line
    assert "2 x 3 answers, 5 + 7 tokens, " + ("all weights" if full else "LoRA") in out
    assert all(name in out for name in phases)
    assert "FLOP/s" in out


@pytest.mark.slow
def test_prompts_that_are_computed_again_show(model, tmp_path):
    """Passes of 14 tokens hold a prompt of 5 and one answer of 7: three times as many prompt tokens as are needed."""
    found = bench(model, tmp_path, tokens_per_pass=14)
    assert found["update_tokens"] == {"needed": 52, "through_linear_layers": 2 * 3 * (5 + 7)}


def test_a_line_of_the_table_by_hand():
    update = Phase("update", 8704, 50.0, 40.0, 7_600_000_000)
    assert update.cells() == ("update", "8,704", "50", "174", "40", "80.0%", "7.60")
    optimizer_line = Phase("optimizer", 0, 0.4, 0.2, 8_000_000_000)
    assert optimizer_line.cells() == ("optimizer", "", "0.4", "", "0.2", "50.0%", "8.00")
    assert whole([update, optimizer_line]).cells() == ("step", "", "50.4", "", "40.2", "79.8%", "8.00")


def test_a_phase_above_its_limit_fails(capsys):
    update, decoding = Phase("update", 8, 50.0, 40.0, 1), Phase("decode", 8, 2.0, 3.0, 1)
    assert not impossible([update])
    assert capsys.readouterr().err == ""
    assert impossible([update, decoding])
    assert "above the limit: decode 150%" in capsys.readouterr().err


def test_the_command_teaches_and_refuses(model, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line(["bench", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "against the least seconds that this machine needs" in text
    with pytest.raises(SystemExit) as stopped:
        command_line(["bench", "--model", str(model), "--answers", "1"])
    assert stopped.value.code == 2
    assert "answers" in capsys.readouterr().err
