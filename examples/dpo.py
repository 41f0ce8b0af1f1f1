"""DPO as a library: a random tiny model learns which of two answers is preferred. Seconds on a CPU: python examples/dpo.py"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tutelage.algorithms.base import Models
from tutelage.algorithms.preference import DPO
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.stream import Stream
from tutelage.models.logprobs import CausalModel
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.tiny import tiny
from tutelage.records import Answer, Comparison, read_jsonl, user
from tutelage.training.loop import Task, train
from tutelage.training.optim import Optimization
from tutelage.training.run import Run

WORDS = ("cat", "dog", "sun", "sea", "sky", "ice")


def main(folder: Path, steps: int = 30) -> list[dict[str, Any]]:
    """Trains in `folder`; returns the metrics of every step."""
    model, tokenizer = tiny()
    policy = add_lora(model, LoRA(rank=8, alpha=16), seed=0, task="CAUSAL_LM")
    chat = Chat.of(tokenizer)
    records = [Comparison(user(word), Answer(f"{word}, please"), Answer(f"{word}, now")) for word in WORDS]
    stream = Stream(records, batch_size=6, seed=0)

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        """What a step trains on; chosen and rejected share their prompt, which is computed once."""
        return comparisons(stream.draw(step), chat, max_tokens=128).batch, {}

    task = Task(
        models=Models(policy=CausalModel(policy), reference=CausalModel(policy, context=reference_mode)),
        algorithm=DPO(beta=0.1),
        draw=draw,
        trained={"policy": policy},  # the adapter; the reference is the same weights with the adapter off
        steps=steps,
        peak=1e-2,
        settings=Optimization(),
    )
    run = Run.open(folder, {"words": list(WORDS), "steps": steps}, "prefer", resume=False)
    train(task, run)
    run.finish({})
    return list(read_jsonl(folder / "metrics.jsonl"))


if __name__ == "__main__":
    rows = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example-dpo"))
    say(f"loss {rows[0]['loss']:.3f} -> {rows[-1]['loss']:.3f}, margin {rows[-1]['reward/margin']:.2f}")
