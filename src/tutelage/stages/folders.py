"""Where a command writes when nobody says, and whether it may write where somebody said."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tutelage.training.files import is_leftover


def fresh_folder(command: str) -> Path:
    """runs/COMMAND-TIME (a second run within a second gets a number); it is not made yet."""
    base = Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [base, *(Path(f"{base}-{n}") for n in range(2, 100))]
    return next(path for path in names if not path.exists())


def check_unused(folder: Path, own: Sequence[str], resume: bool) -> None:
    """For a command that writes its files `own` at once and at the end: nothing of another run is overwritten.

    Raises ValueError for a folder that holds anything, or with `resume` anything that this command does not write.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another folder with --out")
    held = sorted(p.name for p in folder.iterdir() if not is_leftover(p)) if folder.is_dir() else []
    wrong = [name for name in held if not resume or name not in own]
    if wrong:
        raise ValueError(f"{folder} is not empty (it holds {wrong[0]}); choose another folder with --out")
