"""`tutelage quickstart`: the whole recipe on a real model, from one command, with every number explained."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tutelage.config import config, dump
from tutelage.console import say, stage
from tutelage.data.chat import Chat
from tutelage.data.collate import check_prompts
from tutelage.data.readers import Loaded
from tutelage.data.shapes import Kind
from tutelage.evaluation.report import quickstart_report
from tutelage.models.load import load_tokenizer
from tutelage.records import to_json, write_jsonl
from tutelage.stages.common import DEMO_MODEL, Common, out_folder
from tutelage.stages.quickstart_plan import FULL, QUICK, STORY, policy_stage, recipe_of, split_prompts
from tutelage.stages.run import run_stages
from tutelage.stages.story import LEFT_OUT, collect
from tutelage.stages.training import following, load, records_of

Method = Literal["grpo", "ppo", "reinforce", "rloo", "dpo"]


@config
class Quickstart:
    """A language model learns from preferences, on your machine: prompts, answers, feedback, reward model, training, evaluation."""

    model: str = DEMO_MODEL
    """The model to train: the demo model, a Hugging Face directory, or a hub id."""
    algorithm: Method = "grpo"
    """How the policy is trained; `dpo` trains on the comparisons directly."""
    prompts: str | None = None
    """Your own prompts (any shape of docs/data.md) instead of the built-in ones; the last third is held out."""
    feedback: str | None = None
    """Your own comparisons instead of simulated labellers; then no answers are sampled for labelling and no gold number is shown."""
    out: str | None = None
    """The run folder; default: a fresh runs/quickstart-TIME."""
    seed: int = 0
    """Decides sampling, labels, data order and the adapter's start."""
    resume: bool = False
    """Go on with the run in `--out`."""
    bad_rows: Literal["error", "skip"] = "error"
    """What happens to broken rows of `--prompts` and `--feedback`."""
    quick: bool = False
    """Under two minutes, tiny budgets: proves the plumbing and claims nothing about learning."""
    steps: int | None = None
    """Steps of policy training (default: the budget's)."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs."""
    gemm: Literal["auto", "default", "onednn", "amx"] = "auto"
    """Which library multiplies float32 matrices on a CPU (amx: Intel's matrix unit, in training); auto: the fastest, measured at the start."""
    kernels: Literal["auto", "torch", "loops", "numba", "amx"] = "auto"
    """What computes a decoding step on a CPU: PyTorch, compiled loops between its products, or compiled products too (amx: by Intel's matrix unit); auto: what is fastest here."""
    control: Literal["none", "shuffled_labels", "gold_reward"] = "none"
    """For checking the claim: labels that say nothing (the win rate must stay at 1/2), or the hidden rule itself as the reward."""


def main(cfg: Quickstart) -> Path:
    """Run everything; returns the run folder, which holds report.html and rl/policy (or prefer/policy)."""
    budget = QUICK if cfg.quick else FULL
    asked, compared = _own(cfg.prompts, "prompt", cfg.bad_rows), _own(cfg.feedback, "comparison", cfg.bad_rows)
    training, heldout = split_prompts(cfg, budget, records_of(asked))
    own = records_of(compared)
    chat = Chat.of(load_tokenizer(cfg.model, ("policy",)))  # what cannot run is told before anything is written
    most = Common.max_tokens - budget.max_new_tokens
    check_prompts([*training, *heldout], chat, most, "shorten it or leave it out of --prompts")
    folder = out_folder(cfg, "quickstart")  # type: ignore[arg-type]
    if folder.exists() and any(folder.iterdir()) and not cfg.resume:
        raise ValueError(f"{folder} is not empty; go on with it by --resume, or give another --out")
    write_jsonl(folder / "prompts" / "train.jsonl", map(to_json, training))
    write_jsonl(folder / "prompts" / "heldout.jsonl", map(to_json, heldout))
    recipe = recipe_of(cfg, budget, folder, len({record.prompt.key for record in own}) or len(training))
    dump(cfg, folder / "config.yaml", command="quickstart")
    (folder / "budget.json").write_text(json.dumps(asdict(budget), indent=1))
    if own:
        ties = sum(record.preference == 0.5 for record in own) / len(own)
        said = {"kind": "real", "comparisons": len(own), "ties": ties}
        (folder / "feedback.json").write_text(json.dumps(said, indent=1))
    if left_out := {one.kind: _left_out(one) for one in (*asked, *compared) if one.skipped}:
        (folder / LEFT_OUT).write_text(json.dumps(left_out, indent=1))
    again = f"tutelage quickstart {folder / 'config.yaml'} --out {folder} --resume"
    clock = time.perf_counter()
    minutes: dict[str, float] = _earlier_minutes(folder)

    def report() -> None:
        collect(folder, cfg, minutes)
        quickstart_report(folder)

    for name in recipe["stages"]:
        title, text = STORY[name]
        stage(title, text)
        with following(report), spending(minutes, name, folder):
            run_stages(recipe, folder, True, "quickstart", only=name, resume_command=again)
        report()
    say(f"done in {(time.perf_counter() - clock) / 60:.1f} minutes")
    _closing(cfg, folder)
    return folder


def _own(source: str | None, kind: Kind, bad_rows: Any) -> tuple[Loaded, ...]:
    """The user's own file, where one is named."""
    return () if source is None else load((source,), kind, bad_rows, "")


def _left_out(one: Loaded) -> dict[str, Any]:
    """What the report says of rows that were skipped."""
    return {"source": one.source, "rows": one.rows, "left_out": len(one.skipped), "such_as": one.skipped[0]}


def _closing(cfg: Quickstart, folder: Path) -> None:
    result = json.loads((folder / "quickstart.json").read_text())
    found = result.get("evaluation", {})
    if cfg.quick:
        say("This was --quick: it proves that every part runs, and says nothing about learning.")
    elif found.get("win_gold"):
        win = found["win_gold"]
        say(
            f"Preferred to the reference by the gold rule on {win['clusters']} held-out prompts: "
            f"{win['estimate']:.1%} [{win['low']:.1%}, {win['high']:.1%}]"
        )
    elif found.get("win_reward"):
        win = found["win_reward"]
        say(
            f"Preferred to the reference by the reward model: {win['estimate']:.1%} [{win['low']:.1%}, {win['high']:.1%}]"
        )
    say(f"The report:          {folder / 'report.html'}")
    say(f"Talk to the result:  tutelage chat {folder / policy_stage(cfg)}")
    say(f"Judge it blind:      tutelage chat {folder / policy_stage(cfg)} --compare {cfg.model}")
    if cfg.feedback is None:
        say(
            f"People could judge instead of the simulated labellers: tutelage collect --data {folder / 'answers' / 'answers.jsonl'}"
        )


@contextmanager
def spending(minutes: dict[str, float], name: str, folder: Path) -> Iterator[None]:
    """Adds what the block takes to a stage's minutes and keeps them, also where it is interrupted or fails."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        minutes[name] = minutes.get(name, 0.0) + (time.perf_counter() - begun) / 60
        (folder / "minutes.json").write_text(json.dumps(minutes, indent=1))


def _earlier_minutes(folder: Path) -> dict[str, float]:
    path = folder / "minutes.json"
    return json.loads(path.read_text()) if path.is_file() else {}
