"""GSM8K questions and HH comparisons as the token ids that both sides work on; answers sampled once by our decoder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speed_process import Peer
from speed_work import Demonstration, Pair, Work
from tutelage.data.chat import Chat
from tutelage.data.readers import load_records
from tutelage.models.load import load_tokenizer, resolve_model
from tutelage.records import Comparison, Message, Prompt
from tutelage.records import Demonstration as Conversation

BRIEF = "Answer in one or two short sentences."
"""Behind the question where answers have their natural lengths: asked like this, most end before 128 tokens."""


@dataclass(frozen=True)
class Source:
    """Where works come from: a model, the shared data, and a folder for what is made once."""

    model: str
    data: Path
    cache: Path
    threads: int

    @property
    def path(self) -> str:
        """The model's directory."""
        return str(resolve_model(self.model))

    def chat(self) -> Chat:
        """The model's tokens."""
        return Chat.of(load_tokenizer(self.model))

    def work(self, **lists: Any) -> Work:
        """A work on this model."""
        return Work(model=self.path, threads=self.threads, stop_tokens=list(self.chat().stop_tokens), **lists)


def questions(source: Source, count: int, *, lengths: tuple[int, int], forced: bool, **sizes: int) -> Work:
    """GSM8K test questions whose prompts have so many tokens, evenly spread over that range; rewards are fixed and never equal."""
    chat, found = source.chat(), list[tuple[list[int], str]]()
    for record in _records(source.data / "gsm8k" / "test.jsonl", "demonstration"):
        text = record.messages[0].content + ("" if forced else f"\n{BRIEF}")
        tokens = chat.prompt_tokens(Prompt((Message("user", text),)))
        if lengths[0] <= len(tokens) <= lengths[1]:
            found.append((tokens, text))
    apart = (lengths[1] - lengths[0]) / count
    wanted = [lengths[0] + (n + 0.5) * apart for n in range(count)]
    chosen = [found.pop(min(range(len(found)), key=lambda i: abs(len(found[i][0]) - length))) for length in wanted]
    random.Random(count).shuffle(chosen)
    work = source.work(
        prompts=[tokens for tokens, _ in chosen],
        messages=[[{"role": "user", "content": text}] for _, text in chosen],
        forced=forced,
        **sizes,
    )
    return replace(work, rewards=fixed_rewards(count, work.group))


def fixed_rewards(prompts: int, group: int) -> list[list[float]]:
    """Rewards [P][G] in which no two answers to a prompt earn the same: every row has an advantage."""
    grid = [[float(g) for g in range(group)] for _ in range(prompts)]
    for p, row in enumerate(grid):
        random.Random(p).shuffle(row)
    return grid


def with_answers(work: Work, source: Source, name: str) -> Work:
    """The same with answers that our decoder samples, in a process of its own."""
    path = work.write(source.cache / "works" / f"{name}-prompts.json")
    with Peer("speed_ours:decode", path, log=source.cache / "logs" / f"{name}-answers.log") as peer:
        unit = peer.unit()
    return replace(work, **{name: unit[name] for name in ("answers", "listened", "chosen")})


def demonstrations(source: Source, count: int) -> Work:
    """GSM8K training questions and their worked answers."""
    chat, rows = source.chat(), list[Demonstration]()
    records: Sequence[Conversation] = _records(source.data / "gsm8k" / "train.jsonl", "demonstration")
    for record in random.Random(0).sample(list(records), count):
        row = chat.demonstration(record.messages)
        assert all(row.mask), "one turn: all behind the prompt is trained"
        rows.append(Demonstration(row.prompt, row.tokens))
    return source.work(demonstrations=rows)


def pairs(source: Source, count: int, longest: int = 512) -> Work:
    """HH comparisons (harmless, test) whose dialogue and longer answer have at most `longest` tokens."""
    chat, found = source.chat(), list[Pair]()
    records: Sequence[Comparison] = _records(source.data / "hh-rlhf-harmless-test" / "test.jsonl.gz", "comparison")
    for record in random.Random(0).sample(list(records), len(records)):
        prompt = chat.prompt_tokens(record.prompt)
        chosen, rejected = (chat.answer_tokens(record.prompt, said) for said in (record.chosen, record.rejected))
        if len(prompt) + max(len(chosen), len(rejected)) <= longest:
            found.append(Pair(prompt, chosen, rejected))
        if len(found) == count:
            return source.work(pairs=found)
    raise ValueError(f"HH: only {len(found)} of {count} pairs have at most {longest} tokens")


def scored(build: Callable[[Source], Work], source: Source) -> Work:
    """The same work for a reward model: the source's model with a fresh head, saved once so that both sides load it."""
    from tutelage.models.heads import new_scalar_model, save_reward_model
    from tutelage.models.load import load_backbone

    folder = source.cache / "reward-model"
    if not (folder / "config.json").is_file():
        model = new_scalar_model(load_backbone(source.path, dtype="float32", device="cpu"), seed=0)
        save_reward_model(model, load_tokenizer(source.model), folder)
    return replace(build(source), model=str(folder))


def _records(path: Path, kind: Any) -> Sequence[Any]:
    return load_records(path, kind, "skip").records
