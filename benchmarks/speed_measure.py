"""One row: both sides loaded in processes of their own, ours and the rival's units in turn, and what comes of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from checkout import commit
from speed_data import Source, with_answers
from speed_process import Peer, WorkerError
from speed_rows import Row, Variant
from speed_vllm_env import FOLDER, VERSION, prepare
from speed_work import Work
from tutelage.console import Bar, track
from tutelage.training.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"TRL": "trl", "transformers generate": "transformers"}


REPEATED = 1.25
"""Tokens through the layers for a real one: a prompt whose answers do not fit into one pass is computed in each."""
SAME_ANSWERS = 0.9
"""Share of the answers that a second sampling must repeat: few tokens fall the other way by rounding."""


@dataclass(frozen=True)
class Sides:
    """Where the result goes, how often each side works, and (ours against ours) the other revision's package."""

    path: Path
    repetitions: int
    other: str | None = None


def measure_row(row: Row, source: Source, sides: Sides) -> dict[str, Any]:
    """The row's result, also written to `sides.path`. Raises RuntimeError where the two sides did not do the same."""
    candidates = [variant for variant in row.variants if variant.counts]
    tries = candidates if len(candidates) > 1 else []
    listed = [variant for variant in row.variants if not variant.counts]
    with track(4 + len(tries) + 2 * sides.repetitions + len(listed), row.name, "unit") as bar:
        work = _work(row, source)
        bar.advance()
        trial = work.trial(*row.trial)
        tried = [_once(row, source, trial, variant, bar) for variant in tries]
        best = fastest(tried) if tried else _plain(candidates)
        repetitions, facts = _alternate(row, source, work, best, sides=sides, bar=bar)
        settings = {"settings": best["settings"], "environment": best["environment"]}
        rival = {"name": row.rival_name, "version": _version(row), **settings, "trial": trial.counts, "tried": tried}
        found = {
            "row": row.name,
            "title": row.title,
            "command": f'make bench ARGS="--only {row.name}"',
            "commit": commit(ROOT),
            "rival": {**rival, "listed": []},
            "targets": {name: getattr(row, name) for name in ("target", "stretch", "limit", "memory")},
            "work": work.counts,
            "threads": source.threads,
            "facts": facts,
            "repetitions": repetitions,
            **summary(row, repetitions),
        }
        _keep(found, sides.path)
        for variant in listed:
            found["rival"]["listed"].append(_once(row, source, work, variant, bar))
            _keep(found, sides.path)
    return found


def _keep(found: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(found, indent=1) + "\n")


