"""The compiled kernels compute what PyTorch's operations compute, at any shape, and say why where they cannot run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tutelage.models import fused, kernels
from tutelage.models.attention import Look
from tutelage.models.cache import BUFFERS, KeyValues, Room, Step
from tutelage.models.tiny import tiny

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_choice():
    fused.missing.cache_clear()
    yield
    fused.missing.cache_clear()


def test_exp_is_right_to_three_in_ten_million():
    x = np.linspace(-87, 88, 100_001, dtype=np.float32)
    ours = np.array([kernels.exp(each) for each in x], dtype=np.float64)
    assert np.abs(ours / np.exp(x.astype(np.float64)) - 1).max() < 3.5e-7
    assert kernels.exp(np.float32(-np.inf)) < 2e-38, "a hidden cell weighs nothing"


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 70])
def test_norm_adds_and_divides_by_the_root_of_the_mean_square(tokens):
    x, plus, weight = torch.randn(7, tokens), torch.randn(7, tokens), torch.rand(7)
    for added in (None, plus.t()):
        total = x.clone() if added is None else x + plus
        mine = x.clone()
        out = fused.norm(mine.t(), weight, 1e-5, added)
        assert_close(mine, total)
        assert_close(out, (total * weight[:, None] / (total.square().mean(0) + 1e-5).sqrt()).t())
    assert_close(
        fused.norm(torch.tensor([[3.0], [4.0]]).t(), torch.ones(2), 0.0, None), torch.tensor([[3.0, 4.0]]) / 12.5**0.5
    )


@pytest.mark.parametrize("columns", [1, 5, 16, 17, 33, 48, 64, 70, 80, 130])
def test_a_product_is_that_of_pytorch(columns):
    """Each height and width of tile, what is left over of both, depths even and odd; nothing is written outside."""
    for rows, depth in ((1, 3), (23, 8), (24, 37), (50, 64), (577, 10)):
        weight, x = torch.randn(rows, depth, dtype=torch.float64), torch.randn(depth, columns, dtype=torch.float64)
        few, many = weight.float(), x.float()
        for unit in (24, 72):
            around = torch.full((rows + 2, columns), 7.0)
            places = [each.data_ptr() for each in (few, many, around[1:])]
            fused.run(fused.compiled("product_kernel").product, rows, depth, columns, *places, unit, 0)
            assert_close(around[1:-1], (weight @ x).float(), atol=2e-5, rtol=1e-5)
            assert (around[[0, -1]] == 7).all()
        assert_close(fused.product(few, many), around[1:-1], atol=0, rtol=0)
    assert fused.product(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [10.0]])).item() == 43


def test_which_products_are_compiled():
    weight, x = torch.ones(4, 3), torch.ones(3, 2)
    for chosen, compiled in (("torch", False), ("loops", False), ("numba", True)):
        with fused.running(chosen):
            assert fused.multiplies(weight, x) == compiled
    with fused.running("numba"):
        assert not fused.multiplies(weight.T, torch.ones(4, 2)), "not as it lies in memory"
        assert not fused.multiplies(weight.double(), x.double())
        assert not fused.multiplies(weight, torch.ones(3, fused.MOST_COLUMNS + 1))


@pytest.mark.parametrize("rows", [1, 8, 64, 65])
def test_blocks_of_logits(rows):
    """Highest and sum of weights of each block, the last one shorter; minus infinity weighs nothing, a whole block of it too."""
    logits = torch.randn(700, rows) * 5
    logits[256:512, 0] = logits[3, 0] = -torch.inf
    for temperature in (1.0, 0.25):
        highest, total = fused.blocks(logits, 256, temperature)
        for block, part in enumerate(logits.split(256)):
            peak = part.amax(0).clamp(min=-3e38)
            assert torch.equal(highest[block], peak)
            weights = ((part - peak).double() / temperature).exp()
            assert_close(total[block], weights.sum(0), atol=1e-30, rtol=2e-6)


def test_turn_rotates_each_pair_by_its_angle():
    """(1, 0) by a quarter is (0, 1); and at random angles it is the complex product."""
    one = torch.tensor([[[1.0], [0.0]]])
    fused.turn(one, torch.zeros(2, 1), torch.tensor([[-1.0], [1.0]]))
    assert_close(one, torch.tensor([[[0.0], [1.0]]]))
    x, angle = torch.randn(3, 8, 5), torch.randn(4, 5)
    expected = torch.complex(x[:, :4], x[:, 4:]) * torch.exp(1j * angle)
    sin = torch.cat([-angle.sin(), angle.sin()])
    fused.turn(x, torch.cat([angle, angle]).cos(), sin)
    assert_close(x, torch.cat([expected.real, expected.imag], dim=1))


@pytest.mark.parametrize("window", [None, 1, 4, 9])
@pytest.mark.parametrize(("heads", "kv"), [(2, 2), (4, 2), (9, 3), (8, 2), (5, 1)])
def test_a_step_of_attention_is_that_of_pytorch(heads, kv, window):
    """Rows of three prompts, mixed, more of one than a unit takes, each as long as it is; the cache is written alike."""
    held, read, said = [0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1], [5, 1, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 4]
    config = tiny(hidden=6 * heads, heads=heads, kv_heads=kv, layers=1)[0].config
    full = KeyValues.allocate(config, Room(16, 14, 4, 9), torch.zeros(()))
    for name in BUFFERS:
        getattr(full, name)[0].normal_()
    for prompt, tokens in enumerate(read):
        full.admit(prompt, tokens, held.count(prompt))
    full.held[:], full.lengths[: len(said)] = held, torch.tensor(said)
    laid = torch.randn(heads + 2 * kv, 6, len(held)).transpose(1, 2)[None]
    query, key, value = laid.split([heads, kv, kv], dim=1)
    found, written = [], []
    for chosen in ("torch", "numba"):
        one = full.layers(slice(None))
        for name in BUFFERS:
            getattr(one, name)[0] = getattr(full, name)[0].clone()
        with fused.running(chosen):
            step = Step.of(one)
            assert (step.asking is not None) == (chosen == "numba")
            found.append(step.attend(0, query, key, value, Look(0.7, window)))
        written.append((one.keys[0], one.values[0]))
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    assert_close(written[1], written[0], atol=0, rtol=0)


ALL_KERNELS = """
import hashlib, sys
import torch
from transformers import LlamaConfig
from tutelage.models import fused
from tutelage.models.attention import Look
from tutelage.models.cache import BUFFERS, KeyValues, Room, Step
from tutelage.models.drawing import Decoding
from tutelage.models.fused_training import added_norm, gated, turned
from tutelage.models.sampling import Decoder
from tutelage.models.tiny import tiny

