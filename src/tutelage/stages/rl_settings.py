"""Settings of `tutelage rl` that are each right and together mean nothing are refused before a model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tutelage.algorithms.distill import Distill
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.nash_md import NashMD
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.stages.distill import check_teacher
from tutelage.stages.human import check_human
from tutelage.stages.networks import Value
from tutelage.stages.rollout import check_rollout

if TYPE_CHECKING:
    from tutelage.stages.rl import RL


def check_settings(cfg: RL) -> None:
    """Raises ValueError for settings that are each right and together mean nothing."""
    method = cfg.algorithm
    check_teacher(method, cfg.teacher)
    check_human(cfg)
    check_rollout(cfg.rollout, method)
    if isinstance(method, Distill) and (method.level != "token" or method.on_policy not in (None, 1.0)):
        raise ValueError(
            f"algorithm distill in rl is token by token on the policy's own answers; got level {method.level}, on_policy "
            f"{method.on_policy}; a mixture with the data's answers, or the teacher's answers, are `tutelage sft`'s"
        )
    if cfg.process_reward and not isinstance(method, GRPO | Reinforce):
        raise ValueError(f"process_reward: rewards of steps are for grpo and reinforce; got algorithm {method.name}")
    if cfg.process_reward and isinstance(method, Reinforce) and method.normalize != "none":
        raise ValueError(
            f"algorithm.normalize: {method.normalize!r} is for one reward an answer; with process_reward say 'none'"
        )
    if isinstance(method, PPO) and method.kl_target is not None and method.kl_coefficient == 0:
        raise ValueError("algorithm.kl_target: an adaptive coefficient needs a start; got kl_coefficient 0")
    _check_groups(cfg, method)
    if cfg.reference is not None and not _looks_at_a_reference(cfg, method):
        raise ValueError(
            f"reference: nothing looks at {cfg.reference}: {method.name} as it is set has no KL to it; raise "
            "algorithm.kl_coefficient, or leave --reference out"
        )
    if cfg.value != Value() and "value" not in method.needs:
        raise ValueError(
            f"value: {method.name} has no value model here; it is for ppo, or reinforce with baseline value"
        )


def _looks_at_a_reference(cfg: RL, method: Any) -> bool:
    """In the loss or the reward, in Nash-MD's rival, or in the KL that a monitor reports."""
    return "reference" in method.needs or isinstance(method, NashMD) or cfg.monitor.against is not None


def _check_groups(cfg: RL, method: Any) -> None:
    """What compares the answers of a group by one reward each: GRPO's economies and its penalty for length."""
    if (cfg.greso.on or cfg.pods is not None) and not isinstance(method, GRPO):
        raise ValueError(
            f"greso and pods compare the answers of a group: they are for grpo; got algorithm {method.name}"
        )
    if cfg.pods is not None and (cfg.pods >= method.group_size or cfg.process_reward):
        raise ValueError(
            f"pods: keeps fewer answers than are sampled, by one reward each; got {cfg.pods} of {method.group_size}"
            f"{' with process rewards' * bool(cfg.process_reward)}"
        )
    if cfg.process_reward and isinstance(method, GRPO) and (method.overlong or method.attempts or cfg.greso.on):
        raise ValueError(
            "process_reward: algorithm.overlong, algorithm.attempts and greso look at one reward an answer, which is only "
            f"reported here; got {method.overlong:g}, {method.attempts} and {cfg.greso.on}: say 0, 0 and no greso"
        )
    if isinstance(method, GRPO) and method.overlong > 0 and round(method.overlong * cfg.max_new_tokens) == 0:
        raise ValueError(f"algorithm.overlong: less than a token of {cfg.max_new_tokens}; raise it or max_new_tokens")
