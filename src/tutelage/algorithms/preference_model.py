"""A model of preference between two answers, P(y beats y' | x): no score of a single answer, so cycles can be learned."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, ScalarModel, Unprepared
from tutelage.algorithms.reward_model import agreement, row_weights
from tutelage.config import config
from tutelage.data.batch import distinct
from tutelage.data.two_answers import TwoAnswers
from tutelage.functional.nash import antisymmetric, preference_loss


@config
class PreferenceModel(Unprepared):
    """Cross-entropy of P(y > y' | x) = sigma(s(x, y, y') - s(x, y', y)) with the label; a tie is a label of 1/2.

    Nash learning from human feedback (arXiv:2312.00886, section 3); antisymmetric by construction, both orders in one step.
    """

    name: Literal["preference_model"] = "preference_model"

    needs = ("reward",)

    def weights(self, batch: TwoAnswers) -> Tensor:
        """[B]: a row counts for its weight (annotator reliability), out of the weights of the whole step."""
        return row_weights(batch.weight)

    def losses(self, models: Models, batch: TwoAnswers) -> tuple[Tensor, Metrics]:
        """One loss a comparison."""
        assert models.reward is not None
        logit = preference_logits(models.reward, batch)
        return preference_loss(logit, batch.preference), {
            "accuracy/comparison": agreement(logit, batch.preference),
            "preference/certainty": (logit.detach().sigmoid() - 0.5).abs() + 0.5,
        }


def preference_logits(model: ScalarModel, batch: TwoAnswers) -> Tensor:
    """The logit of P(chosen beats rejected) of every row, both orders in one forward.  [B]"""
    rows, which = distinct(batch.both())
    forward, backward = model.scores(rows)[which].chunk(2)
    return antisymmetric(forward, backward)
