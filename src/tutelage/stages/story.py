"""What a quickstart run has found so far, as one JSON file that the report draws."""

from __future__ import annotations

import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

from tutelage.records import AnswerGroup, prompt_from_json, read_jsonl
from tutelage.stages.monitor import curve
from tutelage.stages.sample import read_groups

LEFT_OUT = "left_out.json"
"""Rows of the user's files that were skipped, by the kind of file."""


def collect(folder: Path, cfg: Any, minutes: dict[str, float]) -> dict[str, Any]:
    """Read the stages' folders and write quickstart.json; parts that are not there yet are left out."""
    policy = "prefer" if cfg.algorithm == "dpo" else "rl"
    story: dict[str, Any] = {
        "seed": cfg.seed,
        "algorithm": cfg.algorithm,
        "control": cfg.control,
        "quick": cfg.quick,
        "model": cfg.model,
        "minutes": minutes,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "status": "finished" if (folder / "evaluation" / "evaluation.json").exists() else "running",
        "prompts": _prompts(folder),
    }
    parts = {
        "left_out": _json(folder / LEFT_OUT),
        "answers": _answers(folder / "answers" / "answers.jsonl"),
        "feedback": _json(folder / "feedback.json" if cfg.feedback else folder / "feedback" / "feedback.json"),
        "reward_model": _reward_model(folder, bool(cfg.feedback)),
        "curve": _curve(folder / policy / "metrics.jsonl"),
        **_evaluation(folder / "evaluation"),
        "tokens": _tokens(folder, policy),
        "next": [f"tutelage chat {folder / policy}", f"tutelage chat {folder / policy} --compare {cfg.model}"],
    }
    story |= {name: part for name, part in parts.items() if part}
    part = folder / "quickstart.json.part"
    part.write_text(json.dumps(story, indent=1, ensure_ascii=False))
    part.replace(folder / "quickstart.json")
    return story


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _prompts(folder: Path) -> dict[str, Any]:
    sides = {
        side: [prompt_from_json(row) for row in read_jsonl(folder / "prompts" / f"{side}.jsonl")]
        for side in ("train", "heldout")
    }
    categories = Counter(p.category or "unnamed" for side in sides.values() for p in side)
    return {
        "train": len(sides["train"]),
        "heldout": len(sides["heldout"]),
        "categories": dict(categories.most_common()),
        "examples": [p.text for p in sides["train"][:6]],
    }


def _answers(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    groups = read_groups(path)
    answers = [a for g in groups for a in g.answers]
    return {
        "count": len(answers),
        "mean_tokens": sum(len(a.tokens) for a in answers) / len(answers),
        "finished": sum(a.finished for a in answers) / len(answers),
        "examples": [_example(g) for g in groups[:3]],
    }


def _example(group: AnswerGroup) -> dict[str, Any]:
    return {"prompt": group.prompt.text, "answers": [a.text for a in group.answers]}


def _reward_model(folder: Path, real: bool) -> dict[str, Any]:
    report = _json(folder / "reward" / "reward.json")
    feedback = _json(folder / "feedback" / "feedback.json")
    if report and not real:
        report["ceiling"] = (feedback.get("heldout") or {}).get("ceiling")
    return report


def _curve(path: Path) -> list[dict[str, Any]]:
    return curve(list(_rows(path))) if path.is_file() else []


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _evaluation(folder: Path) -> dict[str, Any]:
    found = _json(folder / "evaluation.json")
    if not found:
        return {}
    judges = found["judges"]
    evaluation: dict[str, Any] = {"kl": found.get("kl"), "before": {}, "after": {}}
    for name, one in judges.items():
        evaluation[f"win_{name}"] = one["win_rate"]
        evaluation["before"][name] = one["against_score"]["estimate"]
        evaluation["after"][name] = one["score"]["estimate"]
    main = judges.get("gold") or next(iter(judges.values()))
    evaluation |= {"ties": main["ties"], "matched_length": main["matched_length"]}
    for side, key in (("before", "against"), ("after", "policy")):
        evaluation[side] |= {"length": found[key]["tokens"], "finished": found[key]["finished"]}
    samples = [
        {
            "prompt": row["prompt"][-1]["content"],
            "before": row["against"],
            "after": row["policy"],
            **{
                f"{n}_{when}": row[f"{n}_{side}"]
                for n in judges
                for when, side in (("before", "against"), ("after", "policy"))
            },
        }
        for row in _rows(folder / "samples.jsonl")[:10]
    ]
    return {"evaluation": evaluation, "samples": samples}


def _tokens(folder: Path, policy: str) -> dict[str, int]:
    """Answer tokens sampled in each phase."""
    tokens = {
        name: sum(len(a.tokens) for g in read_groups(path) for a in g.answers)
        for name in ("answers", "heldout", "evaluation")
        if (path := folder / name / "answers.jsonl").is_file()
    }
    lines = _rows(folder / policy / "metrics.jsonl") if (folder / policy / "metrics.jsonl").is_file() else []
    spoken = sum(r.get("answer/tokens_per_second", 0) * r.get("time/sample", 0) for r in lines)
    return tokens | ({policy: round(spoken)} if spoken else {})
