"""F and BW are measured, by the best repetition, and only measurements under the same conditions are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat

import pytest
import torch

from tutelage.memory import NOTE
from tutelage.models import fused, hardware
from tutelage.models.gemm import multiplying
from tutelage.models.hardware import (
    Machine,
    allocator,
    buffer_bytes,
    fastest,
    machine,
    measure,
    product_rate,
    rate,
    read_rate,
)

CPU = torch.device("cpu")
OURS = Machine(150e9, 18e9, "float32", 2, "cpu", "a processor", 16 * 10**9, "glibc")


@dataclass
class Clock:
    """Stands for the module `time`; it goes on by what the work says that it takes."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, seconds: Iterator[float]) -> Callable[[], None]:
        def work() -> None:
            self.now += next(seconds)

        return work


def test_the_fastest_repetition_counts_and_the_first_does_not(monkeypatch):
    """The warm-up is the quickest here and is left out; of 30 and 10 ms the 10 ms one counts."""
    monkeypatch.setattr(hardware, "time", clock := Clock())
    assert fastest(clock.takes(iter([0.001, 0.03, 0.01])), CPU, 0.0) == pytest.approx(0.01)


def test_it_goes_on_for_as_long_as_it_was_told(monkeypatch):
    """A warm-up of 5 s and repetitions of 2 s: within 10 s there is room for three, the last of which ends behind."""
    monkeypatch.setattr(hardware, "time", clock := Clock())
    assert fastest(clock.takes(chain([5.0], repeat(2.0))), CPU, 10.0) == pytest.approx(2.0)
    assert clock.now == 5 + 3 * 2


def test_a_product_counts_two_operations_a_term(monkeypatch):
    """2 x 512 x 512 x 512 in the seconds that a clock of our own gives: 2^28 FLOP in half a second."""
    monkeypatch.setattr(hardware, "fastest", lambda work, device, seconds: 0.5)
    monkeypatch.setattr(hardware, "PRODUCTS", {"cpu": ((512, 512, 512), (256, 512, 512))})
    assert product_rate(torch.float32, CPU) == 2**28 / 0.5


@pytest.mark.skipif(bool(fused.no_matrix_unit()), reason=f"hardware: {fused.no_matrix_unit()}")
def test_the_matrix_units_products_count_where_it_multiplies(monkeypatch):
    """In a run whose products it makes a phase could be below the floor of PyTorch's; elsewhere it is nobody's limit."""
    asked: list[str] = []
    monkeypatch.setattr(hardware, "by_rows", lambda a, b, out: asked.append("unit"))
    product_rate(torch.float32, CPU, 0.01)
    assert asked == []
    with multiplying("amx"):
        product_rate(torch.float32, CPU, 0.01)
        assert set(asked) == {"unit"}
        asked.clear()
        product_rate(torch.float64, CPU, 0.01)
    assert asked == []


def test_a_read_counts_the_bytes_of_a_buffer_beyond_the_cache(monkeypatch, tmp_path):
    size = tmp_path / "size"
    monkeypatch.setattr(hardware, "L3", size)
    assert buffer_bytes(CPU) == 96 << 20  # unknown: three times 32 MiB
    for text, expected in (("65536K\n", 192 << 20), ("8192K", 64 << 20), ("1048576K", 1 << 30), ("what", 96 << 20)):
        size.write_text(text)
        assert buffer_bytes(CPU) == expected
    monkeypatch.setattr(hardware, "buffer_bytes", lambda device: 4096)
    monkeypatch.setattr(hardware, "fastest", lambda work, device, seconds: float(work()))
    assert read_rate(CPU) == 4096 / 1024  # the sum of 1,024 ones was taken, all of the buffer


def test_this_machine_gives_numbers_that_a_machine_can_have():
    """Between a tenth of a GFLOP/s and a hundred PFLOP/s: a wrong factor of a thousand in the seconds would leave that."""
    found = measure(torch.float32, CPU, 0.01)
    assert 1e8 < found.flops < 1e17
    assert 1e8 < found.bandwidth < 1e14
    assert (found.dtype, found.device, found.threads) == ("float32", "cpu", torch.get_num_threads())
    assert found.memory > 1e8
    assert found.name


def test_it_is_measured_once_a_process():
    first = machine(torch.float32, CPU, torch.get_num_threads())
    assert machine(torch.float32, CPU, torch.get_num_threads()) is first


def test_the_better_of_two_measurements_counts():
    other = replace(OURS, flops=140e9, bandwidth=19e9)
    assert OURS.best(other) == replace(OURS, bandwidth=19e9) == other.best(OURS)
    for change in ({"threads": 1}, {"dtype": "bfloat16"}, {"device": "cuda:0"}, {"name": "another"}):
        assert not OURS.same_conditions(replace(OURS, **change))
        with pytest.raises(AssertionError, match="do not compare"):
            OURS.best(replace(OURS, **change))


def test_the_line_says_what_was_chosen():
    assert OURS.line() == (
        "a processor, 2 threads, 16.0 GB, float32 on cpu, allocator glibc; measured F 150 GFLOP/s, BW 18 GB/s"
    )
    assert rate(7.9e14, "FLOP/s") == "790 TFLOP/s"
    assert rate(2.5e6, "B/s") == "2.5 MB/s"
    assert rate(12.0, "B/s") == "12 B/s"


def test_the_allocator_is_the_preloaded_one_or_what_the_command_set_up(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert allocator(CPU) == "jemalloc"
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setenv(NOTE, "glibc, freed pages kept")
    assert allocator(CPU) == "glibc, freed pages kept"
