"""`generate` says the answers of the work: at full cost, token by token, and every row ends where ours ended."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList

from speed_process import Channel
from speed_work import LISTENED, Work

CERTAIN = 1e9
"""The logit of a token that must come: softmax and the draw run as ever, and cannot choose another."""


class Replay(LogitsProcessor):
    """Raises the logit of the token that each row must say next: one write a row, where `min_new_tokens` too writes one.

    With `listen`, sums the log-probs that the model itself gave to these tokens; that is never done in a timed unit.
    """

    def __init__(self, work: Work) -> None:
        self._prompts = [prompt for prompt, group in zip(work.prompts, work.answers, strict=True) for _ in group]
        answers = [answer for group in work.answers for answer in group]
        longest = max(map(len, answers))
        self._tokens = torch.tensor([answer + [0] * (longest - len(answer)) for answer in answers])
        self._lengths = torch.tensor([len(answer) for answer in answers])
        self._listened = torch.tensor([count for group in work.listened for count in group])
        self._width = 0
        self.listen, self.listened, self.heard = False, 0, 0.0

    def __call__(self, input_ids: Int[Tensor, "B L"], scores: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """See `LogitsProcessor`."""
        if not self._width or input_ids.shape[1] <= self._width:
            self._begin(input_ids)
        at = input_ids.shape[1] - self._width
        rows = (at < self._lengths).nonzero()[:, 0]
        tokens = self._tokens[rows, at]
        if self.listen:
            own = (at < self._listened).nonzero()[:, 0]
            self.heard += float(scores[own].log_softmax(-1).gather(1, self._tokens[own, at, None]).sum())
            self.listened += len(own)
        scores[rows, tokens] = CERTAIN
        return scores

    def _begin(self, input_ids: Int[Tensor, "B L"]) -> None:
        """A new call of `generate`: it must ask for our prompts, row by row."""
        self._width, self.listened, self.heard = input_ids.shape[1], 0, 0.0
        assert len(input_ids) == len(self._prompts), (len(input_ids), len(self._prompts))
        for row, prompt in zip(input_ids.tolist(), self._prompts, strict=True):
            assert row[len(row) - len(prompt) :] == prompt, "generate was asked for other prompts"


def generate(work: Work, channel: Channel) -> None:
    """transformers' `generate` on all rows at once: left-padded, static or growing cache as the settings say."""
    torch.set_num_threads(work.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()
    replay = Replay(work)
    inputs = _left_padded(work)
    said = sum(len(answer) for group in work.answers for answer in group)
    config = GenerationConfig(
        max_new_tokens=work.max_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=None if work.forced else work.stop_tokens,
        pad_token_id=0,
        disable_compile=True,
        **work.settings,
    )

    @torch.inference_mode()
    def run(**given: Any) -> Tensor:
        processors = LogitsProcessorList([replay])
        return model.generate(**inputs, generation_config=config, logits_processor=processors, **given)

    replay.listen = True
    run(max_new_tokens=min(LISTENED, work.max_tokens))
    replay.listen, logprob = False, replay.heard / replay.listened
    channel.ready()
    while True:
        channel.wait()
        out = run()
        channel.done()
        check(out[:, inputs["input_ids"].shape[1] :].tolist(), work)
        channel.report(tokens=said, logprob=logprob)


def _left_padded(work: Work) -> dict[str, Tensor]:
    rows = [prompt for prompt, group in zip(work.prompts, work.answers, strict=True) for _ in group]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def check(said: list[list[int]], work: Work) -> None:
    """`generate` said the answers, and nothing but padding behind them."""
    answers = [answer for group in work.answers for answer in group]
    for row, answer in zip(said, answers, strict=True):
        assert row[: len(answer)] == answer, "generate said something else"
        assert set(row[len(answer) :]) <= {0}, "generate went on behind an answer's end"
