"""What more samples buy: pass@k and best-of-n, estimated without resampling."""

import math

import numpy as np
from numpy.typing import ArrayLike

from tutelage.statistics.arrays import vector


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of `samples` drawn without replacement hold a correct one: 1 - C(n-c, k)/C(n, k).

    Unbiased for pass@k of the policy (Chen et al. 2021, arXiv:2107.03374, eq. 1). ValueError unless
    0 <= correct <= samples and 1 <= k <= samples.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(
            f"pass_at_k needs 0 <= correct <= samples and 1 <= k <= samples; got samples={samples}, "
            f"correct={correct}, k={k}"
        )
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def best_of_n_unbiased(scores: ArrayLike, values: ArrayLike, n: int) -> float:
    """Expected value of the best-scored of n answers drawn without replacement out of the M given for one prompt.

    `scores` [M] choose (a reward model), `values` [M] are what is reported (gold score, win). The answer of ascending
    rank i is the best of n with chance C(i-1, n-1)/C(M, n); equal scores share their chances, as a fair tie-break would.
    Unbiased for best-of-n of the policy (Nakano et al. 2021, arXiv:2112.09332). ValueError unless 1 <= n <= M.
    """
    chosen_by = vector("scores", scores)
    reported = vector("values", values, rows=len(chosen_by))
    answers = len(chosen_by)
    if not 1 <= n <= answers:
        raise ValueError(f"n must lie in 1..{answers} (the answers given); got {n}")
    ranks = np.arange(1, answers)
    below_next = np.maximum(ranks - n + 1, 0) / ranks  # chance of rank i over that of rank i + 1; the top has n / M
    chances = n / answers * np.append(np.cumprod(below_next[::-1])[::-1], 1.0)
    _, tie, sizes = np.unique(chosen_by, return_inverse=True, return_counts=True)
    shared = np.bincount(np.sort(tie), weights=chances) / sizes
    return float(shared[tie] @ reported)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n-1)/n: an upper bound of KL(best-of-n || policy) in nats, not its value.

    Tight only where scores have no ties and answers do not repeat (Beirami et al. 2024, arXiv:2401.01879): with a reward
    of 0 or 1 that a sample earns with chance .56, best of 16 has KL 0.58 where this gives 1.84.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    return math.log(n) - (n - 1) / n
