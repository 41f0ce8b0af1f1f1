"""A row of the learning table as a task of the library's loop, and its control: the same with permuted rewards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from learning_labels import Chance, all_pairs, permute, rated, right
from learning_world import BOTH_ROOM, MAX_NEW_TOKENS, ROOM, TOKENS_PER_PASS, World, said, settings, trained
from tutelage.algorithms.base import Models
from tutelage.algorithms.distill import Distill
from tutelage.algorithms.kto import KTO
from tutelage.algorithms.nash_md import NashMD
from tutelage.algorithms.preference_model import PreferenceModel, preference_logits
from tutelage.data.batch import Rows, distinct
from tutelage.data.collate import comparisons, demonstrations, ratings, ratings_with_partners
from tutelage.data.labelled import with_partners
from tutelage.data.shapes import CONVERSIONS
from tutelage.data.stream import Stream
from tutelage.data.two_answers import two_answers
from tutelage.models.actor_critic import ActorCriticModel
from tutelage.models.distribution import DistributionModel
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.mixture import rival_decoder
from tutelage.models.packing import backbone_of
from tutelage.models.prefixes import PrefixReader
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, Comparison, Critique, Prompt, Rating
from tutelage.rewards.combine import combine
from tutelage.rewards.pairwise import ScoredPreference
from tutelage.rewards.votes import majority
from tutelage.training.duels import DuelSource
from tutelage.training.loop import Draw, Hook, Task
from tutelage.training.pool import PolicyPool
from tutelage.training.rollouts import Grid, RolloutSource

Command = Literal["rl", "prefer", "sft", "reward"]
Variant = Literal["", "majority", "cooling", "rewritten"]
HOT, COLD = 1.3, 0.8
"""The temperatures that a cooling row begins and ends with."""


@dataclass(frozen=True)
class Row:
    """A method with its settings. `steps` is a share of the world's (1: all of them).

    A row of `reward` takes six seeds: its head is drawn anew for each, and the order that a random head puts answers in
    differs more from seed to seed (from 0.40 to 0.64 of the pairs right) than what is learned.
    """

    name: str
    command: Command
    method: Any
    rate: float = 1e-3
    steps: float = 1.0
    shared_trunk: bool = False
    variant: Variant = ""
    """What is not the method's: the `majority` is the label, answers are drawn from hot to cold (`cooling`), or pairs come from
    critiques with `rewritten` answers."""

    @property
    def seeds(self) -> int:
        """How many of the table's seeds."""
        return seeds_of(self.command)


def seeds_of(command: str) -> int:
    """How many seeds a row of a command takes."""
    return 6 if command == "reward" else 3


Curve = list[tuple[int, list[float]]]
"""(steps done, score of each held-out item), the start first."""


def learn(row: Row, world: World, permuted: bool) -> Curve:
    """Train a row in a world and read the held-out score before, during and after."""
    task, score = task_of(row, world, permuted)
    curve: Curve = [(0, score())]

    def look(step: int) -> dict[str, float]:
        curve.append((step, score()))
        return {"heldout": sum(curve[-1][1]) / len(curve[-1][1])}

    trained(task, (Hook(world.sizes.every, look),))
    return curve


def task_of(row: Row, world: World, permuted: bool) -> tuple[Task, Callable[[], list[float]]]:
    """The task, and what measures the held-out score of what it trains."""
    if row.command == "reward":
        return _scoring(row, world, permuted)
    module = world.policy()
    policy = CausalModel(module, tokens_per_pass=TOKENS_PER_PASS)
    models = Models(policy=policy, reference=CausalModel(world.reference(), tokens_per_pass=TOKENS_PER_PASS))
    modules: dict[str, nn.Module] = {"policy": module}
    if isinstance(row.method, Distill) and row.method.level == "token":
        teacher = DistributionModel(world.teacher(permuted), tokens_per_pass=TOKENS_PER_PASS)
        models = Models(policy=DistributionModel.of(policy), teacher=teacher)
    elif "value" in row.method.needs:
        models, modules = _critic(row, world, module, models)
    draws = {"rl": _rollouts, "prefer": _judged, "sft": _lessons}
    draw = draws[row.command](row, world, module, permuted)
    return _task(row, world, models, modules, draw=draw), lambda: world.score(module)


def _task(row: Row, world: World, models: Models, modules: dict[str, nn.Module], *, draw: Draw) -> Task:
    steps = max(1, round(row.steps * world.sizes.steps))
    return Task(models, row.method, draw, modules, steps, row.rate, settings(), world.seed, row.name)


def _critic(row: Row, world: World, module: Any, models: Models) -> tuple[Models, dict[str, nn.Module]]:
    if row.shared_trunk:
        scalar = new_scalar_model(module, seed=world.seed + 1)
        value = HeadedModel(scalar, TOKENS_PER_PASS)
        both = ActorCriticModel(module, tokens_per_pass=TOKENS_PER_PASS, value=value)
        return Models(policy=both, reference=models.reference, value=both), {"policy": scalar}
    scalar = new_scalar_model(backbone_of(world.policy()), seed=world.seed + 1)
    value = HeadedModel(scalar, TOKENS_PER_PASS)
    return Models(models.policy, models.reference, value), {"policy": module, "value": scalar}


