"""Rollouts of a game: the policy and a rival answer the same prompts, and a preference says who wins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import nn

from tutelage.data.batch import Rollouts
from tutelage.models.mixture import MixtureDecoder
from tutelage.models.sampling import Decoding, Sampler
from tutelage.records import Answer, Prompt
from tutelage.rewards.pairwise import Preference
from tutelage.training.pool import PolicyPool
from tutelage.training.rollouts import Drawn, RolloutSource, rollouts, sample_rows
from tutelage.training.run import Run


@dataclass(frozen=True)
class PastPolicy:
    """A `Sampler` that answers with a past policy: the live weights wear it while it speaks."""

    pool: PolicyPool
    member: int
    policy: nn.Module
    sampler: Sampler

    def sample(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> list[list[Answer]]:
        """See `Sampler`."""
        with self.pool.worn(self.policy, self.member):
            return self.sampler.sample(prompts, answers, decoding, seed)


@dataclass(frozen=True)
class Duel(Drawn):
    """A step's answers with the rival's: `rivals[p][g]` is what answer g to prompt p met."""

    rivals: list[list[Answer]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DuelSource(RolloutSource):
    """A `RolloutSource` whose rewards are P(answer k beats the rival's answer k).

    `mixture` is the usual rival. `past_rival` names the pool's member that a step plays against instead (None: the mixture),
    `joins` says whether the live policy joins the pool before a step; both are functions of the step.
    """

    preference: Preference
    mixture: Sampler
    policy: nn.Module
    past_rival: Callable[[int], int | None] = lambda step: None
    joins: Callable[[int], bool] = lambda step: False
    pool: PolicyPool | None = None

    @property
    def sides(self) -> int:
        """The policy's answer, and the rival's by one model or by both models of a mixture."""
        return 3 if isinstance(self.mixture, MixtureDecoder) else 2

    def within(self, run: Run) -> Self:
        """The source of an opened run: samples and pool go into its folder. Raises ValueError where a past policy is gone."""
        source = super().within(run)
        if source.pool is None:
            return source
        pool = replace(source.pool, folder=run.folder / "pool")
        saved = run.checkpoints.latest()
        if saved is not None:
            pool.check(saved.info["state"]["members"])
        return replace(source, pool=pool)

    def __call__(self, step: int) -> tuple[Rollouts, Mapping[str, float]]:
        """The rollouts of a step against its rival."""
        if self.joins(step):
            assert self.pool is not None
            self.pool.keep(step, self.policy)
        past = self.past_rival(step)
        rival: Sampler = self.mixture
        if past is not None:
            assert self.pool is not None
            rival = PastPolicy(self.pool, past, self.policy, self.sampler)
        batch, metrics = RolloutSource.__call__(replace(self, mixture=rival), step)
        age = {} if past is None else {"pool/age": float(step - past)}
        return batch, {**metrics, **age, "pool/past_rival": float(past is not None)}

    def _attempt(self, prompts: list[Prompt], seed: str, decoding: Decoding) -> tuple[Drawn, dict[str, float]]:
        """Sample both sides and judge them; what it took in seconds and tokens."""
        clock = time.perf_counter()
        tokens = [list(self.encode(prompt)) for prompt in prompts]
        groups = self.sampler.sample(tokens, self.group_size, decoding, seed)
        rivals = self.mixture.sample(tokens, self.group_size, decoding, f"{seed}/rival")
        sampled = time.perf_counter()
        self.said(tokens, groups)
        for _ in range(self.sides - 1):  # a mixture says each of its tokens with two models
            self.said(tokens, rivals)
        wins = self.preference.probability(prompts, groups, rivals)
        took = {"time/sample": sampled - clock, "time/reward": time.perf_counter() - sampled}
        spoken = sum(len(answer.tokens) for side in (groups, rivals) for group in side for answer in group)
        lengths = [[float(len(answer.tokens)) for answer in group] for group in rivals]
        parts = {"rival_length": lengths}
        return Duel(prompts, tokens, groups, wins, parts, rivals), {**took, "tokens": float(spoken)}

    def _finish(self, step: int, drawn: Drawn, decoding: Decoding) -> Rollouts:
        """The policy's answers as a batch; the rival's are kept beside them in the samples."""
        assert isinstance(drawn, Duel)
        rows: list[dict[str, Any]] = sample_rows(drawn.prompts, drawn.groups, drawn.rewards, drawn.parts)
        for row, group in zip(rows, drawn.rivals, strict=True):
            for said, rival in zip(row["answers"], group, strict=True):
                said["rival"] = rival.text
        self.keep_samples(step, rows)
        return rollouts(drawn.tokens, drawn.groups, drawn.rewards, decoding.temperature)
