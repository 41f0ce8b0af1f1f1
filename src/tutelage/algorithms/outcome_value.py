"""Outcome value model: the expected final reward, forecast from every prefix of an answer."""

from __future__ import annotations

from typing import Literal, Protocol, cast

from jaxtyping import Float
from torch import Tensor

from tutelage.algorithms.base import Metrics, Models, ScalarModel, Unprepared
from tutelage.config import config
from tutelage.data.batch import Sequences
from tutelage.data.labelled import Labelled
from tutelage.functional.assessment import cross_entropy, squared_error
from tutelage.functional.prefixes import prefix_mask
from tutelage.functional.weights import keep


class PrefixModel(ScalarModel, Protocol):
    """A head hidden -> 1, read after every prefix; `models.prefixes.PrefixReader` is one."""

    def prefix_values(self, answers: Sequences) -> Float[Tensor, "B T+1"]:
        """V after the first t answer tokens in column t; anything (finite) where no prefix counts."""
        ...


@config
class OutcomeValue(Unprepared):
    """(V(x, y_1 ... y_t) - r)^2 for every t, r the answer's final reward (arXiv:2110.14168, token-level verifiers).

    Least where V is E[r | prefix] under the policy that gave the answers. That needs every prefix to count the same: with
    1 / length of its answer as weight, V would lean to the reward of the answers that end soon.
    """

    name: Literal["outcome_value"] = "outcome_value"
    loss: Literal["squared_error", "cross_entropy"] = "squared_error"
    """`squared_error` for rewards on any scale; `cross_entropy` for rewards in [0, 1]: V is then a probability's log-odds."""

    needs = ("reward",)

    @property
    def output(self) -> str:
        """What users see of V."""
        return "probability" if self.loss == "cross_entropy" else "score"

    def weights(self, batch: Labelled) -> Tensor:
        """[B, T+1]: every prefix of the step counts the same, times its row's weight."""
        prefixes = prefix_mask(batch.answers.mask, batch.answers.lengths)
        weights = keep(batch.weight[:, None].expand(prefixes.shape), prefixes)
        total = weights.sum()
        return weights / (total if bool(total > 0) else 1)

    def losses(self, models: Models, batch: Labelled) -> tuple[Tensor, Metrics]:
        """One loss a prefix."""
        prefixes = prefix_mask(batch.answers.mask, batch.answers.lengths)
        values = keep(cast(PrefixModel, models.reward).prefix_values(batch.answers), prefixes)
        labels = batch.labels.to(values)[:, None].expand(values.shape)
        rule = squared_error if self.loss == "squared_error" else cross_entropy
        return keep(rule(values, labels), prefixes), {"value/mean": values.detach()}
