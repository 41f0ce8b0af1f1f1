"""Losses of answers judged alone, one number a row: yes or no as a probability, a rating as a number."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def cross_entropy(scores: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-y log sigma(s) - (1 - y) log sigma(-s): the log-loss of P(yes) = sigma(s) for a label y in [0, 1].

    A label between 0 and 1 is the share of people who said yes. Least in expectation at s = log-odds of E[y].
    """
    assert scores.shape == labels.shape, (scores.shape, labels.shape)
    return -(labels * logsigmoid(scores) + (1 - labels) * logsigmoid(-scores))


def squared_error(scores: Float[Tensor, "*shape"], labels: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(s - y)^2, on the labels' own scale. Least in expectation at s = E[y]."""
    assert scores.shape == labels.shape, (scores.shape, labels.shape)
    return (scores - labels) ** 2
