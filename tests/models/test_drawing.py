"""Drawing a token: the exact distribution, every token reachable, nothing of probability zero, truncation by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch.testing import assert_close

from tutelage.models.drawing import Decoding, draw, inverse_cdf, truncate, uniforms_of
from tutelage.models.fused import running

VOCABULARY = 49_152  # SmolLM2's; a float32 CDF over it loses thousands of tokens


def distribution(kind: str, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Random probabilities of at least 1e-9 each: nearly flat, or nearly all mass on a few tokens in random places."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, 0.1 if kind == "flat" else 3.5, vocabulary)
    if kind == "peaked":
        scores[random.integers(0, vocabulary, 5)] += 14
    p = torch.tensor(scores).softmax(-1).clamp(min=1e-9)
    return (p / p.sum()).float()


def draws(p: torch.Tensor, uniforms: torch.Tensor, rows: int = 128) -> torch.Tensor:
    return torch.cat([inverse_cdf(p.expand(len(u), -1), u) for u in uniforms.split(rows)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_chi_square_against_the_exact_probabilities(kind):
    """8,000 draws in classes of at least 20 expected: the tokens in a random order, cut by mass. Refused at 1e-4."""
    p = distribution(kind, VOCABULARY).double()
    exact = p / p.sum()
    uniforms = torch.tensor(uniforms_of("chi", 0, 0, 8_000))
    order = torch.tensor(np.random.default_rng(1).permutation(VOCABULARY))
    classes = torch.empty(VOCABULARY, dtype=torch.long)
    classes[order] = (exact[order].cumsum(0) * 60).long().clamp(max=59)
    classes = classes.unique(return_inverse=True)[1]
    expected = torch.zeros(int(classes.max()) + 1, dtype=torch.float64).index_add(0, classes, exact) * len(uniforms)
    seen = torch.bincount(classes[draws(p.float(), uniforms)], minlength=len(expected))
    big = expected >= 20
    assert big.sum() > 5
    statistic = float(((seen - expected)[big] ** 2 / expected[big]).sum())
    assert chi2.sf(statistic, int(big.sum()) - 1) > 1e-4


def middles(p: torch.Tensor) -> torch.Tensor:
    """The uniform in the middle of each token's interval, in float64."""
    exact = p.double()
    return (exact.cumsum(0) - exact / 2) / exact.sum()


@pytest.mark.parametrize("vocabulary", [3, 255, 256, 257, 4_000])
@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_every_token_is_reachable(kind, vocabulary):
    p = distribution(kind, vocabulary)
    assert torch.equal(draws(p, middles(p), 4_000), torch.arange(vocabulary))


@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_tokens_of_the_real_vocabulary_are_reachable(kind):
    """512 tokens spread over the 49,152 (all of them: the slow test)."""
    p = distribution(kind, VOCABULARY)
    some = torch.arange(0, VOCABULARY, 96) + torch.arange(512) % 96
    assert torch.equal(draws(p, middles(p)[some]), some)


