"""`tutelage reward`: a scoring model from comparisons, or from answers judged alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tutelage.algorithms.assessment import Classifier, Regression
from tutelage.algorithms.outcome_value import OutcomeValue
from tutelage.algorithms.preference_model import PreferenceModel, preference_logits
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.config import config
from tutelage.console import say
from tutelage.data.batch import distinct
from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.readers import Loaded
from tutelage.data.shapes import Kind
from tutelage.data.two_answers import two_answers
from tutelage.evaluation.reward_report import reward_report
from tutelage.models.heads import ScalarModel, save_reward_model
from tutelage.models.logprobs import HeadedModel
from tutelage.records import Comparison
from tutelage.rewards.terms import RewardText
from tutelage.stages.assessment import RATED, load_rated, ready_rated, report_rated
from tutelage.stages.common import Count, Training, check_out
from tutelage.stages.pairs import load_split, pair_draw
from tutelage.stages.parts import in_parts
from tutelage.stages.scoring import new_scorer, reading_chat, scoring_task, start_head
from tutelage.stages.training import Ready, finished, records_of, run_task

Algorithm = BradleyTerry | PreferenceModel | Classifier | Regression | OutcomeValue


@config
class Reward(Training):
    """Train a scoring model: a language model with a head that gives one number to an answer, or compares two."""

    algorithm: Annotated[Algorithm, Field(discriminator="name")] = Field(default_factory=BradleyTerry)
    """From comparisons: `bradley_terry` (a score for each answer), `preference_model` (P(y beats y'), which reads both and can
    learn cycles). From answers judged alone: `classifier` (P(yes)), `regression` (the expected rating), `outcome_value` (the
    expected final reward from any prefix)."""
    labels: tuple[RewardText, ...] = ()
    """For methods that learn from answers judged alone: rewards (as in `rl`) that label the answers.jsonl of `--data` here."""
    probe: bool = True
    """Start a Bradley-Terry head at the best linear reading of the untrained model (arXiv:2202.10054), not near 0."""
    layers: Count | None = None
    """Keep only the model's first so many blocks (default: all): middle layers often judge as well, in less time."""
    heldout: tuple[str, ...] = ()
    """Judgments to report on; default: `heldout_share` of the prompts of `--data`."""
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts kept out of training where no `--heldout` is given (split by prompt, never by pair)."""

    @property
    def reads(self) -> Kind:
        """What `--data` holds."""
        if isinstance(self.algorithm, RATED):
            return "group" if self.labels else "rating"
        return "comparison"

    @property
    def reads_both(self) -> bool:
        """Whether the model reads two answers at a time."""
        return isinstance(self.algorithm, PreferenceModel)

    @property
    def collate(self) -> Any:
        """Comparisons -> the method's batch."""
        return two_answers if self.reads_both else comparisons


def load_data(cfg: Reward) -> tuple[tuple[Loaded, ...], list[Any]]:
    """(what is trained on, what is held out) as the method reads it."""
    return load_rated(cfg) if isinstance(cfg.algorithm, RATED) else load_split(cfg)


def ready(cfg: Reward, training: Sequence[Loaded], heldout: Sequence[Any]) -> tuple[Ready[Any], ScalarModel]:
    """The task, with the data checked and the model loaded."""
    if isinstance(cfg.algorithm, RATED):
        return ready_rated(cfg, training, heldout)
    records: list[Comparison] = records_of(training)
    chat = reading_chat(cfg, closed=not cfg.reads_both)
    checked = cfg.collate(records, chat, cfg.max_tokens)
    say(f"{len(records)} comparisons to train on, {len(heldout)} held out ({dict(checked.counts)})")
    module = new_scorer(cfg)
    draw, epoch = pair_draw(training, chat, cfg, cfg.collate)
    reader = HeadedModel(module, cfg.optimization.pass_tokens)
    task = scoring_task(cfg, reader, draw, epoch, "reward model")
    return Ready(task, chat, records, checked), module


def main(cfg: Reward) -> Path:
    """Run the command; returns the run folder, which holds reward_model/ and reward.json."""
    check_out(cfg, "reward")
    training, heldout = load_data(cfg)
    prepared, module = ready(cfg, training, heldout)
    if cfg.probe and isinstance(cfg.algorithm, BradleyTerry) and not cfg.resume:
        assert prepared.collated is not None
        reader = HeadedModel(module, cfg.optimization.pass_tokens)
        prompts = len({record.prompt.key for record in prepared.records})
        seen = round(len(prepared.records) * min(1.0, prepared.task.steps * cfg.batch_size / prompts))
        start_head(reader, prepared.collated.batch, cfg.algorithm.centering, seen, cfg.seed)
    run = run_task(cfg, "reward", prepared)
    if heldout and isinstance(cfg.algorithm, RATED):
        report_rated(cfg, module, prepared.chat, heldout, run)
    elif heldout:
        model = HeadedModel(module, cfg.optimization.pass_tokens)
        report = reward_report(heldout, lambda rows: _scores(cfg, model, rows, prepared.chat))
        (run.folder / "reward.json").write_text(json.dumps(report, indent=1))
        accuracy = report["accuracy"]
        say(
            f"held-out accuracy {accuracy['estimate']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}], "
            f"longer-wins {report['longer_wins']:.3f}, shorter-wins {report['shorter_wins']:.3f}"
        )
    marks: dict[str, Any] = {"two_answers": cfg.reads_both}
    if isinstance(cfg.algorithm, RATED):
        marks = {"output": cfg.algorithm.output, "every_prefix": isinstance(cfg.algorithm, OutcomeValue)}
    save_reward_model(module, prepared.chat.tokenizer, run.folder / "reward_model", **marks)
    return finished(run, "reward_model")


def _scores(cfg: Reward, model: HeadedModel, records: Sequence[Comparison], chat: Chat) -> list[tuple[float, float]]:
    """(score of chosen, score of rejected) of each comparison; of a preference model, half its logit and the other half."""
    batch = cfg.collate(records, chat, cfg.max_tokens).batch
    assert len(batch) == len(records), "a held-out pair was left out: its two sides are equal after the cut"
    if cfg.reads_both:
        half = in_parts(batch, partial(preference_logits, model), "reading held-out pairs", "pair") / 2
        chosen, rejected = half, -half
    else:
        rows, which = distinct(batch.both())
        chosen, rejected = in_parts(rows, model.scores, "reading held-out answers")[which].chunk(2)
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))
