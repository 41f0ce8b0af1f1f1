"""Recipes: short, every setting valid, every named file readable as what its stage needs; they run end to end in miniature."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import build, read_yaml
from tutelage.data.readers import load_records
from tutelage.records import Prompt, to_json, write_jsonl
from tutelage.stages.recipe import COMMANDS, plan, settings_of
from tutelage.stages.run import run_stages

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
KINDS: dict[str, Any] = {
    "sft": "demonstration",
    "reward": "comparison",
    "prefer": "comparison",
    "rl": "prompt",
    "sample": "prompt",
    "evaluate": "prompt",
}
EXPECTED = {
    "sums",
    "r1",
    "gsm8k-grpo",
    "hh-reward",
    "hh-dpo",
    "ipo",
    "kto",
    "polite-dpo",
    "sft",
    "blueprint",
    "nash",
    "distill",
    "polite-classifier",
    "outcome-value",
    "best-of-n",
    "online-dpo",
    "language-feedback",
    "exploitability",
    "ppo",
    "self-improvement",
    "exploration",
}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def entries(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of a recipe by name; a recipe of one command is one stage."""
    return recipe["stages"] if "stages" in recipe else {"only": dict(recipe)}


def test_all_of_them_are_here() -> None:
    assert {path.stem for path in RECIPES} == EXPECTED


