"""SFT as a library: a random tiny model learns to say a word in capitals. Seconds on a CPU: python examples/sft.py"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tutelage.algorithms.base import Models
from tutelage.algorithms.sft import SFT
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.collate import demonstrations
from tutelage.data.stream import Stream
from tutelage.models.logprobs import CausalModel
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny
from tutelage.records import Demonstration, Message, read_jsonl, user
from tutelage.training.loop import Task, train
from tutelage.training.optim import Optimization
from tutelage.training.run import Run

WORDS = ("cat", "dog", "sun", "sea")


def main(folder: Path, steps: int = 40) -> tuple[list[float], list[str]]:
    """Trains in `folder`; returns the loss of every step, and what the policy then says to each word."""
    model, tokenizer = tiny()  # or load_policy(name) and load_tokenizer(name) of tutelage.models.load
    chat = Chat.of(tokenizer)
    records = [Demonstration((Message("user", word), Message("assistant", word.upper()))) for word in WORDS]
    stream = Stream(records, batch_size=4, seed=0)

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        """What a step trains on: a function of the step alone, so a run can be resumed from one integer."""
        return demonstrations(stream.draw(step), chat, max_tokens=128).batch, {}

    task = Task(
        models=Models(policy=CausalModel(model)),
        algorithm=SFT(),
        draw=draw,
        trained={"policy": model},
        steps=steps,
        peak=5e-3,
        settings=Optimization(),
    )
    run = Run.open(folder, {"words": list(WORDS), "steps": steps}, "sft", resume=False)
    train(task, run)
    decoder = Decoder(model, chat.stop_tokens, chat.decode)
    prompts = [chat.prompt_tokens(user(word)) for word in WORDS]
    said = decoder.sample(prompts, 1, Decoding(max_tokens=8, temperature=0), seed="after")
    run.finish({})
    return [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")], [group[0].text for group in said]


if __name__ == "__main__":
    losses, answers = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-sft"))
    say(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; {dict(zip(WORDS, answers, strict=True))}")
