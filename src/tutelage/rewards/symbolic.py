"""Mathematical equality by math-verify and sympy; imported only by the child process that it may hang."""

from __future__ import annotations

import logging

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own timeout is off; the child has one


def equal_expressions(answer: str, solution: str) -> bool:
    """Whether two expressions, LaTeX or plain, are the same; False for what cannot be read."""
    try:
        gold, said = (parse(f"\\boxed{{{text}}}", parsing_timeout=0) for text in (solution, answer))
        return bool(verify(gold, said, timeout_seconds=0))
    except (
        Exception
    ):  # untrusted content: sympy raises anything at all on what a policy writes, and that is not the answer
        return False
