"""What programs send and get: the bodies of /api/v1, as its OpenAPI document shows them."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tutelage.feedback.items import NewItem, NewResponse
from tutelage.feedback.payloads import Task
from tutelage.records import Message, Prompt, Role


def _storable(text: str) -> str:
    text.encode("utf-8")  # half a surrogate pair raises a ValueError
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    return text


Text = Annotated[str, Field(max_length=1_000_000), AfterValidator(_storable)]
Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Turn(_Body):
    """One message of the conversation."""

    role: Role
    content: Text


class Response(_Body):
    """An answer to judge."""

    text: Text
    origin: dict[str, Any] = Field(
        default={}, description="Author, policy, step, sampler settings; never shown to annotators."
    )


class Item(_Body):
    """One thing to judge."""

    key: Key = Field(description="Yours, unique in the project: sending it again adds nothing.")
    prompt: Text | Annotated[list[Turn], Field(min_length=1, max_length=1000)] = Field(
        description="A user's message, or the conversation so far."
    )
    responses: Annotated[list[Text | Response], Field(max_length=26)] = []
    category: Text = ""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = Field(default=0, description="Lower goes first.")
    check_answer: dict[str, Any] | None = Field(
        default=None, description="The right payload in this order: a check item."
    )
    explanation: Text = Field(default="", description="Why that is right: shown after it in a qualification test.")
    policy_step: Annotated[int, Field(ge=0)] | None = None
    expires_in: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Seconds; not handed out after it."
    )

    def new(self) -> NewItem:
        """The item as the queue takes it."""
        turns = [Turn(role="user", content=self.prompt)] if isinstance(self.prompt, str) else self.prompt
        messages = tuple(Message(turn.role, turn.content) for turn in turns)
        answers = [Response(text=r) if isinstance(r, str) else r for r in self.responses]
        return NewItem(
            Prompt(messages, category=self.category),
            tuple(NewResponse(answer.text, answer.origin) for answer in answers),
            key=self.key,
            check_answer=self.check_answer,
            explanation=self.explanation,
            priority=self.priority,
            policy_step=self.policy_step,
            expires_at=None if self.expires_in is None else time.time() + self.expires_in,
        )


class Items(_Body):
    """Items for a project."""

    project: Key = Field(description="Name or id.")
    items: Annotated[list[Item], Field(min_length=1, max_length=1000)]


class NewProject(_Body):
    """A project for items that a program will send."""

    name: Key
    task: Task
    overlap: Annotated[int, Field(ge=1, le=100)] = 1
    instructions: Annotated[Text, Field(max_length=200_000)] = ""


class StoredProject(BaseModel):
    """The project of that name, whether it was new or known."""

    id: int


class Stored(BaseModel):
    """An item as it is kept."""

    key: str
    id: int


class StoredItems(BaseModel):
    """The items of a request, in its order, whether they were new or known."""

    items: list[Stored]


class Withdrawal(_Body):
    """Items that nobody should judge any more: those of a policy before a step, or those with these keys."""

    project: Key
    before_step: Annotated[int, Field(ge=0)] | None = None
    keys: Annotated[list[Key], Field(max_length=1000)] = []


class Withdrawn(BaseModel):
    """How many items were withdrawn; judgments of them are kept."""

    withdrawn: int


class Judgment(BaseModel):
    """One event. The annotator is a number; names never leave the server."""

    seq: int
    kind: str = Field(description="judgment, skip, or undo (which takes back the event `supersedes`).")
    task: str
    project: int
    item: int
    key: str = Field(description="The item's key.")
    payload: dict[str, Any] = Field(description="As it was shown: `first` is the response shown first.")
    permutation: list[int] = Field(
        description="The index, in the order that you sent, of the response at each place shown."
    )
    annotator: int
    role: str
    held_out: bool
    check_item: bool
    repeat_of: int | None
    policy_step: int | None
    supersedes: int | None
    late: bool
    redacted: bool
    active_ms: int
    instructions_version: int
    at: float = Field(description="Seconds since 1970, UTC.")


class Judgments(BaseModel):
    """Events after a cursor; send `next` as `after` to go on."""

    judgments: list[Judgment]
    next: int
