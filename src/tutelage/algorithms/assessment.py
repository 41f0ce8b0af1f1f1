"""Direct assessment: a score from answers judged alone, by yes or no (classifier) or on a scale (regression)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, State
from tutelage.algorithms.reward_model import agreement
from tutelage.config import config
from tutelage.data.labelled import Labelled
from tutelage.functional.assessment import cross_entropy, squared_error
from tutelage.functional.weights import row_mean


@config
class Classifier:
    """-y log sigma(s) - (1 - y) log sigma(-s): the score s is the log-odds of a yes (helpful, safe, toxic ...)."""

    name: Literal["classifier"] = "classifier"

    output: ClassVar[str] = "probability"

    @property
    def needs(self) -> tuple[str, ...]:
        """The scoring model alone."""
        return ("reward",)

    def initial_state(self) -> State:
        """Nothing is carried from step to step."""
        return State()

    def prepare(self, models: Models, batch: Labelled, state: State) -> tuple[Labelled, State, Mapping[str, float]]:
        """Nothing is held fixed."""
        return batch, state, {}

    def weights(self, batch: Labelled) -> Tensor:
        """[B]: a row counts for its weight out of the weights of the whole step."""
        return labelled_weights(batch)

    def losses(self, models: Models, batch: Labelled) -> tuple[Tensor, Metrics]:
        """One loss an answer; the share of answers on whose side of 1/2 the model is."""
        assert models.reward is not None
        scores = models.reward.scores(batch.answers)
        return cross_entropy(scores, batch.labels.to(scores)), {"accuracy/label": agreement(scores, batch.labels)}


@config
class Regression:
    """(s - y)^2: the score s is the expected rating, on the ratings' own scale."""

    name: Literal["regression"] = "regression"

    output: ClassVar[str] = "score"

    @property
    def needs(self) -> tuple[str, ...]:
        """The scoring model alone."""
        return ("reward",)

    def initial_state(self) -> State:
        """Nothing is carried from step to step."""
        return State()

    def prepare(self, models: Models, batch: Labelled, state: State) -> tuple[Labelled, State, Mapping[str, float]]:
        """Nothing is held fixed."""
        return batch, state, {}

    def weights(self, batch: Labelled) -> Tensor:
        """[B]: a row counts for its weight out of the weights of the whole step."""
        return labelled_weights(batch)

    def losses(self, models: Models, batch: Labelled) -> tuple[Tensor, Metrics]:
        """One loss an answer, in squared points of the scale; the absolute error as a metric."""
        assert models.reward is not None
        scores = models.reward.scores(batch.answers)
        labels = batch.labels.to(scores)
        return squared_error(scores, labels), {"error/absolute": (scores - labels).detach().abs()}


def labelled_weights(batch: Labelled) -> Tensor:
    """A row's own weight out of the weights of the whole step.  [B]"""
    return row_mean(torch.ones(len(batch), dtype=torch.bool, device=batch.weight.device), batch.weight)
