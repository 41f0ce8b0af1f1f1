"""One token from a distribution: settings, truncation, and an inverse CDF under which no token is unreachable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tutelage.models import fused

BLOCK = 256
"""Tokens a block of the two-stage inverse CDF."""
SIDE_BY_SIDE = 8
"""Rows from which on logits stand a column a row: the kernel that draws works on that many columns at once."""


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. Top-k, top-p and min-p truncate the distribution: for evaluation and chat, refused in training.

    A stop string ends an answer like a stop token: the text is cut before it, the tokens that spell it stay (with their
    log-probs: what was sampled is the truth, and what stopping is learnt from).
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    """Only the likeliest k tokens (and those as likely as the k-th); 0: all."""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.top_k < 0 or "" in self.stop:
            raise ValueError(
                f"decoding: top_k counts tokens (0: all) and no stop string is empty; got {self.top_k}, {self.stop}"
            )

    @property
    def truncates(self) -> bool:
        """Whether sampled log-probs are of a renormalised distribution (then no policy gradient may use them)."""
        return self.top_p < 1 or self.min_p > 0 or self.top_k > 0


def draw(
    logits: Float[Tensor, "R V"], decoding: Decoding, uniforms: Float[Tensor, "R"]
) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
    """One token a row and its log-prob under temperature and truncation; temperature 0 is greedy. Overwrites `logits`."""
    columns = logits.t()
    compiled = fused.fits(logits) and len(logits) >= SIDE_BY_SIDE and columns.is_contiguous()
    if compiled and decoding.temperature > 0 and not decoding.truncates:
        return _draw_columns(columns, decoding.temperature, uniforms)
    logits = logits.contiguous()
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    weights = (logits if decoding.temperature == 1 else logits.div_(decoding.temperature)).softmax(-1)
    if decoding.truncates:
        weights = truncate(weights, decoding)
    tokens, total = _invert(weights, uniforms)
    chosen = weights.gather(-1, tokens[:, None])[:, 0].to(torch.float64)
    return tokens, (chosen / total).log()


def _draw_columns(
    logits: Float[Tensor, "V R"], temperature: float, uniforms: Float[Tensor, "R"]
) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
    """The same draw from logits that stand a column a row: sums of blocks by the compiled kernel, weights of one block only."""
    highest, of_block = fused.blocks(logits, BLOCK, temperature)
    top, rows = highest.amax(0).double(), torch.arange(len(uniforms))
    of_block = of_block.mul_(highest.double().sub_(top).div_(temperature).exp_()).t().contiguous()
    block, rest, total = _block_of(of_block, uniforms)
    tokens = block[:, None] * BLOCK + torch.arange(BLOCK)
    scores = logits[tokens.clamp(max=len(logits) - 1), rows[:, None]].double().sub_(top[:, None]).div_(temperature)
    inside = scores.exp().masked_fill_(tokens >= len(logits), 0)
    cdf = inside.cumsum(-1)
    # the kernel's sum of the block is right to 3e-7: as a share of it, the target reaches what lies within those too
    share = (rest / of_block.gather(1, block[:, None])[:, 0]).clamp(min=0)
    at = torch.searchsorted(cdf, (share * cdf[:, -1])[:, None], right=True)[:, 0]
    at = torch.minimum(at, _last_positive(inside))
    return tokens[rows, at], scores[rows, at] - total.log()


def _block_of(
    of_block: Float[Tensor, "R B"], uniforms: Float[Tensor, "R"]
) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"], Float[Tensor, "R"]]:
    """Of sums over blocks the block that the CDF reaches `uniforms` in, how far inside it that is, and the sum of all."""
    sums = of_block.cumsum(-1)
    target = uniforms.to(torch.float64) * sums[:, -1]
    block = torch.searchsorted(sums, target[:, None], right=True)[:, 0]
    block = torch.minimum(block, _last_positive(of_block))
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    return block, target - before, sums[:, -1]


def inverse_cdf(weights: Float[Tensor, "R V"], uniforms: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """One draw a row, in proportion to `weights`, by inverting the CDF at `uniforms` in [0, 1): no token becomes unreachable.

    An fp32 CDF over 49k tokens loses thousands of them to rounding; sums here are float64, first over blocks of 256 tokens,
    then inside the chosen block, and the result is clamped to a token with a weight above zero.
    """
    return _invert(weights, uniforms)[0]


def _invert(weights: Float[Tensor, "R V"], uniforms: Float[Tensor, "R"]) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
    """The draws, and the sum of each row's weights."""
    rows, vocabulary = weights.shape
    padded = nn.functional.pad(weights, (0, -vocabulary % BLOCK)) if vocabulary % BLOCK else weights
    padded = padded.view(rows, -1, BLOCK)
    # a few rows at a time: torch makes a float64 copy to sum, and a small one stays in the cache
    of_block = torch.cat([part.sum(-1, dtype=torch.float64) for part in padded.split(8)])
    block, rest, total = _block_of(of_block, uniforms)
    inside = padded.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    cdf = inside.to(torch.float64).cumsum(-1)
    at = torch.searchsorted(cdf, rest.clamp(min=0)[:, None], right=True)[:, 0]
    return block * BLOCK + torch.minimum(at, _last_positive(inside)), total


def _last_positive(x: Float[Tensor, "R N"]) -> Int[Tensor, "R"]:
    """Index of the last cell above zero."""
    return x.shape[-1] - 1 - (x > 0).flip(-1).to(torch.uint8).argmax(-1)


def truncate(probabilities: Float[Tensor, "R V"], decoding: Decoding) -> Float[Tensor, "R V"]:
    """Top-k, then min-p, then the nucleus (top-p): what falls outside gets probability 0 (the draw renormalises)."""
    if 0 < decoding.top_k < probabilities.shape[-1]:
        least = probabilities.topk(decoding.top_k, dim=-1).values[:, -1:]
        probabilities = torch.where(probabilities >= least, probabilities, 0.0)
    if decoding.min_p > 0:
        floor = decoding.min_p * probabilities.amax(-1, keepdim=True)
        probabilities = torch.where(probabilities >= floor, probabilities, 0.0)
    if decoding.top_p < 1:
        ranked, order = probabilities.sort(-1, descending=True)
        outside = ranked.cumsum(-1) - ranked >= decoding.top_p * ranked.sum(-1, keepdim=True)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked.masked_fill(outside, 0.0))
    return probabilities


def uniforms_of(seed: str, prompt: int, answer: int, count: int) -> np.ndarray:
    """The random stream of one answer; it does not depend on the batch it runs in."""
    digest = hashlib.sha256(f"{seed}/{prompt}/{answer}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big"))).random(count)
