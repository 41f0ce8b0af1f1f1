"""A trained model as a reward: our reward models, and any Hugging Face sequence classifier, encoders too.

A decoder is read at its last real token, from lengths and packed token ids, never by a padding id. Sampled ids are used as
they are where the model's own tokenizer reads them as the answer's text; otherwise the text is scored with the model's own
tokenizer and chat template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tutelage.data.batch import sequences
from tutelage.data.chat import Chat
from tutelage.data.judging import as_read
from tutelage.models.heads import (
    EVERY_PREFIX,
    OUTPUT,
    TWO_ANSWERS,
    Classifier,
    Output,
    ScalarHead,
    ScalarModel,
    load_classifier,
)
from tutelage.models.load import choose_device, choose_dtype
from tutelage.models.logprobs import HeadedModel
from tutelage.records import Answer, Prompt
from tutelage.rewards.base import Grid, Scored

Reads = Literal["answer", "conversation"]
TOKENS_PER_PASS = 2048


@dataclass(frozen=True)
class RewardModelReward:
    """Scores of a whole step in a few passes. `flags["truncated"]` marks what was too long for the model and was cut."""

    name: str
    scorer: HeadedModel | Classifier
    tokenizer: Any
    chat: Chat | None
    """None where the answer is read alone, or as a pair of texts."""
    reads: Reads
    longest: int
    """Tokens that the model can read."""
    output: Output = "score"
    """What of its logit users see."""
    every_prefix: bool = False
    """Whether it may be read after any token."""

    @staticmethod
    def load(
        name: str,
        *,
        label: str | None = None,
        of: Reads | None = None,
        output: Output | None = None,
        device: str = "auto",
    ) -> RewardModelReward:
        """A run folder, a Hugging Face directory or a hub id; float32 on a CPU, the head always.

        `of` defaults to the conversation where the tokenizer has a chat template, else to the answer alone. Raises ValueError
        for a model without classification head, a label that is missing or unknown, and a decoder that is to read the
        conversation without a chat template. `output` defaults to what the folder was trained to say: P(yes) of a classifier
        of ours, otherwise the logit.
        """
        found = load_classifier(name, label=label, device="cpu")
        if getattr(found.model.config, TWO_ANSWERS, False):
            raise ValueError(
                f"reward {name}: a preference model compares two answers and scores none; use it for `rl --algorithm nash_md` "
                "or `evaluate --against ... --judge`"
            )
        template = getattr(found.tokenizer, "chat_template", None) is not None
        reads: Reads = of or ("conversation" if template else "answer")
        scorer = _on_device(found, device)
        shown: Output = output or getattr(found.model.config, OUTPUT, "score")
        if shown == "probability" and found.one_of_several and isinstance(scorer, HeadedModel):
            raise ValueError(
                f"reward {name}: of a decoder with several labels the logit can be had, not the probability; leave `output` out"
            )
        anywhere = bool(getattr(found.model.config, EVERY_PREFIX, False))
        chat = None
        if reads == "conversation" and template:
            chat = Chat.of(found.tokenizer) if anywhere else as_read(Chat.of(found.tokenizer))
        if isinstance(scorer, HeadedModel) and reads == "conversation" and chat is None:
            raise ValueError(f"reward {name}: its tokenizer has no chat template; give it one, or add (of=answer)")
        return RewardModelReward(name, scorer, found.tokenizer, chat, reads, _longest(found), shown, anywhere)

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """Scores [P][G]. Raises ValueError where the model gives NaN or an infinity."""
        pairs = [(prompt, answer) for prompt, group in zip(prompts, groups, strict=True) for answer in group]
        if not pairs:
            return Scored([[] for _ in groups], {"truncated": [[] for _ in groups]})
        with torch.no_grad():
            scores, cut = self._decoder(pairs) if isinstance(self.scorer, HeadedModel) else self._classifier(pairs)
        for (prompt, _), score in zip(pairs, scores, strict=True):
            if not math.isfinite(score):
                raise ValueError(f"reward {self.name} gives {score} on prompt {prompt.key!r}: its weights are broken")
        return Scored(_grouped(scores, groups), {"truncated": _grouped([float(c) for c in cut], groups)})

    def score(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Grid:
        """The scores alone."""
        return self.measure(prompts, groups).values

    def close(self) -> None:
        """Nothing to end."""

    def _decoder(self, pairs: list[tuple[Prompt, Answer]]) -> tuple[list[float], list[bool]]:
        """Packed: equal prompts are computed once."""
        assert isinstance(self.scorer, HeadedModel)
        rows = [self._row(prompt, answer) for prompt, answer in pairs]
        distinct: dict[tuple[int, ...], int] = {}
        prompt_of = [distinct.setdefault(before, len(distinct)) for before, _, _ in rows]
        batch = sequences(list(distinct), prompt_of, [said for _, said, _ in rows])
        place = next(self.scorer.module.parameters()).device
        scores = self.scorer.scores(batch.to(place))
        return self.seen(scores).tolist(), [cut for _, _, cut in rows]

    def seen(self, scores: Tensor) -> Tensor:
        """Logits as users see them."""
        return scores.sigmoid() if self.output == "probability" else scores

    def _row(self, prompt: Prompt, answer: Answer) -> tuple[tuple[int, ...], list[int], bool]:
        """Ids before the answer and of it (with its closing), and whether they were cut: from the prompt's start, then the answer's end."""
        closing: list[int] = []
        if self.chat is not None:
            before, said = self.chat.prompt_tokens(prompt), answer_ids(self.chat, prompt, answer)
            closing = list(self.chat.closing_tokens)
        else:
            before, said = (
                [],
                self.tokenizer(answer.text, verbose=False).input_ids or [self.tokenizer.eos_token_id or 0],
            )
        if not before:
            before, said = said[:1], said[1:]
        cut = len(before) + len(said) + len(closing) > self.longest
        said = said[: self.longest - 1 - len(closing)] + closing
        return tuple(before[-(self.longest - len(said)) :]), said, cut

    def _classifier(self, pairs: list[tuple[Prompt, Answer]]) -> tuple[list[float], list[bool]]:
        """Padded, rows of like length together; the mask comes from lengths. Without a padding token, one row at a time."""
        assert isinstance(self.scorer, Classifier)
        texts = [self._texts(prompt, answer) for prompt, answer in pairs]
        whole = [len(self.tokenizer(*text, verbose=False).input_ids) for text in texts]
        rows = [self.tokenizer(*text, truncation=True, max_length=self.longest) for text in texts]
        scores = [0.0] * len(rows)
        for piece in _pieces([len(row["input_ids"]) for row in rows], self.tokenizer.pad_token_id is not None):
            inputs = [dict(rows[at]) for at in piece]
            padded = self.tokenizer.pad(inputs, return_tensors="pt") if len(piece) > 1 else _alone(inputs[0])
            out = self.scorer.score(self.output, **{k: v.to(self.scorer.model.device) for k, v in padded.items()})
            for at, score in zip(piece, out.tolist(), strict=True):
                scores[at] = score
        return scores, [length > self.longest for length in whole]

    def _texts(self, prompt: Prompt, answer: Answer) -> tuple[str, ...]:
        """What the tokenizer gets: the answer, or the prompt and the answer as a pair."""
        if self.reads == "answer":
            return (answer.text,)
        turns = prompt.messages
        before = (
            turns[0].content if len(turns) == 1 else "\n".join(f"{m.role.capitalize()}: {m.content}" for m in turns)
        )
        return before, answer.text


def answer_ids(chat: Chat, prompt: Prompt, answer: Answer) -> list[int]:
    """The sampled ids where this tokenizer reads them as the answer's text; otherwise the text's own, in its template."""
    ids = answer.tokens
    ours = bool(ids) and max(ids) < len(chat.tokenizer) and chat.decode(ids) == answer.text
    if ours:
        return list(ids)
    return chat.answer_tokens(prompt, Answer(answer.text, stop_reason=answer.stop_reason))


def _on_device(found: Classifier, device: str) -> HeadedModel | Classifier:
    """A last-token classifier becomes backbone and head, to be read by length; any other stays what it is."""
    place = choose_device(device)
    model = found.model.requires_grad_(False)
    layer = getattr(model, "score", None)
    if not isinstance(layer, nn.Linear) or layer.bias is not None:
        return Classifier(cast(Any, model).to(place), found.tokenizer, found.index, found.shift, found.scale)
    head = ScalarHead(layer.in_features, shift=found.shift, scale=found.scale).requires_grad_(False)
    head.weight.copy_(layer.weight[found.index : found.index + 1])
    dtype = torch.float32 if place.type == "cpu" else choose_dtype("auto", place)
    backbone = getattr(model, model.base_model_prefix).to(place, dtype)
    return HeadedModel(ScalarModel(backbone, head.to(place)), TOKENS_PER_PASS)


def _longest(found: Classifier) -> int:
    """The smaller of what the tokenizer and the model's positions allow."""
    positions = getattr(found.model.config, "max_position_embeddings", None) or 1 << 20
    return min(int(found.tokenizer.model_max_length), positions)


def _pieces(lengths: list[int], padded: bool) -> list[list[int]]:
    """Rows in order of length, cut to at most TOKENS_PER_PASS padded tokens."""
    pieces: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not pieces or not padded or (len(pieces[-1]) + 1) * lengths[at] > TOKENS_PER_PASS:
            pieces.append([])
        pieces[-1].append(at)
    return pieces


def _alone(row: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: torch.tensor([value]) for key, value in row.items()}


def _grouped(flat: list[float], groups: Sequence[Sequence[Answer]]) -> Grid:
    values = iter(flat)
    return [[next(values) for _ in group] for group in groups]
