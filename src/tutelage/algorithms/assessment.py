"""Direct assessment: a score from answers judged alone, by yes or no (classifier) or on a scale (regression)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, Unprepared
from tutelage.algorithms.reward_model import agreement, row_weights
from tutelage.config import config
from tutelage.data.labelled import Labelled
from tutelage.functional.assessment import cross_entropy, squared_error


class Assessment(Unprepared):
    """What both methods share: a scoring model, trained on answers that were judged one by one."""

    needs = ("reward",)

    def weights(self, batch: Labelled) -> Tensor:
        """[B]: a row counts for its weight out of the weights of the whole step."""
        return row_weights(batch.weight)


@config
class Classifier(Assessment):
    """-y log sigma(s) - (1 - y) log sigma(-s): the score s is the log-odds of a yes (helpful, safe, toxic ...)."""

    name: Literal["classifier"] = "classifier"

    output: ClassVar[str] = "probability"

    def losses(self, models: Models, batch: Labelled) -> tuple[Tensor, Metrics]:
        """One loss an answer; the share of answers on whose side of 1/2 the model is."""
        assert models.reward is not None
        scores = models.reward.scores(batch.answers)
        return cross_entropy(scores, batch.labels.to(scores)), {"accuracy/label": agreement(scores, batch.labels)}


@config
class Regression(Assessment):
    """(s - y)^2: the score s is the expected rating, on the ratings' own scale."""

    name: Literal["regression"] = "regression"

    output: ClassVar[str] = "score"

    def losses(self, models: Models, batch: Labelled) -> tuple[Tensor, Metrics]:
        """One loss an answer, in squared points of the scale; the absolute error as a metric."""
        assert models.reward is not None
        scores = models.reward.scores(batch.answers)
        labels = batch.labels.to(scores)
        return squared_error(scores, labels), {"error/absolute": (scores - labels).detach().abs()}
