"""What `tutelage rl --algorithm nash_md` puts together: who prefers, who the rival is, and the pool of past policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tutelage.algorithms.nash_md import NashMD
from tutelage.models.load import resolve_model
from tutelage.models.mixture import rival_decoder
from tutelage.rewards.combine import Combined, combine
from tutelage.rewards.pairwise import Preference, ScoredPreference, TwoAnswerModel, reads_two_answers
from tutelage.stages.common import Actor
from tutelage.stages.human import is_human
from tutelage.training.duels import DuelSource
from tutelage.training.pool import PolicyPool
from tutelage.training.rollouts import RolloutSource


def rewards_of(cfg: Any, names: Sequence[str]) -> Combined:
    """The weighted sum of rewards but people's; without terms where a preference model, or people alone, decide instead.

    Raises ValueError for a preference model beside other rewards, or with a method that wants a score for each answer.
    """
    names = [name for name in names if not is_human(name)]
    if not names:
        return Combined(())
    comparing = [name for name in names if reads_two_answers(name)]
    if not comparing:
        return combine(names, cfg.on_error, cfg.device)
    if cfg.algorithm.name != "nash_md":
        raise ValueError(
            f"reward: {comparing[0]} is a preference model, which compares two answers and scores none; use --algorithm "
            f"nash_md, or train a reward model for {cfg.algorithm.name}: tutelage reward"
        )
    if len(names) > 1:
        raise ValueError(
            f"reward: a preference model stands alone; got it beside {[n for n in names if n != comparing[0]]}"
        )
    return Combined(())


def duels(cfg: Any, method: NashMD, actor: Actor, source: RolloutSource, rewards: Combined) -> DuelSource:
    """The source of a game: policy against mixture or past policy, under the preference that `cfg.reward` names."""
    judge: Preference = ScoredPreference(rewards) if rewards.terms else TwoAnswerModel.load(cfg.reward[0], cfg.device)
    plain = {f.name: getattr(source, f.name) for f in fields(RolloutSource)}
    return DuelSource(
        **plain,
        preference=judge,
        mixture=rival_decoder(actor.decoder, actor.reference_decoder, method.mixing),
        policy=actor.module,
        past_rival=lambda step: method.past_rival(step, cfg.seed),
        joins=lambda step: bool(method.pool_every) and step % method.pool_every == 0,
        pool=PolicyPool(Path("pool"), actor.tokenizer, _absolute(cfg.model)) if method.pool_every else None,
    )


def _absolute(name: str) -> str:
    """What an adapter of the pool goes on, so that it is found from any folder; a hub id stays one."""
    found = resolve_model(name, ("policy",))
    return str(found.resolve()) if isinstance(found, Path) else found
