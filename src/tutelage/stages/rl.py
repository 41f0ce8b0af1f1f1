"""`tutelage rl`: train the policy against rewards, with a pull to the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tutelage.algorithms.base import Models
from tutelage.algorithms.best_of_n import BestOfN
from tutelage.algorithms.distill import Distill
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.nash_md import NashMD
from tutelage.algorithms.online_dpo import OnlineDPO
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.config import config
from tutelage.console import say
from tutelage.data.collate import check_prompts
from tutelage.data.readers import Loaded
from tutelage.evaluation.winrate import Judge
from tutelage.models.load import save_policy
from tutelage.models.sampling import Decoding
from tutelage.records import Prompt
from tutelage.rewards.combine import Combined, combine
from tutelage.rewards.steps import score_steps
from tutelage.stages.common import Actor, Count, Training, check_out, load_actor
from tutelage.stages.distill import with_teacher
from tutelage.stages.exam import Exam, exam_hooks, measured, verifier_of
from tutelage.stages.human import Human, with_people
from tutelage.stages.metering import scorers_of
from tutelage.stages.mix import pretraining_mix
from tutelage.stages.monitor import Monitor, judges_of, monitor_hooks
from tutelage.stages.nash import duels, rewards_of
from tutelage.stages.networks import Critic, Value, critic_of, reader_of, with_reference
from tutelage.stages.rl_settings import check_settings
from tutelage.stages.rollout import Rollout, with_rollout
from tutelage.stages.sample import NO_PROMPTS
from tutelage.stages.training import Ready, finished, load, records_of, run_task, stream_of
from tutelage.training.loop import Task
from tutelage.training.prompt_filter import Greso, PromptFilter
from tutelage.training.rollouts import RolloutSource

Algorithm = Reinforce | GRPO | PPO | NashMD | BestOfN | OnlineDPO | Distill
DEFAULT_STEPS = 100


@config
class RL(Training):
    """Reinforcement learning: sample answers, reward them, make the better ones likelier."""

    algorithm: Annotated[Algorithm, Field(discriminator="name")] = Field(default_factory=GRPO)
    """The method; `--algorithm grpo|reinforce|rloo|ppo|nash_md|best_of_n|online_dpo|distill|dr_grpo|dapo|gspo|cispo ...`."""
    reward: tuple[str, ...] = ()
    """What is rewarded: a rule's name, `package.module:function`, or a reward model's folder; `NAME=0.5` gives a weight.

    `human`: people rank the answers in the browser while it trains (docs/human-in-the-loop.md).
    For `nash_md` a preference model's folder, or any of these: then P(y beats y') = sigma(r - r')."""
    process_reward: tuple[str, ...] = ()
    """GRPO and REINFORCE: the same for every step (line) of an answer, asked about the answer so far; then `reward` is only reported."""
    teacher: str | None = None
    """For `distill`: the model whose distributions the policy takes on in its own answers; rewards are then only reported."""
    on_error: Literal["error", "0"] = "error"
    """A reward function that raises or hangs stops the run (`error`), or scores 0 and is counted (`0`)."""
    reference: str | None = None
    """The model that the KL is measured from, such as the pretrained or the SFT one; default: the policy's own start."""
    temperature: float = Field(default=1.0, gt=0)
    """Answers are sampled at it and log-probs are taken at it."""
    final_temperature: float | None = Field(default=None, gt=0)
    """Where the temperature has got to at the last step (default: it stays); high to low explores first."""
    temperature_schedule: Literal["linear", "cosine"] = "linear"
    """Its way there."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    rollout: Rollout = Field(default_factory=Rollout)
    """Sampling in fewer bits, corrected by importance weights (`--rollout.precision int8`)."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer (`--stop "Question:"`): its text is cut before them, the tokens that spell them are trained on."""
    value: Value = Field(default_factory=Value)
    """The value model, for methods that have one."""
    greso: Greso = Field(default_factory=Greso)
    """GRPO: prompts whose answers lately earned all alike are skipped before they are answered (`--greso.on`)."""
    pods: Annotated[int, Field(gt=1)] | None = None
    """GRPO: of each prompt's answers train on so many, those whose rewards vary most; default: all."""
    ptx: tuple[str, ...] = ()
    """PPO-ptx: texts (or demonstrations) that every optimiser step goes on imitating beside the rewards."""
    ptx_coefficient: float = Field(default=0.5, gt=0)
    """gamma: weight of the mean loss of a token of them."""
    ptx_batch_size: Count = 8
    """How many of them an optimiser step takes."""
    human: Human = Field(default_factory=Human)
    """For `--reward human`: where people judge, and how long a step waits for them."""
    exam: Exam = Field(default_factory=Exam)
    """Accuracy, maj@K and pass@K on held-out prompts while training."""
    monitor: Monitor = Field(default_factory=Monitor)
    """Win rate against the reference's answers while training."""


def ready(
    cfg: RL, prompts: Sequence[Loaded], rewards: Combined, process: Combined | None = None
) -> tuple[Ready[Prompt], Actor]:
    """The task, with the data checked and the models loaded."""
    records: list[Prompt] = records_of(prompts)
    check_settings(cfg)
    for one in (rewards, process):
        if one is not None:
            one.check(records)
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.pass_tokens)
    check_prompts(records, actor.chat, cfg.max_tokens - cfg.max_new_tokens)
    actor = with_reference(cfg, actor, cfg.reference)
    critic = critic_of(cfg, actor, cfg.value, "value" in cfg.algorithm.needs)
    source = _source(cfg, actor, rewards, prompts)
    if process is not None:
        source = replace(source, score_steps=partial(score_steps, process, actor.chat.decode))
    if cfg.value.read_out:
        source = replace(source, read_out=reader_of(critic.value, actor.tokenizer))
    if isinstance(cfg.algorithm, NashMD):
        source = duels(cfg, cfg.algorithm, actor, source, rewards)
    task = with_rollout(cfg.rollout, _task(cfg, actor, critic, source))
    if cfg.teacher is not None:
        both = with_teacher(cfg, actor, cfg.teacher)
        task = replace(task, models=replace(task.models, policy=both.policy, teacher=both.teacher))
    say(f"{len(records)} prompts, {cfg.batch_size} x {cfg.algorithm.group_size} answers a step, {task.steps} steps")
    return Ready(task, actor.chat, records, scorers=scorers_of(rewards)), actor


