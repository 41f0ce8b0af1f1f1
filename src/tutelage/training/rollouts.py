"""Prompts -> answers -> rewards -> a batch of rollouts: what every reinforcement-learning step draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch

from tutelage.data.batch import Rollouts, sequences
from tutelage.data.sampled import StepRollouts, at_temperature
from tutelage.functional.selection import max_variance_subset
from tutelage.models.sampling import Decoding, Sampler
from tutelage.records import Answer, Prompt
from tutelage.training.prompt_filter import PromptFilter
from tutelage.training.run import Run

Grid = list[list[float]]
Score = Callable[[list[Prompt], list[list[Answer]]], tuple[Grid, Mapping[str, Grid]]]
"""Prompts and their groups of answers -> rewards [P][G] and their parts by name."""
ScoreSteps = Callable[[list[Prompt], list[list[Answer]]], list[list[list[tuple[int, float]]]]]
"""The same -> for every answer its steps: how many tokens it has when the step ends, and the step's reward."""
Measure = Callable[["Drawn"], Mapping[str, float]]
"""What one may want to know of a step's answers -> metrics."""
ReadOut = Callable[[Rollouts], list[list[float]]]
"""A number for every token of every row, for samples.jsonl (such as the value model's)."""
Said = Callable[[Sequence[Sequence[int]], Sequence[Sequence[Answer]]], None]
"""Is told prompts (as token ids) and the answers [P][G] that a model has just given to them."""
FAR = 1_000_000
"""Attempt a of step s takes the prompts that step s + a * FAR would have: another place of the same endless stream."""


