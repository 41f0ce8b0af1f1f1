"""Duels: who answers, who judges, when a past policy plays, and that nothing depends on anything but (seed, step)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tutelage.algorithms.nash_md import NashMD, PastPolicies
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.sampling import Decoder, Decoding
from tutelage.models.tiny import tiny
from tutelage.records import Answer, user
from tutelage.training.duels import DuelSource
from tutelage.training.pool import PolicyPool

METHOD = NashMD(group_size=2, mixing=0.0, pool_every=3, pool_share=0.5)


class Told:
    """A sampler that says its own name and remembers the seeds it was asked with."""

    def __init__(self, name):
        self.name, self.seeds = name, []

    def sample(self, prompts, answers, decoding, seed):
        self.seeds.append(seed)
        said = Answer(self.name, tuple(map(ord, self.name)), (-1.0,) * len(self.name))
        return [[said] * answers for _ in prompts]


class First:
    """A preference for the first side, as strong as the prompt's number says; it keeps what it saw."""

    def __init__(self):
        self.seen = []

    def probability(self, prompts, first, second):
        self.seen.append((first[0][0].text, second[0][0].text))
        return [[0.5 + 0.1 * p] * len(group) for p, group in enumerate(first)]


def source(sampler, mixture, **changes):
    kept = []
    plain = {
        "draw_prompts": lambda step: [user(f"{step} a"), user(f"{step} b")],
        "encode": lambda prompt: list(prompt.text.encode()),
        "sampler": sampler,
        "score": lambda prompts, groups: pytest.fail("a duel is judged, not scored"),
        "decoding": Decoding(8, 1.0),
        "group_size": 2,
        "seed": 5,
        "keep_samples": lambda step, rows: kept.extend(rows),
        "preference": First(),
        "mixture": mixture,
        "policy": torch.nn.Linear(1, 1),
    }
    return DuelSource(**plain | changes), kept


def test_the_reward_is_the_probability_of_beating_the_rival_whose_rows_stay_outside():
    policy, rival = Told("us"), Told("them")
    duel, kept = source(policy, rival)
    batch, metrics = duel(4)
    assert duel.preference.seen == [("us", "them")]
    assert batch.rewards.tolist() == pytest.approx([0.5, 0.5, 0.6, 0.6])
    assert [bytes(row[:2].tolist()) for row in batch.answers.tokens] == [b"us"] * 4
    assert policy.seeds == ["5/4"]
    assert rival.seeds == ["5/4/rival"], "a stream of its own: equal uniforms would make equal answers"
    assert [answer["rival"] for row in kept for answer in row["answers"]] == ["them"] * 4
    assert metrics["pool/past_rival"] == 0.0
    assert metrics["reward/rival_length"] == 4.0


def test_who_is_in_the_pool_and_who_plays_is_a_function_of_seed_and_step():
    """By hand: a policy joins before steps 0, 3, 6; half of the steps have a past rival, each member alike."""
    assert [METHOD.members(step) for step in (0, 2, 3, 7)] == [(0,), (0,), (0, 3), (0, 3, 6)]
    assert NashMD(pool_every=0).members(100) == ()
    drawn = [METHOD.past_rival(step, 0) for step in range(3000, 3003) for _ in range(2)]
    assert drawn[::2] == drawn[1::2]
    fixed = replace(METHOD, pool_every=100)
    counts = Counter(fixed.past_rival(300 + step % 100, seed) for step in range(100) for seed in range(100))
    assert set(counts) == {None, 0, 100, 200, 300}
    assert counts[None] == pytest.approx(5000, abs=250)
    assert all(counts[member] == pytest.approx(1250, abs=150) for member in (0, 100, 200, 300))
    assert {replace(METHOD, pool_share=0.0).past_rival(step, 1) for step in range(50)} == {None}


def test_the_state_lists_the_pool_that_is_on_the_disk(batch_of_answers):
    """After each step's `prepare` the members are those that had joined when the step was drawn."""
    state = METHOD.initial_state()
    for step in range(5):
        _, state, metrics = NashMD(pool_every=3, kl_coefficient=0.0).prepare(None, batch_of_answers, state)
        assert tuple(state.members) == METHOD.members(step)
        assert metrics["pool/size"] == len(state.members)
    assert state == PastPolicies(5, [0, 3])


@pytest.fixture
def batch_of_answers():
    return source(Told("us"), Told("them"))[0](0)[0]


def test_a_past_rival_is_loaded_from_the_disk_and_plays_with_its_own_weights(tmp_path):
    """The rival's answers are those of the policy as it was; the policy's own are of its weights now."""
    model, tokenizer = tiny(hidden=32)
    policy = add_lora(model, LoRA(rank=2, alpha=4), task="CAUSAL_LM")
    decoder = Decoder(policy, (257,), lambda ids: " ".join(map(str, ids)))
    reference = replace(decoder, context=reference_mode)
    pool = PolicyPool(tmp_path / "pool", tokenizer, "base")
    rivals = {0: None, 1: None, 2: 0}
    duel, kept = source(
        decoder, reference, policy=policy, pool=pool, past_rival=rivals.get, joins=lambda step: step == 0
    )

    def shift():
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator))

    shift()
    tokens = [list(f"2 {letter}".encode()) for letter in "ab"]
    past = decoder.sample(tokens, 2, Decoding(8, 1.0), "5/2/rival")
    duel(0)
    assert pool.path(0).is_dir()
    shift()
    kept.clear()
    batch, metrics = duel(2)
    assert [a["rival"] for row in kept for a in row["answers"]] == [a.text for group in past for a in group]
    now = decoder.sample(tokens, 2, Decoding(8, 1.0), "5/2")
    assert [a["text"] for row in kept for a in row["answers"]] == [a.text for group in now for a in group]
    assert (metrics["pool/past_rival"], metrics["pool/age"]) == (1.0, 2.0)
    present = decoder.sample(tokens, 2, Decoding(8, 1.0), "5/2/rival")
    assert [a.text for g in present for a in g] != [a.text for g in past for a in g]
    assert torch.allclose(batch.sampler_logprobs[0, 0], torch.tensor(now[0][0].logprobs[0]))
