"""Another revision of the library, checked out beside this one for as long as a measurement takes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def worktree(root: Path, revision: str) -> Iterator[Path]:
    """A folder with the files of `revision`. Raises ValueError for one that git does not know."""
    git = ["git", "-C", str(root)]
    ask = [*git, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    known = subprocess.run(ask, capture_output=True, check=False)
    if known.returncode != 0:
        raise ValueError(f"--against: git knows no revision {revision!r}")
    with tempfile.TemporaryDirectory(prefix="speed-against-") as folder:
        place = Path(folder) / "checkout"
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(place), revision], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(place)], check=True)


def commit(root: Path) -> str:
    """The checkout's commit, with a + where its package or benchmarks have changes that are not committed."""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "src", "benchmarks/*.py"], check=False)
    return head.stdout.strip() + ("+" if changed.returncode else "")