@dataclass(frozen=True)
class Drawn:
    """A step's prompts, answers and rewards, before they are tensors; every list has one entry a prompt."""

    prompts: list[Prompt]
    tokens: list[list[int]]
    groups: list[list[Answer]]
    rewards: Grid
    parts: Mapping[str, Grid]

    @property
    def constant(self) -> list[int]:
        """The prompts whose answers all earned the same: nothing to compare."""
        return [p for p, row in enumerate(self.rewards) if len(set(row)) == 1]

    def pruned(self, kept: int) -> Drawn:
        """The same with the `kept` answers of each group whose rewards vary most."""
        places = max_variance_subset(torch.tensor(self.rewards), kept).tolist()

        def pick(rows: list[list[Any]]) -> list[list[Any]]:
            return [[row[at] for at in chosen] for row, chosen in zip(rows, places, strict=True)]

        parts = {name: pick(values) for name, values in self.parts.items()}
        return replace(self, groups=pick(self.groups), rewards=pick(self.rewards), parts=parts)

    def patched(self, places: Sequence[int], other: Drawn) -> Drawn:
        """The same with the groups of `other` in the given places."""
        where = dict(zip(places, range(len(places)), strict=True))

        def pick(ours: list[Any], theirs: list[Any]) -> list[Any]:
            return [theirs[where[p]] if p in where else value for p, value in enumerate(ours)]

        parts = {name: pick(values, other.parts[name]) for name, values in self.parts.items()}
        plain = (pick(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "parts")
        return Drawn(*plain, parts=parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RolloutSource:
    """Draws rollouts for a step. `draw_prompts` and `encode` give the step's prompts and their token ids.

    `attempts` is how often prompts whose answers all earned the same are replaced by others (DAPO's dynamic sampling,
    arXiv:2503.14476); what is left after that stays. `temperature` gives each step's own (default: the decoding's).
    """

    draw_prompts: Callable[[int], list[Prompt]]
    encode: Callable[[Prompt], Sequence[int]]
    sampler: Sampler
    score: Score
    decoding: Decoding
    group_size: int
    seed: int
    keep_samples: Callable[[int, list[dict[str, Any]]], None]
    attempts: int = 0
    temperature: Callable[[int], float] | None = None
    score_steps: ScoreSteps | None = None
    measure: Measure | None = None
    read_out: ReadOut | None = None
    said: Said = lambda prompts, groups: None
    filter: PromptFilter | None = None
    """Which prompts are skipped before they are answered."""
    kept: int | None = None
    """Answers of each group that are trained on: those whose rewards vary most (PODS); all are logged."""

    def __post_init__(self) -> None:
        if self.decoding.truncates:
            raise ValueError(
                "top-p and min-p truncate the distribution that answers are drawn from, so their log-probs are not the "
                "policy's and the gradient is wrong; use them for evaluation and chat, and the temperature for training"
            )
        if self.decoding.temperature == 0:
            raise ValueError(
                "temperature 0 always gives the same answer: nothing to compare; use e.g. 1.0 for training"
            )

    def __call__(self, step: int) -> tuple[Rollouts, Mapping[str, float]]:
        """The rollouts of a step: a function of (seed, step) and the current weights."""
        decoding = self.decoding_at(step)
        asked, chosen = (
            (self.draw_prompts(step), {}) if self.filter is None else self.filter.choose(step, self.draw_prompts)
        )
        drawn, metrics = self._attempt(asked, f"{self.seed}/{step}", decoding)
        seen, rewards = list(drawn.prompts), list(drawn.rewards)
        replaced, attempt = 0, 0
        while attempt < self.attempts and (places := drawn.constant):
            attempt, replaced = attempt + 1, replaced + len(places)
            others = self.draw_prompts(step + attempt * FAR)[: len(places)]
            again, cost = self._attempt(others, f"{self.seed}/{step}/attempt {attempt}", decoding)
            drawn, seen, rewards = drawn.patched(places, again), seen + again.prompts, rewards + again.rewards
            metrics = {name: value + cost[name] for name, value in metrics.items()}
        spoken = metrics.pop("tokens")
        metrics["answer/tokens_per_second"] = spoken / metrics["time/sample"]
        if self.attempts:
            metrics |= {"sample/attempts": float(attempt), "sample/replaced": replaced / len(drawn.prompts)}
        if self.temperature is not None:
            metrics["sample/temperature"] = decoding.temperature
        if self.filter is not None:
            self.filter.record(step, seen, rewards)
            metrics |= chosen
        return self._finish(step, drawn, decoding), metrics | self._measured(drawn)

    @property
    def sides(self) -> int:
        """How many answers are decoded for each that is trained on, counted in forwards of one model."""
        return 1

    def within(self, run: Run) -> Self:
        """The source of an opened run: the samples go into its folder, and so does the history of its prompts."""
        saved = run.checkpoints.latest() if self.filter is not None else None
        chooser = self.filter and self.filter.within(run.folder, saved.step if saved else 0)
        return replace(self, keep_samples=run.sample, filter=chooser)

    def decoding_at(self, step: int) -> Decoding:
        """How a step's answers are drawn."""
        return self.decoding if self.temperature is None else replace(self.decoding, temperature=self.temperature(step))

    def _attempt(self, prompts: list[Prompt], seed: str, decoding: Decoding) -> tuple[Drawn, dict[str, float]]:
        """Sample and score once; what it took in seconds and tokens."""
        clock = time.perf_counter()
        tokens = [list(self.encode(prompt)) for prompt in prompts]
        groups = self.sampler.sample(tokens, self.group_size, decoding, seed)
        sampled = time.perf_counter()
        self.said(tokens, groups)
        rewards, parts = self.score(prompts, groups)
        took = {"time/sample": sampled - clock, "time/reward": time.perf_counter() - sampled}
        spoken = sum(len(answer.tokens) for group in groups for answer in group)
        return Drawn(prompts, tokens, groups, rewards, parts), {**took, "tokens": float(spoken)}

    def _finish(self, step: int, drawn: Drawn, decoding: Decoding) -> Rollouts:
        """The batch, with the rewards of steps where there are any; the samples are kept on the way."""
        trained = drawn if self.kept is None else drawn.pruned(self.kept)
        batch = rollouts(drawn.tokens, trained.groups, trained.rewards, decoding.temperature)
        rows = sample_rows(drawn.prompts, drawn.groups, drawn.rewards, drawn.parts)
        said = [answer for row in rows for answer in row["answers"]]
        if self.read_out is not None:
            for answer, values in zip(said, self.read_out(batch), strict=True):
                answer["values"] = values
        if self.score_steps is not None:
            found = [one for group in self.score_steps(drawn.prompts, drawn.groups) for one in group]
            for answer, steps in zip(said, found, strict=True):
                answer["steps"] = steps
            batch = with_step_rewards(batch, found)
        self.keep_samples(step, rows)
        return batch

    def _measured(self, drawn: Drawn) -> dict[str, float]:
        flat = {name: [v for row in values for v in row] for name, values in drawn.parts.items()}
        metrics = {f"reward/{name}": sum(values) / len(values) for name, values in flat.items()}
        if self.kept is not None:
            every = [reward for row in drawn.rewards for reward in row]
            metrics["reward/sampled"] = sum(every) / len(every)
        return metrics if self.measure is None else {**metrics, **self.measure(drawn)}


def rollouts(
    prompts: Sequence[Sequence[int]], groups: list[list[Answer]], rewards: Grid, temperature: float | None = None
) -> Rollouts:
    """Token lists, answers [P][G] and rewards [P][G] as a batch, rows in prompt order.

    With `temperature`, the one that the answers were drawn at, the rows are `Sampled` and every model reads them at it.
    """
    answers = [answer for group in groups for answer in group]
    prompt_of = [p for p, group in enumerate(groups) for _ in group]
    batch = sequences(prompts, prompt_of, [answer.tokens for answer in answers])
    logprobs = torch.zeros(batch.tokens.shape)
    for row, answer in enumerate(answers):
        logprobs[row, : len(answer.logprobs)] = torch.tensor(answer.logprobs)
    flat = torch.tensor([r for group in rewards for r in group], dtype=torch.float32)
    rows = batch if temperature is None else at_temperature(batch, temperature)
    return Rollouts(rows, flat, logprobs, torch.tensor([answer.finished for answer in answers]))


def with_step_rewards(batch: Rollouts, found: Sequence[Sequence[tuple[int, float]]]) -> StepRollouts:
    """Rollouts with, for each row, (tokens when a step ends, its reward); steps end on different tokens."""
    steps = torch.zeros_like(batch.answers.mask)
    rewards = torch.zeros(steps.shape)
    for row, ends in enumerate(found):
        for end, reward in ends:
            assert not steps[row, end - 1], "two steps of an answer end on the same token"
            steps[row, end - 1], rewards[row, end - 1] = True, reward
    values = {f.name: getattr(batch, f.name) for f in fields(Rollouts)}
    return StepRollouts(**values, step_rewards=rewards, steps=steps)


def sample_rows(
    prompts: list[Prompt],
    groups: list[list[Answer]],
    rewards: Grid,
    parts: Mapping[str, Grid],
) -> list[dict[str, Any]]:
    """Whole conversations with reward parts, as `samples.jsonl` keeps them."""
    return [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "answers": [
                {
                    "text": answer.text,
                    "stop_reason": answer.stop_reason,
                    "reward": rewards[p][g],
                    "parts": {name: values[p][g] for name, values in parts.items()},
                }
                for g, answer in enumerate(group)
            ],
        }
        for p, (prompt, group) in enumerate(zip(prompts, groups, strict=True))
    ]
