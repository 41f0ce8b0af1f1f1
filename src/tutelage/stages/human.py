"""`tutelage rl --reward human`: where people are asked, how long a step waits for them, and who speaks in their place."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from tutelage.config import config
from tutelage.console import say
from tutelage.data.batch import Rollouts
from tutelage.feedback.client import TOKEN_VARIABLE, Program, Queue
from tutelage.rewards.combine import Combined, Part, combine
from tutelage.rewards.human import AtStep, HumanReward, UnjudgedError, task_for
from tutelage.rewards.terms import RewardTerm, parse_term
from tutelage.stages.lineage import note_people
from tutelage.stages.training import Ready
from tutelage.training.interrupt import Interrupt, Paused
from tutelage.training.rollouts import RolloutSource
from tutelage.training.run import Run

NAME = "human"


@config
class Human:
    """People in the loop; what is set here may change when a run is resumed."""

    url: str = "http://127.0.0.1:8765"
    """The server: `tutelage collect --db sqlite:///people.db --api-token` starts one and prints the token."""
    token: str | None = None
    """A file that holds the token; default: the variable TUTELAGE_TOKEN. (The settings of a run are written down.)"""
    project: str | None = None
    """Its name there, made where there is none; default: the run folder's name."""
    overlap: Annotated[int, Field(ge=1, le=100)] = 1
    """People that judge each group of answers; their rewards are averaged."""
    deadline: Annotated[float, Field(gt=0)] = 24.0
    """Hours that a step waits. Then the run saves, stops and says how to go on; what people say meanwhile is not lost."""
    fallback: str | None = None
    """A reward (such as a reward model's folder) that speaks at the deadline for groups that nobody judged; counted."""
    instructions: str | None = None
    """A Markdown file for the people, where the project is new."""


@dataclass(frozen=True)
class AskingSource(RolloutSource):
    """Rollouts whose rewards are people's, beside the other rewards. Raises Paused where people are not ready in time."""

    people: HumanReward | None = None
    weight: float = 1.0
    others: Combined = field(default_factory=lambda: Combined(()))
    settings: Human = field(default_factory=Human)
    queue: Queue | None = None

    def within(self, run: Run) -> Self:
        """The source of an opened run: its project is there, and its ledger lies in the folder."""
        assert self.people is not None
        assert self.queue is not None
        name = self.settings.project or run.folder.resolve().name
        guide = self.settings.instructions
        text = Path(guide).read_text(encoding="utf-8") if guide else ""
        project = self.queue.project(name, task_for(self.group_size), self.settings.overlap, text)
        note_people(run, url=self.settings.url, project=name, judgments="human.jsonl")
        say(f"people judge in project {name!r} at {self.settings.url}; invite them on its admin page")
        people = replace(self.people, project=project, run=run.folder.resolve().name, ledger=run.folder / "human.jsonl")
        return replace(super().within(run), people=people)

    def __call__(self, step: int) -> tuple[Rollouts, dict[str, float]]:
        """The rollouts of a step, once people have spoken. Ctrl-C while they are awaited saves and stops."""
        assert self.people is not None
        with Interrupt() as interrupt:
            people = replace(self.people, stop=lambda: interrupt.requested)
            terms = (*self.others.terms, Part(NAME, self.weight, AtStep(people, step)))
            try:
                batch, metrics = RolloutSource.__call__(replace(self, score=Combined(terms).score), step)
            except UnjudgedError as unjudged:
                raise Paused(str(unjudged)) from None
        if interrupt.requested:
            signal.raise_signal(signal.SIGINT)  # the loop, whose handler is back, finishes the step and saves
        named = {name.replace(f"{NAME}_fallback", "fallback"): value for name, value in metrics.items()}
        return batch, named


def is_human(name: str) -> bool:
    """Whether a reward's short form means people."""
    return name == NAME or name.startswith((f"{NAME}=", f"{NAME}("))


def check_human(cfg: Any) -> None:
    """Raises ValueError for settings that people cannot work with."""
    named = [name for name in cfg.reward if is_human(name)]
    if not named:
        if cfg.human != Human():
            raise ValueError(f"human: these settings are for --reward human; got rewards {list(cfg.reward)}")
        return
    if len(named) > 1 or replace(parse_term(named[0]), weight=1.0) != RewardTerm(reward=NAME):
        raise ValueError(f"reward: `human` or `human=WEIGHT`, once; its settings are --human.*; got {named}")
    if cfg.algorithm.name == "nash_md":
        raise ValueError(
            "reward human: nash_md compares with a rival's answers; use grpo, reinforce, ppo or online_dpo"
        )
    if cfg.process_reward:
        raise ValueError("reward human: people judge whole answers; leave process_reward out")
    task_for(cfg.algorithm.group_size)
    if cfg.human.fallback is not None and is_human(cfg.human.fallback):
        raise ValueError("human.fallback: a reward that needs no people; got human")


def with_people(cfg: Any, prepared: Ready[Any], rewards: Combined, stack: ExitStack) -> Ready[Any]:
    """The task with people among its rewards; unchanged where they are not asked for. Raises ValueError at a closed door."""
    named = [name for name in cfg.reward if is_human(name)]
    if not named:
        return prepared
    source, settings = prepared.task.draw, cfg.human
    assert isinstance(source, RolloutSource)
    queue = Program(settings.url, token_of(settings))
    fallback = None
    if settings.fallback is not None:
        fallback = stack.enter_context(combine([settings.fallback], cfg.on_error, cfg.device))
    people = HumanReward(
        queue, 0, "", Path("human.jsonl"), settings.overlap, settings.deadline * 3600, fallback=fallback
    )
    plain: dict[str, Any] = {f.name: getattr(source, f.name) for f in fields(RolloutSource)}
    asking = AskingSource(
        **plain, people=people, weight=parse_term(named[0]).weight, others=rewards, settings=settings, queue=queue
    )
    return replace(prepared, task=replace(prepared.task, draw=asking))


def token_of(settings: Human) -> str:
    """The token from its file or the environment. Raises ValueError where there is none."""
    if settings.token is not None:
        path = Path(settings.token).expanduser()
        if not path.is_file():
            raise ValueError(
                f"human.token: {settings.token}: no such file; write the token that collect printed into it"
            )
        return path.read_text(encoding="utf-8").strip()
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise ValueError(
            f"reward human: no token; start `tutelage collect --db sqlite:///people.db --api-token`, and set "
            f"{TOKEN_VARIABLE} or --human.token FILE"
        )
    return token
