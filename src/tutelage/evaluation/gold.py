"""The hidden gold rule: what the simulated labellers want, known exactly, so that a run can be checked against it.

No training module may import this file; the reward model sees only answers and choices. English text only, no model.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from tutelage.records import Answer, Prompt

# The least that a part can be: an answer cut by the limit, one without a word of the prompt's, one with nothing new.
UNFINISHED, OFF_TOPIC, EMPTY = 0.12, 0.07, 0.02

_FUNCTION = """
a about above after again all also although am an and any are aren't as at be because been before being below
between both but by can can't could couldn't did didn't do does doesn't don't down during each either else even ever
every few for from further had has hasn't have haven't having he he's her here here's hers him his how however i i'd
i'll i'm i've if in instead into is isn't it it's its itself just let let's like many may me might more most much
must my myself near neither no nor not of off often on once one only onto or other our out over own per rather same
shall she she's should shouldn't since so some such than that that's the their them then there there's these they
they're this those though through thus to too toward under until up upon us very was wasn't we we'll we're were what
what's when where whether which while who whom whose why will with within without won't would wouldn't yet you
you'll you're you've your yours
"""
FUNCTION_WORDS = frozenset(_FUNCTION.split())

# Words of politeness and of talk about nothing in particular: they fit any prompt, so they say nothing about this one.
_STOCK = """
actually ai answer answers anything ask asking assist assistance assistant assure best call certainly compose
consider correct course create dear definitely delight delighted depend depending depends describe different draft
etc everything exact exactly explain fact feel fine first following free general get getting give glad go going good
great happy hear hello help helpful helping hesitate hi hope important inform information interesting know last list
look looking lot made main make makes making matter message moment necessary need needs new nice nothing offer ok
okay paragraph part people person place please pleasure point possible provide provided provides question questions
really request requests response right say second see sentence sentences several short sir situation something sorry
sound specific still subject suggest support sure take task tell thank thanks thing things think time today topic
truly type understand understanding use used useful using various want wants way ways welcome well wonderful word
words write writing written yes
"""
STOCK_WORDS = frozenset(_STOCK.split())


class Parts(NamedTuple):
    """The seven parts of the score, each in [0, 1]."""

    ending: float
    brevity: float
    variety: float
    topic: float
    own_words: float
    substance: float
    prose: float


def gold_score(prompt: Prompt, answer: Answer) -> float:
    """How good an answer is, in [0, 1]: the square root of the product of its seven parts."""
    return math.sqrt(math.prod(parts(prompt, answer)))


def gold_preference(prompt: Prompt, first: Answer, second: Answer, tie_margin: float = 0.0) -> float:
    """1.0 if the first answer is better by more than `tie_margin`, 0.0 if the second is, else 0.5."""
    difference = gold_score(prompt, first) - gold_score(prompt, second)
    return 0.5 if abs(difference) <= tie_margin else float(difference > 0)


def parts(prompt: Prompt, answer: Answer) -> Parts:
    """What the score is made of; an answer without a word scores 0 in every part."""
    asked, said = _words(prompt.text), _words(answer.text)
    if not said:
        return Parts(0, 0, 0, 0, 0, 0, 0)
    sentences = _sentences(answer.text)
    return Parts(
        ending=_ending(answer),
        brevity=math.exp(-0.5 * max(0, len(sentences) - 3)),
        variety=_variety(said),
        topic=_topic(asked, sentences),
        own_words=_own_words(asked, said),
        substance=_substance(asked, said),
        prose=_prose(said),
    )


def features(prompt: Prompt, answer: Answer) -> dict[str, float]:
    """Plain single measurements of an answer, for reports: none of them alone is the gold rule."""
    said = _words(answer.text)
    asked, content = set(_content(_words(prompt.text))), set(_content(said))
    return {
        "tokens": float(len(answer.tokens)),
        "words": float(len(said)),
        "characters": float(len(answer.text)),
        "sentences": float(len(_sentences(answer.text))),
        "finished": float(answer.finished),
        "ends_sentence": float(_ends_sentence(answer.text)),
        "prompt_words": float(len(asked & content)),
        "new_words": float(len(content - asked)),
        "repetition": 1 - _variety(said) if said else 0.0,
        "copied": _copied(_words(prompt.text), said),
    }


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))


def _sentences(text: str) -> list[str]:
    """Sentences and lines that hold a word; the number or bullet that opens a list item is not one."""
    unmarked = re.sub(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+", "", text)
    pieces = [piece for piece in re.split(r"(?<=[.!?…])[\"')\]*”’]*\s+|\n+", unmarked) if _words(piece)]
    return pieces or [text]


def _ends_sentence(text: str) -> bool:
    return re.search(r"[.!?…][\"')\]*”’]*$", text.strip()) is not None


def _stem(word: str) -> str:
    """The word without a plural and one common ending: `Fridays` meets `Friday`, `dripping` meets `drip`."""
    word = word.removesuffix("'s")
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    for ending in ("ness", "ment", "ing", "ful", "est", "al", "ly", "ed", "er", "ie", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls" else word


def _is_content(word: str) -> bool:
    return len(word) > 1 and word not in FUNCTION_WORDS and word not in STOCK_WORDS


def _content(words: Sequence[str]) -> list[str]:
    return [_stem(word) for word in words if _is_content(word)]


def _ending(answer: Answer) -> float:
    """Stopped by itself at the end of a sentence: 1; stopped in the middle of one: 0.6; cut by the limit: UNFINISHED."""
    if not answer.finished:
        return UNFINISHED
    return 1.0 if _ends_sentence(answer.text) else 0.6


def _variety(words: Sequence[str]) -> float:
    """Square root of the share of different ones among the content words; 1 where there are none."""
    content = _content(words)
    return math.sqrt(len(set(content)) / len(content)) if content else 1.0


def _topic(asked: Sequence[str], sentences: Sequence[str]) -> float:
    """How much of the prompt is taken up: OFF_TOPIC with none of its content words; each closes 70 % of the gap to 1.

    Three are enough, or all where the prompt has fewer; a prompt without any asks for nothing. A word counts only in a
    sentence that holds a small word too, so that a line of keywords is not on the topic.
    """
    wanted = set(_content(asked))
    if not wanted:
        return 1.0
    said = [word for words in map(_words, sentences) if not FUNCTION_WORDS.isdisjoint(words) for word in words]
    taken = len(wanted & set(_content(said)))
    return OFF_TOPIC + (1 - OFF_TOPIC) * min(1.0, (1 - 0.3**taken) / (1 - 0.3 ** min(3, len(wanted))))


def _copied(asked: Sequence[str], said: Sequence[str]) -> float:
    """Share of the answer's words that stand in a run of three or more copied from the prompt."""
    known = set(zip(asked, asked[1:], asked[2:]))
    copied = set()
    for start in range(len(said) - 2):
        if tuple(said[start : start + 3]) in known:
            copied.update(range(start, start + 3))
    return len(copied) / len(said) if said else 0.0


def _own_words(asked: Sequence[str], said: Sequence[str]) -> float:
    """1 while three words in ten or fewer are copied, falling to 0 where all are."""
    return 1.0 - max(0.0, _copied(asked, said) - 0.3) / 0.7


def _substance(asked: Sequence[str], said: Sequence[str]) -> float:
    """New content words, neither the prompt's nor stock phrases: EMPTY with none, growing as a root, 1 from twelve on."""
    new = set(_content(said)) - set(_content(asked))
    return EMPTY + (1 - EMPTY) * min(1.0, math.sqrt(len(new) / 12))


def _prose(words: Sequence[str]) -> float:
    """Text needs small words: 1 with three in ten or more and no more than six other words in a row; at least 0.1."""
    small = "".join("s" if word in FUNCTION_WORDS else "-" for word in words)
    longest = max(map(len, small.split("s")))
    return 0.1 + 0.9 * min(1.0, small.count("s") / len(words) / 0.3) * min(1.0, 6 / max(1, longest))
