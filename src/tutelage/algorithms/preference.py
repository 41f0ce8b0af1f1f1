"""Direct preference methods: the policy is its own reward model, r = beta log(pi / pi_ref)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tutelage.algorithms.base import LanguageModel, Metrics, Models, State, Stateless
from tutelage.algorithms.reward_model import agreement, row_weights, tie_metrics
from tutelage.config import config
from tutelage.data.batch import Pairs, PairsWithReference, Sequences, distinct
from tutelage.functional.preference import davidson, dpo, implicit_reward, soft_ipo
from tutelage.functional.weights import keep


class FromPairs(Stateless):
    """What both methods share: a policy beside its reference, trained on comparisons."""

    needs = ("policy", "reference")

    def prepare(
        self, models: Models, batch: Pairs, state: State
    ) -> tuple[PairsWithReference, State, Mapping[str, float]]:
        """The reference's log-probs of both answers."""
        return with_reference(models, batch), state, {}

    def weights(self, batch: PairsWithReference) -> Tensor:
        """[B]: a row counts for its weight out of the weights of the whole step."""
        return row_weights(batch.weight)


@config
class DPO(FromPairs):
    """-log sigmoid(beta (h(chosen) - h(rejected))), h = log pi/ref of the whole answer (arXiv:2305.18290, eq. 7)."""

    name: Literal["dpo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference: larger stays closer."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a label is wrong (cDPO); soft labels and ties in the data count by themselves."""
    margin_scale: Annotated[float, Field(ge=0)] = 0.0
    """Times a record's `margin`: the lead in implicit reward that is asked for (DPO with an offset); 0: margins are not used."""
    nu: Annotated[float, Field(gt=0)] | None = None
    """A tie is a soft label of 1/2; with a number, an outcome of Davidson's model: equals tie with nu / (2 + nu)."""

    def losses(self, models: Models, batch: PairsWithReference) -> tuple[Tensor, Metrics]:
        """One loss a comparison; the implicit reward, its margin and accuracy as metrics."""
        chosen, rejected = log_ratios(models, batch)
        rewards = implicit_reward(chosen, self.beta), implicit_reward(rejected, self.beta)
        preference = batch.preference + self.label_smoothing * (1 - 2 * batch.preference)
        margin, metrics = self.margin_scale * batch.margin, reward_metrics(*rewards, batch.preference)
        if self.nu is None:
            return dpo(chosen, rejected, self.beta, 1 - preference, margin), metrics
        loss = davidson(*rewards, preference, self.nu, margin)
        return loss, {**metrics, **tie_metrics(rewards[0] - rewards[1] - margin, batch.preference, self.nu)}

    def implicit(self, log_ratio: Tensor, answers: Sequences) -> Tensor:
        """The reward of answers whose log pi/ref is given.  [B] -> [B]"""
        return implicit_reward(log_ratio, self.beta)


@config
class IPO(FromPairs):
    """(h(chosen) - h(rejected) - 1/(2 tau))^2, h = log pi/ref of the whole answer (arXiv:2310.12036, eq. 17)."""

    name: Literal["ipo"] = "ipo"
    tau: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull to the reference; a sure preference asks for a lead of 1/(2 tau) nats and no more."""
    length: Literal["sum", "mean"] = "sum"
    """`sum`: h of the whole answer (the paper's equation); `mean`: h per token (TRL): 1/(2 tau) is then a lead per token."""

    def losses(self, models: Models, batch: PairsWithReference) -> tuple[Tensor, Metrics]:
        """One loss a comparison; soft labels and ties count by their probability. Metrics as DPO's."""
        chosen, rejected = log_ratios(models, batch)
        chosen, rejected = self._h(chosen, batch.chosen), self._h(rejected, batch.rejected)
        rewards = implicit_reward(chosen, self.tau), implicit_reward(rejected, self.tau)
        return soft_ipo(chosen, rejected, self.tau, batch.preference), reward_metrics(*rewards, batch.preference)

    def implicit(self, log_ratio: Tensor, answers: Sequences) -> Tensor:
        """tau h: at the optimum how often an answer beats those of the data, up to a constant per prompt.  [B] -> [B]"""
        return implicit_reward(self._h(log_ratio, answers), self.tau)

    def _h(self, log_ratio: Tensor, answers: Sequences) -> Tensor:
        return log_ratio if self.length == "sum" else log_ratio / answers.mask.sum(-1).clamp(min=1)


def with_reference(models: Models, batch: Pairs) -> PairsWithReference:
    """Pairs beside the reference's log-probs of both answers."""
    assert models.reference is not None
    with torch.no_grad():
        chosen, rejected = sequence_logprobs(models.reference, batch)
    fields = {name: getattr(batch, name) for name in ("chosen", "rejected", "preference", "weight", "margin")}
    return PairsWithReference(**fields, ref_chosen=chosen, ref_rejected=rejected)


def log_ratios(models: Models, batch: PairsWithReference) -> tuple[Tensor, Tensor]:
    """h = log pi/ref of chosen and of rejected.  [B], [B]"""
    assert models.policy is not None
    chosen, rejected = sequence_logprobs(models.policy, batch)
    return chosen - batch.ref_chosen, rejected - batch.ref_rejected


def sequence_logprobs(model: LanguageModel, batch: Pairs) -> tuple[Tensor, Tensor]:
    """log p(chosen | prompt) and log p(rejected | prompt), summed over the answers' own tokens, from one forward.  [B], [B]"""
    chosen, rejected = answer_logprobs(model, batch.both()).chunk(2)
    return chosen, rejected


def answer_logprobs(model: LanguageModel, rows: Sequences) -> Tensor:
    """log p(answer | prompt), summed over the answer's own tokens; equal rows are computed once.  [B]"""
    answers, which = distinct(rows)
    return keep(model.logprobs(answers), answers.mask).sum(-1)[which]


def reward_metrics(chosen: Tensor, rejected: Tensor, preference: Tensor) -> dict[str, Tensor]:
    """The implicit rewards of both sides, their margin, and whether the larger one is the preferred one.  each [B]"""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "accuracy/implicit": agreement(chosen - rejected, preference),
        "reward/chosen": chosen,
        "reward/rejected": rejected,
        "reward/margin": chosen - rejected,
    }