torch.set_num_threads(2)
draw = torch.Generator().manual_seed(0)
randn = lambda *shape: torch.randn(*shape, generator=draw)
told = lambda *found: print(hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in found)).hexdigest())
fused.choose_kernels("numba", torch.device("cpu"))
told(fused.product(randn(100, 70), randn(70, 50)))
told(fused.norm(randn(70, 50).t(), randn(70), 1e-5, randn(70, 50).t()))
told(*fused.blocks(5 * randn(1000, 20), 256, 0.8))
x = randn(9, 16, 20)
fused.turn(x, randn(16, 20), randn(16, 20))
told(x)
with fused.running("numba"):
    config = LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=1)
    cache = KeyValues.allocate(config, Room(6, 40, 2, 30), torch.zeros(()))
    for name in BUFFERS:
        getattr(cache, name)[0].copy_(randn(*getattr(cache, name)[0].shape))
    for prompt, tokens in enumerate((17, 30)):
        cache.admit(prompt, tokens, 3)
    cache.lengths[:6] = torch.tensor([0, 3, 8, 20, 31, 39])
    asked = randn(10, 16, 6).transpose(1, 2)[None].split([6, 2, 2], dim=1)
    told(Step.of(cache).attend(0, *asked, Look(0.25)))
    model, _ = tiny()
    groups = Decoder(model, (), lambda tokens: "").sample([[5, 6, 7], [8, 9]], 3, Decoding(20), "0/0")
    told(*(torch.tensor(answer.logprobs) for group in groups for answer in group))
x, y, weight = (each.requires_grad_() for each in (randn(30, 70), randn(30, 70), randn(70)))
for found in (added_norm(x, y, weight, 1e-5)[1], gated(x, y)):
    told(found.detach(), *torch.autograd.grad((found * randn(30, 70)).sum(), (x, y)))
