"""The quickstart's claim and its controls: three seeds, shuffled labels, the hidden rule as reward, PPO; then one table.

python benchmarks/quickstart.py --folder build/quickstart [--only seed0]    10 to 30 minutes a run; finished ones are kept
python benchmarks/quickstart.py --folder build/quickstart --collect         only the table, of the runs that are there
python benchmarks/quickstart.py --folder build/new --earlier build/quickstart
                                                only the policy and its evaluation anew: up to the reward model a run goes on from
                                                the earlier one's files, and the table says at which commit those were made

Writes benchmarks/results/quickstart.json with commit, command, minutes and memory of every run, and exits 1 where a bound is missed:
a seed's lower bound above 60 %, shuffled labels' interval around 50 %, the reward model above a coin and the longer or shorter
answer and at 60 % of its labels' margin, 30 minutes, 8 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkout import commit

RESULT = Path(__file__).parent / "results" / "quickstart.json"
RUNS = {
    "seed0": ["--seed", "0"],
    "seed1": ["--seed", "1"],
    "seed2": ["--seed", "2"],
    "shuffled_labels": ["--control", "shuffled_labels"],
    "gold_reward": ["--control", "gold_reward"],
    "ppo": ["--algorithm", "ppo"],
}
"""Name -> flags of `tutelage quickstart`."""
SAMPLED = ("prompts", "answers", "heldout")
BEFORE_POLICY = (*SAMPLED, "feedback", "reward")
AS_SEED0 = {"shuffled_labels": SAMPLED, "gold_reward": BEFORE_POLICY, "ppo": BEFORE_POLICY}
"""Control -> its stages that are seed 0's to the byte: where that run is there at the same commit they are copied, minutes too."""


