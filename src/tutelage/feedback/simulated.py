"""Simulated annotators: noisy rankings of answers from a utility that is passed in, with known faults."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tutelage.records import Answer, AnswerGroup, Comparison, Prompt

Utility = Callable[[Prompt, Answer], float]


@dataclass(frozen=True)
class SimulatedAnnotator:
    """One annotator whose faults are known, so that what is inferred from the labels can be checked.

    A pair: P(prefer a) = sigmoid((u_a - u_b) / t + length_bias * ln(len_a / len_b) + side_bias * (1 if a is shown first
    else -1)), the Boltzmann-rational choice (Luce 1959) with biases; with probability `lapse` the answer is a coin flip.
    Utilities closer than `tie_margin` are called a tie, before any noise. `t = temperature * (1 + drift * n)` after n
    judgments: a positive drift is a tiring annotator. ValueError for a value outside its range.
    """

    name: str
    temperature: float = 0.1
    lapse: float = 0.0
    side_bias: float = 0.0
    length_bias: float = 0.0
    tie_margin: float = 0.0
    drift: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"annotator {self.name!r}: temperature must be above 0, got {self.temperature}")
        if not 0 <= self.lapse <= 1:
            raise ValueError(f"annotator {self.name!r}: lapse must be in [0, 1], got {self.lapse}")
        if not (self.tie_margin >= 0 and self.drift >= 0):
            raise ValueError(
                f"annotator {self.name!r}: tie_margin and drift must be 0 or more, "
                f"got {self.tie_margin} and {self.drift}"
            )

    def preference(
        self, utilities: tuple[float, float], lengths: tuple[int, int], first_shown: int = 0, judged: int = 0
    ) -> float:
        """P(the first of the two is preferred), lapses included; `first_shown` is the index (0, 1) of the left one."""
        left = 1.0 if first_shown == 0 else -1.0
        strength = self._strength(utilities[0], lengths[0], judged) - self._strength(utilities[1], lengths[1], judged)
        return self.lapse / 2 + (1 - self.lapse) * _sigmoid(strength + self.side_bias * left)

    def judge_pair(
        self,
        utilities: tuple[float, float],
        lengths: tuple[int, int],
        first_shown: int,
        rng: np.random.Generator,
        judged: int = 0,
    ) -> float:
        """One draw: 1.0 the first of the two is preferred, 0.0 the second, 0.5 a tie."""
        if self.ties(*utilities):
            return 0.5
        return float(rng.random() < self.preference(utilities, lengths, first_shown, judged))

    def rank(
        self,
        utilities: Sequence[float],
        lengths: Sequence[int],
        shown: Sequence[int],
        rng: np.random.Generator,
        judged: int = 0,
    ) -> tuple[int, ...]:
        """The K answers' indices, best first; `shown` lists them in the order of the screen.

        Plackett-Luce: strengths plus Gumbel noise, sorted (Yellott 1977), so every pair is ranked with the probability
        of `preference`, except that the side bias is spread over the screen: the first place gains `side_bias` over
        the last, neighbours differ by side_bias / (K - 1). A lapse shuffles the whole ranking.
        """
        count = len(utilities)
        if rng.random() < self.lapse:
            return tuple(int(i) for i in rng.permutation(count))
        scores = np.array([self._strength(u, n, judged) for u, n in zip(utilities, lengths, strict=True)])
        scores[list(shown)] += self.side_bias * np.linspace(0.5, -0.5, count)
        return tuple(int(i) for i in np.argsort(-(scores + rng.gumbel(size=count)), kind="stable"))

    def ties(self, first: float, second: float) -> bool:
        """Whether two utilities are too close for this annotator to tell apart."""
        return abs(first - second) < self.tie_margin or first == second

    def _strength(self, utility: float, length: int, judged: int) -> float:
        return utility / (self.temperature * (1 + self.drift * judged)) + self.length_bias * math.log(max(length, 1))


@dataclass(frozen=True)
class Ranking:
    """One annotator's ranking of a prompt's K answers: what was shown, in which order, and what was said."""

    id: str
    prompt: Prompt
    answers: tuple[Answer, ...]
    shown: tuple[int, ...]
    order: tuple[int, ...]
    ties: frozenset[tuple[int, int]]
    annotator: str

    def comparisons(self) -> list[Comparison]:
        """All K-choose-2 pairs, better one first, under one `group` id; a tie has preference 0.5.

        A pair of equal texts is left out: a sampler may say the same thing twice, and there is nothing to choose between.
        """
        return [
            Comparison(
                prompt=self.prompt,
                chosen=self.answers[better],
                rejected=self.answers[worse],
                preference=0.5 if (min(better, worse), max(better, worse)) in self.ties else 1.0,
                annotator=self.annotator,
                group=self.id,
            )
            for better, worse in combinations(self.order, 2)
            if self.answers[better].text != self.answers[worse].text
        ]


# Stated, not fitted to anybody. Utilities lie in [0, 1]: at a temperature of 0.1, answers 0.1 apart are told apart 73 %
# of the time before lapses. docs/gold-rule.md has their measured agreement with the gold rule and with each other.
LABELLERS = (
    SimulatedAnnotator("careful", temperature=0.04, lapse=0.02, tie_margin=0.01),
    SimulatedAnnotator("average", temperature=0.07, lapse=0.04, side_bias=0.2, tie_margin=0.01),
    SimulatedAnnotator("hasty", temperature=0.1, lapse=0.1, side_bias=0.5, length_bias=0.3, tie_margin=0.01),
)


def rank_all(
    groups: Sequence[AnswerGroup],
    utility: Utility,
    annotators: Sequence[SimulatedAnnotator] = LABELLERS,
    overlap: int = 1,
    seed: int = 0,
) -> list[Ranking]:
    """Each prompt's answers ranked by `overlap` annotators, in the order of the groups.

    Annotators take turns (group i goes to annotators i, i + 1, ... i + overlap - 1, cyclically), so their loads differ
    by one ranking at most. What an annotator says of a group depends on the seed, the annotator's name and the group, and
    with drift on how many rankings came before, but never on the other groups' content. ValueError for an overlap outside 1..len(annotators), a repeated annotator name, or a
    utility that is not a finite number.
    """
    if not 1 <= overlap <= len(annotators):
        raise ValueError(f"overlap must be in 1..{len(annotators)} (the number of annotators), got {overlap}")
    if len({annotator.name for annotator in annotators}) < len(annotators):
        raise ValueError(f"annotators need different names, got {[annotator.name for annotator in annotators]}")
    judged = dict.fromkeys((annotator.name for annotator in annotators), 0)
    rankings = []
    for index, group in enumerate(groups):
        utilities = _utilities(group, utility)
        for turn in range(overlap):
            annotator = annotators[(index + turn) % len(annotators)]
            rankings.append(_rank_group(group, utilities, annotator, judged[annotator.name], seed))
            judged[annotator.name] += 1
    return rankings


def compare_all(
    groups: Sequence[AnswerGroup],
    utility: Utility,
    annotators: Sequence[SimulatedAnnotator] = LABELLERS,
    overlap: int = 1,
    seed: int = 0,
) -> list[Comparison]:
    """`rank_all` as comparisons: K-choose-2 of each ranking, which share its id as their `group`."""
    return list(_pairs(rank_all(groups, utility, annotators, overlap, seed)))


def _pairs(rankings: Sequence[Ranking]) -> Iterator[Comparison]:
    for ranking in rankings:
        yield from ranking.comparisons()


def _utilities(group: AnswerGroup, utility: Utility) -> list[float]:
    utilities = [float(utility(group.prompt, answer)) for answer in group.answers]
    if not all(map(math.isfinite, utilities)):
        raise ValueError(f"prompt {group.prompt.key}: the utility must be a finite number, got {utilities}")
    return utilities


def _rank_group(
    group: AnswerGroup, utilities: list[float], annotator: SimulatedAnnotator, judged: int, seed: int
) -> Ranking:
    rng = _generator(seed, annotator.name, group.prompt.key, *(answer.text for answer in group.answers))
    count = len(group.answers)
    shown = tuple(int(i) for i in rng.permutation(count))
    lengths = [len(answer.text.split()) for answer in group.answers]
    order = annotator.rank(utilities, lengths, shown, rng, judged)
    ties = {(i, j) for i, j in combinations(range(count), 2) if annotator.ties(utilities[i], utilities[j])}
    name = f"{group.prompt.key}/{annotator.name}/{judged}"
    return Ranking(name, group.prompt, group.answers, shown, order, frozenset(ties), annotator.name)


def _generator(seed: int, *names: str) -> np.random.Generator:
    """Randomness of its own for each (seed, names), the same on every machine."""
    digest = hashlib.sha256("\x00".join([str(seed), *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
