"""Who is preferred of two answers: a trained preference model, or the Bradley-Terry probability of any reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig

from tutelage.data.batch import concat, distinct, sequences
from tutelage.data.chat import Chat
from tutelage.data.two_answers import Frame
from tutelage.functional.nash import antisymmetric
from tutelage.models.heads import TWO_ANSWERS, load_reward_model
from tutelage.models.load import load_tokenizer, resolve_model
from tutelage.models.logprobs import HeadedModel
from tutelage.records import Answer, Prompt
from tutelage.rewards.base import Grid
from tutelage.rewards.model import TOKENS_PER_PASS, answer_ids

Groups = Sequence[Sequence[Answer]]


class Preference(Protocol):
    """P(answer k of `first` beats answer k of `second`) for every prompt."""

    def probability(self, prompts: Sequence[Prompt], first: Groups, second: Groups) -> Grid:
        """[P][G], in [0, 1]; swapping the sides gives one minus it."""
        ...


@dataclass(frozen=True)
class TwoAnswerModel:
    """A preference model from its folder: sigma(s(x, y, y') - s(x, y', y)), each order read by the packed forward."""

    name: str
    scorer: HeadedModel
    chat: Chat
    frame: Frame
    longest: int
    """Tokens that the model can read; longer answers are cut, both orders alike."""

    @staticmethod
    def load(name: str, device: str = "auto") -> TwoAnswerModel:
        """A run folder of `reward --algorithm preference_model` or the directory in it. Raises ValueError for any other model."""
        if not reads_two_answers(name):
            raise ValueError(
                f"{name} is no preference model; train one: tutelage reward --algorithm preference_model --data COMPARISONS"
            )
        tokenizer = load_tokenizer(name, ("reward_model",))
        module = load_reward_model(name, dtype="float32", device=device).requires_grad_(False)
        positions = getattr(module.backbone.config, "max_position_embeddings", None) or 1 << 20
        chat = Chat.of(tokenizer)
        longest = min(int(tokenizer.model_max_length), int(positions))  # type: ignore[arg-type]
        return TwoAnswerModel(name, HeadedModel(module, TOKENS_PER_PASS), chat, Frame.of(chat), longest)

    def probability(self, prompts: Sequence[Prompt], first: Groups, second: Groups) -> Grid:
        """See `Preference`. Raises ValueError where the model gives NaN or an infinity."""
        triples = [
            (prompt, one, other)
            for prompt, ones, others in zip(prompts, first, second, strict=True)
            for one, other in zip(ones, others, strict=True)
        ]
        if not triples:
            return [[] for _ in prompts]
        logits = self._logits(triples)
        for (prompt, _, _), logit in zip(triples, logits, strict=True):
            if not math.isfinite(logit):
                raise ValueError(
                    f"preference {self.name} gives {logit} on prompt {prompt.key!r}: its weights are broken"
                )
        flat = iter(logits)
        return [[_sigma(next(flat)) for _ in ones] for ones in first]

    @torch.no_grad()
    def _logits(self, triples: Sequence[tuple[Prompt, Answer, Answer]]) -> list[float]:
        index: dict[tuple[int, ...], int] = {}
        prompt_of, forward, backward = [], [], []
        for prompt, one, other in triples:
            ids = self.chat.prompt_tokens(prompt)
            first, second = (answer_ids(self.chat, prompt, answer) for answer in (one, other))
            here, there, _ = self.frame.rows(ids, first, second, self.longest)
            prompt_of.append(index.setdefault(tuple(ids), len(index)))
            forward.append(here.tokens)
            backward.append(there.tokens)
        both = concat(*(sequences(list(index), prompt_of, side) for side in (forward, backward)))
        rows, which = distinct(both)
        place = next(self.scorer.module.parameters()).device
        scores = self.scorer.scores(rows.to(place)).double().cpu()
        return antisymmetric(*scores[which].chunk(2)).tolist()


@dataclass(frozen=True)
class ScoredPreference:
    """P = sigma(r(x, y) - r(x, y')): what a reward says of two answers under the Bradley-Terry model. It knows no cycles."""

    reward: Callable[[Any, Any], Grid]
    """Scores [P][G], such as `combine.Combined`."""

    def probability(self, prompts: Sequence[Prompt], first: Groups, second: Groups) -> Grid:
        """See `Preference`."""
        ones, others = self.reward(prompts, first), self.reward(prompts, second)
        return [[_sigma(a - b) for a, b in zip(*rows, strict=True)] for rows in zip(ones, others, strict=True)]


def reads_two_answers(name: str) -> bool:
    """Whether `name` is the folder of a preference model; a rule's name and an import path are not asked for at a hub."""
    if not Path(name).is_dir():
        return False
    try:
        settings: Any = AutoConfig.from_pretrained(resolve_model(name, ("reward_model",)))
    except (ValueError, OSError):
        return False
    return bool(getattr(settings, TWO_ANSWERS, False))


def _sigma(logit: float) -> float:
    """1 / (1 + exp(-logit)) without overflow, and exactly one minus itself at -logit."""
    if logit < 0:
        return 1.0 - _sigma(-logit)
    return 1.0 / (1.0 + math.exp(-logit))
