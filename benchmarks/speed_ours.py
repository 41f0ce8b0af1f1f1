"""Our side of the measurements: the library's own decoder, loop and methods, on the token ids of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import nn

from speed_process import Channel
from speed_work import LISTENED, RATE, Work
from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.preference import DPO
from tutelage.algorithms.reward_model import BradleyTerry
from tutelage.algorithms.sft import SFT
from tutelage.data.batch import Pairs, sequences
from tutelage.data.chat import Chat
from tutelage.models.heads import load_reward_model
from tutelage.models.load import load_policy, load_tokenizer
from tutelage.models.logprobs import CausalModel, HeadedModel
from tutelage.models.packing import backbone_of, unsupported
from tutelage.models.sampling import Decoder, Decoding
from tutelage.records import Answer, Message, Prompt
from tutelage.training.environment import environment
from tutelage.training.loop import Progress, Task, one_step
from tutelage.training.optim import Optimization, adamw, named_trainable
from tutelage.training.rollouts import RolloutSource

try:
    from speed_limits import Limits
    from tutelage.models.gemm import choose_gemm, multiplying
except ImportError:  # measured against an earlier revision of the library, which had neither
    Limits = choose_gemm = multiplying = None
try:
    from tutelage.models.fused import choose_kernels, running
except ImportError:
    choose_kernels = running = None

FLOORS = {GRPO: "grpo", SFT: "sft", DPO: "dpo", BradleyTerry: "reward"}


def decode(work: Work, channel: Channel) -> None:
    """Sample `group` answers to every prompt."""
    with _as_commands(work) as chosen:
        module, chat = _policy(work)
        decoder = _decoder(work, module, chat)
        limits = Limits() if Limits and not work.settings.get("decoder") else None  # the floor is float32's
        channel.ready(environment=environment())
        while True:
            channel.wait()
            groups = decoder.sample(work.prompts, work.group, Decoding(work.max_tokens), _seed(work))
            channel.done()
            listened = [[_before_stop(answer, work) for answer in group] for group in groups]
            said = [(answer, count) for group, counts in zip(groups, listened) for answer, count in zip(group, counts)]
            first = [value for answer, count in said for value in answer.logprobs[:count]]
            channel.report(
                tokens=sum(len(answer.tokens) for answer, _ in said),
                logprob=sum(first) / len(first),
                answers=said_in(groups, work),
                listened=listened,
                chosen=chosen,
                **(limits.floors("decode", work, module) if limits else {}),
            )


def grpo(work: Work, channel: Channel) -> None:
    """Sample, reward, compare, update: a whole step of reinforcement learning."""
    module, chat = _policy(work)
    replayed = Replayed(_decoder(work, module, chat), work)
    source = RolloutSource(
        draw_prompts=lambda step: [_prompt(rows) for rows in work.messages],
        encode=lambda prompt: work.prompts[[_prompt(rows) for rows in work.messages].index(prompt)],
        sampler=replayed,
        score=lambda prompts, groups: (work.rewards, {}),
        decoding=Decoding(work.max_tokens),
        group_size=work.group,
        seed=work.seed,
        keep_samples=lambda step, rows: None,
    )
    policy = CausalModel(module, tokens_per_pass=_settings(work).pass_tokens)
    method = GRPO(group_size=work.group, kl_coefficient=0.0)
    task = _task(work, Models(policy=policy), method, source, {"policy": module})
    _steps(task, work, channel, lambda: {"answers_as_given": replayed.same})


def sft(work: Work, channel: Channel) -> None:
    """One step on the demonstrations."""
    module, _ = _policy(work)
    rows = work.demonstrations
    batch = sequences([row.prompt for row in rows], range(len(rows)), [row.answer for row in rows])
    policy = CausalModel(module, tokens_per_pass=_settings(work).pass_tokens)
    _steps(_task(work, Models(policy=policy), SFT(), lambda step: (batch, {}), {"policy": module}), work, channel)


def dpo(work: Work, channel: Channel) -> None:
    """One step on the pairs, the reference's log-probs included."""
    module, _ = _policy(work)
    reference = load_policy(work.model, dtype="float32", device="cpu").requires_grad_(False)
    tokens = _settings(work).pass_tokens
    models = Models(policy=CausalModel(module, tokens_per_pass=tokens), reference=CausalModel(reference))
    batch = _pairs(work)
    _steps(_task(work, models, DPO(beta=0.1), lambda step: (batch, {}), {"policy": module}), work, channel)


def reward(work: Work, channel: Channel) -> None:
    """One step of a reward model on the pairs."""
    module = load_reward_model(work.model, dtype="float32", device="cpu")
    models = Models(reward=HeadedModel(module, tokens_per_pass=_settings(work).pass_tokens))
    batch = _pairs(work)
    method = BradleyTerry(centering=0.0)
    _steps(_task(work, models, method, lambda step: (batch, {}), {"reward": module}), work, channel)


@dataclass
class Replayed:
    """A sampler that really samples, and then hands on the answers of the work, which both sides train on.

    The same seed gives the same answers, so they are its own. `same` is the share that is: a token can fall the other way
    by rounding.
    """

    decoder: Decoder
    work: Work
    same: float = field(default=0.0, init=False)

    def sample(
        self, prompts: Sequence[Sequence[int]], answers: int, decoding: Decoding, seed: str
    ) -> list[list[Answer]]:
        """See `Sampler`."""
        groups = self.decoder.sample(prompts, answers, decoding, seed)
        own = [said for group in said_in(groups, self.work) for said in group]
        given = [said for group in self.work.answers for said in group]
        self.same = sum(a == b for a, b in zip(own, given, strict=True)) / len(given)
        handed = iter(given)
        return [[_saying(answer, next(handed)) for answer in group] for group in groups]


