"""A teacher for `sft` and `rl`: its distributions over the student's own tokens, or its answers as demonstrations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tutelage.algorithms.base import Models
from tutelage.algorithms.distill import Distill
from tutelage.console import say
from tutelage.data.batch import Sequences
from tutelage.data.collate import Collated, check_prompts, demonstrations, ratings
from tutelage.data.readers import Loaded
from tutelage.models.distribution import DistributionModel
from tutelage.models.load import describe, load_policy, load_tokenizer
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, AnswerGroup, Demonstration, Prompt, Rating
from tutelage.stages.common import Actor, Training, load_actor, precision
from tutelage.stages.networks import same_vocabulary
from tutelage.stages.sample import answer, read_groups, write_groups
from tutelage.stages.training import records_of, stream_of
from tutelage.training.loop import Draw
from tutelage.training.mixed import MixedSource, Rehearsed, last_prompt
from tutelage.training.run import Run

ANSWERS = "teacher.jsonl"
"""In the run folder: what the teacher said, at the sequence level."""


def check_teacher(method: Any, teacher: str | None) -> None:
    """Raises ValueError where a teacher is missing, or where nobody asks for one."""
    if isinstance(method, Distill) and teacher is None:
        raise ValueError("algorithm distill learns from a teacher: give --teacher MODEL")
    if not isinstance(method, Distill) and teacher is not None:
        raise ValueError(f"teacher: algorithm {method.name} has none; take --algorithm distill")


def with_teacher(cfg: Training, actor: Actor, name: str) -> Models:
    """Student and teacher as they are compared over the vocabulary. Raises ValueError for other tokens than the student's."""
    try:
        same_vocabulary(actor.tokenizer, load_tokenizer(name, ("policy",)), f"--teacher {name}")
    except ValueError as error:
        raise ValueError(
            f"{error}; from a teacher with another tokenizer a student can learn the answers: --algorithm.level sequence"
        ) from None
    module = load_policy(name, dtype=precision(cfg.dtype, cfg.device), device=cfg.device).requires_grad_(False)
    say(f"teacher: {describe(module)}")
    tokens = cfg.optimization.pass_tokens
    teacher = DistributionModel(module, actor.policy.temperature, tokens_per_pass=tokens)
    return Models(policy=DistributionModel.of(actor.policy), teacher=teacher)


def token_draw(cfg: Any, loaded: Sequence[Loaded], actor: Actor) -> tuple[Draw, float, Collated[Sequences]]:
    """(step -> demonstrations, a share of them answered by the student; steps an epoch; all of them collated)."""
    records: list[Demonstration] = records_of(loaded)
    draw_records, epoch = stream_of(loaded, cfg.batch_size, cfg.seed)

    def collate(rows: Sequence[Demonstration]) -> Sequences:
        return demonstrations(rows, actor.chat, cfg.max_tokens, turns=cfg.turns).batch

    checked = demonstrations(records, actor.chat, cfg.max_tokens, turns=cfg.turns)
    share = (cfg.algorithm.on_policy or 0.0) if isinstance(cfg.algorithm, Distill) else 0.0
    if share == 0:
        return lambda step: (collate(draw_records(step)), {}), epoch, checked
    check_prompts([last_prompt(record) for record in records], actor.chat, cfg.max_tokens - cfg.max_new_tokens)
    source = MixedSource(
        draw_records,
        collate,
        actor.chat.prompt_tokens,
        actor.decoder,
        Decoding(cfg.max_new_tokens, cfg.temperature),
        share,
        cfg.seed,
        keep_samples=lambda step, rows: None,  # the run folder is opened later
    )
    return Rehearsed(source), epoch, checked


@dataclass(frozen=True)
class TeachersAnswers:
    """Draws the teacher's answers, which are kept in the run folder."""

    groups: list[AnswerGroup]
    draw: Draw

    def __call__(self, step: int) -> Any:
        """The rows of a step."""
        return self.draw(step)

    def within(self, run: Run) -> Draw:
        """The same; what the teacher said is written down."""
        write_groups(run.folder / ANSWERS, self.groups)
        return self.draw


def sequence_draw(
    cfg: Any, loaded: Sequence[Loaded], actor: Actor, limit: int | None = None
) -> tuple[list[Rating], Draw, float, Collated[Sequences]]:
    """(the teacher's answers; step -> rows of them; steps an epoch; all of them collated); `limit` prompts of each source.

    With the student's tokenizer and stop token the sampled ids are trained on, otherwise their text in the student's tokens.
    """
    asked = [replace(one, records=one.records[:limit]) for one in loaded]
    groups = teachers_answers(cfg, records_of(asked), actor)
    left = iter(groups)
    answered = [replace(one, kind="rating", records=_said(left, len(one.records))) for one in asked]
    rows: list[Rating] = records_of(answered)
    if not rows:
        raise ValueError(f"--teacher {cfg.teacher}: every answer is empty; is it a chat model?")

    def collate(some: Sequence[Rating]) -> Collated[Sequences]:
        found = ratings(some, actor.chat, cfg.max_tokens)
        return Collated(found.batch.answers, found.counts)

    draw_rows, epoch = stream_of([one for one in answered if one.records], cfg.batch_size, cfg.seed)
    return rows, TeachersAnswers(groups, lambda step: (collate(draw_rows(step)).batch, {})), epoch, collate(rows)


def _said(groups: Iterator[AnswerGroup], count: int) -> tuple[Rating, ...]:
    """The answers of the next `count` prompts; a rating is how a record carries an answer's token ids."""
    some = [next(groups) for _ in range(count)]
    return tuple(Rating(g.prompt, one, 1.0) for g in some for one in g.answers if one.tokens or one.text)


def teachers_answers(cfg: Any, prompts: list[Prompt], actor: Actor) -> list[AnswerGroup]:
    """One answer to each prompt, in the teacher's own template; a resumed run reads what it sampled before."""
    kept = Path(cfg.out or "") / ANSWERS
    if cfg.resume and kept.is_file():
        return read_groups(kept)
    speaker = load_actor(replace(cfg, model=cfg.teacher, chat_template=None), None, trained=False)
    check_prompts(prompts, speaker.chat, cfg.max_tokens - cfg.max_new_tokens)
    decoding = Decoding(cfg.max_new_tokens, cfg.temperature)
    groups = answer(speaker, prompts, 1, decoding, seed=f"{cfg.seed}/teacher", label="the teacher answers")
    alike = (
        speaker.tokenizer.get_vocab() == actor.tokenizer.get_vocab()
        and speaker.chat.stop_tokens == actor.chat.stop_tokens
    )
    if alike:
        return groups
    say("the teacher has another tokenizer: the student learns the text of its answers, in its own tokens")
    return [AnswerGroup(g.prompt, tuple(Answer(a.text, stop_reason=a.stop_reason) for a in g.answers)) for g in groups]