x = randn(30, 6, 16).requires_grad_()
found = turned(x, randn(30, 16), randn(30, 16), by_head=False)
told(found.detach(), *torch.autograd.grad((found * randn(*found.shape)).sum(), x))
"""


@pytest.mark.slow
def test_kernels_that_were_just_compiled_and_kept_ones_give_the_same_bits(tmp_path):
    """The first run on a machine compiles them: a function of its own was another one there than in all later runs."""
    environment = {**os.environ, "TUTELAGE_CACHE": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", ALL_KERNELS], env=environment, check=True, capture_output=True, text=True)
        for _ in range(3)
    ]
    assert len(said[0].stdout.split()) == 9
    assert said[0].stdout == said[1].stdout == said[2].stdout


NARROW = """
import sys
import pytest
from tutelage.models import vectors
vectors.HOST = int(sys.argv[1])  # before the kernels are written
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "tests/models/test_fused.py", "-k", "step_of_attention"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [8, 4])
def test_attention_in_the_vectors_of_other_processors(lanes, tmp_path):
    """AVX and NEON: every processor runs instructions for vectors no longer than its own."""
    environment = {**os.environ, "TUTELAGE_CACHE": str(tmp_path), "PYTEST_ADDOPTS": ""}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", NARROW, str(lanes)]
    ran = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_threads_share_the_units_and_the_result_is_the_same():
    x, weight, threads = torch.randn(64, 500), torch.rand(64), torch.get_num_threads()
    outs = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outs.append(fused.norm(x.clone().t(), weight, 1e-6, None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_products_are_timed():
    measured = fused.seconds(("loops", "numba"))
    assert list(measured) == ["loops", "numba"]
    assert all(1e-5 < each < 10 for each in measured.values())


@pytest.mark.parametrize(
    ("spent", "chosen"),
    [
        ({"loops": 1.2, "numba": 1.0}, "numba"),
        ({"loops": 1.0, "numba": 1.1}, "loops"),
        ({"loops": 1.04, "numba": 1.0}, "loops"),
        ({"loops": 2.0, "numba": 1.1, "amx": 1.0}, "amx"),
        ({"loops": 2.0, "numba": 1.0, "amx": 1.1}, "numba"),
    ],
)
def test_they_are_chosen_where_they_can_run(monkeypatch, spent, chosen):
    """And whichever products are fastest, by more than chance."""
    monkeypatch.setattr(fused, "seconds", lambda _several: spent)
    assert fused.choose_kernels("auto", CPU) == chosen
    for pinned in ("torch", "loops", "numba"):
        assert fused.choose_kernels(pinned, CPU) == pinned
    assert fused.choose_kernels("auto", torch.device("cuda")) == "torch"
    with pytest.raises(ValueError, match="the device is cuda"):
        fused.choose_kernels("numba", torch.device("cuda"))
    with pytest.raises(ValueError, match="got 'triton'; allowed: auto, torch, loops, numba, amx"):
        fused.choose_kernels("triton", CPU)


def test_without_numba_or_the_thread_pool_pytorch_decodes(monkeypatch):
    monkeypatch.setattr(fused, "find_spec", lambda name: None if name == "numba" else importlib.util.find_spec(name))
    assert fused.choose_kernels("auto", CPU) == "torch"
    with pytest.raises(ValueError, match=r"numba is not installed; install it with: pip install 'tutelage\[fast\]'"):
        fused.choose_kernels("numba", CPU)
    monkeypatch.undo()
    fused.missing.cache_clear()

    def no_pool():
        raise AttributeError("undefined symbol: GOMP_parallel")

    monkeypatch.setattr(fused, "_pool", no_pool)
    assert fused.choose_kernels("auto", CPU) == "torch"
    with pytest.raises(ValueError, match="loops cannot run: AttributeError"):
        fused.choose_kernels("loops", CPU)
    with pytest.raises(ValueError, match="GOMP_parallel"):
        fused.choose_kernels("numba", CPU)


LIFETIMES = """
from tutelage.models import fused
from tutelage.models.asking import attending

kernels = [attending(64, 3)] + ([] if fused.no_matrix_unit() else [fused.compiled("tile_kernel").product])
for kernel in kernels:
    print("kernel")
    lines = [line.strip() for line in kernel.inspect_llvm().splitlines()]
    for number, line in enumerate(lines):
        if "NRT_decref(ptr nonnull" in line and "define" not in line:
            print(lines[number + 1])
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(fused.missing()), reason=f"hardware: {fused.missing()}")
def test_a_kernels_own_memory_lives_until_it_returns(tmp_path):
    """Numba frees an array after its last use, and an address is none; what it has kept on disk cannot be looked into."""
    environment = {**os.environ, "TUTELAGE_CACHE": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", LIFETIMES], env=environment, capture_output=True, text=True, check=True
    )
    kernels = told.stdout.split("kernel\n")[1:]
    assert len(kernels) == (1 if fused.no_matrix_unit() else 2)
    for after in kernels:
        assert after.split() != [], "it has memory of its own"
        returning = "ret ", "br label %common.ret", "store ptr null, ptr %retptr"
        assert all(line.startswith(returning) for line in after.splitlines()), after