def main(cfg: RL) -> Path:
    """Run the command; returns the run folder, which holds policy/."""
    if not cfg.reward and not isinstance(cfg.algorithm, Distill):
        raise ValueError(
            "no reward: give --reward NAME, package.module:function or a reward model's folder (docs/rewards.md)"
        )
    check_out(cfg, "rl")
    prompts = load(cfg.data, "prompt", cfg.bad_rows, NO_PROMPTS)
    with ExitStack() as stack:
        rewards = stack.enter_context(rewards_of(cfg, cfg.reward) if cfg.reward else Combined(()))
        process = (
            stack.enter_context(combine(cfg.process_reward, cfg.on_error, cfg.device)) if cfg.process_reward else None
        )
        prepared, actor = ready(cfg, prompts, rewards, process)
        prepared = with_people(cfg, prepared, rewards, stack)
        hooks = monitor_hooks(cfg.monitor, actor, cfg.seed, _judges(cfg, rewards))
        hooks += exam_hooks(cfg.exam, actor, rewards, Decoding(cfg.max_new_tokens, cfg.temperature), cfg.seed)
        run = run_task(cfg, "rl", prepared, hooks)
    save_policy(actor.module, actor.tokenizer, run.folder / "policy")
    return finished(run, "policy")


def temperature_at(cfg: RL) -> Callable[[int], float] | None:
    """Step -> the temperature that its answers are sampled at; None where it does not change."""
    if cfg.final_temperature is None:
        return None
    first, last, steps = cfg.temperature, cfg.final_temperature, cfg.steps or DEFAULT_STEPS

    def at(step: int) -> float:
        done = min(1.0, step / max(1, steps - 1))
        return last + (first - last) * (1 - done if cfg.temperature_schedule == "linear" else _cosine(done))

    return at


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _judges(cfg: RL, rewards: Combined) -> dict[str, Judge]:
    """The monitor's judges; one that is the reward itself is not loaded a second time."""
    if cfg.monitor.against is None:
        return {}
    return judges_of(cfg.monitor.judges, {cfg.reward[0]: rewards} if len(cfg.reward) == 1 and rewards.terms else {})


def _source(cfg: RL, actor: Actor, rewards: Combined, prompts: Sequence[Loaded]) -> RolloutSource:
    size = min(cfg.batch_size, len(records_of(prompts)))
    verifier = verifier_of(rewards)
    return RolloutSource(
        draw_prompts=stream_of(prompts, size, cfg.seed)[0],
        encode=actor.chat.prompt_tokens,
        sampler=actor.decoder,
        score=rewards.score,
        decoding=Decoding(cfg.max_new_tokens, cfg.temperature, stop=cfg.stop),
        group_size=cfg.algorithm.group_size,
        seed=cfg.seed,
        keep_samples=lambda step, rows: None,  # the run folder is opened later
        attempts=cfg.algorithm.attempts if isinstance(cfg.algorithm, GRPO) else 0,
        temperature=temperature_at(cfg),
        measure=None if verifier is None else partial(measured, verifier=verifier),
        filter=PromptFilter(cfg.greso, cfg.seed) if cfg.greso.on else None,
        kept=cfg.pods,
    )


def _task(cfg: RL, actor: Actor, critic: Critic, source: RolloutSource) -> Task:
    method = cfg.algorithm
    if isinstance(method, GRPO) and method.max_length is None:
        method = replace(method, max_length=cfg.max_new_tokens)
    return Task(
        Models(policy=critic.policy, reference=actor.reference, value=critic.value),
        method,
        source,
        critic.trained,
        cfg.steps or DEFAULT_STEPS,
        cfg.peak_rate,
        cfg.optimization,
        cfg.seed,
        f"training ({method.name})",
        beside=pretraining_mix(cfg, actor, cfg.ptx, cfg.ptx_coefficient, cfg.ptx_batch_size),
        own_reference=cfg.reference is None,
    )
