"""`tutelage chat`: talk to a model in the terminal, or to two at once without knowing which is which, and pick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

from pydantic import Field

from tutelage.config import config
from tutelage.console import say
from tutelage.models.load import resolve_model
from tutelage.models.packing import backbone_of
from tutelage.models.sampling import Decoding
from tutelage.records import Answer, Message, Prompt
from tutelage.stages.common import Actor, Common, Count, load_actor
from tutelage.stages.picks import Ballot, ballot_for
from tutelage.stages.terminal import Typist, edit_lines, read_line, stop_on_interrupt, write

HELP = """/reset          forget the conversation (the system message stays)
/undo           forget the last question and its answer
/system TEXT    another system message, and a new conversation; without TEXT the model's own
/help           this list
/quit           leave (also Ctrl-D); Ctrl-C stops an answer
//TEXT          a message that begins with a slash"""


@config
class Talk(Common):
    """Talk to a model; with `--compare` two models answer without names, and your picks become comparisons to train on."""

    compare: str | None = None
    """A second model: both answer, sides are drawn, you pick, and the pick is appended to the run's chat.jsonl."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Randomness of the draw: 1 is the model's own distribution, 0 its likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus: only the likeliest tokens that make up this probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the likeliest k tokens; 0: all."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer (`--stop "Question:"`); its text is cut before them."""
    max_tokens: Count = 512
    """Longest answer, in tokens."""
    context: Count = 4096
    """Longest conversation with its next answer, in tokens (at most the model's own limit); older turns are dropped."""


class Said(NamedTuple):
    """An answer, and whether Ctrl-C ended it."""

    answer: Answer
    stopped: bool


@dataclass(frozen=True)
class Voice:
    """A model that talks."""

    name: str
    actor: Actor

    @property
    def context(self) -> int:
        """Tokens that the model can see."""
        limit = getattr(backbone_of(self.actor.module).config, "max_position_embeddings", None)
        return limit or sys.maxsize

    def answer(self, prompt: Prompt, decoding: Decoding, seed: str) -> Said:
        """One answer, shown as it comes. Its ids are kept only where it has no text: another model may read the record."""
        spoken: list[int] = []
        count, text, typist = 0, "", Typist()

        def listen(tokens: Sequence[int]) -> str:
            spoken[:] = tokens
            return self.actor.chat.decode(tokens)

        decoder = replace(self.actor.decoder, decode=listen)
        with stop_on_interrupt() as stopped:
            for text in decoder.stream(self.actor.chat.prompt_tokens(prompt), decoding, seed):
                count += 1
                typist.show(text)
                if stopped():
                    break
        typist.show(text, whole=True)
        write("\n")
        finished = len(spoken) < count  # the stop token was drawn and is not among what is spoken
        ids = (*spoken, self.actor.chat.stop_tokens[0]) if finished else tuple(spoken)
        tokens = () if text.strip() else ids
        return Said(Answer(text, tokens, (), "stop" if finished else "length", self.name), stopped() and not finished)


