"""`tutelage bench`: what this machine can do, and how near to it each phase of a training step comes."""

from __future__ import annotations

import random
from dataclasses import replace
from json import dumps
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.config import config, to_dict
from tutelage.console import track
from tutelage.models.drawing import Decoding
from tutelage.models.hardware import measure
from tutelage.records import Prompt, user
from tutelage.stages.bench_table import PARTS, Shape, Watched, figures, impossible, phases_of, show
from tutelage.stages.common import DEMO_MODEL, Actor, Count, Training, load_actor
from tutelage.training.files import write_whole
from tutelage.training.limits import Limit
from tutelage.training.loop import Progress, Task, one_step
from tutelage.training.optim import Optimization, adamw, named_trainable
from tutelage.training.rollouts import RolloutSource
from tutelage.training.work import Passes


@config
class Bench:
    """How fast one GRPO step runs here, phase by phase, against the least seconds that this machine needs for it.

    The machine's F (FLOP/s of large matrix products) and BW (bytes/s of a large read) are measured first. A phase's floor is
    the larger of its operations over F and its bytes over BW (docs/performance.md); `fraction` is floor over measured: 100 %
    would be perfect. Prompts are random tokens, and every answer has exactly `answer_tokens`.
    """

    model: str = DEMO_MODEL
    """`builtin:smollm2-135m-instruct`, a Hugging Face directory, a run folder of ours, or a hub id."""
    prompts: Count = 8
    """Prompts a step."""
    answers: Annotated[int, Field(gt=1)] = 8
    """Answers to each."""
    prompt_tokens: Count = 64
    """Length of each prompt."""
    answer_tokens: Annotated[int, Field(gt=1)] = 128
    """Length of each answer."""
    full: bool = False
    """Train all weights; default: a LoRA adapter."""
    repeats: Count = 1
    """Steps that are measured, after a small one that warms up; medians are shown."""
    tokens_per_pass: Count = 1024
    """Packed tokens in one forward and backward."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of frozen weights and of the forward pass."""
    gemm: Literal["auto", "default", "onednn", "amx"] = "auto"
    """Which library multiplies float32 matrices on a CPU (amx: Intel's matrix unit, in training); auto: the fastest, measured at the start."""
    kernels: Literal["auto", "torch", "loops", "numba", "amx"] = "auto"
    """What computes a decoding step on a CPU: PyTorch, compiled loops between its products, or compiled products too (amx: by Intel's matrix unit); auto: what is fastest here."""
    seed: int = 0
    """Decides prompts and answers."""
    json: str | None = None
    """A file that the figures are written to as well."""


def main(cfg: Bench) -> int:
    """Measure, print the table and write the file that `json` names; returns the exit code, 1 for a phase above its limit."""
    training = Training(
        model=cfg.model,
        full=cfg.full,
        device=cfg.device,
        dtype=cfg.dtype,
        gemm=cfg.gemm,
        kernels=cfg.kernels,
        seed=cfg.seed,
    )
    actor = load_actor(training, training.adapter, tokens=cfg.tokens_per_pass)
    task = bench_task(cfg, actor, training.peak_rate)
    weights = actor.module.get_input_embeddings().weight  # type: ignore[operator]
    limit = Limit(measure(weights.dtype, weights.device))
    meter = Watched(Passes(task.models), limit, sum(p.numel() for p in named_trainable(task.trained).values()))
    task = replace(task, draw=replace(task.draw, said=meter.said))  # type: ignore[type-var]
    progress = Progress(0, task.algorithm.initial_state(), adamw(named_trainable(task.trained).values(), task.settings))
    with track(1 + (1 + cfg.repeats) * (1 + len(PARTS)), "bench", "phase") as bar, meter.attached():
        meter.bar = bar
        warm_up(cfg, task, progress, meter)
        firsts = []
        for progress.step in range(1, 1 + cfg.repeats):
            firsts.append(_first_tokens(cfg, task, meter, progress.step))
            one_step(task, progress, meter)
        limit.measure_again()
        bar.advance(1)
    shape = Shape(cfg.prompts, cfg.answers, cfg.prompt_tokens, cfg.answer_tokens)
    phases = phases_of(shape, limit.machine, meter, median(firsts))
    show(f"{cfg.model}, {shape}, {'all weights' if cfg.full else 'LoRA'}", limit.machine, phases)
    if cfg.json is not None:
        kept = {"settings": to_dict(cfg), **figures(limit.machine, meter, phases)}
        write_whole(Path(cfg.json), dumps(kept, indent=1) + "\n")
    return int(impossible(phases))


def bench_task(cfg: Bench, actor: Actor, peak: float) -> Task:
    """One GRPO step with a KL to the reference, no group without differences, no answer that ends early."""
    draw = random.Random(cfg.seed)
    words = [t for t in range(len(actor.tokenizer)) if t not in actor.tokenizer.all_special_ids]
    ids = {str(n): draw.choices(words, k=cfg.prompt_tokens) for n in range(cfg.prompts)}
    source = RolloutSource(
        draw_prompts=lambda step: [user(name) for name in ids],
        encode=lambda prompt: ids[prompt.text],
        sampler=replace(actor.decoder, stop_tokens=()),
        score=_alternating,
        decoding=Decoding(cfg.answer_tokens),
        group_size=cfg.answers,
        seed=cfg.seed,
        keep_samples=lambda step, rows: None,
    )
    models = Models(policy=actor.policy, reference=actor.reference)
    settings = Optimization(tokens_per_pass=cfg.tokens_per_pass)
    method = GRPO(group_size=cfg.answers)
    return Task(models, method, source, {"policy": actor.module}, 1 + cfg.repeats, peak, settings, cfg.seed)


def _alternating(
    prompts: list[Prompt], groups: list[list[Any]]
) -> tuple[list[list[float]], dict[str, list[list[float]]]]:
    return [[float(g % 2) for g, _ in enumerate(group)] for group in groups], {}


def warm_up(cfg: Bench, task: Task, progress: Progress, meter: Watched) -> None:
    """A small step: what is chosen or allocated once is not a step's cost."""
    assert isinstance(task.draw, RolloutSource)
    every, few = task.draw.draw_prompts, min(2, cfg.prompts)
    small = replace(
        task.draw,
        draw_prompts=lambda step: every(step)[:few],
        decoding=Decoding(min(8, cfg.answer_tokens)),
        group_size=2,
    )
    _first_tokens(cfg, replace(task, draw=small), meter, 0)
    one_step(replace(task, draw=small, algorithm=GRPO(group_size=2)), progress, meter)
    meter.done.clear()


def _first_tokens(cfg: Bench, task: Task, meter: Watched, step: int) -> float:
    """Seconds to read the prompts and say the first token of each answer."""
    source = task.draw
    assert isinstance(source, RolloutSource)
    prompts = [source.encode(prompt) for prompt in source.draw_prompts(step)]
    with meter.phase("prefill"):
        source.sampler.sample(prompts, source.group_size, Decoding(1), f"{cfg.seed}/{step}")
    return meter.work.pop("prefill").seconds
