"""Things to judge, before they are in the database: what is shown, what is known of it, and what a task can show."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from tutelage.feedback.payloads import DEFAULTS, Task, check
from tutelage.records import Prompt, conversation_hash

SIZES: dict[Task, tuple[int, int]] = {
    "preference": (2, 2),
    "ranking": (2, 26),
    "rating": (1, 1),
    "yesno": (1, 1),
    "critique": (1, 1),
    "demonstration": (0, 0),
}
"""How many responses an item of each task has, from and to."""
EARLIER, PREFERRED = "earlier", "preferred"
"""Key and value in the `origin` of the answer that a comparison in the data calls the better one."""


@dataclass(frozen=True)
class NewResponse:
    """An answer to judge; `origin` (author, policy, step, sampler) stays on the server."""

    text: str
    origin: dict[str, Any] = field(default_factory=dict)
    media: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class NewItem:
    """One thing to judge. `key`: items with a key that is known are not added again; default: a hash of what is shown."""

    prompt: Prompt
    responses: tuple[NewResponse, ...] = ()
    key: str = ""
    check_answer: dict[str, Any] | None = None
    """The right payload if the responses were shown in this order: a check item."""
    explanation: str = ""
    """Markdown: why that is the right one; shown after the judgment in a qualification test, and never elsewhere."""
    options: dict[str, Any] = field(default_factory=dict)
    media: tuple[dict[str, str], ...] = ()
    priority: int = 0
    """Lower goes first."""
    policy_step: int | None = None
    expires_at: float | None = None
    """Seconds since 1970: not handed out after it."""

    @property
    def client_key(self) -> str:
        """The key, or a hash of all that an annotator sees of the item."""
        if self.key:
            return self.key
        seen = [conversation_hash(self.prompt.messages), [[r.text, r.media] for r in self.responses], self.media]
        text = json.dumps([seen, self.check_answer is not None], default=str)
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_item(task: Task, new: NewItem, shared: dict[str, Any]) -> None:
    """Raises ValueError for an item that the task cannot show. `shared`: the project's options."""
    low, high = SIZES[task]
    if not low <= len(new.responses) <= high:
        allowed = str(low) if low == high else f"{low} to {high}"
        raise ValueError(f"responses: {len(new.responses)}; allowed for {task}: {allowed}")
    texts = [(answer.text, answer.media) for answer in new.responses]
    if len(set(map(repr, texts))) < len(texts):
        raise ValueError("responses: two of them are equal; allowed: different ones")
    texts_of = (*(m.content for m in new.prompt.messages), *(answer.text for answer in new.responses), new.explanation)
    for text in texts_of:
        if "\x00" in text:
            raise ValueError("text: holds a NUL character; allowed: text without it")
    if new.check_answer is not None:
        if task not in ("preference", "ranking", "rating", "yesno") or "skip" in new.check_answer:
            raise ValueError(f"check_answer: a check item needs a choice that can be compared; {task} has none")
        check(task, new.check_answer, DEFAULTS[task] | shared | new.options, [r.text for r in new.responses])
