"""The final-answer check: what an answer ends with, compared with the known solution; sympy only in a killable child."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from tutelage.records import Answer, Prompt
from tutelage.rewards.base import Grid, Scored, known_solution
from tutelage.rewards.sandbox import Child, ChildDiedError, ChildHungError

CPU_SECONDS = 3.0
"""What one expression may cost. Processor time, so that a verdict does not depend on what else the machine does."""
DEADLINE_SECONDS = 60.0
MEMORY_BYTES = 1 << 30
LONGEST = 200
"""Characters of a final answer; nobody's is longer, and a policy that repeats itself makes them."""

_FIGURE = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_MONEY = r"(?:[$€£¥]|\\\$)?"
_IN_TEXT = re.compile(
    rf"(?:(?<![\w.)\]])[-−]\s?)?{_MONEY}(?:\d+\s(?=\d+/\d))?{_FIGURE}(?:\s?/\s?{_FIGURE})?(?:\s?\\?%)?"
)
_WHOLE = re.compile(
    rf"(?P<sign>[-−+]?)\s*{_MONEY}\s*(?P<sign2>[-−]?)(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<top>{_FIGURE})(?:\s*/\s*(?P<bottom>{_FIGURE}))?"
    r"\s*(?P<percent>\\?%|percent)?\s*(?P<unit>[A-Za-z][A-Za-z .'-]*)?"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")
_MULTIPLES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NO_UNITS = frozenset({"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "or", "and", "mod"})


class Number(NamedTuple):
    """A number that was written plainly. `ratio` where it has a fraction bar (1/3 and 0.333333 may then mean the same)."""

    value: Fraction
    percent: bool
    ratio: bool


def number(text: str) -> Number | None:
    """`text` as one number, or None. "$1,234.50", "3/4", "3 1/2", "\\frac{3}{4}", "-2 million", "50%" and "12 apples" are numbers."""
    text = (
        _LATEX_FRACTION.sub(r" \1/\2", _LATEX_TEXT.sub(r"\1", text))
        .replace("\\!", "")
        .strip(" \t\n*$")
        .rstrip(".,;:*$")
    )
    found = _WHOLE.fullmatch(text) if len(text) <= LONGEST else None
    if found is None:
        return None
    words = (found["unit"] or "").lower().split()
    # One letter may be a variable (2x) or a unit (2 m): sympy's normalisation knows more than we do
    if any(len(word) == 1 or word in _NO_UNITS for word in words):
        return None
    bottom = Fraction((found["bottom"] or "1").replace(",", ""))
    if bottom == 0:
        return None
    value = int(found["whole"] or 0) + Fraction(found["top"].replace(",", "")) / bottom
    value *= _MULTIPLES.get(words[0] if words else "", 1)
    negative = (found["sign"] in ("-", "−")) != bool(found["sign2"])
    return Number(-value if negative else value, bool(found["percent"]), found["bottom"] is not None)


def final_answer(text: str) -> str | None:
    """What `text` ends with: the last `#### ...` line or `\\boxed{...}`, whichever comes later, otherwise its last number."""
    mark, box = text.rfind("####"), max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if mark > box:
        return text[mark + 4 :].strip().partition("\n")[0].strip() or None
    if box >= 0:
        return _inside_braces(text[text.index("{", box) :])
    numbers = _IN_TEXT.findall(text)
    return numbers[-1] if numbers else None


def same_number(answer: str, solution: str) -> bool | None:
    """Whether two plainly written numbers agree exactly; None where this needs more than reading them.

    9 %, 9 and 0.09: a percentage agrees with its figure and with its value. Units are not compared.
    """
    ours, theirs = number(answer), number(solution)
    if ours is None or theirs is None:
        return None
    a, b = ours.value, theirs.value
    if a == b or (ours.percent and not theirs.percent and a / 100 == b):
        return True
    if theirs.percent and not ours.percent and b / 100 == a:
        return True
    return None if ours.ratio != theirs.ratio else False


def symbolic_child(cpu_seconds: float = CPU_SECONDS) -> Child:
    """A process that compares expressions, with limits on time and memory."""
    return Child(
        "tutelage.rewards.symbolic:equal_expressions", DEADLINE_SECONDS, memory=MEMORY_BYTES, cpu_seconds=cpu_seconds
    )


@dataclass(frozen=True)
class FinalAnswer:
    """1 where the final answer equals `prompt.solution`, else 0; `flags["timeouts"]` marks what had to be killed."""

    child: Child = field(default_factory=symbolic_child)

    def measure(self, prompts: Sequence[Prompt], groups: Sequence[Sequence[Answer]]) -> Scored:
        """Every answer by itself; plain numbers never leave this process."""
        values: Grid = []
        timeouts: Grid = []
        for prompt, answers in zip(prompts, groups, strict=True):
            solution = known_solution("gsm8k", prompt)
            marked = final_answer(solution) if "####" in solution or "\\boxed" in solution else None
            seen: dict[str, bool | None] = {}  # what hung once need not hang again for every copy in the group
            for text in {answer.text for answer in answers}:
                seen[text] = self._check(text, marked or solution)
            verdicts = [seen[answer.text] for answer in answers]
            values.append([float(verdict is True) for verdict in verdicts])
            timeouts.append([float(verdict is None) for verdict in verdicts])
        return Scored(values, {"timeouts": timeouts})

    def _check(self, text: str, solution: str) -> bool | None:
        """The verdict; None where the child had to be killed."""
        said = final_answer(text)
        if said is None or len(said) > LONGEST:
            return False
        agree = same_number(said, solution)
        if agree is not None:
            return agree
        try:
            return bool(self.child.call(said, solution))
        except (ChildHungError, ChildDiedError):  # untrusted content: an expression that explodes scores 0
            return None

    def close(self) -> None:
        """Ends the child."""
        self.child.kill()


def gsm8k(prompt: Prompt, answers: list[Answer]) -> list[float]:
    """The same as a plain function; it starts a child of its own where an answer needs sympy, so prefer `FinalAnswer`."""
    check = FinalAnswer()
    try:
        return check.measure([prompt], [answers]).values[0]
    finally:
        check.close()


def _inside_braces(text: str) -> str | None:
    """What stands between the first brace and its partner; None where that is missing or nothing is inside."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[1:at].strip() or None
    return None
