"""Lines per room of the house: files, lines, code lines (no blanks, comments, docstrings) and the longest file."""

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED_TOKENS:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def rooms(top: Path) -> dict[str, list[Path]]:
    """The Python files below `top` by the folder or module directly in it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(top.rglob("*.py")):
        found.setdefault(path.relative_to(top).parts[0].removesuffix(".py"), []).append(path)
    return found


def row(name: str, paths: list[Path]) -> str:
    """One line of the table."""
    sources = [path.read_text(encoding="utf-8") for path in paths]
    lengths = [source.count("\n") for source in sources]
    return f"| {name} | {len(paths)} | {sum(lengths)} | {sum(map(code_lines, sources))} | {max(lengths)} |"


if __name__ == "__main__":
    print("| room | files | lines | of them code | longest file |\n|---|---|---|---|---|")
    for room, files in rooms(ROOT / "src" / "tutelage").items():
        print(row(room, files))
    for folder in ("src", "tests", "examples", "benchmarks"):
        if files := sorted((ROOT / folder).rglob("*.py")):
            print(row(f"**{folder}/**", files))
