"""What a method answers: what is held fixed during a step, how its losses are averaged, and what they are.

A method is one frozen dataclass; the dataclass is its configuration. The law that every method obeys: for any split of a
batch into micro-batches the gradient is the same, because normalisers come from `weights` over the whole optimiser step and
batch statistics from `prepare` over the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

from tutelage.data.batch import Rows, Sequences

Metrics = Mapping[str, Tensor]
"""Named tensors of the losses' shape; the loop averages them with the losses' own weights."""


class LanguageModel(Protocol):
    """Sequences in, log-probs out; `models.logprobs.CausalModel` and the tests' tabular policies are two of them."""

    def logprobs(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """log p(token t | all before it) at the training temperature; anything (finite) where `mask` is False."""
        ...

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """The same and the entropy of the distribution that token t was drawn from."""
        ...


class ScalarModel(Protocol):
    """A head hidden -> 1, read where a method asks."""

    def values(self, answers: Sequences) -> Float[Tensor, "B T"]:
        """V before answer token t is said: column t reads the state that token t is chosen in."""
        ...

    def scores(self, answers: Sequences) -> Float[Tensor, "B"]:
        """One score a row, read at its last real token."""
        ...


class ActorCritic(LanguageModel, ScalarModel, Protocol):
    """A policy and its value on one trunk: it stands in both places of `Models`, and one forward serves both."""

    def logprobs_entropy_values(
        self, answers: Sequences
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """What `logprobs_and_entropy` and `values` say."""
        ...


@dataclass(frozen=True)
class Models:
    """The networks of a step. Absent ones are None and a method that needs one says so at the door (`needs`)."""

    policy: LanguageModel | None = None
    reference: LanguageModel | None = None
    value: ScalarModel | None = None
    reward: ScalarModel | None = None
    teacher: LanguageModel | None = None

    def missing(self, needed: tuple[str, ...]) -> list[str]:
        """Names of `needed` that are not here."""
        return [name for name in needed if getattr(self, name) is None]


@dataclass(frozen=True)
class State:
    """What a method carries from step to step; plain numbers, lists and strings, so that a checkpoint holds it as JSON."""


class Algorithm(Protocol):
    """The three questions, and what the method needs."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of `Models` that must be there; the first is what is trained."""
        ...

    def initial_state(self) -> State:
        """The state before the first step."""
        ...

    def prepare(self, models: Models, batch: Any, state: Any) -> tuple[Rows, State, Mapping[str, float]]:
        """What is held fixed during the step: the whole batch, no gradient. Returns rows, next state and metrics."""
        ...

    def weights(self, batch: Any) -> Tensor:
        """What each loss counts for, [B, T] or [B]; denominators over the whole optimiser step."""
        ...

    def losses(self, models: Models, batch: Any) -> tuple[Tensor, Metrics]:
        """Unreduced losses, each row independent of the others, and metrics of the same shape."""
        ...


Batch = TypeVar("Batch", bound=Rows)


class Stateless:
    """The answer of methods that carry nothing from step to step."""

    def initial_state(self) -> State:
        """Empty."""
        return State()


class Unprepared(Stateless):
    """The answers of methods that hold nothing fixed either: they train on the batch as it was drawn."""

    def prepare(self, models: Models, batch: Batch, state: State) -> tuple[Batch, State, Mapping[str, float]]:
        """The batch itself."""
        return batch, state, {}


def no_gradient() -> AbstractContextManager[Any]:
    """`torch.no_grad()`, imported late so that reading a method's configuration stays light."""
    import torch

    return torch.no_grad() if torch.is_grad_enabled() else nullcontext()
