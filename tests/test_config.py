"""Settings: strict, complete in their errors, the same from YAML and from flags, and dumped as recipes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.ppo import PPO
from tutelage.algorithms.preference import DPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.config import build, config, dump, parse, read_yaml, union_members

Method = Reinforce | GRPO | PPO | DPO | BradleyTerry | SFT


@dataclass(frozen=True)
class Adapter:
    """A plain dataclass among the settings."""

    rank: int = 16


@config
class Optimizer:
    """Nested settings."""

    rate: Annotated[float, Field(gt=0)] | None = None
    """Peak."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates."""


@config
class Recipe:
    """What a command takes."""

    model: str = "tiny"
    """Which model."""
    algorithm: Annotated[Method, Field(discriminator="name")] = Field(default_factory=GRPO)
    """The method."""
    data: tuple[str, ...] = ()
    """Files."""
    out: Path | None = None
    """Folder."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """How many."""
    level: Literal["low", "high"] = "low"
    """A choice."""
    quick: bool = False
    """A switch."""
    scale: float = 1.0
    """A number."""
    adapter: Adapter = field(default_factory=Adapter)
    """Nested, plain."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Nested."""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"stps": 3}, r"r.yaml: unknown key `stps`; known keys: model, algorithm, data"),
        ({"optimizer": {"lr": 1.0}}, r"r.yaml: unknown key `optimizer.lr`; known keys: rate, betas"),
        ({"adapter": {"ranks": 1}}, r"unknown key `adapter.ranks`; known keys: rank"),
        (
            {"algorithm": {"name": "dpo", "clip": 1}},
            r"unknown key `algorithm.clip`; known keys: name, beta, label_smooth",
        ),
        ({"steps": "3"}, r"r.yaml: steps: Input should be a valid integer; got '3'"),
        ({"steps": True}, r"steps: .*; got True"),
        ({"steps": 1.0}, r"steps: .*; got 1.0"),
        ({"steps": 0}, r"steps: Input should be greater than 0; got 0"),
        ({"quick": 1}, r"quick: .*; got 1"),
        ({"model": 3}, r"model: .*string; got 3"),
        ({"scale": "1"}, r"scale: .*; got '1'"),
        ({"data": "a"}, r"data: .*array; got 'a'"),
        ({"data": ["a", 3]}, r"data.1: .*string; got 3"),
        ({"level": "mid"}, r"level: Input should be 'low' or 'high'; got 'mid'"),
        ({"optimizer": {"rate": -1}}, r"optimizer.rate: .*greater than 0; got -1"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer.betas.1: "),
        ({"optimizer": 3}, r"optimizer: .*; got 3"),
        ({"adapter": {"rank": "3"}}, r"adapter.rank: .*; got '3'"),
        ({"algorithm": {"name": "grpo", "group_size": 1}}, r"algorithm.group_size: .*greater than 1; got 1"),
        (
            {"algorithm": "nope"},
            r"algorithm: unknown name 'nope'; known: reinforce, rloo, grpo, dr_grpo, dapo, gspo, cispo, ppo, dpo",
        ),
        (
            {"algorithm": {"group_size": 3}},
            r"algorithm: needs a `name`; known: reinforce, rloo.*got \{'group_size': 3\}",
        ),
        ({"algorithm": {"name": ["grpo"]}}, r"algorithm: unknown name"),
        ({"algorithm": None}, r"algorithm: .*; got None"),
        ({"algorithm": 3}, r"algorithm: .*; got 3"),
    ],
)
def test_errors_name_file_path_value_and_what_is_allowed(data, message):
    with pytest.raises(ValueError, match=message):
        build(Recipe, data, "r.yaml")


def test_every_error_has_its_line():
    with pytest.raises(ValueError, match="got 0") as error:
        build(Recipe, {"steps": 0, "stps": 1, "level": "mid"}, "r.yaml")
    assert len(str(error.value).splitlines()) == 3
    assert all(line.startswith("r.yaml: ") for line in str(error.value).splitlines())


def test_numbers_and_lists_fill_what_they_fit():
    built = build(Recipe, {"scale": 2, "data": ["a", "b"], "optimizer": {"betas": [0, 1]}, "out": "x/y"}, "r.yaml")
    assert (built.scale, built.data, built.optimizer.betas, built.out) == (2.0, ("a", "b"), (0.0, 1.0), Path("x/y"))
    assert isinstance(built.scale, float)


