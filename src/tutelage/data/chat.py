"""Messages -> tokens and mask: the only place that knows chat templates and special tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from tutelage.records import Answer, Message, Messages, Prompt

Turns = Literal["all", "last"]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + END + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML}
LITERAL = "\ufdd0"  # Unicode noncharacter, put behind text that a message says and that only looks like a special token
PROBE = "thanks"


class Trained(NamedTuple):
    """What SFT trains on: `prompt` is all before the first trainable token; `mask` is True on the tokens to be learnt."""

    prompt: list[int]
    tokens: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Chat:
    """A tokenizer with one chat template; make it with `Chat.of`."""

    tokenizer: Any
    template: str
    system: str | None
    """System message for conversations that bring none (None: whatever the template says by itself)."""
    end_of_turn: str = ""
    """The special token that the template puts behind what the assistant said: the policy must learn to emit it."""
    closing: str = ""
    """What a scorer reads behind every answer, finished or cut off (see `data/judging`); a policy reads nothing there."""

    @staticmethod
    def of(tokenizer: Any, template: str | None = None, system: str | None = None) -> Chat:
        """A chat over a Hugging Face tokenizer; `template` is a file, a built-in name or None for the tokenizer's own.

        Raises ValueError where there is no template, or one behind whose answers no special token stands.
        """
        chat = Chat(tokenizer, _template(tokenizer, template), system)
        messages = (Message("user", "hello"), Message("assistant", PROBE))
        tail = chat._render(messages, generation=False).rpartition(PROBE)[2]
        found = chat._special.search(tail)
        if found is None:
            raise ValueError(
                f"chat template: no special token ends an assistant turn (it ends with {tail!r}), so a policy could not "
                "learn to stop; use --chat-template chatml or a template file with one"
            )
        return Chat(tokenizer, chat.template, system, found[0])

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end an answer: end of turn first, then the tokenizer's end of text where that is another."""
        ids = (self.tokenizer.convert_tokens_to_ids(self.end_of_turn), self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(i for i in ids if i is not None))

    @cached_property
    def closing_tokens(self) -> tuple[int, ...]:
        """Ids of `closing`."""
        return tuple(self._encode(self.closing))

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The conversation and the opening of the assistant's turn; what the policy sees before its first token."""
        if not prompt.messages:
            raise ValueError(f"prompt {prompt.id!r}: empty; it needs at least one message")
        return self._encode(self._render(prompt.messages, generation=True))

    def answer_tokens(self, prompt: Prompt, answer: Answer) -> list[int]:
        """The assistant's turn up to and with the end-of-turn token; without it where the author was cut off.

        Sampled ids (`answer.tokens`) are the truth and come back unchanged.
        """
        if answer.tokens:
            return list(answer.tokens)
        before, after = self._turn((*prompt.messages, Message("assistant", answer.text)))
        if not answer.finished:
            after = after.removesuffix(self.end_of_turn)
        return self._extend(self._encode(before), before, after)

    def check_tokens(self, answer: Answer) -> None:
        """Raises ValueError if the sampled ids do not say the answer's text here: another tokenizer made them."""
        if not (answer.tokens and answer.text):
            return
        said = self._decode(answer.tokens) if max(answer.tokens) < len(self.tokenizer) else ""
        if self._special.sub("", said).strip() != self._special.sub("", answer.text).strip():
            raise ValueError(
                f"answer {answer.text[:40]!r}: its token ids read {said[:40]!r} with this model's tokenizer, so another "
                "tokenizer made them; remove `tokens` from the file and the text is used"
            )

    def demonstration(self, messages: Messages, turns: Turns = "all") -> Trained:
        """All assistant turns that follow a user's, or only the last one, as one row.

        The mask is False on what the template, the user, the system and tools say in between, so also on the line break
        that many templates write behind the end-of-turn token. Found by rendering prefixes of the conversation.
        Raises ValueError where no turn can be trained, or where the template rewrites earlier turns and turns is "all".
        """
        if turns not in ("all", "last"):
            raise ValueError(f"turns: must be 'all' or 'last'; got {turns!r}")
        trained = [i for i, m in enumerate(messages) if m.role == "assistant" and _has_user(messages[:i])]
        if not trained:
            raise ValueError(
                f"demonstration: no assistant turn follows a user turn; roles: {[m.role for m in messages]}"
            )
        first, *later = trained[-1:] if turns == "last" else trained
        before, done = self._turn(messages[: first + 1])
        prompt = self._encode(before)
        tokens = self._extend(prompt, before, done)
        mask = [True] * len(tokens)
        for index in later:
            before, after = self._turn(messages[: index + 1])
            _check_prefix(done, before, "the turns before it")
            between = self._extend(prompt + tokens, done, before)
            said = self._extend(prompt + tokens + between, before, after)
            tokens, mask, done = tokens + between + said, mask + [False] * len(between) + [True] * len(said), after
        return Trained(prompt, tokens, mask)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the stop token that ends it."""
        stopped = bool(len(tokens)) and tokens[-1] in self.stop_tokens
        return self._decode(tokens[:-1] if stopped else tokens)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Matches a special token in rendered text, and not its look-alike in what somebody said."""
        names = sorted(special_tokens(self.tokenizer), key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})(?!{LITERAL})")

    def _render(self, messages: Messages, generation: bool) -> str:
        """The template's text; what looks like a special token inside a message is marked with LITERAL."""
        if self.system is not None and not any(m.role == "system" for m in messages):
            messages = (Message("system", self.system), *messages)
        rows = [{"role": m.role, "content": self._special.sub(rf"\1{LITERAL}", m.content)} for m in messages]
        try:
            return self.tokenizer.apply_chat_template(
                rows, chat_template=self.template, tokenize=False, add_generation_prompt=generation
            )
        except TemplateError as error:
            roles = ", ".join(m.role for m in messages)
            raise ValueError(f"the chat template refuses a conversation of the roles {roles}: {error}") from None

    def _turn(self, messages: Messages) -> tuple[str, str]:
        """The text that the last message answers, and the same continued by that message up to its end-of-turn token."""
        before = self._render(messages[:-1], generation=True)
        after = self._render(messages, generation=False)
        _check_prefix(before, after, "the opening of the assistant's turn")
        end = re.compile(re.escape(self.end_of_turn) + f"(?!{LITERAL})").search(after, len(before))
        if end is None:
            raise ValueError(
                f"chat template: no {self.end_of_turn} behind the assistant turn {messages[-1].content[:40]!r}"
            )
        return before, after[: end.end()]

    def _extend(self, tokens: list[int], before: str, after: str) -> list[int]:
        """Tokens of what `after` adds to `before`, which `tokens` stand for.

        Where the tokenizer would merge across the border ("assistant\\n" + "\\n"), the new text is encoded by itself:
        when sampling, the prompt's tokens are already fixed too.
        """
        whole = self._encode(after)
        if whole[: len(tokens)] == tokens:
            return whole[len(tokens) :]
        piece = self._encode(after[len(before) :])
        if self._decode(tokens + piece) != self._decode(whole):
            raise ValueError(
                f"chat template: {after[len(before) :][:40]!r} reads differently when tokenised on its own"
            )
        return piece

    def _encode(self, text: str) -> list[int]:
        """Token ids of rendered text. The template writes BOS itself where it wants one, so none is added."""
        if LITERAL not in text:
            return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        ids: list[int] = []
        for at, piece in enumerate(self._special.split(text)):
            plain = {"add_special_tokens": False, "split_special_tokens": at % 2 == 0, "verbose": False}
            ids += self.tokenizer(piece.replace(LITERAL, ""), **plain).input_ids if piece else []
        return ids

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that the tokenizer reads as one control token."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys((*added, *tokenizer.all_special_tokens)))


