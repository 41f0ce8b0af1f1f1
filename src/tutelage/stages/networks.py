"""The networks beside the policy: a reference from elsewhere, and the value model, on its own trunk or on the policy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from tutelage.algorithms.base import LanguageModel
from tutelage.algorithms.base import ScalarModel as ValueReader
from tutelage.config import config
from tutelage.data.batch import Rollouts
from tutelage.models.actor_critic import ActorCriticModel
from tutelage.models.heads import ScalarModel, load_reward_model, new_scalar_model
from tutelage.models.load import load_backbone, load_policy, load_tokenizer
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.sampling import Decoder
from tutelage.stages.common import Actor, Training, precision


@config
class Value:
    """The value model of PPO (and of REINFORCE's baseline `value`)."""

    trunk: Literal["separate", "shared"] = "separate"
    """A backbone (or adapter) of its own, or a head on the policy's: half the memory, but its errors move the policy."""
    start: str | None = None
    """A reward model's folder that it starts from, as in InstructGPT; default: the policy's backbone and a fresh head."""
    read_out: bool = False
    """Write its forecast before every token into samples.jsonl (one more pass of it a step)."""


@dataclass(frozen=True)
class Critic:
    """Who speaks for policy and value in `Models`, and the modules whose weights move."""

    policy: LanguageModel
    value: ValueReader | None
    trained: Mapping[str, nn.Module]


def same_vocabulary(ours: Any, theirs: Any, what: str) -> None:
    """ValueError unless two tokenizers give every token the same id: `what` reads the policy's ids as they are."""
    own, other = ours.get_vocab(), theirs.get_vocab()
    if own == other:
        return
    unlike = sorted((t for t in own.keys() | other.keys() if own.get(t) != other.get(t)), key=lambda t: (len(t), t))
    shown = ", ".join(f"{t!r} is {own.get(t)} and {other.get(t)}" for t in unlike[:3])
    raise ValueError(
        f"{what} has another vocabulary than the policy: {len(other):,} tokens and {len(own):,}, {len(unlike):,} of them "
        f"differ ({shown}); it reads the policy's token ids, so it must come from the same model family"
    )


def with_reference(cfg: Training, actor: Actor, name: str | None) -> Actor:
    """The actor with the model `name` as its reference (None: its own start, as it is)."""
    if name is None:
        return actor
    same_vocabulary(actor.tokenizer, load_tokenizer(name, ("policy",)), f"--reference {name}")
    module = load_policy(name, dtype=precision(cfg.dtype, cfg.device), device=cfg.device).requires_grad_(False)
    speaks = CausalModel(module, actor.policy.temperature, tokens_per_pass=cfg.optimization.pass_tokens)
    decoder = Decoder(module, actor.chat.stop_tokens, actor.chat.decode)
    return replace(actor, reference=speaks, reference_decoder=decoder)


def critic_of(cfg: Training, actor: Actor, value: Value, needed: bool) -> Critic:
    """The policy alone where no value model is `needed`, else with one as `value` says."""
    if not needed:
        return Critic(actor.policy, None, {"policy": actor.module})
    tokens = cfg.optimization.pass_tokens
    if value.trunk == "separate":
        scalar = _separate(cfg, actor, value.start)
        return Critic(actor.policy, HeadedModel(scalar, tokens), {"policy": actor.module, "value": scalar})
    if value.start is not None:
        raise ValueError("value.start: a value on the policy's own trunk starts from that; give --value.trunk separate")
    scalar = new_scalar_model(actor.module, seed=cfg.seed + 1)
    both = ActorCriticModel(
        actor.module, actor.policy.temperature, tokens_per_pass=tokens, value=HeadedModel(scalar, tokens)
    )
    return Critic(both, both, {"policy": scalar})


def _separate(cfg: Training, actor: Actor, start: str | None) -> ScalarModel:
    dtype = "float32" if cfg.full else precision(cfg.dtype, cfg.device)
    settings: dict[str, Any] = {"lora": cfg.adapter, "dtype": dtype, "device": cfg.device, "seed": cfg.seed + 1}
    if start is None:
        return new_scalar_model(load_backbone(cfg.model, **settings), seed=cfg.seed + 1)
    same_vocabulary(actor.tokenizer, load_tokenizer(start, ("reward_model",)), f"--value.start {start}")
    return load_reward_model(start, **settings)


def reader_of(value: ValueReader | None, tokenizer: Any) -> Callable[[Rollouts], list[list[Any]]] | None:
    """Rollouts -> for every row its tokens as [text, value before it]; None where there is no value model."""
    if value is None:
        return None

    def read(batch: Rollouts) -> list[list[Any]]:
        place = next(p for p in _module(value).parameters()).device
        rows = batch.answers.to(place)
        with torch.no_grad():
            values = value.values(rows).float().cpu().tolist()
        lengths, tokens = batch.answers.lengths.tolist(), batch.answers.tokens.tolist()
        text = [[tokenizer.decode([t], skip_special_tokens=False) for t in row[:n]] for row, n in zip(tokens, lengths)]
        return [[[t, round(v, 4)] for t, v in zip(ts, vs)] for ts, vs in zip(text, values, strict=True)]

    return read


def _module(value: Any) -> nn.Module:
    return value.value.module if isinstance(value, ActorCriticModel) else value.module
