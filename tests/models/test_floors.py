"""The floors by hand, and performance.md's worked example: 62 s on two AVX-512 cores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tutelage.models.floors import FORWARD, Network, decode, kv_bytes, optimizer, passes, prefill, schedule
from tutelage.models.hardware import Machine
from tutelage.models.heads import new_scalar_model
from tutelage.models.lora import LoRA, add_lora
from tutelage.models.tiny import tiny

SLOW = Machine(150e9, 18e9, "float32", 2, "cpu", "two AVX-512 cores", 16 * 10**9, "glibc")
"""F and BW of the worked example."""
SMOL = Network(106_203_456, 28_311_552, 134_515_008, 6, 4, 2 * 30 * 3 * 64 * 4)
"""SmolLM2-135M: 30 layers, 3 key-value heads of 64, 49,152 tokens x 576, tied."""
STEP = ([64] * 8, [[128] * 8] * 8)
"""8 prompts of 64 tokens, 8 answers of 128 each."""


def test_the_worked_example():
    """0.7 s + 14.7 s + 46.3 s + 0.2 s = 62 s; LoRA 46 s; half the groups skipped 31 s.

    The 14.7 s are of 128 decoding steps; an answer of 128 tokens takes 127, for the prompt's pass says its first token.
    """
    sampling = prefill(SLOW, SMOL, 8 * 64) + decode(SLOW, SMOL, *STEP, rows=64)
    update = passes(SLOW, SMOL, 8 * 64 + 64 * 128, 64 * 128)
    assert prefill(SLOW, SMOL, 8 * 64) == pytest.approx(0.725, abs=5e-4)
    assert decode(SLOW, SMOL, [64] * 8, [[129] * 8] * 8, rows=64) == pytest.approx(14.69, abs=5e-3)  # 128 steps
    assert update == pytest.approx(46.25, abs=0.01)
    assert optimizer(SLOW, SMOL.trained) == pytest.approx(0.209, abs=5e-4)
    assert sampling + update + optimizer(SLOW, SMOL.trained) == pytest.approx(61.8, abs=0.05)
    adapter = passes(SLOW, replace(SMOL, factor=4), 8 * 64 + 64 * 128, 64 * 128)
    assert sampling + adapter == pytest.approx(46.1, abs=0.05)
    assert sampling + adapter / 2 == pytest.approx(30.7, abs=0.05)


def test_few_rows_wait_for_memory_and_many_for_arithmetic():
    """A step reads 100 x 4 bytes of weights and 8 bytes a context token, at 10 bytes/s; 200 operations a row at 100/s."""
    machine = replace(SLOW, flops=100.0, bandwidth=10.0)
    network = Network(90, 10, 0, 2, 4, 8)
    # one row, context 5 then 6: (400 + 40) / 10 + (400 + 48) / 10, against 2 s of arithmetic a step
    assert decode(machine, network, [5], [[3]], rows=1) == pytest.approx(44.0 + 44.8)
    # thirty rows of one step: 30 x 200 / 100 = 60 s of arithmetic, against (400 + 30 x 8) / 10 = 64 s and, at 20 bytes/s, 32 s
    assert decode(machine, network, [1], [[2] * 30], rows=30) == pytest.approx(64.0)
    assert decode(replace(machine, bandwidth=20.0), network, [1], [[2] * 30], rows=30) == pytest.approx(60.0)


def test_schedule_by_hand():
    """Two places, answers of 4, 3 and 2 tokens to a prompt of 10 and one of 2 to a prompt of 4: longest first.

    Steps: {3, 2} {3, 2} {3, 1 of the ten} {1 of the four}: contexts 10 + 10, 11 + 11, 12 + 10, 4.
    """
    active, context = schedule([10, 4], [[4, 2, 3], [2, 1]], rows=2)
    assert active.tolist() == [2, 2, 2, 1]
    assert context.tolist() == [20, 22, 22, 4]
    assert schedule([3], [[1, 0]], rows=4)[0].tolist() == []


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_every_token_takes_one_step_whatever_the_width(rows):
    active, context = schedule([7, 2], [[5, 9, 1], [4, 4, 4]], rows)
    assert active.sum() == 27 - 6
    assert active.max() <= rows
    # in n steps a row looks back on n p + n (n - 1) / 2 tokens, whenever it runs
    assert context.sum() == sum(n * p + n * (n - 1) / 2 for p, n in [(7, 4), (7, 8), (7, 0), (2, 3), (2, 3), (2, 3)])


def test_a_pass_without_gradient_costs_a_third_of_an_update():
    assert passes(SLOW, SMOL, 300, 200, FORWARD) == pytest.approx(passes(SLOW, SMOL, 300, 200) / 3)
    assert passes(SLOW, SMOL, 10, 0) == 6 * 106_203_456 * 10 / 150e9


def body_of_tiny() -> int:
    """Two layers: q and o of 64 x 64, k and v of 64 x 32, three MLP matrices of 64 x 128, two norms; one norm behind."""
    return 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64


def test_what_a_network_is():
    """Full, with an adapter, frozen, untied, with a scalar head: body and head stay, what is trained differs."""
    module, _ = tiny()
    full = Network.of(module)
    assert full is not None
    assert full == Network(body_of_tiny(), 259 * 64, body_of_tiny() + 259 * 64, 6, 4, 2 * 2 * 2 * 16 * 4)
    assert full.parameters == sum(p.numel() for p in module.parameters())
    untied, _ = tiny(tied=False)
    assert Network.of(untied) == replace(full, trained=body_of_tiny() + 2 * 259 * 64)  # the lookup multiplies nothing
    frozen, _ = tiny()
    assert Network.of(frozen.requires_grad_(False)) == replace(full, trained=0, factor=2)
    adapted = add_lora(tiny()[0], LoRA(rank=4))
    sizes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
    assert Network.of(adapted) == replace(full, trained=2 * sum(4 * (a + b) for a, b in sizes), factor=4)
    value = new_scalar_model(tiny()[0].model)
    assert Network.of(value) == replace(full, head=0, trained=body_of_tiny() + 259 * 64 + 64)
    half = tiny()[0].bfloat16()
    assert Network.of(half) == replace(full, weight_bytes=2, kv_bytes=full.kv_bytes // 2)


def test_a_mixture_of_experts_has_no_floor():
    module, _ = tiny()
    module.config.num_local_experts = 8
    assert Network.of(module) is None


def test_bytes_of_keys_and_values():
    assert kv_bytes(tiny(layers=3, heads=4, kv_heads=1)[0].config, 2) == 2 * 3 * 1 * 16 * 2


def test_smollm2(demo_model):
    """The real model is the one of the worked example."""
    from tutelage.models.load import load_policy

    assert Network.of(load_policy(demo_model, dtype="float32", device="cpu")) == SMOL