def document(tokenizer: Any, text: str) -> Trained:
    """Plain text, ended by the end-of-text token; works without a chat template.

    The prompt is BOS where the tokenizer itself starts plain text with one, otherwise the first token (nothing predicts it).
    What looks like a special token in the text is text. Raises ValueError for an empty text.
    """
    if not text:
        raise ValueError("document: empty text")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    if tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id:
        ids = [tokenizer.bos_token_id, *ids]
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return Trained(ids[:1], ids[1:], [True] * (len(ids) - 1))


def _has_user(messages: Messages) -> bool:
    return any(m.role == "user" for m in messages)


def _check_prefix(before: str, after: str, what: str) -> None:
    if not after.startswith(before):
        raise ValueError(
            f"the chat template is not prefix-preserving: when the conversation goes on, it rewrites {what} (for example it "
            "drops earlier thinking); train one row per turn instead: --turns last"
        )


def _template(tokenizer: Any, template: str | None) -> str:
    """The Jinja source of a template file, a built-in template or the tokenizer's own."""
    if template is None:
        try:
            return tokenizer.get_chat_template()
        except ValueError:
            raise ValueError(
                f"{tokenizer.name_or_path or 'this model'}: its tokenizer has no chat template (a base model?); "
                "add --chat-template chatml, or --chat-template FILE with a Jinja template"
            ) from None
    if template in TEMPLATES:
        ends = [t for t in ("<|im_end|>", tokenizer.eos_token) if t in special_tokens(tokenizer)]
        if not ends:
            raise ValueError(f"--chat-template {template}: the tokenizer has no <|im_end|> and no end-of-text token")
        return TEMPLATES[template].replace("END", repr(ends[0]))
    if not Path(template).is_file():
        known = ", ".join(TEMPLATES)
        raise ValueError(f"--chat-template: no such file and no built-in template: {template!r}; built-in: {known}")
    return Path(template).read_text(encoding="utf-8")
