"""Where a command writes when nobody says: a fresh folder under runs/."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path


def fresh_folder(command: str) -> Path:
    """runs/COMMAND-TIME (a second run within a second gets a number); it is not made yet."""
    base = Path("runs") / f"{command}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [base, *(Path(f"{base}-{n}") for n in range(2, 100))]
    return next(path for path in names if not path.exists())