@each_recipe
def test_short_and_opened_by_what_it_is_for(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    opening = "\n".join(line for line in lines[:6] if line.startswith("#"))
    assert opening.startswith("# ")
    assert "\n# Success: " in opening
    assert "docs/log.md" in "\n".join(lines[:8])


def check(recipe: Mapping[str, Any], where: str) -> None:
    """Builds every stage's settings and checks its references, as `tutelage run` does before anything runs."""
    if "stages" in recipe:
        assert [stage.name for stage in plan(recipe, where)] == list(recipe["stages"])
    else:
        settings = {key: value for key, value in recipe.items() if key != "command"}
        build(settings_of(recipe["command"]), settings, where)


@each_recipe
def test_every_setting_is_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_DATA", str(tmp_path))
    recipe = read_yaml(path)
    check(recipe, path.name)
    sources = [source for entry in entries(recipe).values() for source in entry.get("data", ())]
    assert all(source.startswith((f"{tmp_path}/", "task:sums/", "@")) for source in sources)


@each_recipe
def test_a_misspelt_key_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTELAGE_DATA", str(tmp_path))
    recipe = read_yaml(path)
    entry = next(iter(recipe["stages"].values())) if "stages" in recipe else recipe
    entry["stepz"] = 3
    with pytest.raises(ValueError, match="stepz"):
        check(recipe, path.name)


@each_recipe
def test_says_only_what_differs_from_the_defaults(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated all the same: the model, as the one thing that a reader is sure to look for and to change."""
    monkeypatch.setenv("TUTELAGE_DATA", "data")
    recipe = read_yaml(path)
    for name, entry in entries(recipe).items():
        assert entry["command"] in COMMANDS
        defaults = settings_of(entry["command"])
        for key, value in entry.items():
            if key not in ("command", "model"):
                assert getattr(build(defaults, {}, name), key) != value, f"{name}.{key} is the default"


@each_recipe
def test_the_data_can_be_read_as_each_stage_needs_it(path: Path, shared_data: Callable[..., Path]) -> None:
    shared_data()
    recipe = read_yaml(path)
    seen = 0
    for entry in entries(recipe).values():
        for source in entry.get("data", ()):
            if source.startswith("@"):
                continue  # an earlier stage makes it
            bad_rows = entry.get("bad_rows") or recipe.get("bad_rows", "error")
            loaded = load_records(source, KINDS[entry["command"]], bad_rows)
            assert len(loaded.records) > 0.99 * loaded.rows
            seen += 1
    assert seen


def row_of(record: Any) -> dict[str, Any]:
    """A record as a line of a data file; prompts by the key that holds conversations of any length."""
    row = to_json(record)
    return {**row, "prompt": row.pop("messages")} if isinstance(record, Prompt) else row


def miniature(recipe: dict[str, Any], model: Path) -> dict[str, Any]:
    """The same stages on a tiny model with the smallest budgets that still train."""
    small = copy.deepcopy(recipe)
    small["model"] = str(model)
    for entry in small["stages"].values():
        command = entry["command"]
        if "limit" in entry:
            entry["limit"] = 6
        if "heldout_share" in entry:
            entry["heldout_share"] = 0.5
        if entry.get("model", "").startswith("builtin:"):
            entry["model"] = str(model)
        for other in ("against", "reference"):
            if entry.get(other, "").startswith("builtin:"):
                entry[other] = str(model)
        if command in ("sft", "reward", "prefer", "rl"):
            entry |= {"steps": 1, "batch_size": 2, "max_tokens": 4000, "optimization": {"tokens_per_pass": 8192}}
        if command in ("rl", "evaluate", "sample", "refine"):
            entry["max_new_tokens"] = 4
        if "exam" in entry:
            entry["exam"] |= {"every": 1, "answers": 2, "prompts": 2}
        if command == "evaluate":
            entry |= {"limit": 3, "answers": 1}
    return small


def use_little_data(recipe: dict[str, Any], folder: Path) -> None:
    """Every file that the recipe names becomes its first rows that have short texts (a byte is a token here)."""
    for name, entry in recipe["stages"].items():
        sources = []
        for number, source in enumerate(entry.get("data", ())):
            if source.startswith("@"):
                sources.append(source)
                continue
            if source.startswith("task:"):
                sources.append(re.sub(r"^(task:sums/\w+).*", r"\1(size=6)", source))
                continue
            records = load_records(source, KINDS[entry["command"]], "skip").records
            short = [r for r in records if len(json.dumps(to_json(r))) < 1500][:6]
            assert len(short) == 6
            sources.append(str(folder / f"{name}-{number}.jsonl"))
            write_jsonl(sources[-1], map(row_of, short))
        if sources:
            entry["data"] = sources


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("distill", "sums", "r1", "gsm8k-grpo", "polite-dpo", "sft", "blueprint", "nash", "exploitability"),
        *("ppo", "exploration"),
    ],
)
def test_every_stage_hands_over_to_the_next(
    name: str, tmp_path: Path, shared_data: Callable[..., Path], tiny: tuple[Any, Any]
) -> None:
    """The recipe's own stages and references on a tiny model, one step each."""
    from tutelage.models.load import save_policy

    shared_data()
    save_policy(*tiny, tmp_path / "tiny")
    recipe = miniature(read_yaml(ROOT / "recipes" / f"{name}.yaml"), tmp_path / "tiny")
    use_little_data(recipe, tmp_path)
    folders = run_stages(recipe, tmp_path / "out", False, name)
    assert list(folders) == list(recipe["stages"])
    exam = json.loads((list(folders.values())[-1] / "evaluation.json").read_text())
    (judged,) = exam["judges"].values()
    assert judged["difference"]["low"] <= judged["difference"]["estimate"] <= judged["difference"]["high"]
    assert exam["prompts"] == 3
    assert exam["kl"]["low"] <= exam["kl"]["estimate"] <= exam["kl"]["high"]


SUCCESS: dict[str, tuple[str, str]] = {
    "ipo": ("only/prefer.json", "accuracy"),
    "kto": ("only/prefer.json", "auc"),
    "hh-dpo": ("only/prefer.json", "accuracy"),
    "hh-reward": ("only/reward.json", "accuracy"),
    "polite-classifier": ("only/reward.json", "auc"),
    "outcome-value": ("value/reward.json", "read"),
    "best-of-n": ("exam/evaluation.json", "judges"),
    "self-improvement": ("exam/evaluation.json", "judges"),
    "online-dpo": ("exam/evaluation.json", "judges"),
    "language-feedback": ("exam/evaluation.json", "judges"),
}
"""The file and the key in it that hold a recipe's success number."""


def speaker(recipe: Mapping[str, Any], model: Path, folder: Path) -> Path:
    """A model that has been taught to say to the recipe's prompts the solution (or yes), or two words, and to stop."""
    from tutelage.stages.sft import Sft
    from tutelage.stages.sft import main as sft

    sources = {source: None for entry in recipe["stages"].values() for source in entry.get("data", ())}
    asked = [source for source in sources if source[0] != "@" and not source.startswith("task:sums/sft")]
    prompts: list[Any] = [record for source in asked for record in load_records(source, "prompt", "error").records]
    lessons = [(prompt, said) for prompt in prompts for said in (prompt.solution or "yes", "1 2")]
    rows = [{"prompt": prompt.messages[-1].content, "completion": said} for prompt, said in lessons]
    write_jsonl(folder / "lessons.jsonl", rows)
    settings = {"model": str(model), "data": [str(folder / "lessons.jsonl")], "out": str(folder / "speaker")}
    quick = {"full": True, "steps": 40, "max_tokens": 4000, "optimization": {"learning_rate": 0.01, "save_every": 40}}
    return sft(build(Sft, {**settings, **quick}, "test")) / "policy"


@pytest.mark.slow
@pytest.mark.parametrize("name", SUCCESS)
def test_its_success_number_is_where_it_says(
    name: str, tmp_path: Path, shared_data: Callable[..., Path], tiny: tuple[Any, Any]
) -> None:
    """The recipe on a tiny model and little data, one step a stage, to the number that it is judged by."""
    from tutelage.models.load import save_policy

    shared_data()
    save_policy(*tiny, tmp_path / "tiny")
    recipe = read_yaml(ROOT / "recipes" / f"{name}.yaml")
    if "stages" not in recipe:
        model, bad_rows = recipe.pop("model"), recipe.pop("bad_rows")
        recipe = {"model": model, "bad_rows": bad_rows, "stages": {"only": recipe}}
    small = miniature(recipe, tmp_path / "tiny")
    use_little_data(small, tmp_path)
    if any(entry["command"] == "sample" or entry.get("reward") for entry in small["stages"].values()):
        spoken = speaker(small, tmp_path / "tiny", tmp_path)
        small = miniature(small | {"model": str(spoken)}, spoken)
    run_stages(small, tmp_path / "out", False, name)
    file, key = SUCCESS[name]
    comment = (ROOT / "recipes" / f"{name}.yaml").read_text().partition("# Cost")[0]
    assert Path(file).name in comment
    number = json.loads((tmp_path / "out" / file).read_text())[key]
    if key == "judges":
        ((_, judged),) = number.items()
        assert "`difference`" in comment
        number = judged["difference"]
    if key == "read":
        number = number["0.75"]["auc"]
    assert number["low"] <= number["estimate"] <= number["high"]
