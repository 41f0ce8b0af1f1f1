"""Distances between a teacher's and a student's next-token distributions, one number a token.

Arguments are log-probabilities over the whole vocabulary [..., V]: P the teacher, Q the student. All three are 0 where
P = Q and nowhere else; they differ in what the student does where it cannot match the teacher.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def forward_kl(teacher: Float[Tensor, "*shape V"], student: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """KL(P || Q) = sum_v P (log P - log Q): Q must cover all that P says (arXiv:1503.02531; GKD, arXiv:2306.13649, eq. 1).

    A token that the teacher never says counts 0. Its gradient in the student's logits is Q - P.
    """
    return _expected(teacher, teacher, student)


def reverse_kl(teacher: Float[Tensor, "*shape V"], student: Float[Tensor, "*shape V"]) -> Float[Tensor, "*shape"]:
    """KL(Q || P): Q may keep to what P says most, and pays for every token that P would not say (MiniLLM, arXiv:2306.08543)."""
    return _expected(student, student, teacher)


def jensen_shannon(
    teacher: Float[Tensor, "*shape V"], student: Float[Tensor, "*shape V"], beta: float
) -> Float[Tensor, "*shape"]:
    """beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q   (GKD, arXiv:2306.13649, eq. 2), 0 < beta < 1.

    Never above the entropy of (beta, 1 - beta). Divided by beta it tends to KL(P || Q) as beta -> 0; divided by
    1 - beta, to KL(Q || P) as beta -> 1.
    """
    assert 0 < beta < 1, beta
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _expected(teacher, teacher, mixture) + (1 - beta) * _expected(student, student, mixture)


def _expected(
    weight: Float[Tensor, "*shape V"], first: Float[Tensor, "*shape V"], second: Float[Tensor, "*shape V"]
) -> Float[Tensor, "*shape"]:
    """sum_v exp(weight) (first - second), where a token of probability 0 counts 0 (also where -inf meets -inf)."""
    assert weight.shape == second.shape, (weight.shape, second.shape)
    possible = weight > -math.inf
    difference = torch.where(possible, first, 0) - torch.where(possible, second, 0)
    return (weight.exp() * difference).sum(-1)
