"""`tutelage rl`: train the policy against rewards, with a pull to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import check_prompts
from tutelage.data.readers import Loaded
from tutelage.evaluation.winrate import Judge
from tutelage.models.heads import ScalarModel, new_scalar_model
from tutelage.models.load import load_backbone, save_policy
from tutelage.models.logprobs import HeadedModel
from tutelage.models.sampling import Decoding
from tutelage.records import Prompt
from tutelage.rewards.combine import Combined, combine
from tutelage.stages.common import Actor, Count, Training, load_actor, precision
from tutelage.stages.monitor import Monitor, judges_of, monitor_hooks
from tutelage.stages.sample import NO_PROMPTS
from tutelage.stages.training import Ready, finished, load, records_of, run_task, stream_of
from tutelage.training.loop import Task
from tutelage.training.rollouts import RolloutSource

Algorithm = Reinforce | GRPO | PPO
DEFAULT_STEPS = 100


@config
class RL(Training):
    """Reinforcement learning: sample answers, reward them, make the better ones likelier."""

    algorithm: Annotated[Algorithm, Field(discriminator="name")] = Field(default_factory=GRPO)
    """The method; `--algorithm grpo|reinforce|rloo|ppo|dr_grpo`."""
    reward: tuple[str, ...] = ()
    """What is rewarded: a rule's name, `package.module:function`, or a reward model's folder; `NAME=0.5` gives a weight."""
    on_error: Literal["error", "0"] = "error"
    """A reward function that raises or hangs stops the run (`error`), or scores 0 and is counted (`0`)."""
    temperature: float = Field(default=1.0, gt=0)
    """Answers are sampled at it and log-probs are taken at it."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    monitor: Monitor = Field(default_factory=Monitor)
    """Win rate against the reference's answers while training."""


def ready(cfg: RL, prompts: Sequence[Loaded], rewards: Combined) -> tuple[Ready[Prompt], Actor]:
    """The task, with the data checked and the models loaded."""
    records: list[Prompt] = records_of(prompts)
    rewards.check(records)
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.tokens_per_pass)
    check_prompts(records, actor.chat, cfg.max_tokens - cfg.max_new_tokens)
    value = _value_model(cfg) if "value" in cfg.algorithm.needs else None
    task = _task(cfg, actor, value, _source(cfg, actor, rewards, prompts))
    say(f"{len(records)} prompts, {cfg.batch_size} x {cfg.algorithm.group_size} answers a step, {task.steps} steps")
    return Ready(task, actor.chat, records), actor


def main(cfg: RL) -> Path:
    """Run the command; returns the run folder, which holds policy/."""
    if not cfg.reward:
        raise ValueError(
            "no reward: give --reward NAME, package.module:function or a reward model's folder (docs/rewards.md)"
        )
    prompts = load(cfg.data, "prompt", cfg.bad_rows, NO_PROMPTS)
    with combine(cfg.reward, cfg.on_error, cfg.device) as rewards:
        prepared, actor = ready(cfg, prompts, rewards)
        run = run_task(cfg, "rl", prepared, monitor_hooks(cfg.monitor, actor, cfg.seed, _judges(cfg, rewards)))
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    return finished(run, "policy")


def _judges(cfg: RL, rewards: Combined) -> dict[str, Judge]:
    """The monitor's judges; one that is the reward itself is not loaded a second time."""
    if cfg.monitor.against is None:
        return {}
    return judges_of(cfg.monitor.judges, {cfg.reward[0]: rewards} if len(cfg.reward) == 1 else {})


def _source(cfg: RL, actor: Actor, rewards: Combined, prompts: Sequence[Loaded]) -> RolloutSource:
    size = min(cfg.batch_size, len(records_of(prompts)))
    return RolloutSource(
        draw_prompts=stream_of(prompts, size, cfg.seed)[0],
        encode=actor.chat.prompt_tokens,
        sampler=actor.decoder,
        score=rewards.score,
        decoding=Decoding(cfg.max_new_tokens, cfg.temperature),
        group_size=cfg.algorithm.group_size,
        seed=cfg.seed,
        keep_samples=lambda step, rows: None,  # the run folder is opened later
    )


def _task(cfg: RL, actor: Actor, value: ScalarModel | None, source: RolloutSource) -> Task:
    headed = None if value is None else HeadedModel(value, cfg.optimization.tokens_per_pass)
    trained: dict[str, torch.nn.Module] = {"policy": actor.module}
    if value is not None:
        trained["value"] = value
    models = Models(policy=actor.policy, reference=actor.reference, value=headed)
    steps = cfg.steps or DEFAULT_STEPS
    return Task(
        models,
        cfg.algorithm,
        source,
        trained,
        steps,
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        f"training ({cfg.algorithm.name})",
    )


def _value_model(cfg: RL) -> ScalarModel:
    """PPO's value model: the policy's backbone with its own adapter and a fresh head."""
    dtype = "float32" if cfg.full else precision(cfg.dtype, cfg.device)
    backbone = load_backbone(cfg.model, lora=cfg.adapter, dtype=dtype, device=cfg.device, seed=cfg.seed + 1)
    return new_scalar_model(backbone, seed=cfg.seed + 1)