def test_settings_are_frozen_and_keyword_only():
    built = build(Recipe, {}, "")
    with pytest.raises(FrozenInstanceError):
        built.steps = 3
    with pytest.raises(Exception, match="positional"):
        SFT("sft")
    with pytest.raises(Exception, match="nope"):
        SFT(nope=1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ppo", PPO()),
        ({"name": "ppo", "clip": 0.3}, PPO(clip=0.3)),
        ("rloo", Reinforce(baseline="leave_one_out")),
        ({"name": "rloo", "group_size": 3}, Reinforce(baseline="leave_one_out", group_size=3)),
        ({"name": "rloo", "baseline": "none"}, Reinforce(baseline="none")),
        ("dr_grpo", GRPO(advantage="center", average="constant")),
        ("grpo", GRPO()),
    ],
)
def test_a_method_by_name_or_preset(given, expected):
    assert build(Recipe, {"algorithm": given}, "").algorithm == expected


def test_presets_are_settings_that_exist():
    for name, member in union_members(Method).items():
        assert build(Recipe, {"algorithm": name}, "").algorithm.__class__ is member
    policy_gradient = {"reinforce", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo"}
    assert set(union_members(Method)) == policy_gradient | {"dpo", "bradley_terry", "sft"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--steps", "4"], Recipe(steps=4)),
        (["--algorithm", "rloo"], Recipe(algorithm=Reinforce(baseline="leave_one_out"))),
        (["--algorithm=ppo", "--algorithm.clip", "0.3"], Recipe(algorithm=PPO(clip=0.3))),
        (["--algorithm.clip", "0.3", "--algorithm", "ppo"], Recipe(algorithm=PPO(clip=0.3))),
        (["--algorithm.clip-low", "0.3"], Recipe(algorithm=GRPO(clip_low=0.3))),
        (["--optimizer.rate", "3e-4"], Recipe(optimizer=Optimizer(rate=3e-4))),
        (["--optimizer.betas", "0.8", "0.9"], Recipe(optimizer=Optimizer(betas=(0.8, 0.9)))),
        (["--adapter.rank", "4", "--quick"], Recipe(adapter=Adapter(4), quick=True)),
        (["--data", "a", "b"], Recipe(data=("a", "b"))),
        (["--data", "a", "--steps", "4", "--data", "b=0.3"], Recipe(data=("a", "b=0.3"), steps=4)),
        (["--data=a=0.5", "--data=b", "--model=x=y"], Recipe(data=("a=0.5", "b"), model="x=y")),
        (["--out", "x/y"], Recipe(out=Path("x/y"))),
    ],
)
def test_flags(args, expected):
    assert parse(Recipe, args) == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], Reinforce(baseline="leave_one_out", group_size=3)),
        (["--algorithm.group-size", "7"], Reinforce(baseline="leave_one_out", group_size=7)),
        (["--algorithm", "rloo"], Reinforce(baseline="leave_one_out", group_size=3)),
        (["--algorithm", "grpo"], GRPO()),
        (["--algorithm", "reinforce"], Reinforce()),
    ],
)
def test_defaults_then_recipe_then_flags(args, expected):
    """A recipe's settings stay while its method does; another method starts from its own defaults."""
    parsed = parse(
        Recipe, [*args, "--data", "z"], {"algorithm": {"name": "rloo", "group_size": 3}, "steps": 9, "data": ["q"]}
    )
    assert parsed == Recipe(algorithm=expected, steps=9, data=("z",))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--algorithm", "nope"], "--algorithm: unknown name 'nope'; known: reinforce, rloo, grpo"),
        (["--algorithm"], "--algorithm needs a name; known: reinforce"),
    ],
)
def test_a_method_that_is_none(args, message):
    with pytest.raises(ValueError, match=message):
        parse(Recipe, args)


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--steps", "x"], "steps"), (["--nope"], "--nope"), (["--algorithm.group-size", "0"], "greater than 1")],
)
def test_other_bad_flags_exit_as_argparse_does(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Recipe, args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_the_chosen_methods_own_settings(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Recipe, ["--algorithm", "ppo", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert stop.value.code in (0, None)
    assert "--algorithm.gae-lambda" in shown
    assert "lambda: 1 trusts the sampled returns" in shown
    assert "--algorithm.clip-low" not in shown


@config
class Needing:
    """Two settings have no default."""

    source: str
    """What is read."""
    target: str
    """What is written."""
    seed: int = 0


def test_settings_without_a_default_are_flags_too(capsys):
    assert parse(Needing, ["--source", "a", "--target=b=c", "--seed", "3"]) == Needing(source="a", target="b=c", seed=3)
    assert parse(Needing, ["--target", "b"], {"source": "a"}) == Needing(source="a", target="b")
    with pytest.raises(ValueError, match="target: is needed and was not given"):
        parse(Needing, ["--source", "a"])
    with pytest.raises(SystemExit) as stop:
        parse(Needing, ["--help"])
    assert stop.value.code in (0, None)
    assert "What is written." in capsys.readouterr().out


METHODS = [
    *(member() for member in get_args(Method)),
    *(build(Recipe, {"algorithm": name}, "").algorithm for name in ("rloo", "dr_grpo", "dapo", "gspo", "cispo")),
    PPO(value_clip=None, bootstrap_truncated=True, kl_coefficient=1e-5),
    GRPO(epsilon=1e-8, clip_high=0.28, kl="k2"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_dumped_configuration_is_a_recipe(method, tmp_path):
    original = Recipe(algorithm=method, data=("a", "b=0.3"), out=Path("x"), optimizer=Optimizer(rate=3e-5))
    dump(original, tmp_path / "config.yaml", command="rl")
    recipe = read_yaml(tmp_path / "config.yaml")
    assert recipe.pop("command") == "rl"
    assert build(Recipe, recipe, "config.yaml") == original
    assert recipe["algorithm"]["name"] == method.name
    assert {f.name for f in fields(Recipe)} == recipe.keys(), "everything is written, also what was left at its default"


awkward = st.sampled_from(
    ["3e-4", "on", "null", "~", "1_000", "2024-01-01", "0x1F", "", " ", "#", "a: b", "- x", "@sft", "1e5"]
)
words = awkward | st.text(st.characters(exclude_characters="$", exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    words,
    st.lists(words, max_size=3),
    st.none() | st.integers(1, 10**12),
    numbers,
    st.none() | st.floats(1e-300, 1e300),
)
def test_any_value_survives_the_file(tmp_path, model, data, steps, scale, rate):
    """Strings that YAML would read as numbers, booleans or dates; numbers of any size."""
    original = Recipe(model=model, data=tuple(data), steps=steps, scale=scale, optimizer=Optimizer(rate=rate))
    dump(original, tmp_path / "c.yaml")
    assert build(Recipe, read_yaml(tmp_path / "c.yaml"), "c.yaml") == original


@pytest.mark.parametrize(
    ("written", "value"), [("3e-4", 3e-4), ("1E5", 1e5), (".5e1", 5.0), ("2.e-1", 0.2), ("-1e0", -1.0)]
)
def test_people_write_numbers_like_this(tmp_path, written, value):
    """YAML 1.1 reads `3e-4` as a string; so would a strict configuration refuse the commonest learning rates."""
    (tmp_path / "r.yaml").write_text(f"scale: {written}\nmodel: '{written}'\n")
    recipe = read_yaml(tmp_path / "r.yaml")
    assert recipe == {"scale": value, "model": written}
    assert yaml.safe_load("x: 3e-4") == {"x": "3e-4"}, "other users of the library are left alone"


def test_variables_are_filled_in(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_TEST_ROOT", "/data")
    monkeypatch.delenv("TUTELAGE_TEST_NONE", raising=False)
    path = tmp_path / "r.yaml"
    path.write_text("data: ['${TUTELAGE_TEST_ROOT}/a=0.5', plain]\nnested: {deep: ['${TUTELAGE_TEST_ROOT}']}\nn: 3\n")
    assert read_yaml(path) == {"data": ["/data/a=0.5", "plain"], "nested": {"deep": ["/data"]}, "n": 3}
    path.write_text("data: ['${TUTELAGE_TEST_NONE}/a']\n")
    with pytest.raises(ValueError, match=r"r.yaml: \$\{TUTELAGE_TEST_NONE\} is not set; set it: export [^;]*$"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2\n", r"r.yaml: not valid YAML: (.|\n)*line \d"),
        ("- a\n", "mapping.*got list"),
        ("", "got NoneType"),
    ],
)
def test_a_recipe_that_is_none(tmp_path, content, message):
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_yaml(path)
    with pytest.raises(ValueError, match="no such recipe"):
        read_yaml(tmp_path / "absent.yaml")
