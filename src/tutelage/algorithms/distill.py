"""Distillation: a student learns what a teacher says, or the teacher's whole distribution over every next token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import LanguageModel, Metrics, Models, State, Stateless
from tutelage.algorithms.sft import SFT
from tutelage.config import config
from tutelage.data.batch import Rollouts, Rows, Sequences
from tutelage.functional import distill as distances
from tutelage.functional.weights import sequence_mean, token_mean
from tutelage.models.distribution import Readout, compare_distributions, spread


class Distributions(LanguageModel, Protocol):
    """A language model that shows its whole next-token distribution; `models.distribution.DistributionModel` is one."""

    def states(self, answers: Sequences) -> Float[Tensor, "B T D"]:
        """What the distribution of answer token t is read from; anything where `mask` is False."""
        ...

    def readout(self, answers: Sequences, states: Float[Tensor, "B T D"]) -> Readout:
        """A piece of the trained tokens, in the order of `mask` -> their logits [n, V]."""
        ...


@dataclass(frozen=True)
class DistillBatch(Rows):
    """Answers, and the states that the teacher's distributions are read from: [B, T, D], where [B, T, V] would not fit."""

    answers: Sequences
    teacher_states: Float[Tensor, "B T D"]


@config
class Distill(Stateless):
    """Token level: D(teacher, student) at every token of an answer, held fixed (GKD, arXiv:2306.13649, algorithm 1).

    Sequence level (arXiv:1606.07947): -log p of the answers that the teacher gives. The gradient does not pass through
    how answers are drawn, as in the paper.
    """

    name: Literal["distill"] = "distill"
    level: Literal["token", "sequence"] = "token"
    """`token`: the teacher's distribution at each token (the same tokenizer); `sequence`: its answers (any tokenizer)."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """`forward_kl` covers all that the teacher says, `reverse_kl` keeps to what it says most, `jensen_shannon` is between."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share of the mixture of `jensen_shannon`: near 0 like `forward_kl`, near 1 like `reverse_kl`."""
    average: Literal["token", "sequence"] = "token"
    """`token`: every token of the step counts the same; `sequence`: every answer does."""
    on_policy: Annotated[float, Field(ge=0, le=1)] | None = None
    """lambda: share of the answers that the student gives itself (default: 0 in `sft`, where the data give them; 1 in `rl`)."""
    group_size: Annotated[int, Field(gt=0)] = 1
    """Answers to each prompt, in `rl`."""

    passes: ClassVar[int] = 1
    minibatches: ClassVar[int] = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher too where its distributions are the target."""
        return ("policy", "teacher") if self.level == "token" else ("policy",)

    def prepare(
        self, models: Models, batch: Sequences | Rollouts, state: State
    ) -> tuple[DistillBatch | Sequences, State, Mapping[str, float]]:
        """The teacher's states at every token. Rewards, where there are any, are not looked at."""
        answers = batch.answers if isinstance(batch, Rollouts) else batch
        metrics = {"answer/length": float(answers.mask.sum(-1).float().mean())}
        if isinstance(batch, Rollouts):
            metrics["answer/finished"] = float(batch.finished.float().mean())
        if self.level == "sequence":
            return answers, state, metrics
        with torch.no_grad():
            states = cast(Distributions, models.teacher).states(answers)
        return DistillBatch(answers, states), state, metrics

    def weights(self, batch: DistillBatch | Sequences) -> Tensor:
        """[B, T] by `average`."""
        mask = batch.answers.mask if isinstance(batch, DistillBatch) else batch.mask
        return token_mean(mask) if self.average == "token" else sequence_mean(mask)

    def losses(self, models: Models, batch: DistillBatch | Sequences) -> tuple[Tensor, Metrics]:
        """D at each token in nats, with the share of tokens whose likeliest word both agree on, and the student's entropy."""
        if isinstance(batch, Sequences):
            return SFT().losses(models, batch)
        answers = batch.answers
        student, teacher = cast(Distributions, models.policy), cast(Distributions, models.teacher)
        states = student.states(answers)
        if not bool(answers.mask.any()):
            nothing = states.sum(-1).float() * 0  # of the graph still: masked rows alone have a gradient, which is 0
            return nothing, {}
        found = compare_distributions(
            teacher.readout(answers, batch.teacher_states), student.readout(answers, states),
            int(answers.mask.sum()), self._measure,
        )  # fmt: skip
        losses, agreed, entropy = (spread(x, answers.mask) for x in found)
        return losses, {"accuracy/teacher": agreed, "policy/entropy": entropy}

    def _measure(self, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        known: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "forward_kl": distances.forward_kl,
            "reverse_kl": distances.reverse_kl,
            "jensen_shannon": lambda p, q: distances.jensen_shannon(p, q, self.beta),
        }
        q = student.detach()
        agreed = (teacher.argmax(-1) == q.argmax(-1)).to(q.dtype)
        return known[self.divergence](teacher, student), agreed, -(q.exp() * q).sum(-1)
