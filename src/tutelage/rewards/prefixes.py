"""An outcome value model over the parts of an answer: forecasts at every token or step, and what each of them changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tutelage.data.batch import Sequences, sequences
from tutelage.data.chat import Chat
from tutelage.functional.prefixes import intermediate_rewards, prefix_mask
from tutelage.models.logprobs import HeadedModel
from tutelage.models.prefixes import PrefixReader
from tutelage.records import Answer, Prompt
from tutelage.rewards.model import RewardModelReward, answer_ids
from tutelage.rewards.steps import step_prefixes


def prefix_values(model: RewardModelReward, prompt: Prompt, answers: Sequence[Answer]) -> list[list[float]]:
    """For each answer of n tokens the expected final reward after 0, 1 ... n of them, from one forward: [answers][n + 1].

    Raises ValueError for a model that reads no prefixes, and for an answer that is too long for it.
    """
    values, lengths = _read(model, prompt, answers)[0].tolist(), [len(answer_ids_of(model, prompt, a)) for a in answers]
    return [row[: n + 1] for row, n in zip(values, lengths, strict=True)]


def token_rewards(model: RewardModelReward, prompt: Prompt, answers: Sequence[Answer]) -> list[list[float]]:
    """What each token changed in the expected reward: [answers][n]; a row sums to V(answer) - V(prompt)."""
    values, rows = _read(model, prompt, answers)
    changes = intermediate_rewards(values, prefix_mask(rows.mask, rows.lengths)).tolist()
    return [row[:n] for row, n in zip(changes, rows.lengths.tolist(), strict=True)]


def step_values(model: RewardModelReward, prompt: Prompt, answers: Sequence[Answer]) -> list[list[tuple[int, float]]]:
    """For each answer its steps as (tokens when the step ends, expected final reward then): what step-wise search ranks by.

    A step is a line with something in it (`rewards.steps`); unfinished answers may be given, their last step is open.
    """
    values = prefix_values(model, prompt, answers)
    decode = _chat(model).decode
    found = []
    for answer, row in zip(answers, values, strict=True):
        whole = answer if answer.tokens else Answer(answer.text, tuple(answer_ids_of(model, prompt, answer)))
        ends = [min(len(prefix.tokens), len(row) - 1) for prefix in step_prefixes(whole, decode)]
        found.append([(end, row[end]) for end in dict.fromkeys(ends)])
    return found


def answer_ids_of(model: RewardModelReward, prompt: Prompt, answer: Answer) -> list[int]:
    """The answer in the model's own tokens."""
    return answer_ids(_chat(model), prompt, answer)


def _read(
    model: RewardModelReward, prompt: Prompt, answers: Sequence[Answer]
) -> tuple[Float[Tensor, "B T+1"], Sequences]:
    chat = _chat(model)
    if not (model.every_prefix and isinstance(model.scorer, HeadedModel)):
        raise ValueError(
            f"reward {model.name}: it reads whole answers; prefixes are scored by `tutelage reward --algorithm outcome_value`"
        )
    before, said = chat.prompt_tokens(prompt), [answer_ids_of(model, prompt, answer) for answer in answers]
    longest = max(map(len, said), default=0)
    if len(before) + longest > model.longest:
        raise ValueError(
            f"reward {model.name}: prompt {prompt.key!r} and its answer have {len(before) + longest} tokens; allowed: {model.longest}"
        )
    place = next(model.scorer.module.parameters()).device
    rows = sequences([before], [0] * len(said), said).to(place)
    with torch.no_grad():
        values = PrefixReader(model.scorer.module, model.scorer.tokens_per_pass).prefix_values(rows)
    return model.seen(values), rows


def _chat(model: RewardModelReward) -> Chat:
    if model.chat is None:
        raise ValueError(f"reward {model.name}: it reads the answer alone, not the conversation")
    return model.chat
