"""`tutelage check`: what a recipe or data set would train on, whether that would go well and what it would cost; trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tutelage.config import parse, read_yaml
from tutelage.console import say, stage
from tutelage.data.readers import Loaded, load_sources
from tutelage.data.shapes import Kind
from tutelage.stages import prefer, reward, rl, sft
from tutelage.stages.pairs import load_split
from tutelage.stages.recipe import plan
from tutelage.stages.training import Ready
from tutelage.training.preflight import examine, show_examples, shown_rows

HELP = """usage: tutelage check [RECIPE] [--command sft|reward|prefer|rl] [--model ... --data ... and the command's other flags]

Shows what was recognised in each data source, the first examples with the trained tokens marked, every preflight finding
and the plan (tokens, minutes, memory). Trains nothing and writes nothing. Exit code 1 where a finding fails, 2 for bad input.
Without a recipe and --command, the shape of the data decides: demonstrations are checked for sft, comparisons for prefer,
prompts for rl. `tutelage COMMAND --help` explains the flags."""


TEACHER_PROMPTS = 8
"""Of a teacher whose answers are demonstrations, how many are looked at: sampling them all is training's matter."""


@dataclass(frozen=True)
class Command:
    """A training command: its settings, the records it reads, and how it becomes a task."""

    settings: type[Any]
    kind: Kind
    """Unless the settings say so themselves: what `prefer` reads is its method's matter."""
    ready: Callable[[Any, Sequence[Loaded]], Ready[Any]]


def main(args: Sequence[str]) -> int:
    """Run the command; returns the exit code. Raises ValueError for bad input."""
    args = list(args)
    if args and args[0] in ("-h", "--help"):
        say(HELP)
        return 0
    recipe = args.pop(0) if args and not args[0].startswith("-") else None
    data = {} if recipe is None else read_yaml(recipe)
    where = recipe or "flags"
    given, flags = _take(args, "--command")
    if "stages" in data:
        return _stages(data, where, given, flags)
    named = data.pop("command", None)
    if given and named and given != named:
        raise ValueError(f"{where} is a recipe of `tutelage {named}`; --command says {given}")
    command = given or named
    if command is None:
        command = _by_kind(flags, data, where)
    if command is None:
        return 0
    return check(command, parse(_known(command).settings, flags, data, where, prog=f"tutelage check ({command})"))


def check(command: str, cfg: Any) -> int:
    """Check one command's settings; returns 1 where a finding fails."""
    known = _known(command)
    stage(f"Check: tutelage {command}", "Nothing is trained and nothing is written.")
    kind: Any = getattr(cfg, "reads", known.kind)
    loaded = load_sources(cfg.data, kind, cfg.bad_rows)
    describe(loaded)
    if getattr(cfg, "heldout", ()):
        describe(load_sources(cfg.heldout, kind, cfg.bad_rows))
    ready = known.ready(cfg, loaded)
    show_examples(ready.chat, shown_rows(ready.chat, ready.records, ready.collated))
    found = examine(ready.task, ready.chat, ready.records, ready.collated)
    for line in found.lines():
        say(line)
    return 0 if found.ok else 1


def describe(loaded: Sequence[Loaded]) -> None:
    """What was recognised in each source, and the rows left out."""
    for one in loaded:
        say(one.describe())
        for line in one.skipped[:3]:
            say(f"  left out: {line}")


def _known(command: str) -> Command:
    if command not in COMMANDS:
        raise ValueError(f"command: nothing is trained by {command!r}; known: {', '.join(COMMANDS)}")
    return COMMANDS[command]


def _by_kind(flags: Sequence[str], data: Mapping[str, Any], where: str) -> str | None:
    """The command that the shape of the data asks for; None, with the data described, where no command trains on it."""
    cfg = parse(sft.Sft, _data_flags(flags), {k: v for k, v in data.items() if k in ("data", "bad_rows")}, where)
    loaded = load_sources(cfg.data, None, cfg.bad_rows)
    kind = loaded[0].kind
    found = {"demonstration": "sft", "comparison": "prefer", "prompt": "rl", "group": "rl"}.get(kind)
    if found is None:
        describe(loaded)
        say(f"no command trains on {kind} rows as they are; --command {', '.join(COMMANDS)} says what to read them as")
    return found


def _data_flags(flags: Sequence[str]) -> list[str]:
    """`--data` and `--bad-rows` with their values."""
    kept, mine = [], False
    for word in flags:
        if word.startswith("--"):
            mine = word.partition("=")[0] in ("--data", "--bad-rows")
        if mine:
            kept.append(word)
    return kept


def _take(args: Sequence[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of `flag` and the other words."""
    args = list(args)
    for at, word in enumerate(args):
        name, equals, value = word.partition("=")
        if name == flag:
            if not equals and at + 1 == len(args):
                raise ValueError(f"{flag} needs a value; known: {', '.join(COMMANDS)}")
            return (value, args[:at] + args[at + 1 :]) if equals else (args[at + 1], args[:at] + args[at + 2 :])
    return None, args


def _stages(recipe: Mapping[str, Any], where: str, only: str | None, flags: list[str]) -> int:
    """Every training stage of a recipe whose inputs are there already; the others wait for what earlier ones make."""
    worst = 0
    for one in plan(recipe, where):
        if one.command not in COMMANDS or only not in (None, one.command):
            continue
        if one.uses:
            say(f"\nstage {one.name}: reads what {', '.join(one.uses)} will make; check it when that has run")
            continue
        cfg = parse(one.kind, flags, one.settings, one.where, prog=f"tutelage check ({one.command})")
        worst = max(worst, check(one.command, cfg))
    return worst


def _sft(cfg: sft.Sft, loaded: Sequence[Loaded]) -> Ready[Any]:
    return sft.ready(cfg, loaded, limit=TEACHER_PROMPTS)[0]


def _prefer(cfg: prefer.Prefer, loaded: Sequence[Loaded]) -> Ready[Any]:
    training, heldout = load_split(cfg, cfg.reads)
    return prefer.ready(cfg, training, heldout)[0]


def _reward(cfg: reward.Reward, loaded: Sequence[Loaded]) -> Ready[Any]:
    training, heldout = reward.load_data(cfg)
    return reward.ready(cfg, training, heldout)[0]


def _rl(cfg: rl.RL, loaded: Sequence[Loaded]) -> Ready[Any]:
    if not cfg.reward and cfg.algorithm.name != "distill":
        say("no --reward given: training will need one; the rest is checked with `finished` in its place")
    with rl.rewards_of(cfg, cfg.reward or ("finished",)) as rewards:
        return rl.ready(cfg, loaded, rewards)[0]


COMMANDS = {
    "sft": Command(sft.Sft, "demonstration", _sft),
    "reward": Command(reward.Reward, "comparison", _reward),
    "prefer": Command(prefer.Prefer, "comparison", _prefer),
    "rl": Command(rl.RL, "prompt", _rl),
}