def summary(row: Row, repetitions: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians, the ratio with its range, peaks, the fraction of the floor, and how well the two sides agree."""
    ratios = [one["rival"]["seconds"] / one["ours"]["seconds"] for one in repetitions]
    names = ("ours", "rival")
    seconds = {name: median(one[name]["seconds"] for one in repetitions) for name in names}
    found: dict[str, Any] = {
        "seconds": seconds,
        "ratio": {"median": median(ratios), "min": min(ratios), "max": max(ratios)},
        "peak_mb": {name: max(one[name]["peak_mb"] for one in repetitions) for name in names},
        "agreement": agreement(row.compared, repetitions[0]),
    }
    last = repetitions[-1]["ours"]
    if "floor" in last:
        floor = sum(last["floor"].values())
        found["fraction_of_limit"] = floor / seconds["ours"]
        if found["fraction_of_limit"] > 1:
            raise RuntimeError(f"{row.name}: {seconds['ours']:.3g} s is below the floor of {floor:.3g} s")
        found["machine"] = last["machine"]
    if "floor_of_unit" in last:
        found["fraction_of_unit"] = sum(last["floor_of_unit"].values()) / seconds["ours"]
    return found


def agreement(
    compared: Mapping[str, tuple[float, float]], repetition: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Each figure on both sides and how far they may differ. Raises RuntimeError where they differ more."""
    found = {}
    for name, (absolute, relative) in compared.items():
        ours, rival = repetition["ours"][name], repetition["rival"][name]
        allowed = absolute + relative * abs(rival)
        if not abs(ours - rival) <= allowed:
            raise RuntimeError(f"{name}: ours is {ours:.6g}, the rival's {rival:.6g}; they may differ by {allowed:.2g}")
        found[name] = {"ours": ours, "rival": rival, "allowed": allowed}
    return found


def check_ours(unit: Mapping[str, Any], work: Work) -> None:
    """Our side did the work as it is meant. Raises RuntimeError where prompts were computed again and again, or tokens differ."""
    tokens = unit.get("trained_tokens", 0)
    if tokens > REPEATED * work.counts["tokens"]:
        raise RuntimeError(f"{tokens} tokens went through the layers for {work.counts['tokens']} real ones")
    if unit.get("answers_as_given", 1.0) < SAME_ANSWERS:
        raise RuntimeError(f"only {unit['answers_as_given']:.0%} of our answers are those that the rival replays")


def _work(row: Row, source: Source) -> Work:
    """The row's work, with answers where it has prompts."""
    work = row.build(source)
    return with_answers(work, source, row.name) if row.kind == "rollouts" else work


def _plain(candidates: Sequence[Variant]) -> dict[str, Any]:
    """The only setting that there is, or none."""
    return _described(candidates[0] if candidates else Variant())


def _described(variant: Variant) -> dict[str, Any]:
    return {name: value for name, value in asdict(variant).items() if name not in ("counts", "why") or variant.why}


def _once(row: Row, source: Source, work: Work, variant: Variant, bar: Bar) -> dict[str, Any]:
    """Seconds and peak of the rival's first unit in these settings, or why it does not run in them."""
    try:
        with _rival(row, source, work, _Setting(variant.settings, variant.environment)) as peer:
            unit = peer.unit()
    except WorkerError as error:
        return {**_described(variant), "failed": last_words(error)}
    finally:
        bar.advance()
    return {**_described(variant), "seconds": unit["seconds"], "peak_mb": unit["peak_mb"]}


def last_words(error: Exception) -> str:
    """The last line of an error, without the folders of this machine."""
    return re.sub(r"/(?:[\w.+-]+/)+", "", str(error).splitlines()[-1])


def fastest(tried: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The quickest of the settings that run. Raises RuntimeError where none does."""
    running = [one for one in tried if "failed" not in one]
    if not running:
        raise RuntimeError("the rival runs in none of its settings:\n" + "\n".join(one["failed"] for one in tried))
    return min(running, key=lambda one: one["seconds"])


@dataclass(frozen=True)
class _Setting:
    """What the rival is started with."""

    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    package: str | None = None


def _rival(row: Row, source: Source, work: Work, setting: _Setting) -> Peer:
    path = work.with_settings(setting.settings).write(source.cache / "works" / f"{row.name}-rival.json")
    own = {name: value.replace("{environment}", str(FOLDER)) for name, value in setting.environment.items()}
    environment = {**_threads(source), **own}
    if setting.package is not None:
        environment["PYTHONPATH"] = setting.package
    python = {"python": prepare()} if row.python == "vllm" else {}
    return Peer(row.rival, path, log=source.cache / "logs" / f"{row.name}-rival.log", environment=environment, **python)


def _alternate(
    row: Row, source: Source, work: Work, best: Mapping[str, Any], *, sides: Sides, bar: Bar
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ours, the rival, ours, the rival: the figures of each repetition, and what the sides say of themselves."""
    own = replace(work, settings={"settled": True, **row.settings})
    path = own.write(source.cache / "works" / f"{row.name}-ours.json")
    given = own.settings if sides.other else best["settings"]
    setting = _Setting(given, best["environment"], sides.other)
    with ExitStack() as stack:
        log = source.cache / "logs" / f"{row.name}-ours.log"
        ours = stack.enter_context(Peer(row.ours, path, log=log, environment=_threads(source)))
        rival = stack.enter_context(_rival(row, source, work, setting))
        bar.advance()
        first = {}  # buffers are allocated and pages faulted in: a run pays that once, in its first step
        for name, peer in (("ours", ours), ("rival", rival)):
            first[name] = peer.unit()["seconds"]
            bar.advance(1, **{name: first[name]})
        repetitions = []
        for _ in range(sides.repetitions):
            one = {}
            for name, peer in (("ours", ours), ("rival", rival)):
                one[name] = {key: value for key, value in peer.unit().items() if key not in ("answers", "listened")}
                bar.advance(1, **{name: one[name]["seconds"]})
            check_ours(one["ours"], work)
            agreement(row.compared, one)
            repetitions.append(one)
        loaded = {"ours": ours.loaded_mb, "rival": rival.loaded_mb}
        return repetitions, {"ours": ours.facts, "rival": rival.facts, "loaded_mb": loaded, "first_seconds": first}


def _threads(source: Source) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**dict.fromkeys(names, str(source.threads)), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _version(row: Row) -> str:
    if row.python == "vllm":
        return VERSION
    try:
        return version(PACKAGES.get(row.rival_name.split(",")[0], "tutelage"))
    except PackageNotFoundError:
        return "absent"
