"""`tutelage check`: what a recipe or data set would train on, whether that would go well and what it would cost; trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tutelage.algorithms.base import Models
from tutelage.config import parse, read_yaml
from tutelage.console import say, stage
from tutelage.data.chat import Chat
from tutelage.data.collate import Collated, check_prompts, comparisons, demonstrations
from tutelage.data.readers import Loaded, load_sources
from tutelage.data.shapes import Kind
from tutelage.data.stream import Stream
from tutelage.models.heads import new_scalar_model
from tutelage.models.load import load_backbone, load_tokenizer
from tutelage.models.logprobs import HeadedModel
from tutelage.models.sampling import Decoding
from tutelage.rewards.combine import combine
from tutelage.stages import prefer, reward, rl, sft
from tutelage.stages.common import Training, load_actor, precision
from tutelage.stages.recipe import plan
from tutelage.training.loop import Task
from tutelage.training.preflight import examine, show_examples, shown_rows
from tutelage.training.rollouts import RolloutSource

HELP = """usage: tutelage check [RECIPE] [--command sft|reward|prefer|rl] [--model ... --data ... and the command's other flags]

Shows what was recognised in each data source, the first examples with the trained tokens marked, every preflight finding
and the plan (tokens, minutes, memory). Trains nothing and writes nothing. Exit code 1 where a finding fails, 2 for bad input.
Without a recipe and --command, the shape of the data decides: demonstrations are checked for sft, comparisons for prefer,
prompts for rl. `tutelage COMMAND --help` explains the flags."""


@dataclass(frozen=True)
class Ready:
    """A task that could be trained at once, and the records it was made from."""

    task: Task
    chat: Chat
    collated: Collated[Any] | None = None


@dataclass(frozen=True)
class Command:
    """A training command: its settings, the records it reads, and how it becomes a task."""

    settings: type[Any]
    kind: Kind
    ready: Callable[[Any, list[Any]], Ready]


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
    loaded = load_sources(cfg.data, known.kind, cfg.bad_rows)
    describe(loaded)
    if getattr(cfg, "heldout", ()):
        describe(load_sources(cfg.heldout, known.kind, cfg.bad_rows))
    records = [record for one in loaded for record in one.records]
    ready = known.ready(cfg, records)
    show_examples(ready.chat, shown_rows(ready.chat, records, ready.collated))
    found = examine(ready.task, ready.chat, records, ready.collated)
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


def _task(
    cfg: Training, models: Models, draw: Callable[[int], Any], trained: Mapping[str, nn.Module], steps: int
) -> Task:
    algorithm: Any = cfg.algorithm  # type: ignore[attr-defined]
    return Task(models, algorithm, draw, trained, steps, cfg.peak_rate, cfg.optimization, cfg.seed)


def _sft(cfg: sft.Sft, records: list[Any]) -> Ready:
    actor = load_actor(cfg, cfg.adapter, tokens=cfg.optimization.tokens_per_pass)
    stream = Stream(records, cfg.batch_size, cfg.seed)

    def collate(rows: list[Any]) -> Collated[Any]:
        return demonstrations(rows, actor.chat, cfg.max_tokens, turns=cfg.turns)

    steps = cfg.steps or max(1, round(sft.DEFAULT_EPOCHS * stream.steps_per_epoch))
    task = _task(
        cfg,
        Models(policy=actor.policy),
        lambda step: (collate(stream.draw(step)).batch, {}),
        {"policy": actor.module},
        steps,
    )
    return Ready(task, actor.chat, collate(records))


def _prefer(cfg: prefer.Prefer, records: list[Any]) -> Ready:
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.tokens_per_pass)
    draw, steps = _draw_pairs(cfg, records, actor.chat)
    task = _task(cfg, Models(policy=actor.policy, reference=actor.reference), draw, {"policy": actor.module}, steps)
    return Ready(task, actor.chat, comparisons(records, actor.chat, cfg.max_tokens))


def _reward(cfg: reward.Reward, records: list[Any]) -> Ready:
    chat = Chat.of(load_tokenizer(cfg.model, ("policy",)), cfg.chat_template, cfg.system)
    dtype = "float32" if cfg.full else precision(cfg.dtype, cfg.device)
    backbone = load_backbone(cfg.model, lora=cfg.adapter, dtype=dtype, device=cfg.device, seed=cfg.seed)
    module = new_scalar_model(backbone, seed=cfg.seed)
    if cfg.full:
        module.requires_grad_(True)
    draw, steps = _draw_pairs(cfg, records, chat)
    task = _task(
        cfg, Models(reward=HeadedModel(module, cfg.optimization.tokens_per_pass)), draw, {"reward": module}, steps
    )
    return Ready(task, chat, comparisons(records, chat, cfg.max_tokens))


def _draw_pairs(cfg: Any, records: list[Any], chat: Chat) -> tuple[Callable[[int], Any], int]:
    """Whole prompts a step, and the default number of steps; held-out prompts are left out."""
    training = records if cfg.heldout else reward.split_by_prompt(records, cfg.heldout_share)[0]
    stream = Stream(reward.by_prompt(training), cfg.batch_size, cfg.seed)

    def draw(step: int) -> tuple[Any, dict[str, float]]:
        rows = [record for group in stream.draw(step) for record in group]
        return comparisons(rows, chat, cfg.max_tokens).batch, {}

    return draw, cfg.steps or max(1, round(reward.DEFAULT_EPOCHS * stream.steps_per_epoch))


def _rl(cfg: rl.RL, prompts: list[Any]) -> Ready:
    rewards = combine(cfg.reward, cfg.on_error, cfg.device) if cfg.reward else None  # type: ignore[arg-type]
    if rewards is None:
        say("no --reward given: training will need one; the rest is checked")
    else:
        rewards.check(prompts)
    actor = load_actor(cfg, cfg.adapter, temperature=cfg.temperature, tokens=cfg.optimization.tokens_per_pass)
    check_prompts(prompts, actor.chat, cfg.max_tokens - cfg.max_new_tokens)
    source = RolloutSource(
        draw_prompts=Stream(prompts, min(cfg.batch_size, len(prompts)), cfg.seed).draw,
        encode=actor.chat.prompt_tokens,
        sampler=actor.decoder,
        score=lambda prompts, groups: ([[0.0] * len(group) for group in groups], {}),
        decoding=Decoding(cfg.max_new_tokens, cfg.temperature),
        group_size=cfg.algorithm.group_size,
        seed=cfg.seed,
        keep_samples=lambda step, rows: None,
    )
    value = rl._value_model(cfg) if "value" in cfg.algorithm.needs else None
    return Ready(rl._task(cfg, actor, value, source), actor.chat)


COMMANDS = {
    "sft": Command(sft.Sft, "demonstration", _sft),
    "reward": Command(reward.Reward, "comparison", _reward),
    "prefer": Command(prefer.Prefer, "comparison", _prefer),
    "rl": Command(rl.RL, "prompt", _rl),
}
