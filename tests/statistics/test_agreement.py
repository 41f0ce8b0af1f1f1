"""Agreement coefficients: the textbook values, the same numbers as statsmodels and scikit-learn, and their laws."""

import math

import numpy as np
import pytest
from scipy.stats import friedmanchisquare
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from tutelage.statistics import (
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    kendall_w,
    krippendorff_alpha,
    krippendorff_interval,
    label_ceiling,
    pairwise_agreement,
    wilson,
)

M = None
KRIPPENDORFF_2011 = np.array(  # four observers, twelve units
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, M, M, M],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, M, 3],
        [M, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, M],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, M],
    ],
    dtype=object,
).T
FLEISS_1971 = [  # counts of five categories by fourteen raters, ten units
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def ratings_of(counts: list[list[int]]) -> list[list[int]]:
    return [[c for c, times in enumerate(row) for _ in range(times)] for row in counts]


def two_raters(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> tuple[list[str], list[str]]:
    first = ["yes"] * (yes_yes + yes_no) + ["no"] * (no_yes + no_no)
    return first, ["yes"] * yes_yes + ["no"] * yes_no + ["yes"] * no_yes + ["no"] * no_no


def test_cohen_golden() -> None:
    kappa, error = cohen_kappa(*two_raters(20, 5, 10, 15))
    assert kappa == pytest.approx(0.4, abs=1e-12)
    assert error == pytest.approx(0.1270, abs=5e-5)


def test_cohen_is_statsmodels_and_sklearn_with_four_labels() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(4, size=120)
    second = np.where(rng.random(120) < 0.6, first, rng.integers(4, size=120))
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), 1)
    expected = inter_rater.cohens_kappa(table)
    kappa, error = cohen_kappa(first.tolist(), second.tolist())
    assert kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert (kappa, error) == pytest.approx((expected["kappa"], expected["std_kappa"]), abs=1e-12)


def test_cohen_of_a_single_label_is_undefined() -> None:
    assert math.isnan(cohen_kappa(["A", "A"], ["A", "A"]).kappa)


@pytest.mark.parametrize(
    ("metric", "alpha"), [("nominal", 0.7434), ("ordinal", 0.8154), ("interval", 0.8491), ("ratio", 0.7974)]
)
def test_krippendorff_golden(metric, alpha: float) -> None:
    assert krippendorff_alpha(KRIPPENDORFF_2011, metric) == pytest.approx(alpha, abs=5e-5)


def test_krippendorff_by_hand() -> None:
    # pairs (a,a), (a,b), (b,b): 2 of 6 ordered pairs differ, D_o = 1/3; 3 a and 3 b, D_e = 2*3*3/(6*5) = 3/5
    assert krippendorff_alpha([["a", "a"], ["a", "b"], ["b", "b"]]) == pytest.approx(1 - (1 / 3) / (3 / 5))


def test_krippendorff_laws() -> None:
    ragged = [[r for r in unit if r is not None] for unit in KRIPPENDORFF_2011[::-1]]
    as_nan = [[math.nan if r is None else float(r) for r in unit[::-1]] for unit in KRIPPENDORFF_2011]
    for metric in ("nominal", "ordinal", "interval", "ratio"):
        alpha = krippendorff_alpha(KRIPPENDORFF_2011, metric)
        assert krippendorff_alpha(ragged, metric) == pytest.approx(
            alpha, abs=1e-12
        )  # who, and in which order: no matter
        assert krippendorff_alpha(as_nan, metric) == pytest.approx(alpha, abs=1e-12)
        assert krippendorff_alpha([[1, 1], [2, 2, 2], [5, 5]], metric) == 1.0

    def stretched(f) -> list[list[float]]:
        return [[f(r) for r in unit] for unit in ragged]

    ordinal, interval, ratio = (krippendorff_alpha(ragged, metric) for metric in ("ordinal", "interval", "ratio"))
    assert krippendorff_alpha(stretched(math.exp), "ordinal") == pytest.approx(ordinal, abs=1e-12)
    assert krippendorff_alpha(stretched(lambda r: 3 * r - 7), "interval") == pytest.approx(interval, abs=1e-12)
    assert krippendorff_alpha(stretched(lambda r: 3 * r), "ratio") == pytest.approx(ratio, abs=1e-12)
    assert math.isnan(krippendorff_alpha([[2, 2], [2, 2]]))


def test_krippendorff_interval_covers_the_truth_and_narrows() -> None:
    rng = np.random.default_rng(1)

    def labels(units: int) -> np.ndarray:  # three raters copy a fair coin with chance .7, else flip: alpha = .49
        truth = rng.integers(2, size=(units, 1))
        return np.where(rng.random((units, 3)) < 0.7, truth, rng.integers(2, size=(units, 3)))

    small = [krippendorff_interval(labels(60), draws=200, rng=rng) for _ in range(60)]
    assert np.mean([i.low <= 0.49 <= i.high for i in small]) > 0.85
    large = krippendorff_interval(labels(960), draws=200, rng=rng)
    assert large.estimate == pytest.approx(0.49, abs=0.06)
    mean_width = np.mean([i.high - i.low for i in small])
    assert large.high - large.low == pytest.approx(mean_width / 4, rel=0.3)


