"""What `recipes/sums.yaml` reached, from finished run folders: python benchmarks/sums.py COMMIT RUN ... -> results/sums.json

COMMIT is the code that the runs were made with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tutelage.console import say

RESULT = Path(__file__).parent / "results" / "sums.json"
EXAMS = {"before": "exam_base", "after SFT": "exam_sft", "after GRPO": "exam_grpo"}


def read(run: Path, commit: str) -> dict[str, Any]:
    """One run's exams (shares of right sums, with intervals), the rise of its last step, and the share right while it trained."""
    exams = {name: json.loads((run / folder / "evaluation.json").read_text()) for name, folder in EXAMS.items()}
    environment = json.loads((run / "grpo" / "environment.json").read_text())["environment"]
    steps = [json.loads(line) for line in (run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    return {
        "command": f"tutelage run recipes/sums.yaml --seed {seed_of(run)}",
        "commit": commit,
        "cpu": environment["cpu"],
        "threads": environment["threads"],
        "exams": {name: exam["judges"]["sums"]["score"] for name, exam in exams.items()},
        "rise": exams["after GRPO"]["judges"]["sums"]["difference"],
        "kl": exams["after GRPO"]["kl"],
        "curve": [[step["step"], step["reward/sums"]] for step in steps if "reward/sums" in step],
    }


def seed_of(run: Path) -> int:
    """The seed that the run was given."""
    return int(yaml.safe_load((run / "grpo" / "config.yaml").read_text())["seed"])


def main(arguments: Sequence[str]) -> None:
    """Write what the named run folders hold."""
    commit, *runs = arguments or [""]
    if not runs:
        raise SystemExit(
            "which runs, of which commit? python benchmarks/sums.py COMMIT runs/sums-0 runs/sums-1 runs/sums-2"
        )
    found = [read(Path(run), commit) for run in runs]
    command = "python benchmarks/sums.py COMMIT RUN ..."
    RESULT.write_text(json.dumps({"command": command, "runs": found}, indent=1) + "\n")
    for run in found:
        exams = ", ".join(f"{name} {score['estimate']:.1%}" for name, score in run["exams"].items())
        say(f"{run['command']}: {exams}; rise {run['rise']['estimate']:+.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
