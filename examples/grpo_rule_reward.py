"""GRPO with a reward of your own, as a library: a random tiny model learns to write letters. python examples/grpo_rule_reward.py"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.stream import Stream
from tutelage.models.logprobs import CausalModel
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny
from tutelage.records import Answer, Prompt, read_jsonl, user
from tutelage.rewards.combine import combine
from tutelage.training.loop import Task, train
from tutelage.training.optim import Optimization
from tutelage.training.rollouts import RolloutSource
from tutelage.training.run import Run


def letters(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """A reward is a plain function: here the share of small letters in each answer."""
    return [sum("a" <= c <= "z" for c in answer.text) / max(len(answer.text), 1) for answer in answers]


def main(folder: Path, steps: int = 25) -> list[dict[str, Any]]:
    """Trains in `folder`; returns the metrics of every step. samples.jsonl keeps every answer with its reward."""
    model, tokenizer = tiny()
    reference, _ = tiny()  # the same seed: the weights at the start
    chat = Chat.of(tokenizer)
    method = GRPO(group_size=8, kl_coefficient=0.01)
    run = Run.open(folder, {"reward": "letters", "steps": steps}, "rl", resume=False)
    source = RolloutSource(
        draw_prompts=Stream([user("write"), user("say"), user("sing")], batch_size=3, seed=0).draw,
        encode=chat.prompt_tokens,
        sampler=Decoder(model, chat.stop_tokens, chat.decode),
        score=combine([letters]).score,
        decoding=Decoding(max_tokens=8, temperature=1.0),
        group_size=method.group_size,
        seed=0,
        keep_samples=run.sample,
    )
    models = Models(policy=CausalModel(model), reference=CausalModel(reference))
    train(Task(models, method, source, {"policy": model}, steps, peak=5e-3, settings=Optimization()), run)
    run.finish({})
    return list(read_jsonl(folder / "metrics.jsonl"))


if __name__ == "__main__":
    rows = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-grpo"))
    say(f"reward {rows[0]['reward/mean']:.2f} -> {rows[-1]['reward/mean']:.2f}")
