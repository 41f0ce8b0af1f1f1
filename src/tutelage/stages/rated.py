"""Labelled answers as KTO reads them: yes or no, each with its partner, drawn by prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tutelage.data.chat import Chat
from tutelage.data.collate import Collated, ratings, ratings_with_partners
from tutelage.data.labelled import LabelledWithPartner, Partnered, with_partners
from tutelage.data.readers import Loaded
from tutelage.records import Rating
from tutelage.stages.training import records_of, stream_of
from tutelage.training.findings import row_totals


def rated_draw(
    loaded: Sequence[Loaded], chat: Chat, cfg: Any
) -> tuple[Callable[[int], tuple[LabelledWithPartner, dict[str, float]]], float, Collated[Any]]:
    """(step -> all labelled answers of the step's prompts, steps an epoch, all of them collated).

    Raises ValueError for a label that is neither yes nor no, and where a source has a single prompt.
    """
    records: list[Rating] = records_of(loaded)
    check_labels(records)
    alone = ratings(records, chat, cfg.max_tokens)
    # A mismatched row may be no longer than the longest row that is trained on: those are known to fit the model
    longest = int(row_totals(alone.batch.answers).max())
    batch = ratings_with_partners(with_partners(records), chat, longest).batch
    draw_groups, epoch = stream_of(loaded, cfg.batch_size, cfg.seed, lambda rows: by_prompt(with_partners(rows)))

    def draw(step: int) -> tuple[LabelledWithPartner, dict[str, float]]:
        rows = [row for group in draw_groups(step) for row in group]
        collated = ratings_with_partners(rows, chat, longest)
        return collated.batch, {"kto/partner_cut": collated.counts["partner_cut"] / len(rows)}

    return draw, epoch, Collated(batch, alone.counts)


def check_labels(records: Sequence[Rating]) -> None:
    """Raises ValueError for the first score that is neither 0 nor 1."""
    for record in records:
        if record.score not in (0.0, 1.0):
            raise ValueError(
                f"record that begins {record.prompt.text[:60]!r}: KTO learns from yes (1) and no (0); got a score of "
                f"{record.score:g} on the scale {record.scale[0]:g} to {record.scale[1]:g}: write a label for each answer"
            )


def by_prompt(rows: Sequence[Partnered]) -> list[list[Partnered]]:
    """Labelled answers to one prompt together."""
    groups: dict[str, list[Partnered]] = {}
    for row in rows:
        groups.setdefault(row.rating.prompt.key, []).append(row)
    return list(groups.values())
