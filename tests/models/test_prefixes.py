"""Values of every prefix: each number where it belongs, in agreement with values and scores."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from tutelage.data.batch import sequences
from tutelage.functional.prefixes import prefix_mask
from tutelage.models.heads import new_scalar_model
from tutelage.models.prefixes import PrefixReader
from tutelage.models.tiny import tiny

BATCH = sequences(
    [(5, 6, 7), (8,)],
    [0, 1, 0, 1],
    [[20, 21, 22, 23], [30], [40, 41, 42], []],
    [[True, False, True, True], [True], [True] * 3, []],
)


def reader(**settings):
    backbone = tiny(hidden=16, heads=2, kv_heads=1, std=0.3, float64=True)[0].model
    module = new_scalar_model(backbone, seed=1)
    module.head.shift, module.head.scale = 0.25, 2.0
    return PrefixReader(module, **settings)


def test_against_plain_calls_of_every_prefix():
    model = reader()
    with torch.no_grad():
        values = model.prefix_values(BATCH)
        prefixes = prefix_mask(BATCH.mask, BATCH.lengths)
        for b, (p, n) in enumerate(zip(BATCH.prompt_of.tolist(), BATCH.lengths.tolist(), strict=True)):
            for t in range(n + 1):
                text = [*BATCH.prompts.tokens[p], *BATCH.tokens[b, :t].tolist()]
                state = model.module.backbone(torch.tensor([text])).last_hidden_state[0, -1]
                exact = model.module.head(state).squeeze() if prefixes[b, t] else torch.zeros((), dtype=torch.float64)
                assert_close(values[b, t], exact, atol=1e-10, rtol=0)
    assert not values[~prefixes].any()


def test_agrees_with_values_and_scores():
    model = reader()
    with torch.no_grad():
        values = model.prefix_values(BATCH)
        assert_close(values[:, :-1][BATCH.mask], model.values(BATCH)[BATCH.mask], atol=1e-12, rtol=0)
        whole = values.gather(1, BATCH.lengths[:, None])[:, 0]
        assert_close(whole, model.scores(BATCH), atol=1e-12, rtol=0)


def test_the_same_packed_padded_and_in_pieces():
    exact = reader().prefix_values(BATCH).detach()
    assert_close(reader(plain=True).prefix_values(BATCH).detach(), exact, atol=1e-10, rtol=0)
    with torch.no_grad():
        for tokens in (1, 8, 10**6):
            assert_close(reader(tokens_per_pass=tokens).prefix_values(BATCH), exact, atol=1e-10, rtol=0)