def test_krippendorff_interval_widens_when_units_share_a_prompt() -> None:
    rng = np.random.default_rng(2)
    once = np.where(rng.random((40, 2)) < 0.7, rng.integers(2, size=(40, 1)), rng.integers(2, size=(40, 2)))
    copied = np.repeat(once, 9, axis=0)  # nine copies carry no news
    naive = krippendorff_interval(copied, draws=300, rng=np.random.default_rng(3))
    honest = krippendorff_interval(
        copied, clusters=np.repeat(np.arange(40), 9), draws=300, rng=np.random.default_rng(3)
    )
    assert honest.high - honest.low == pytest.approx(3 * (naive.high - naive.low), rel=0.3)


def test_fleiss_golden_and_statsmodels() -> None:
    kappa = fleiss_kappa(ratings_of(FLEISS_1971))
    assert kappa == pytest.approx(0.2099, abs=5e-5)
    assert kappa == pytest.approx(inter_rater.fleiss_kappa(np.array(FLEISS_1971)), abs=1e-12)


def test_prevalence_paradox_golden() -> None:
    first, second = two_raters(90, 4, 4, 2)  # 92 % raw agreement, both say yes to 94 %
    assert cohen_kappa(first, second).kappa == pytest.approx(0.291, abs=5e-4)
    assert gwet_ac1(zip(first, second, strict=True)) == pytest.approx(0.910, abs=5e-4)


def test_gwet_counts_labels_on_offer_and_missing_ratings() -> None:
    # q = (3/4, 1/4): p_e = 3/8; with a third label on offer p_e = 3/16; the half-missing unit counts for q only
    units = [["a", "a"], ["a", "b"], ["a", None], ["b", "a"]]
    q = (1 + 0.5 + 1 + 0.5) / 4
    assert gwet_ac1(units) == pytest.approx((1 / 3 - 2 * q * (1 - q)) / (1 - 2 * q * (1 - q)))
    assert gwet_ac1(units, categories=3) == pytest.approx((1 / 3 - q * (1 - q)) / (1 - q * (1 - q)))
    assert gwet_ac1([["a", "a"]]) == 1.0  # where kappa is undefined


def test_kendall_w_is_friedman_with_ties() -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(5, size=(6, 8)) + 0.5 * np.arange(8).round()
    chi_square, _ = friedmanchisquare(*scores.T)
    assert kendall_w(scores) == pytest.approx(chi_square / (6 * 7), abs=1e-12)


def test_kendall_w_by_hand() -> None:
    assert kendall_w([[1, 2, 3], [10, 20, 90]]) == 1.0
    assert kendall_w([[1, 2, 3], [3, 2, 1]]) == 0.0
    assert kendall_w([[1, 2, 3], [1, 3, 2], [1, 2, 3]]) == pytest.approx(12 * 14 / (9 * 24))  # sums 3, 7, 8: S = 14
    assert math.isnan(kendall_w([[1, 1], [2, 2]]))


def test_pairwise_agreement_by_hand() -> None:
    # shares per item: 1, 1/3 (three raters, one pair of three), 0; the item judged once is left out
    units = [["A", "A"], ["A", "A", "B"], ["A", "B"], ["A", None], []]
    interval = pairwise_agreement(units)
    assert interval.estimate == pytest.approx(4 / 9)
    assert (interval.n, interval.clusters) == (3, 3)
    by_prompt = pairwise_agreement(units, clusters=["p", "q", "p", "r", "s"])
    assert (by_prompt.n, by_prompt.clusters) == (3, 2)
    shuffled = pairwise_agreement(units[::-1], clusters=["s", "r", "p", "q", "p"])  # an empty unit first moves nothing
    assert (shuffled.low, shuffled.high) == pytest.approx((by_prompt.low, by_prompt.high))


def test_full_agreement_still_has_a_width() -> None:
    assert pairwise_agreement([["A", "A"]] * 30).low == pytest.approx(wilson(30, 30).low)


@pytest.mark.parametrize(
    ("agreement", "ceiling"), [(0.63, 0.755), (0.726, 0.836), (0.77, 0.867), (1.0, 1.0), (0.4, 0.5)]
)
def test_label_ceiling_golden(agreement: float, ceiling: float) -> None:
    assert label_ceiling(agreement) == pytest.approx(ceiling, abs=5e-4)


def test_label_ceiling_is_exact_for_equal_difficulty_and_above_the_truth_otherwise() -> None:
    assert label_ceiling(0.8**2 + 0.2**2) == pytest.approx(0.8)
    mixed = np.mean([q**2 + (1 - q) ** 2 for q in (0.55, 0.98)])
    assert label_ceiling(float(mixed)) == pytest.approx(0.841, abs=5e-4)
    assert pytest.approx(0.765) == (0.55 + 0.98) / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cohen_kappa(["A"], ["A", "B"]), "got 1 and 2"),
        (lambda: krippendorff_alpha([[1], [2]]), "none in 2 units"),
        (lambda: krippendorff_alpha([["low", "high"]], "ordinal"), r"finite numbers.*\['low', 'high'\]"),
        (lambda: krippendorff_alpha([[-1, 2]], "ratio"), "not negative"),
        (lambda: krippendorff_alpha([[1, 2]], "cardinal"), "got 'cardinal'"),  # type: ignore[arg-type]
        (lambda: fleiss_kappa([[1, 2], [1, 2, 2]]), "got 2 to 3"),
        (lambda: gwet_ac1([[1, 2], [3, 3]], categories=2), "3 labels seen; got 2"),
        (lambda: kendall_w([[1, 2, 3]]), r"got shape \(1, 3\)"),
        (lambda: pairwise_agreement([["A", "B"]], clusters=["p", "q"]), r"one label per unit \(1\); got 2"),
        (lambda: label_ceiling(77), "got 77"),
    ],
)
def test_bad_input_is_named_at_the_door(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
