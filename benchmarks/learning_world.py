"""The one task of the learning table: one-digit sums, a tiny policy that half knows them, and a held-out score without noise."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.config import config
from tutelage.data.chat import Chat
from tutelage.data.collate import demonstrations, prompts_and_answers
from tutelage.data.stream import Stream
from tutelage.models.logprobs import CausalModel
from tutelage.models.sampling import Decoder
from tutelage.models.tiny import tiny
from tutelage.records import Answer, AnswerGroup, Demonstration, Message, Prompt, user
from tutelage.training.loop import Hook, Task, train
from tutelage.training.optim import Optimization
from tutelage.training.run import Run

LARGEST = 18
ROOM = 64
"""Longest prompt and answer together, in tokens."""
BOTH_ROOM = 256
"""The same with two answers and the question which is better: bytes are tokens here."""
START = 11
"""Decides the start's own weights."""
MAX_NEW_TOKENS = 4
"""A sum has at most two digits and the stop token."""
TOKENS_PER_PASS = 8192
CACHE = Path(__file__).resolve().parents[1] / "build" / "learning"


@config
class Sizes:
    """How large the world is and what a row may spend. The defaults are the table's; tests take less."""

    hidden: int = 64
    """Width of the two-layer policy."""
    pretraining_steps: int = 400
    """Steps of SFT on careless demonstrations of all sums."""
    right: float = 0.4
    """Share of the demonstrations that are right; the others name any other sum from 0 to 18."""
    heldout: int = 25
    """Of the 100 sums, those that no row trains on."""
    steps: int = 20
    """Steps of a row."""
    prompts: int = 16
    """Prompts a step."""
    answers: int = 8
    """Answers a prompt: 16 x 8 x 20 = 2,560 answers a row, of at most four tokens."""
    every: int = 5
    """Steps between two points of a curve."""


@dataclass(frozen=True)
class World:
    """A seed's split, tokenizer and start. `policy` gives a fresh copy of the start each time."""

    sizes: Sizes
    seed: int
    training: list[Prompt]
    heldout: list[Prompt]
    tokenizer: Any
    chat: Chat
    start: nn.Module

    @staticmethod
    def make(sizes: Sizes, seed: int, cache: Path | None = CACHE) -> World:
        """The seed's split, and the start, which is the same for every seed: trained once and kept in `cache`."""
        prompts = [user(f"{a}+{b}", id=f"{a}+{b}", solution=str(a + b)) for a in range(10) for b in range(10)]
        careless = [wrong_at_times(p, sizes.right, f"{i}") for p in prompts for i in range(20)]
        random.Random(f"{seed}/split").shuffle(prompts)
        model, tokenizer = tiny(hidden=sizes.hidden, seed=START)
        heldout, training = prompts[: sizes.heldout], prompts[sizes.heldout :]
        world = World(sizes, seed, training, heldout, tokenizer, Chat.of(tokenizer), model)
        fit(
            world.chat,
            model,
            careless,
            steps=sizes.pretraining_steps,
            kept=_kept(cache, f"start-{sizes.hidden}-{sizes.pretraining_steps}", careless),
        )
        return world

    def policy(self) -> nn.Module:
        """The start, trainable."""
        return deepcopy(self.start).requires_grad_(True)

    def reference(self) -> nn.Module:
        """The start, frozen."""
        return deepcopy(self.start).requires_grad_(False)

    def teacher(self, permuted: bool, cache: Path | None = CACHE) -> nn.Module:
        """The start after the right sums, all of them; or, `permuted`, after the answers of other sums."""
        prompts = [*self.training, *self.heldout]
        lessons = [said(p, answer) for p, answer in zip(prompts, self.solutions(prompts, permuted), strict=True)]
        teacher = self.policy()
        kept = _kept(cache, f"teacher-{self.sizes.hidden}-{self.sizes.pretraining_steps}", lessons)
        fit(self.chat, teacher, lessons, steps=100, kept=kept)
        return teacher.requires_grad_(False)

    def solutions(self, prompts: Sequence[Prompt], permuted: bool) -> list[str]:
        """The right answers, or the same ones to other prompts."""
        answers = [str(prompt.solution) for prompt in prompts]
        if permuted:
            random.Random(f"{self.seed}/solutions").shuffle(answers)
        return answers

    def decoder(self, module: nn.Module) -> Decoder:
        """What answers with `module`'s weights."""
        return Decoder(module, self.chat.stop_tokens, self.chat.decode, rows=256)

    @torch.no_grad()
    def score(self, module: nn.Module) -> list[float]:
        """P(right answer) for each held-out sum: the expected reward of an answer sampled at temperature 1, exactly."""
        groups = [AnswerGroup(p, (Answer(str(p.solution)),)) for p in self.heldout]
        batch = prompts_and_answers(groups, self.chat)
        logp = CausalModel(module, tokens_per_pass=TOKENS_PER_PASS).logprobs(batch)
        return (logp * batch.mask).sum(1).exp().tolist()


def fit(chat: Chat, module: nn.Module, lessons: list[Demonstration], *, steps: int, kept: Path | None) -> None:
    """SFT by the library's own loop, or the weights that are `kept` from before."""
    if kept is not None and kept.is_file():
        module.load_state_dict(torch.load(kept))
        return
    rows, stream = demonstrations(lessons, chat, ROOM).batch, Stream(range(len(lessons)), 64, START)
    models = Models(policy=CausalModel(module, tokens_per_pass=TOKENS_PER_PASS))
    draw = lambda step: (rows[torch.tensor(stream.draw(step))], {})  # noqa: E731
    trained(Task(models, SFT(), draw, {"policy": module}, steps, 3e-3, settings(schedule="cosine")))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), kept)


def _kept(cache: Path | None, name: str, lessons: list[Demonstration]) -> Path | None:
    """Where weights are kept: named by what they learned from."""
    return None if cache is None else cache / f"{name}-{hashlib.sha256(repr(lessons).encode()).hexdigest()[:12]}.pt"


def settings(**changes: Any) -> Optimization:
    """The loop's settings that all rows share; a checkpoint only at the end."""
    return Optimization(**{"tokens_per_pass": TOKENS_PER_PASS, "save_every": 1_000_000, **changes})


def trained(task: Task, hooks: tuple[Hook, ...] = ()) -> None:
    """Run a task through the loop, in a run folder that is thrown away."""
    with TemporaryDirectory() as folder:
        run = Run.open(Path(folder) / "run", Sizes(), "learn", resume=False)
        within = getattr(task.draw, "within", None)
        if within is not None:
            task = replace(task, draw=within(run))
        train(task, run, hooks)


def said(prompt: Prompt, answer: str) -> Demonstration:
    """The prompt answered so."""
    return Demonstration((*prompt.messages, Message("assistant", answer)))


def wrong_at_times(prompt: Prompt, right: float, seed: str) -> Demonstration:
    """The right sum with probability `right`, else any other number from 0 to 18."""
    chance = random.Random(f"{seed}/{prompt.id}")
    others = [str(n) for n in range(LARGEST + 1) if str(n) != prompt.solution]
    return said(prompt, str(prompt.solution) if chance.random() < right else chance.choice(others))