def said_in(groups: Sequence[Sequence[Answer]], work: Work) -> list[list[list[int]]]:
    """Token ids [P][G]; in forced answers, which go on behind a stop token, an ordinary token stands in its place."""
    stand_in, stops = work.prompts[0][-1], set(work.stop_tokens) if work.forced else set()
    return [[[stand_in if t in stops else t for t in answer.tokens] for answer in group] for group in groups]


def _before_stop(answer: Answer, work: Work) -> int:
    """How many of the first tokens are the answer's own, and said in the context that they are replayed in."""
    stops = [at for at, token in enumerate(answer.tokens) if token in work.stop_tokens]
    return min([LISTENED, len(answer.tokens), *stops])


def _saying(answer: Answer, tokens: Sequence[int]) -> Answer:
    return replace(answer, tokens=tuple(tokens), logprobs=answer.logprobs[: len(tokens)])


@contextmanager
def _as_commands(work: Work) -> Iterator[dict[str, str]]:
    """Threads, allocator, products and kernels as our commands set them up by themselves; says which of the last two."""
    torch.set_num_threads(work.threads)
    if work.settings.get("settled"):
        import_module("tutelage.cli").settle_process()
    cpu = torch.device("cpu")
    found: dict[str, str] = {}
    with ExitStack() as stack:
        if multiplying and choose_gemm:
            found["gemm"] = choose_gemm(work.chosen.get("gemm", "auto"), cpu)
            stack.enter_context(multiplying(found["gemm"]))
        if running and choose_kernels:
            found["kernels"] = choose_kernels(work.chosen.get("kernels", "auto"), cpu)
            stack.enter_context(running(found["kernels"]))
        yield found


def _policy(work: Work) -> tuple[Any, Chat]:
    """All weights in float32, trained; and its chat."""
    return load_policy(work.model, dtype="float32", device="cpu"), Chat.of(load_tokenizer(work.model))


def _decoder(work: Work, module: nn.Module, chat: Chat) -> Decoder:
    return Decoder(module, () if work.forced else chat.stop_tokens, chat.decode, **work.settings.get("decoder", {}))


def _seed(work: Work) -> str:
    """The seed of a rollout's first step."""
    return f"{work.seed}/0"


def _prompt(rows: Sequence[Mapping[str, Any]]) -> Prompt:
    return Prompt(tuple(Message(row["role"], row["content"]) for row in rows))


def _settings(work: Work) -> Optimization:
    given = {name: value for name, value in work.settings.items() if name == "tokens_per_pass"}
    return Optimization(warmup_steps=0, **given)


def _task(
    work: Work, models: Models, method: Any, draw: Callable[[int], Any], trained: Mapping[str, nn.Module]
) -> Task:
    return Task(models, method, draw, trained, 1, RATE, _settings(work), work.seed)


def _pairs(work: Work) -> Pairs:
    prompts, which = [pair.prompt for pair in work.pairs], range(len(work.pairs))
    chosen = sequences(prompts, which, [pair.chosen for pair in work.pairs])
    rejected = sequences(prompts, which, [pair.rejected for pair in work.pairs])
    ones = torch.ones(len(work.pairs))
    return Pairs(chosen, replace(rejected, prompts=chosen.prompts), ones, ones, 0 * ones)


def _steps(task: Task, work: Work, channel: Channel, more: Callable[[], dict[str, float]] = dict) -> None:
    """The first step of the loop, once for every unit that is asked for."""
    with _as_commands(work) as chosen:
        _repeat(task, work, channel, lambda: {"chosen": chosen, **more()})


def _repeat(task: Task, work: Work, channel: Channel, more: Callable[[], dict[str, Any]]) -> None:
    module = next(iter(task.trained.values()))
    backbone = backbone_of(getattr(module, "backbone", module))
    seen, limits = Seen.of(backbone), Limits() if Limits else None
    progress = Progress(0, task.algorithm.initial_state(), adamw(named_trainable(task.trained).values(), task.settings))
    channel.ready(environment=environment(), fallback=unsupported(backbone.config, backbone))
    while True:
        seen.tokens = 0
        channel.wait()
        metrics = one_step(task, progress)
        channel.done()
        channel.report(
            loss=metrics["loss"],
            gradient_norm=metrics["optim/gradient_norm"],
            phases={name.removeprefix("time/"): took for name, took in metrics.items() if name.startswith("time/")},
            trained_tokens=seen.tokens,
            **more(),
            **(limits.floors(FLOORS[type(task.algorithm)], work, module) if limits else {}),
        )


@dataclass
class Seen:
    """How many tokens went through a linear layer of the first block with gradient: padding would show."""

    tokens: int = 0

    @staticmethod
    def of(backbone: Any) -> Seen:
        """Counts from now on."""
        seen = Seen()

        def count(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                seen.tokens += inputs[0].shape[:-1].numel()

        backbone.layers[0].mlp.gate_proj.register_forward_pre_hook(count)
        return seen