def main() -> None:
    """Run what is missing, write the table, hold it against the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/quickstart"))
    parser.add_argument("--only", choices=RUNS)
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--earlier", type=Path, metavar="FOLDER", help="finished runs whose reward models are used")
    args = parser.parse_args()
    for name, flags in RUNS.items():
        if not args.collect and args.only in (None, name) and not (args.folder / name / "evaluation").is_dir():
            run(args.folder / name, flags, args.earlier)
    rows = [row(args.folder / name, name) for name in RUNS if (args.folder / name / "evaluation").is_dir()]
    RESULT.write_text(json.dumps({"command": "python benchmarks/quickstart.py", "runs": rows}, indent=1) + "\n")
    missed = [miss for one in rows for miss in misses(one)]
    print("\n".join([*map(line, rows), *missed]))
    sys.exit(1 if missed else 0)


def run(folder: Path, flags: list[str], earlier: Path | None) -> None:
    """One quickstart, resumed where it was interrupted; the commit that it ran at is kept beside it."""
    if not folder.is_dir():
        begin(folder, earlier)
    again = ["--resume"] if folder.is_dir() else []
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*flags, *choices(folder), *again]
    command = [sys.executable, "-m", "tutelage.cli", "quickstart", "--out", str(folder), *flags]
    with subprocess.Popen(command) as process:
        _, status, used = os.wait4(process.pid, 0)  # of this process alone, and the peak of all its stages
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 1 if sys.platform == "darwin" else 1024
    before = _told(folder)
    peak = max(used.ru_maxrss * unit / 1e9, before.get("earlier", {}).get("peak_memory_gb", 0))
    told_of(folder).write_text(json.dumps({**before, "commit": commit(), "peak_memory_gb": round(peak, 2)}))


def begin(folder: Path, earlier: Path | None) -> None:
    """A run begins with the stages that it shares: with its own earlier run, or with seed 0 at the same commit."""
    source, stages = folder.with_name("seed0"), AS_SEED0.get(folder.name, ())
    if earlier is None:
        if _told(source).get("commit") == commit():
            copy_stages(source, folder, stages)
        return
    own = earlier / folder.name
    source, stages = (own, BEFORE_POLICY) if told_of(own).is_file() else (earlier / source.name, stages)
    if not (stages and told_of(source).is_file()):
        raise SystemExit(f"quickstart: --earlier {earlier} has no finished run that {folder.name} could go on from")
    copy_stages(source, folder, stages)
    told = {**_told(source), "run": source.name, "stages": stages}
    told_of(folder).write_text(json.dumps({"earlier": told}))


def copy_stages(source: Path, folder: Path, stages: Sequence[str]) -> None:
    """Finished stages of another run, as if they had run here, their minutes too."""
    for stage in stages:
        shutil.copytree(source / stage, folder / stage)
    for name in ("stages.json", "minutes.json") if stages else ():
        text = (source / name).read_text(encoding="utf-8").replace(str(source), str(folder))
        kept = {stage: value for stage, value in json.loads(text).items() if stage in stages}
        (folder / name).write_text(json.dumps(kept, indent=1))


def choices(folder: Path) -> list[str]:
    """Flags that keep to what was measured to be fastest when the stages that are there ran."""
    ledger = folder / "stages.json"
    stages = json.loads(ledger.read_text(encoding="utf-8")) if ledger.is_file() else {}
    settings = next(iter(stages.values()), {}).get("settings", {})
    return [part for name in ("gemm", "kernels") if name in settings for part in (f"--{name}", settings[name])]


def _told(folder: Path) -> dict[str, Any]:
    path = told_of(folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def told_of(folder: Path) -> Path:
    """Where it is kept what a run cannot know of itself."""
    return folder.with_name(f"{folder.name}.run.json")


def row(folder: Path, name: str) -> dict[str, Any]:
    """What the table keeps of a finished run."""
    data = json.loads((folder / "quickstart.json").read_text(encoding="utf-8"))
    environment = json.loads(next(folder.glob("*/environment.json")).read_text(encoding="utf-8"))["environment"]
    reward = data["reward_model"]
    kept = ("accuracy", "ceiling", "longer_wins", "shorter_wins", "comparisons", "calibration_error")
    return {
        "name": name,
        "flags": RUNS[name],
        **_told(folder),
        "cpu": environment["cpu"],
        "threads": environment["threads"],
        "minutes": {stage: round(spent, 2) for stage, spent in data["minutes"].items()},
        "minutes_total": round(sum(data["minutes"].values()), 1),
        "tokens": data["tokens"],
        "evaluation": data["evaluation"],
        "reward_model": {key: reward[key] for key in kept},
        "curve": data["curve"],
    }


def margin(one: dict[str, Any]) -> float:
    """How much of what the labels allow above one half the reward model gets."""
    model = one["reward_model"]
    return (model["accuracy"]["estimate"] - 0.5) / (model["ceiling"] - 0.5)


def misses(one: dict[str, Any]) -> list[str]:
    """The bounds that a run does not keep, in words."""
    won, said = one["evaluation"]["win_gold"], []
    if one["peak_memory_gb"] > 8:
        said.append(f"{one['name']}: {one['peak_memory_gb']} GB at its peak, asked: at most 8")
    if one["minutes_total"] > 30:
        said.append(f"{one['name']}: {one['minutes_total']} minutes, asked: at most 30 on a quiet machine")
    if one["name"] == "shuffled_labels":
        return said if won["low"] <= 0.5 <= won["high"] else [*said, f"{one['name']}: the interval leaves out 50 %"]
    if won["low"] <= 0.6:
        said.append(f"{one['name']}: lower bound {won['low']:.1%}, asked: above 60 %")
    model = one["reward_model"]
    rivals = {"a coin": 0.5, "longer wins": model["longer_wins"], "shorter wins": model["shorter_wins"]}
    for rival, share in rivals.items():
        if model["accuracy"]["low"] <= share:
            said.append(f"{one['name']}: the reward model is not surely above {rival} ({share:.1%})")
    if one["name"] != "gold_reward" and margin(one) < 0.6:
        said.append(f"{one['name']}: the reward model has {margin(one):.0%} of its labels' margin, asked: 60 %")
    return said


def line(one: dict[str, Any]) -> str:
    """A run in one line."""
    won, matched = one["evaluation"]["win_gold"], one["evaluation"]["matched_length"]
    return (
        f"{one['name']:16} gold win rate {won['estimate']:.1%} [{won['low']:.1%}, {won['high']:.1%}], matched length "
        f"{matched['estimate']:.1%}, reward model {one['reward_model']['accuracy']['estimate']:.1%} of "
        f"{one['reward_model']['ceiling']:.1%}, KL {one['evaluation']['kl']['estimate']:.1f}, "
        f"{one['peak_memory_gb']} GB, {one['minutes_total']} min on {one['threads']} threads, {one['commit']}"
    )


if __name__ == "__main__":
    main()
