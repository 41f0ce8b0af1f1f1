"""`tutelage sample`: a policy answers prompts; people or labellers judge the answers, or rewards choose the best at once."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tutelage.config import config
from tutelage.console import say, track
from tutelage.data.collate import check_prompts
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, AnswerGroup, Prompt, group_from_json, read_jsonl, to_json, write_jsonl
from tutelage.rewards.combine import combine
from tutelage.stages.common import Actor, Common, Count, load_actor, out_folder
from tutelage.stages.folders import check_unused
from tutelage.stages.selection import DEMONSTRATIONS, REPORT, write_demonstrations
from tutelage.stages.training import load, records_of
from tutelage.training.files import leftover

NO_PROMPTS = 'no prompts: give --data FILE (one {"prompt": ...} a line is enough; see docs/data.md)'


@config
class Sample(Common):
    """Answer each prompt several times and write answers.jsonl; with `--reward` also the best ones, for `sft`."""

    answers: Count = 4
    """Answers to each prompt."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Randomness of the draw: 1 is the model's own distribution, 0 its likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus: only the likeliest tokens that make up this probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the likeliest k tokens; 0: all."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer (`--stop "Question:"`); its text is cut before them."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens."""
    limit: Count | None = None
    """Only the first prompts."""
    reward: tuple[str, ...] = ()
    """Best-of-N: what chooses answers (forms as in `rl`); the chosen ones go into demonstrations.jsonl, which `sft` reads."""
    keep: Literal["best"] | Annotated[float, Field(gt=0, le=1)] = "best"
    """With `--reward`: the best answer to each prompt, or a share of them (0.25), rounded up to whole answers."""
    at_least: float | None = None
    """With `--reward`: answers that score less are not kept, even where they are the best."""

    @property
    def decoding(self) -> Decoding:
        """How answers are drawn."""
        return Decoding(self.max_new_tokens, self.temperature, self.top_p, top_k=self.top_k, stop=self.stop)


def main(cfg: Sample) -> Path:
    """Run the command; returns the path of answers.jsonl."""
    prompts = load_prompts(cfg.data, cfg.bad_rows)[: cfg.limit]
    if not cfg.reward and (cfg.keep != "best" or cfg.at_least is not None):
        raise ValueError("keep, at_least: nothing to choose by; give --reward NAME (docs/rewards.md)")
    folder = out_folder(cfg, "sample")
    target = folder / "answers.jsonl"
    check_unused(folder, (target.name, DEMONSTRATIONS, REPORT), cfg.resume)
    with ExitStack() as stack:
        rewards = stack.enter_context(combine(cfg.reward, device=cfg.device)) if cfg.reward else None
        if rewards is not None:
            rewards.check(prompts)
        actor = load_actor(cfg, None, trained=False)
        check_prompts(prompts, actor.chat, cfg.max_tokens - cfg.max_new_tokens)
        groups = answer(actor, prompts, cfg.answers, cfg.decoding, seed=f"{cfg.seed}/sample", label="answering")
        write_groups(target, groups)
        say(f"{len(groups)} prompts x {cfg.answers} answers in {target}")
        if rewards is not None:
            scores = rewards(prompts, [group.answers for group in groups])
            write_demonstrations(folder, groups, scores, cfg.keep, at_least=cfg.at_least, seed=cfg.seed)
    return target


def answer(
    actor: Actor, prompts: list[Prompt], count: int, decoding: Decoding, *, seed: str, label: str
) -> list[AnswerGroup]:
    """Answers to all prompts with a progress bar; the author is left to the caller."""
    tokens = [actor.chat.prompt_tokens(prompt) for prompt in prompts]
    spoken, clock = 0, time.perf_counter()
    with track(len(prompts) * count, label, "answer") as bar:

        def ended(one: Answer) -> None:
            nonlocal spoken
            spoken += len(one.tokens)
            bar.advance(1, **{"tokens/s": spoken / (time.perf_counter() - clock)})

        groups = actor.decoder.sample(tokens, count, decoding, seed, ended)
    return [AnswerGroup(prompt, tuple(group)) for prompt, group in zip(prompts, groups, strict=True)]


def load_prompts(sources: tuple[str, ...], bad_rows: Any = "error") -> list[Prompt]:
    """Prompts of any shape; ValueError where none is named."""
    return records_of(load(sources, "prompt", bad_rows, NO_PROMPTS))


def write_groups(path: Path, groups: list[AnswerGroup]) -> None:
    """answers.jsonl, whole or not at all."""
    aside = leftover(path)
    write_jsonl(aside, (to_json(group) for group in groups))
    aside.replace(path)


def read_groups(path: Path | str) -> list[AnswerGroup]:
    """The inverse of `write_groups`."""
    return [group_from_json(row) for row in read_jsonl(path)]
