"""Answers from a geometric mixture of two models, pi^(1 - b) mu^b normalised at every token: exact, while sampling.

At temperature T the mixture of the tempered distributions is softmax(((1 - b) l + b l') / T) of the two models' logits, so
the mixture's logits are (1 - b) l + b l' and the decoder draws from them as from any other (arXiv:2312.00886, section 7).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PretrainedConfig

from tutelage.models.cache import KeyValues, Prefill, Room, Step
from tutelage.models.packing import backbone_of
from tutelage.models.sampling import Decoder, Read


@dataclass(frozen=True)
class MixtureDecoder(Decoder):
    """A `Decoder` whose next token comes from both models; each keeps its own keys and values.

    `module` (under `context`) is pi. `other` is mu: its weights and context (for LoRA the same weights, adapter off). They
    share the vocabulary. The log-probs of the answers are the mixture's.
    """

    other: Decoder | None = None
    mixing: float = 0.0
    """b: the weight of mu."""

    def __post_init__(self) -> None:
        assert self.other is not None, "a mixture has two models"
        assert 0 <= self.mixing <= 1, self.mixing

    def _allocate(self, config: PretrainedConfig, room: Room, like: Tensor) -> KeyValues:
        """Layers of pi, then those of mu, over the same rows: what moves, moves in both."""
        assert self.other is not None
        trunk = backbone_of(self.other.module)
        theirs = self.other._allocate(trunk.config, room, next(trunk.parameters()))
        return super()._allocate(config, room, like).beside(theirs)

    def reader(self, tokens: int) -> Read:
        """Both models' logits, mixed."""
        assert self.other is not None
        mine, theirs = super().reader(tokens), self.other.reader(tokens)
        layers = backbone_of(self.module).config.num_hidden_layers

        def read(line: Tensor, layout: Prefill | Step, places: slice | list[int]) -> Tensor:
            parts = (layout.cache.layers(which) for which in (slice(layers), slice(layers, None)))
            ours, others = (
                each(line, replace(layout, cache=part), places)
                for each, part in zip((mine, theirs), parts, strict=True)
            )
            with torch.inference_mode():
                return (1 - self.mixing) * ours + self.mixing * others

        return read


def rival_decoder(policy: Decoder, reference: Decoder, mixing: float) -> Decoder:
    """The decoder of pi^(1 - b) mu^b: the policy's own at b = 0 and the reference's at b = 1, at the cost of one model."""
    if mixing == 0:
        return policy
    if mixing == 1:
        return reference
    shared = (policy.module, policy.stop_tokens, policy.decode, policy.rows, policy.context)
    return MixtureDecoder(*shared, other=reference, mixing=mixing)
