"""The rows of the speed table: what is done, by whom, in which settings, and what is aimed at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from speed_data import Source, demonstrations, pairs, questions, scored
from speed_vllm_env import OPENMP
from speed_work import Work

KEEPS_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647", "MALLOC_TOP_PAD_": "268435456"}
"""What our command line sets for itself: freed pages stay with the process. Tried for the rivals too."""
Kind = Literal["rollouts", "demonstrations", "pairs", "scored"]


@dataclass(frozen=True)
class Variant:
    """A way to set a side up. Where `counts` is False it is listed beside the result, and `why` says why it is no rival's."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    counts: bool = True
    why: str = ""


@dataclass(frozen=True)
class Row:
    """A workload and its two sides. `target` is the ratio rival / ours that is aimed at, `limit` the fraction of the floor.

    The rival's `variants` are tried on a smaller trial, every `trial[0]`-th prompt and answers of `trial[1]` tokens; the
    fastest of those that count is the rival.
    """

    name: str
    title: str
    kind: Kind
    build: Callable[[Source], Work]
    ours: str
    rival: str
    rival_name: str
    target: float
    variants: tuple[Variant, ...]
    stretch: float | None = None
    limit: float | None = None
    memory: float | None = None
    """Our peak memory over the rival's that is aimed at."""
    trial: tuple[int, int] = (2, 64)
    compared: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"loss": (1e-4, 1e-3), "gradient_norm": (1e-4, 2e-3)}
    )
    """Figure of both sides -> how far apart they may be: absolutely, and as a share of the rival's."""
    python: Literal["own", "vllm"] = "own"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Our side's, beside what the commands set up by themselves."""

    @property
    def alone(self) -> bool:
        """Whether both sides are ours: a lever by itself, without a target."""
        return self.rival.startswith("speed_ours")


def batches(*sizes: int, by_hand: tuple[str, ...] = ()) -> tuple[Variant, ...]:
    """TRL with micro-batches of several sizes; the middle one also with our allocator, and with what one can do by hand."""
    key, middle = "per_device_train_batch_size", sizes[len(sizes) // 2]
    whys = {"gemm": ("onednn", "matrix products through oneDNN"), "by_length": (True, "a step's rows sorted by length")}
    extra = [
        Variant({key: middle, name: whys[name][0]}, counts=False, why=f"{whys[name][1]} by hand") for name in by_hand
    ]
    return (*(Variant({key: size}) for size in sizes), Variant({key: middle}, KEEPS_PAGES), *extra)


PACKED = tuple(Variant({"max_length": length}) for length in (512, 1024, 2048))
CACHES = (Variant(), Variant({"cache_implementation": "static"}), Variant({}, KEEPS_PAGES))
ENGINES = (
    Variant({"enforce_eager": True}),
    Variant({"enforce_eager": False}),
    Variant({"enforce_eager": True}, {"LD_PRELOAD": OPENMP}),
)
PROMPTS: dict[str, Any] = {"count": 8, "lengths": (40, 200), "group": 8, "max_tokens": 128}
LOGPROB = {"logprob": (2e-3, 0.0)}

ROWS = (
    Row(
        "decode-generate",
        "decoding, 8 prompts x 8 answers of 128 tokens, against `generate`",
        "rollouts",
        partial(questions, forced=True, **PROMPTS),
        "speed_ours:decode",
        "speed_replay:generate",
        "transformers generate",
        target=3.3,
        stretch=4.0,
        limit=0.55,
        variants=CACHES,
        trial=(1, 16),
        compared=LOGPROB,
    ),
    Row(
        "grpo-natural",
        "GRPO step, 8 prompts x 8 answers, natural lengths up to 128 tokens",
        "rollouts",
        partial(questions, forced=False, **PROMPTS),
        "speed_ours:grpo",
        "speed_trl:grpo",
        "TRL",
        target=3.0,
        memory=0.5,
        variants=batches(4, 8, 16, by_hand=("gemm",)),
        trial=(4, 48),
    ),
    Row(
        "grpo-forced",
        "GRPO step, 8 prompts x 8 answers of 128 tokens each",
        "rollouts",
        partial(questions, forced=True, **PROMPTS),
        "speed_ours:grpo",
        "speed_trl:grpo",
        "TRL",
        target=2.5,
        stretch=3.0,
        limit=0.62,
        memory=0.5,
        variants=batches(4, 8, 16),
        trial=(4, 48),
    ),
    Row(
        "dpo",
        "DPO on 12 HH pairs",
        "pairs",
        partial(pairs, count=12),
        "speed_ours:dpo",
        "speed_trl:dpo",
        "TRL",
        target=2.5,
        limit=0.6,
        memory=0.5,
        variants=batches(2, 3, 6, by_hand=("gemm", "by_length")),
        trial=(2, 512),
    ),
    Row(
        "sft",
        "SFT on 24 GSM8K rows, TRL without packing",
        "demonstrations",
        partial(demonstrations, count=24),
        "speed_ours:sft",
        "speed_trl:sft",
        "TRL",
        target=2.0,
        variants=batches(2, 4, 6, by_hand=("gemm", "by_length")),
        trial=(2, 512),
    ),
    Row(
        "reward",
        "reward model on 12 HH pairs",
        "scored",
        partial(scored, partial(pairs, count=12)),
        "speed_ours:reward",
        "speed_trl:reward",
        "TRL",
        target=2.0,
        limit=0.6,
        variants=batches(2, 3, 6, by_hand=("gemm", "by_length")),
        trial=(2, 512),
    ),
    Row(
        "decode-vllm",
        "decoding, 8 prompts x 8 answers of 128 tokens, against vLLM",
        "rollouts",
        partial(questions, forced=True, **PROMPTS),
        "speed_ours:decode",
        "speed_vllm:generate",
        "vLLM",
        target=2.3,
        stretch=3.0,
        limit=0.55,
        variants=ENGINES,
        trial=(1, 16),
        compared=LOGPROB,
        python="vllm",
    ),
    Row(
        "sft-packed",
        "SFT on 24 GSM8K rows, TRL with packing",
        "demonstrations",
        partial(demonstrations, count=24),
        "speed_ours:sft",
        "speed_trl:sft_packed",
        "TRL, packed",
        target=1.2,
        variants=PACKED,
        trial=(2, 512),
    ),
    *(
        Row(
            f"decode-{precision}",
            f"decoding with {precision} weights, against the same in float32",
            "rollouts",
            partial(questions, forced=True, **PROMPTS),
            "speed_ours:decode",
            "speed_ours:decode",
            "ours in float32",
            target=1.0,
            variants=(Variant({"settled": True}),),
            compared={},
            settings={"decoder": {"precision": precision}},
        )
        for precision in ("int8", "bfloat16")
    ),
)
