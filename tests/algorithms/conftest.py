"""Networks and batches for the laws: a tiny model in float64, and rows of every awkward kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

import pytest
import torch
from torch import nn

from tutelage.algorithms.base import Models
from tutelage.data.batch import Pairs, Rollouts, Rows, Sequences, sequences
from tutelage.data.labelled import Labelled, LabelledWithPartner
from tutelage.data.sampled import StepRollouts, at_temperature
from tutelage.data.two_answers import TwoAnswers
from tutelage.models.distribution import DistributionModel
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.lora import LoRA, add_lora, frozen_copy, merged_state, reference_mode
from tutelage.models.prefixes import PrefixReader
from tutelage.models.tiny import tiny

SIZE = {"hidden": 16, "heads": 2, "kv_heads": 1, "std": 0.3}
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Nets:
    """What a method trains here, and the modules behind it. `as_seen` says how tokens reach the modules."""

    policy: nn.Module
    reference: Callable[..., CausalModel]
    value: nn.Module
    reward: nn.Module
    teacher: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)

    def as_seen(self, plain: bool = False) -> Models:
        """The same networks, packed with shared prompts or (plain) every row padded beside its own prompt."""
        return Models(
            DistributionModel(self.policy, TEMPERATURE, plain=plain),
            self.reference(plain=plain),
            HeadedModel(self.value, plain=plain),
            PrefixReader(self.reward, plain=plain),
            teacher=DistributionModel(self.teacher, TEMPERATURE, plain=plain),
        )

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable ones, by name."""
        return {
            f"{prefix}/{name}": parameter
            for prefix, module in self.modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }


def _moved(module: nn.Module, seed: int) -> nn.Module:
    """Every trainable weight a little off where it was (an adapter's B is no longer zero)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def _start(tuning: str, seed: int, float64: bool) -> nn.Module:
    """The model that training starts from; `merged` comes out of an SFT with an adapter."""
    model = tiny(**SIZE, float64=float64, seed=seed)[0]
    if tuning != "merged":
        return model
    taught = _moved(add_lora(model, LoRA(rank=2, alpha=4), seed=7), 7)
    fresh = tiny(**SIZE, float64=float64, seed=seed)[0]
    fresh.load_state_dict(merged_state(taught))
    return fresh


def _adapted(module: nn.Module, tuning: str) -> nn.Module:
    return module if tuning == "full" else add_lora(module, LoRA(rank=2, alpha=4))


@lru_cache
def make_nets(tuning: str, float64: bool = True, moved: bool = True) -> Nets:
    """`tuning`: full, lora, or merged (an adapter on a model that had one merged in). Not `moved`: step 0."""
    start = _start(tuning, 0, float64)
    copy = frozen_copy(start)
    policy = _adapted(start, tuning)

    def reference(plain: bool) -> CausalModel:
        if tuning == "full":
            return CausalModel(copy, TEMPERATURE, plain=plain)
        return CausalModel(policy, TEMPERATURE, reference_mode, plain=plain)

    value, reward = (
        new_scalar_model(_adapted(_start(tuning, seed, float64).model, tuning), seed=seed) for seed in (1, 2)
    )
    modules = {"policy": policy, "value": value, "reward": reward}
    if moved:
        for seed, module in enumerate(modules.values()):
            _moved(module, 10 + seed)
    teacher = tiny(vocabulary=264, hidden=24, heads=2, kv_heads=2, std=0.3, float64=float64, seed=5)[0]
    return Nets(policy, reference, value, reward, teacher.requires_grad_(False), modules)


@pytest.fixture
def nets() -> Callable[..., Nets]:
    return make_nets


PROMPTS = ((5, 6, 7), (8,), (9, 10, 11, 12, 13))
PROMPT_OF = (0, 2, 1, 2, 0, 1, 1, 0, 2, 0, 2, 1)
LENGTHS = (5, 1, 0, 7, 3, 4, 2, 1, 6, 6, 3, 5)
"""Three prompts, four answers each, mixed; ragged, one of them empty, two of one token."""
HOLES = {0: (2,), 3: (0, 3, 4), 8: (5,), 10: (0, 1, 2)}
"""Row -> masked places: a user's turn in the middle, first or last, and a row with nothing to train on (10)."""
REWARDS = (1.0, 0.5, 2.0, -1.0, 0.25, 2.0, 2.0, -0.5, 0.0, 3.0, 1.5, 2.0)
"""All answers to prompt 1 earn the same."""