def in_columns(p: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws from logits that stand a column a row, by the compiled kernel, and their log-probs."""
    logits = (p.double().log() * temperature).float()[:, None].repeat(1, len(uniforms))
    with running("numba"):
        return draw(logits.t(), Decoding(temperature=temperature), uniforms)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("vocabulary", [3, 257, 4_000])
@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_logits_in_columns_are_drawn_from_alike(kind, vocabulary, temperature):
    """Within the rounding of the logits and of float32 sums each uniform finds its token, and its log-prob."""
    p = distribution(kind, vocabulary).double()
    p[vocabulary // 2] = 0
    p = p / p.sum()
    uniforms = torch.cat([middles(p), p.cumsum(0).clamp(max=1), torch.tensor([0.0, 1.0])])
    drawn, logprobs = map(torch.cat, zip(*(in_columns(p, u, temperature) for u in uniforms.split(500)), strict=True))
    above = p.cumsum(0)[drawn]
    assert (uniforms >= above - p[drawn] - 2e-6).all()
    assert (uniforms <= above + 2e-6).all()
    assert (drawn != vocabulary // 2).all()
    assert_close(logprobs, p.log()[drawn], atol=5e-6, rtol=0)
    if kind == "flat":
        assert torch.equal(drawn[:vocabulary][p > 0], torch.arange(vocabulary)[p > 0])


def test_what_weighs_less_than_a_float32_sum_is_reachable_in_columns():
    """Tokens of 1e-8 behind all the mass of their block: 3,000 uniforms around them find each."""
    p = torch.full((600,), 1e-8, dtype=torch.float64)
    p[torch.arange(0, 200, 3)] = torch.rand(67, dtype=torch.float64) / 67
    p = p / p.sum()
    uniforms = p.cumsum(0)[255] + torch.linspace(-1.5e-6, 1.5e-6, 3_000, dtype=torch.float64)
    assert set(range(200, 300)) <= set(in_columns(p, uniforms)[0].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "peaked"])
def test_all_tokens_of_the_real_vocabulary_are_reachable(kind):
    p = distribution(kind, VOCABULARY)
    assert torch.equal(draws(p, middles(p)), torch.arange(VOCABULARY))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("places", [(3, 255, 700), (300, 511, 900)])
def test_a_token_of_probability_zero_is_never_drawn(places, dtype):
    """Zeros at both ends, in the middle and over whole blocks of 256; u at each edge and a float beside it, up to 1 itself."""
    p = torch.zeros(1000, dtype=dtype)
    p[list(places)] = torch.tensor([0.25, 0.5, 0.25], dtype=dtype)
    edges = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    near = torch.cat([edges, edges.nextafter(torch.tensor(2.0)), edges.nextafter(torch.tensor(-1.0))])
    near = torch.cat([near, torch.linspace(0, 1, 2001, dtype=torch.float64)]).clamp(0, 1)
    drawn = draws(p, near)
    assert set(drawn.tolist()) == set(places)
    assert drawn[:4].tolist() == [*places, places[-1]], (
        "an edge opens the next interval; the end of all is the last token"
    )


def test_uniforms_in_order_by_hand():
    p = torch.tensor([[0.5, 0.0, 0.25, 0.25]]).expand(5, -1)
    assert inverse_cdf(p, torch.tensor([0.0, 0.49, 0.5, 0.75, 0.99])).tolist() == [0, 0, 2, 3, 3]


def test_the_scale_of_the_probabilities_does_not_matter():
    """What truncation leaves over need not sum to 1."""
    p = distribution("peaked", 1000)
    u = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draws(p, u), draws(p * 0.25, u))


def test_truncation_by_hand():
    """Nucleus 0.7 of (.4 .3 .2 .1) keeps .4 and .3 (the set that first reaches it); min-p 0.5 keeps those of at least .2."""
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert_close(truncate(p, Decoding(top_p=0.69)), torch.tensor([[0.0, 0.4, 0.0, 0.3]]))
    assert_close(truncate(p, Decoding(top_p=0.71)), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))
    assert_close(truncate(p, Decoding(min_p=0.5)), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))
    assert_close(truncate(p, Decoding(min_p=0.6, top_p=0.5)), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))
    assert_close(truncate(p, Decoding(top_k=3)), torch.tensor([[0.0, 0.4, 0.2, 0.3]]))
    assert_close(truncate(p, Decoding(top_k=2, top_p=0.5)), torch.tensor([[0.0, 0.4, 0.0, 0.0]]))  # 0.4 of 0.7 is 0.57
    tied = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert torch.equal(truncate(tied, Decoding(top_k=2)), tied), "nothing tells the second from the fourth"
    assert torch.equal(truncate(p, Decoding()), p)
    assert torch.equal(truncate(p, Decoding(top_k=9)), p)
    assert Decoding(top_k=1).truncates
    assert [Decoding(top_p=0.9).truncates, Decoding(min_p=0.1).truncates, Decoding().truncates] == [True, True, False]


def test_draw_by_hand():
    """Weights (8 4 2 2)/16 at temperature 1, squared and renormalised (64 16 4 4)/88 at 1/2; greedy says log 1/2."""
    weights = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).expand(3, -1)
    uniforms = torch.tensor([0.0, 0.6, 0.99], dtype=torch.float64)
    tokens, logp = draw(weights.log(), Decoding(), uniforms)
    assert tokens.tolist() == [0, 1, 3]
    assert_close(logp.exp(), torch.tensor([1 / 2, 1 / 4, 1 / 8], dtype=torch.float64), atol=1e-6, rtol=0)
    tokens, logp = draw(weights.log(), Decoding(temperature=0.5), uniforms)
    assert tokens.tolist() == [0, 0, 3]
    assert_close(logp.exp(), torch.tensor([64 / 88, 64 / 88, 4 / 88], dtype=torch.float64), atol=1e-6, rtol=0)
    tokens, logp = draw(weights.log(), Decoding(top_k=2), uniforms)
    assert tokens.tolist() == [0, 0, 1], "of (8 4) the first has two thirds"
    assert_close(logp.exp(), torch.tensor([2 / 3, 2 / 3, 1 / 3], dtype=torch.float64), atol=1e-6, rtol=0)
    tokens, logp = draw(weights.log(), Decoding(temperature=0.0), uniforms)
    assert tokens.tolist() == [0, 0, 0]
    assert_close(logp.exp(), torch.full((3,), 0.5))


def test_what_decoding_refuses():
    for wrong in ({"top_k": -1}, {"stop": ("", "a")}):
        with pytest.raises(ValueError, match="top_k counts tokens"):
            Decoding(**wrong)


def test_streams_of_answers_are_their_own():
    streams = [uniforms_of("0/1", p, g, 5).tolist() for p in range(3) for g in range(3)]
    assert len({tuple(s) for s in streams}) == 9
    assert uniforms_of("0/1", 2, 1, 3).tolist() == uniforms_of("0/1", 2, 1, 5).tolist()[:3], (
        "a longer limit: same start"
    )
    assert uniforms_of("0/1", 0, 0, 1)[0] != uniforms_of("0/11", 0, 0, 1)[0]
