"""Another revision of the library, checked out beside this one for as long as a measurement takes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def short(root: Path, revision: str) -> str:
    """The commit that `revision` names, in 12 digits. Raises ValueError for one that git does not know."""
    ask = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "--short=12", f"{revision}^{{commit}}"]
    found = subprocess.run(ask, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise ValueError(f"--against: git knows no revision {revision!r}")
    return found.stdout.strip()


@contextmanager
def worktree(root: Path, revision: str) -> Iterator[Path]:
    """A folder with the files of `revision`, for as long as the block runs."""
    git = ["git", "-C", str(root)]
    with tempfile.TemporaryDirectory(prefix="speed-against-") as folder:
        place = Path(folder) / "checkout"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(place), revision], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(place)], check=True)
