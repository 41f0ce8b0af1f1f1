"""The command line: `tutelage COMMAND [recipe.yaml] [--flags]`, defaults < file < flags."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

HELP = """usage: tutelage COMMAND [recipe.yaml] [--flags]     (tutelage COMMAND --help explains every flag)

  quickstart   the whole loop on a small real model: answers, feedback, reward model, training, report
  run          a recipe with several stages (recipes/*.yaml), resumable
  check        what a data set or recipe would train on, before anything is trained

  sft          imitate demonstrations, or a teacher (distillation)
  reward       a scoring model from comparisons, yes/no labels or ratings
  prefer       train the policy on comparisons or yes/no labels directly (DPO, IPO, KTO)
  rl           sample, reward, reinforce (GRPO, PPO, REINFORCE, RLOO, Nash-MD, best-of-N, online DPO, distillation)

  collect      people compare, rank, rate, criticise or write answers in the browser
  labels       what those labels are worth; exports to train on, imports from other tools

  sample       a policy answers prompts; rewards may keep the best (best-of-N)
  refine       a policy rewrites answers as critiques ask, to train on
  simulate     simulated annotators rank answers by the quickstart's hidden rule
  evaluate     a policy against another: win rates and scores with intervals
  report       draw report.html of a run folder anew
  chat         talk to a model, or compare two blind
  bench        how fast a training step runs here, against what this machine could do

Start with: tutelage quickstart
"""


OTHERS = ("run", "check", "report", "labels")
"""Commands that read their arguments themselves."""
TRAINING = {
    "sft": "tutelage chat {}",
    "prefer": "tutelage chat {}",
    "rl": "tutelage chat {}",
    "reward": "tutelage rl --reward {} --data PROMPTS",
}
"""Commands that leave a run folder, and what its result is for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a ValueError at the door is one message on stderr and exit code 2."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    if args[0] in ("--version", "version"):
        print(f"tutelage {import_module('tutelage').__version__}")
        return
    try:
        sys.exit(dispatch(args[0], args[1:]))
    except ValueError as error:
        print(f"tutelage {args[0]}: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os._exit(141)
    except OSError as error:
        print(f"tutelage {args[0]}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped at once; what was saved last still counts", file=sys.stderr)
        sys.exit(130)


def dispatch(command: str, args: list[str]) -> int:
    """Find the stage, read its settings, run it. Returns the exit code."""
    from tutelage.stages.run import COMMANDS

    if command not in COMMANDS and command not in OTHERS:
        known = ", ".join([*COMMANDS, *OTHERS])
        raise ValueError(f"unknown command; known: {known}")
    settle_process()
    from tutelage.training.interrupt import Interrupted

    try:
        if command == "run":
            from tutelage.stages.run import main as run_recipe

            return run_recipe(args) or 0
        if command == "check":
            from tutelage.stages.check import main as check

            return check(args)
        if command == "report":
            return _report(args)
        if command == "labels":
            from tutelage.stages.labels import main as labels

            return labels(args)
        result = _stage(command, args)
    except Interrupted as stopped:
        print(f"\nsaved; go on with:  {stopped.command}", file=sys.stderr)
        return 130
    return result if isinstance(result, int) else 0


def _stage(command: str, args: list[str]) -> object:
    from tutelage.config import parse, read_yaml
    from tutelage.stages.recipe import settings_of
    from tutelage.stages.run import execute

    data, where = {}, "flags"
    if command == "chat" and args and not args[0].startswith("-"):
        args = ["--model", *args]
    elif args and not args[0].startswith("-"):
        where, args = args[0], args[1:]
        data = read_yaml(where)
        named = data.pop("command", command)
        if named != command:
            raise ValueError(f"{where} is a recipe of `tutelage {named}`, not of `tutelage {command}`")
        if "stages" in data:
            raise ValueError(f"{where} has stages: run it with `tutelage run {where}`")
    result = execute(command, parse(settings_of(command), args, data, where, prog=f"tutelage {command}"))
    if command in TRAINING and isinstance(result, Path):
        _tell_where(result, TRAINING[command])
    return result


def _tell_where(folder: Path, next_command: str) -> None:
    """Where a finished training lies, and what one does with it."""
    from tutelage.console import say

    say(f"in {folder}: {', '.join(sorted(p.name for p in folder.iterdir() if not p.name.startswith('.')))}")
    say(f"go on with:  {next_command.format(shlex.quote(str(folder)))}")


def _report(args: list[str]) -> int:
    from tutelage.evaluation.report import quickstart_report, training_report

    if {"-h", "--help"} & {*args}:
        print(
            "usage: tutelage report FOLDER\n\nDraws report.html of a run folder anew, from its metrics and samples, and prints where it is."
        )
        return 0
    if len(args) != 1 or args[0].startswith("-"):
        raise ValueError("give one run folder: tutelage report runs/...")
    folder = Path(args[0])
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder")
    draw = quickstart_report if (folder / "quickstart.json").exists() else training_report
    print(draw(folder))
    return 0


SPINS = "2000"
"""How often a thread of libgomp looks whether the others are ready before it sleeps: 0.1 ms.

Its own 300,000 are some 10 ms on processors whose `pause` is long. Meanwhile a thread that waits holds a core that the one
it waits for may need: beside one other busy process on two cores decoding took more than ten times as long, not twice.
"""


def settle_process() -> None:
    """Before torch loads: no telemetry, quiet libraries, threads that yield, and an allocator that keeps its pages."""
    from tutelage.memory import keep_pages

    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    keep_pages()


if __name__ == "__main__":
    main()
