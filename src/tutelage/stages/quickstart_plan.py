"""What the quickstart runs: prompts, budgets, and its stages as any recipe has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tutelage.records import Prompt, read_jsonl, user


@dataclass(frozen=True)
class Budget:
    """What a run spends; docs/quickstart.md has the tokens of each phase."""

    train_prompts: int
    heldout_prompts: int
    answers: int
    heldout_answers: int
    """By the reference; six comparisons a prompt and labeller test the reward model, where two answers would give one."""
    exam_answers: int
    reward_epochs: float
    steps: int
    prompts_a_step: int
    group: int
    look_every: int
    look_prompts: int
    max_new_tokens: int = 48
    tokens_per_pass: int = 1024


FULL = Budget(960, 240, 4, 4, 2, 1.0, 24, 8, 6, 6, 48)
QUICK = Budget(4, 4, 2, 2, 2, 0.5, 1, 2, 2, 1, 2, 10, tokens_per_pass=192)
TEMPERATURE = 0.8
KL_COEFFICIENT = 0.12
"""Of GRPO, in its loss, beside rewards as they are: a reward model's scores are log-odds. Were they divided by their spread in a group,
a model that learnt nothing would move the policy as far as one that knows (docs/log.md, 2026-11-22)."""
REWARD_BATCH = 4
HELDOUT_SHARE = 0.1
"""Of the user's own prompts with comparisons, for the reward model's test (`reward --heldout-share`'s default)."""
REWARD_RATE = 6e-5
"""With 3e-5 the reward model stayed a point nearer to the linear probe that its head starts with (docs/log.md)."""
REWARD_LAYERS = 16
"""Of SmolLM2's 30: a linear probe reads these comparisons best in its middle (docs/log.md, 2026-11-21)."""


def policy_stage(cfg: Any) -> str:
    """The stage whose folder holds the trained policy."""
    return "prefer" if cfg.algorithm == "dpo" else "rl"


def split_prompts(cfg: Any, budget: Budget, own: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(training, held out): the built-in prompts by their own split, a user's by position (the last third is held out)."""
    if cfg.prompts is None:
        rows = list(read_jsonl(Path(str(files("tutelage") / "quickstart_data" / "prompts.jsonl"))))
        both = [
            [user(r["prompt"], id=r["id"], category=r["category"]) for r in rows if r["split"] == s]
            for s in ("train", "heldout")
        ]
        return both[0][: budget.train_prompts], both[1][: budget.heldout_prompts]
    if len(own) < 3:
        raise ValueError(
            f"{cfg.prompts}: {len(own)} prompts; at least 3 are needed, and 200 held-out ones for a tight interval"
        )
    cut = len(own) - max(1, len(own) // 3)
    return list(own[:cut][: budget.train_prompts]), list(own[cut:][: budget.heldout_prompts])


def recipe_of(cfg: Any, budget: Budget, folder: Path, prompts: int) -> dict[str, Any]:
    """The stages, as any recipe has them: `tutelage run` could run this. `prompts`: how many the comparisons are about."""
    sampling = {"temperature": TEMPERATURE, "max_new_tokens": budget.max_new_tokens}
    stages: dict[str, dict[str, Any]] = {}
    if cfg.feedback is None:
        stages["answers"] = {
            "command": "sample",
            "data": [str(folder / "prompts" / "train.jsonl")],
            "answers": budget.answers,
            **sampling,
        }
    stages["heldout"] = {
        "command": "sample",
        "data": [str(folder / "prompts" / "heldout.jsonl")],
        "answers": budget.heldout_answers,
        "seed": cfg.seed + 1000,
        **sampling,
    }
    comparisons: dict[str, Any] = {"data": [cfg.feedback]}
    if cfg.feedback is None:
        stages["feedback"] = {
            "command": "simulate",
            "data": "@answers/answers.jsonl",
            "heldout": "@heldout/answers.jsonl",
            "seed": cfg.seed,
            "labels": "shuffled" if cfg.control == "shuffled_labels" else "simulated",
        }
        comparisons = {"data": ["@feedback/comparisons.jsonl"], "heldout": ["@feedback/heldout.jsonl"]}
    stages["reward"] = {**_reward(budget, prompts, kept_aside=HELDOUT_SHARE if cfg.feedback else 0.0), **comparisons}
    stages[policy_stage(cfg)] = _policy(cfg, budget, folder, comparisons)
    judges = ["@reward"] if cfg.feedback else ["gold", "@reward"]
    stages["evaluation"] = {
        "command": "evaluate",
        "model": f"@{policy_stage(cfg)}",
        "against": "@heldout/answers.jsonl",
        "reference": cfg.model,
        "judge": judges,
        "announce": not cfg.quick,
        "answers": budget.exam_answers,
        "seed": cfg.seed + 2000,
        **sampling,
    }
    return {
        "stages": stages,
        **{name: getattr(cfg, name) for name in ("model", "seed", "device", "gemm", "kernels", "bad_rows")},
    }


def _reward(budget: Budget, prompts: int, kept_aside: float) -> dict[str, Any]:
    """An epoch of the comparisons, but never more than the default run's."""
    learnt = max(1, round(min(prompts, budget.train_prompts) * (1 - kept_aside)))
    return {
        "command": "reward",
        "steps": max(1, round(budget.reward_epochs * learnt / REWARD_BATCH)),
        "batch_size": min(REWARD_BATCH, learnt),
        "full": True,
        "layers": REWARD_LAYERS,
        "optimization": {
            "learning_rate": REWARD_RATE,
            "schedule": "linear",
            "warmup_steps": 4,
            "weight_decay": 0.01,
            "save_every": 20,
            "keep_checkpoints": 1,
            "tokens_per_pass": budget.tokens_per_pass,
        },
    }


def _policy(cfg: Any, budget: Budget, folder: Path, comparisons: dict[str, Any]) -> dict[str, Any]:
    monitor = {
        "against": "@heldout/answers.jsonl",
        "judges": ["@reward"] if cfg.feedback else ["gold", "@reward"],
        "every": budget.look_every,
        "prompts": budget.look_prompts,
        "max_new_tokens": budget.max_new_tokens,
    }
    steps = cfg.steps or budget.steps
    if cfg.algorithm == "dpo":
        return {
            "command": "prefer",
            "steps": steps,
            "batch_size": budget.prompts_a_step,
            "temperature": TEMPERATURE,
            "algorithm": {"name": "dpo", "beta": 0.1},
            "monitor": monitor,
            "optimization": {"save_every": 5, "tokens_per_pass": budget.tokens_per_pass},
            **comparisons,
        }
    method: dict[str, Any] = {"name": cfg.algorithm, "group_size": budget.group}
    own = {"advantage": "center", "kl_coefficient": KL_COEFFICIENT}
    method.update(own if cfg.algorithm == "grpo" else {"kl_coefficient": 0.02})
    reward = "tutelage.stages.simulate:gold_reward" if cfg.control == "gold_reward" else "@reward"
    return {
        "command": "rl",
        "data": [str(folder / "prompts" / "train.jsonl")],
        "reward": [reward],
        "steps": steps,
        "batch_size": budget.prompts_a_step,
        "algorithm": method,
        "temperature": TEMPERATURE,
        "max_new_tokens": budget.max_new_tokens,
        "monitor": monitor,
        "optimization": {"save_every": 5, "tokens_per_pass": budget.tokens_per_pass},
    }


STORY = {
    "answers": (
        "The reference answers the training prompts",
        "The model as it is answers each prompt several times. These answers are what feedback will compare.",
    ),
    "heldout": (
        "The reference answers the held-out prompts",
        "Other prompts, never trained on: at the end the trained model must beat these answers.",
    ),
    "feedback": (
        "Feedback (simulated labellers)",
        "Three SIMULATED labellers rank the answers by a hidden rule, with noise, lapses and a side bias. No person was asked; "
        "because the rule is known, what is learnt can be checked against the truth.",
    ),
    "reward": (
        "The reward model learns to predict the feedback",
        "A copy of the model with one number as output; it sees answers and choices only, never the hidden rule.",
    ),
    "rl": (
        "The policy learns from the reward model",
        "It answers prompts, the reward model scores the answers, better ones become likelier; a penalty keeps it near the reference.",
    ),
    "prefer": (
        "The policy learns from the comparisons",
        "What was chosen becomes likelier than what was rejected, relative to the reference (DPO).",
    ),
    "evaluation": (
        "Evaluation on held-out prompts",
        "New answers against the reference's, judged by the reward model and, where labels were simulated, by the hidden rule.",
    ),
}
