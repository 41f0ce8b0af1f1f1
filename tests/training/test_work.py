"""The packed path is proved by counting: tokens through the linear layers are the real ones, each prompt once."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from tutelage.algorithms.base import Models
from tutelage.data.batch import Pairs, sequences
from tutelage.models.floors import Network
from tutelage.models.heads import new_scalar_model
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.lora import LoRA, add_lora, reference_mode
from tutelage.models.tiny import tiny
from tutelage.training.work import Passes, Work, networks_of, packed_tokens, real_tokens

ANSWERS = sequences([(5, 6, 7), (8,)], [0, 0, 1], [[20, 21], [22], [30, 31, 32]])
"""Prompts of 3 and 1 tokens once, answers of 2, 1 and 3: ten tokens."""


@dataclass
class Book:
    """A meter that puts every forward into one `Work`; of reward models into another."""

    work: Work = field(default_factory=Work)
    scored: Work = field(default_factory=Work)

    def present(self, scores: bool) -> Work | None:
        return self.scored if scores else self.work


@dataclass
class Seen:
    """Tokens that arrive at a linear layer of the first block, counted by another hook than the one under test."""

    tokens: int = 0

    def on(self, module: nn.Module) -> Seen:
        layer = next(m for name, m in module.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
        layer.register_forward_hook(self._add)
        return self

    def _add(self, layer: nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        self.tokens += args[0].shape[:-1].numel()


def test_what_a_batch_needs_by_hand():
    assert real_tokens(ANSWERS) == (3 + 1 + 2 + 1 + 3, 6)
    masked = sequences([(5, 6)], [0, 0], [[1, 2, 3], [4]], [[True, False, True], [False]])
    assert real_tokens(masked) == (2 + 3 + 1, 2)
    # a prompt of 2, answers (1 2 3), (4) and again (1 2 3): the third side stands there once
    one, other = sequences([(5, 6)], [0, 0], [[1, 2, 3], [4]]), sequences([(5, 6)], [0, 0], [[4], [1, 2, 3]])
    values = torch.ones(2)
    assert real_tokens(Pairs(one, other, values, values, values)) == (2 + 3 + 1, 4)
    assert packed_tokens(ANSWERS) == 10


def test_packed_tokens_through_the_linear_layers_are_the_real_ones():
    module, _ = tiny()
    policy, book, seen = CausalModel(module), Book(), Seen().on(module)
    with Passes(Models(policy=policy)).counted(book):
        policy.logprobs(ANSWERS).sum().backward()
    assert book.work.through == {(id(module.model), True): 10}
    assert book.work.computed == seen.tokens == packed_tokens(ANSWERS)
    assert (book.work.passes, book.work.padded) == (1, 0)
    policy.logprobs(ANSWERS)
    assert book.work.computed == 10, "nothing is counted outside"


def test_adapter_and_reference_are_one_network_with_and_without_gradient():
    module = add_lora(tiny()[0], LoRA(rank=2))
    policy, reference = CausalModel(module), CausalModel(module, context=reference_mode)
    book, passes = Book(), Passes(Models(policy=policy, reference=reference))
    key = id(module.get_base_model().model)
    with passes.counted(book):
        policy.logprobs(ANSWERS)
        with torch.no_grad():
            reference.logprobs(ANSWERS)
    assert book.work.through == {(key, True): 10, (key, False): 10}
    assert passes.networks == {key: Network.of(module)}


def test_a_padded_pass_is_counted_and_its_reason_said_once(capsys):
    """Three rows as long as the longest, 1 + 3 or 3 + 2 tokens: 15 through the layers where 10 are needed."""
    module, _ = tiny()
    policy, book, seen = CausalModel(module, plain=True), Book(), Seen().on(module)
    with Passes(Models(policy=policy)).counted(book):
        policy.logprobs(ANSWERS)
        policy.logprobs(ANSWERS)
    assert book.work.computed == seen.tokens == 2 * 15
    assert (book.work.passes, book.work.padded) == (2, 2)
    assert capsys.readouterr().err.count("rows run padded, each with its own copy of the prompt: it was asked for") == 1


def test_where_packing_is_required_a_padded_pass_is_an_error():
    policy = CausalModel(tiny()[0], plain=True)
    with (
        Passes(Models(policy=policy), require_packed=True).counted(Book()),
        pytest.raises(ValueError, match="require_packed: rows would run padded"),
    ):
        policy.logprobs(ANSWERS)


def test_a_model_that_cannot_run_packed_is_refused_at_the_door(capsys):
    module, _ = tiny()
    module.config.layer_types = ["full_attention", "sliding_attention"]
    module.config.sliding_window = 8
    module.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4}
    models = Models(policy=CausalModel(module))
    Passes(models).check()
    assert "rows run padded" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="require_packed: rows would run padded, each with its own copy of the prompt: "
    ):
        Passes(models, require_packed=True).check()
    Passes(Models(policy=CausalModel(tiny()[0])), require_packed=True).check()


def test_a_reward_model_needs_each_prompt_once_however_its_passes_are_cut():
    """Pieces of at most 6 tokens: {prompt of 3, 2 + 1 said} and {prompt of 1, 3 said}; of 4 the first is cut in two."""
    scalar = new_scalar_model(tiny()[0].model)
    for budget, through in ((6, 10), (5, 10), (4, 13)):
        book = Book()
        with Passes(Models(), (scalar,)).counted(book), torch.no_grad():
            HeadedModel(scalar, tokens_per_pass=budget).scores(ANSWERS)
        key = (id(scalar.backbone), False)
        assert book.scored.through == {key: through}
        assert book.scored.own == {key: 10}
        assert book.scored.needed(key) == 10
        assert book.work.through == {}


def test_what_computes_without_a_network_is_not_counted():
    class Table:
        def logprobs(self, answers):
            return torch.zeros(answers.tokens.shape)

        def logprobs_and_entropy(self, answers):
            return self.logprobs(answers), self.logprobs(answers)

    assert networks_of(Models(policy=Table())) == []
    module, _ = tiny()
    models = Models(policy=CausalModel(module), value=HeadedModel(new_scalar_model(tiny(seed=1)[0].model)))
    assert [type(one).__name__ for one in networks_of(models)] == ["LlamaForCausalLM", "ScalarModel"]