def _rollouts(row: Row, world: World, module: nn.Module, permuted: bool) -> Draw:
    rewards = combine([majority if row.variant == "majority" else right])
    last = max(1, round(row.steps * world.sizes.steps) - 1)

    def score(prompts: list[Prompt], groups: list[list[Answer]]) -> tuple[Grid, dict[str, Grid]]:
        found = rewards(prompts, groups)
        return (permute(found, groups, world.seed) if permuted else found), {}

    source = RolloutSource(
        draw_prompts=Stream(world.training, world.sizes.prompts, world.seed).draw,
        encode=world.chat.prompt_tokens,
        sampler=world.decoder(module),
        score=score,
        decoding=Decoding(MAX_NEW_TOKENS, 1.0),
        group_size=row.method.group_size,
        seed=world.seed,
        keep_samples=lambda step, rows: None,
        attempts=getattr(row.method, "attempts", 0),
        temperature=(lambda step: HOT + (COLD - HOT) * step / last) if row.variant == "cooling" else None,
    )
    if not isinstance(row.method, NashMD):
        return source
    method, judge = row.method, ScoredPreference(rewards)
    return DuelSource(
        **{f.name: getattr(source, f.name) for f in fields(RolloutSource)},
        preference=Chance(judge, world.seed) if permuted else judge,
        mixture=rival_decoder(source.sampler, world.decoder(world.reference()), method.mixing),  # type: ignore[arg-type]
        policy=module,
        past_rival=lambda step: method.past_rival(step, world.seed),
        joins=lambda step: bool(method.pool_every) and step % method.pool_every == 0,
        pool=PolicyPool(Path("pool"), world.tokenizer, "") if method.pool_every else None,
    )


def _drawn(rows: Rows, world: World) -> Draw:
    """As many rows a step as rl has answers."""
    size = min(len(rows), world.sizes.prompts * world.sizes.answers)
    stream = Stream(range(len(rows)), size, world.seed)
    return lambda step: (rows[torch.tensor(stream.draw(step))], {})


def _lessons(row: Row, world: World, module: nn.Module, permuted: bool) -> Draw:
    prompts = world.training
    answers = world.solutions(prompts, permuted)
    if isinstance(row.method, Distill) and row.method.level == "sequence":
        asked = [world.chat.prompt_tokens(prompt) for prompt in prompts]
        teacher = world.decoder(world.teacher(permuted))
        groups = teacher.sample(asked, 1, Decoding(MAX_NEW_TOKENS, 1.0), f"{world.seed}/teacher")
        answers = [group[0].text for group in groups]
    lessons = [said(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return _drawn(demonstrations(lessons, world.chat, ROOM).batch, world)


def _judged(row: Row, world: World, module: nn.Module, permuted: bool) -> Draw:
    """The start's own answers to the training prompts: pairs of a right and a wrong one, or each with a yes or no."""
    asked = [world.chat.prompt_tokens(prompt) for prompt in world.training]
    decoding, chance = Decoding(MAX_NEW_TOKENS, 1.0), random.Random(f"{world.seed}/judged")
    groups = world.decoder(module).sample(asked, 2 * world.sizes.answers, decoding, f"{world.seed}/judged")
    both = list(zip(world.training, groups, strict=True))
    if isinstance(row.method, KTO):
        labels = [label for prompt, group in both for label in right(prompt, group)]
        if permuted:
            chance.shuffle(labels)
        rated = [(prompt, answer) for prompt, group in both for answer in group]
        rows = [Rating(prompt, answer, label) for (prompt, answer), label in zip(rated, labels, strict=True)]
        return _drawn(ratings_with_partners(with_partners(rows), world.chat, ROOM).batch, world)
    wrong = [(prompt, group, answer) for prompt, group in both for answer in group if answer.text != prompt.solution]
    if row.variant == "rewritten":
        told = [Critique(p, answer, "Wrong.", Answer(str(p.solution))) for p, _, answer in wrong]
        pairs = [pair for critique in told for pair in CONVERSIONS["critique", "comparison"](critique)]
    else:
        pairs = [Comparison(p, good, bad) for p, group, bad in wrong for good in group if good.text == p.solution]
    if permuted:
        pairs = [replace(pair, preference=float(chance.random() < 0.5)) for pair in pairs]
    return _drawn(comparisons(pairs, world.chat, ROOM).batch, world)


def _scoring(row: Row, world: World, permuted: bool) -> tuple[Task, Callable[[], list[float]]]:
    """A head on the start's network; the score is which of a right and a wrong sum it prefers, for held-out prompts."""
    scalar = new_scalar_model(backbone_of(world.policy()), seed=world.seed + 1)
    compares = isinstance(row.method, PreferenceModel)
    reader: Any = (PrefixReader if row.method.name == "outcome_value" else HeadedModel)(scalar, TOKENS_PER_PASS)
    collate: Any = two_answers if compares else comparisons
    room = BOTH_ROOM if compares else ROOM
    pairs = [pair for prompt in world.training for pair in all_pairs(prompt)]
    labels = [1.0] * len(pairs)
    if permuted:
        chance = random.Random(f"{world.seed}/labels")
        labels = [float(chance.random() < 0.5) for _ in pairs]
    if row.method.name in ("bradley_terry", "preference_model"):
        judged = [Comparison(p.prompt, p.chosen, p.rejected, label) for p, label in zip(pairs, labels, strict=True)]
        batch: Rows = collate(judged, world.chat, room).batch
    else:
        batch = ratings(
            rated(row.method.name, world.training, world.seed if permuted else None), world.chat, ROOM
        ).batch
    exam = collate([pair for prompt in world.heldout for pair in all_pairs(prompt)], world.chat, room).batch

    @torch.no_grad()
    def score() -> list[float]:
        if compares:
            margin = preference_logits(reader, exam)
        else:
            rows, which = distinct(exam.both())
            good, bad = reader.scores(rows)[which].chunk(2)
            margin = good - bad
        return (0.5 + 0.5 * margin.sign()).tolist()

    return _task(row, world, Models(reward=reader), {"reward": scalar}, draw=_drawn(batch, world)), score