def answers(
    seed: int = 0, prompt_of: tuple[int, ...] = PROMPT_OF, lengths: tuple[int, ...] = LENGTHS, alive: bool = False
) -> Sequences:
    """With `alive` every row has a token to train on: none is left out of an update."""
    lengths = tuple(n or 2 for n in lengths) if alive else lengths
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 250, (n,), generator=generator).tolist() for n in lengths]
    holes = {row: places for row, places in HOLES.items() if not (alive and len(places) == lengths[row])}
    masks = [[t not in holes.get(row, ()) for t in range(n)] for row, n in enumerate(lengths)]
    return sequences(PROMPTS, prompt_of, rows, masks)


@lru_cache
def make_rollouts(tuning: str = "full", float64: bool = True, moved: bool = True, alive: bool = False) -> Rollouts:
    """Answers, and log-probs of a sampler whose weights were a little different: clipping binds on some tokens."""
    batch = answers(alive=alive)
    dtype = torch.float64 if float64 else torch.float32
    noise = torch.randn(batch.tokens.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    with torch.no_grad():
        old = make_nets(tuning, float64, moved).as_seen().policy.logprobs(batch)
    if moved:
        old = torch.where(batch.mask, old + 0.3 * noise, 0.0)
    finished = torch.tensor([row % 3 != 0 for row in range(len(batch))])
    return Rollouts(batch, torch.tensor(REWARDS, dtype=dtype), old, finished)


@lru_cache
def make_pairs(float64: bool = True) -> Pairs:
    """Comparisons with a tie, soft labels, weights, margins, an empty answer, and answers in several comparisons."""
    chosen, rejected = answers(0), answers(1, lengths=LENGTHS[::-1])
    chosen, rejected = chosen[[0, 1, 2, 3, 3, 5, 8, 10]], rejected[[0, 1, 2, 3, 8, 5, 8, 10]]
    dtype = torch.float64 if float64 else torch.float32
    return Pairs(
        chosen,
        rejected,
        torch.tensor([1.0, 0.5, 1.0, 0.75, 1.0, 0.0, 1.0, 1.0], dtype=dtype),
        torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.25, 2.0, 1.0], dtype=dtype),
        torch.tensor([0.0, 0.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.0], dtype=dtype),
    )


@lru_cache
def make_labelled(float64: bool = True) -> LabelledWithPartner:
    """Labelled answers with weights (one of them 0), an empty one, and partners of other lengths to the same prompts."""
    dtype = torch.float64 if float64 else torch.float32
    return LabelledWithPartner(
        answers(0),
        torch.tensor([1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0], dtype=dtype),
        torch.tensor([1, 1, 0.5, 1, 1, 0, 1, 2, 1, 1, 1, 0.25], dtype=dtype),
        replace(answers(2, lengths=LENGTHS[::-1]), prompts=answers(0).prompts),
    )


def with_steps(batch: Rollouts) -> StepRollouts:
    """Every second own token and the last one end a step; the steps of prompt 1's answers all earn the same."""
    mask = batch.answers.mask
    place = mask.cumsum(1)
    steps = mask & ((place % 2 == 0) | (place == place[:, -1:]))
    scores = torch.sin(torch.arange(mask.numel(), dtype=batch.rewards.dtype)).view(mask.shape)
    scores[batch.answers.prompt_of == 1] = 0.7
    return StepRollouts(*(getattr(batch, f.name) for f in fields(Rollouts)), torch.where(steps, scores, 0.0), steps)


def with_temperatures(batch: Rollouts) -> Rollouts:
    """Each row drawn at a temperature of its own."""
    drawn_at = tuple(0.6 + 0.1 * (row % 5) for row in range(len(batch)))
    return replace(batch, answers=replace(at_temperature(batch.answers, 1.0), temperature=drawn_at))


@pytest.fixture
def batch_of() -> Callable[..., Sequences | Pairs | Labelled | Rollouts]:
    """kind -> the batch that a method of this kind draws."""

    def make(kind: str, tuning: str = "full", float64: bool = True, moved: bool = True) -> Rows:
        if kind == "answers":
            return answers()
        if kind == "pairs":
            return make_pairs(float64)
        if kind == "two answers":
            pairs = make_pairs(float64)
            return TwoAnswers(pairs.chosen, pairs.rejected, pairs.preference, pairs.weight)
        if kind == "labelled":
            return make_labelled(float64)
        change = {"steps": with_steps, "sampled": with_temperatures}.get(kind, lambda batch: batch)
        return change(make_rollouts(tuning, float64, moved, kind == "alive"))

    return make