@dataclass
class Session:
    """One conversation after another until the person leaves."""

    voices: Sequence[Voice]
    decoding: Decoding
    room: int
    seed: int
    system: str | None
    ballot: Ballot | None
    turns: list[Message] = field(default_factory=list)
    asked: int = 0

    def run(self) -> None:
        """Read and answer until /quit or the end of the input."""
        while True:
            try:
                line = read_line("> ")
                if line == "/quit":
                    break
                self.take(line)
            except EOFError:
                break
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /quit leaves)")
        if self.ballot is not None:
            say(self.ballot.tally())

    def take(self, line: str) -> None:
        """A command, or a message for the model."""
        if line.startswith("/") and not line.startswith("//"):
            self.obey(*line[1:].partition(" ")[::2])
        elif line:
            self.ask(line.removeprefix("/") if line.startswith("//") else line)

    def obey(self, command: str, text: str) -> None:
        """One of the slash commands."""
        if command == "help":
            say(HELP)
        elif command == "reset":
            self.turns.clear()
            say("(a new conversation)")
        elif command == "undo":
            say("(the last question and its answer are forgotten)" if self.turns else "(there is nothing to undo)")
            del self.turns[-2:]
        elif command == "system":
            self.turns.clear()
            self.system = text.strip() or None
            say(f"(a new conversation; system message: {self.system or 'the one of the chat template'})")
        else:
            say(f"(no such command: /{command}; /help lists them, //{command} says it to the model)")

    def ask(self, line: str) -> None:
        """A question and its answer, in the history only once it is answered."""
        try:
            prompt = self._prompt(line)
        except ValueError as error:  # a template that refuses the roles, or a question that is too long
            say(f"({error})")
            return
        self.asked += 1
        if self.ballot is None:
            said = self._answer(self.voices[0], prompt, 0)
            kept = said.answer if said.answer.text.strip() else None
        else:
            kept = self._compare(self.ballot, prompt)
        if kept is not None:
            self.turns += [prompt.messages[-1], Message("assistant", kept.text)]

    def _prompt(self, line: str) -> Prompt:
        """The conversation with a new question; oldest turns are dropped (and this said) where it is longer than fits."""
        head = () if self.system is None else (Message("system", self.system),)
        dropped, size = 0, 0
        for dropped in range(0, len(self.turns) + 1, 2):
            prompt = Prompt((*head, *self.turns[dropped:], Message("user", line)))
            size = max(len(voice.actor.chat.prompt_tokens(prompt)) for voice in self.voices)
            if size <= self.room:
                break
        else:
            raise ValueError(f"your message has {size} tokens with all that belongs to it; at most {self.room} fit")
        if dropped:
            say(f"(the conversation is longer than {self.room} tokens: its {dropped} oldest messages were dropped)")
            del self.turns[:dropped]
        return prompt

    def _answer(self, voice: Voice, prompt: Prompt, which: int) -> Said:
        said = voice.answer(prompt, self.decoding, f"{self.seed}/chat {self.asked}/{which}")
        if said.stopped:
            say("(stopped)")
        elif not said.answer.finished:
            say(f"(cut after {self.decoding.max_tokens} tokens; --max-tokens)")
        elif not said.answer.text.strip():
            say("(an empty answer)")
        return said

    def _compare(self, ballot: Ballot, prompt: Prompt) -> Answer | None:
        """Both answers without names, and the pick; the conversation goes on with the better one, or the first."""
        shown: list[Answer] = []
        for which in ballot.order(prompt, f"{self.seed}/{self.asked}"):
            say(f"\nAnswer {len(shown) + 1}:")
            said = self._answer(self.voices[which], prompt, which)
            if said.stopped:
                say("(this question is forgotten: a stopped answer cannot be compared)")
                return None
            shown.append(said.answer)
        return ballot.vote(prompt, shown[0], shown[1], read_line)


def main(cfg: Talk) -> int:
    """Run the command; returns the exit code. Raises ValueError for a model that is not there, or no room to answer."""
    names = [cfg.model] if cfg.compare is None else [cfg.model, cfg.compare]
    for name in names:
        resolve_model(name, ("policy",))
    ballot = None if cfg.compare is None else ballot_for(cfg.model, cfg.compare, cfg.temperature, cfg.top_p)
    plain = replace(cfg, system=None)  # the session says the system message itself, so that records have it
    voices = [Voice(name, load_actor(replace(plain, model=name), None, trained=False)) for name in names]
    room = min(cfg.context, *(voice.context for voice in voices)) - cfg.max_tokens
    if room < 1:
        limit = room + cfg.max_tokens
        raise ValueError(f"--max-tokens {cfg.max_tokens}: no room for a question in {limit} tokens")
    edit_lines()
    say(ballot.welcome() if ballot else f"Talking to {cfg.model}. /help lists commands, Ctrl-D leaves.")
    decoding = Decoding(cfg.max_tokens, cfg.temperature, cfg.top_p, top_k=cfg.top_k, stop=cfg.stop)
    Session(voices, decoding, room, cfg.seed, cfg.system, ballot).run()
    return 0
