"""GRPO, its named settings and RLOO against TRL's own code: advantages, reference, old policy, loss and gradient.

TRL's trainers do a whole step: their `_generate_and_score_completions` on answers and rewards that are given, then their
`_compute_loss`. Only the language model is a stub, and both sides use the same one: a table of logits by the last token.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tutelage.algorithms.base import Models
from tutelage.algorithms.grpo import GRPO
from tutelage.algorithms.reinforce import Reinforce
from tutelage.data.batch import Rollouts, Sequences, sequences
from tutelage.functional.weights import weighted_sum

VOCABULARY, GROUP, LONGEST, END, PAD = 7, 5, 6, 6, 0
CLOSE = 1e-5


@dataclass(frozen=True)
class Bigram:
    """Logits by the last token, [V, V]: a language model of ours, and (called) one of TRL's."""

    logits: Tensor
    training: bool = True
    is_gradient_checkpointing: bool = False

    def logprobs(self, answers: Sequences) -> Tensor:
        return self.logprobs_and_entropy(answers)[0]

    def logprobs_and_entropy(self, answers: Sequences) -> tuple[Tensor, Tensor]:
        last = torch.tensor([answers.prompts.tokens[p][-1] for p in answers.prompt_of.tolist()])
        return self._say(torch.cat([last[:, None], answers.tokens[:, :-1]], dim=1), answers.tokens)

    def _say(self, before: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logp = self.logits.log_softmax(-1)[before]
        return logp.gather(-1, tokens[..., None])[..., 0], -(logp.exp() * logp).sum(-1)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, fused_lm_head: bool) -> Any:
        """Column t of what TRL reads speaks of token t + 1; it keeps the last columns, those of the answer."""
        logp, entropy = self._say(input_ids[:, :-1], input_ids[:, 1:])
        return SimpleNamespace(log_probs=logp, entropy=entropy)


def table(seed: int, start: Tensor | None = None, spread: float = 0.8) -> Tensor:
    noise = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return spread * noise if start is None else start + spread * noise


@dataclass(frozen=True)
class Case:
    """Three groups of five answers, one group all of the same reward, and the models: now, when sampling, reference."""

    prompts: list[list[int]]
    answers: list[list[int]]
    rewards: Tensor
    now: Tensor
    old: Tensor
    reference: Tensor


def make_case(seed: int, reused: bool) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(1, END, (length,), generator=generator).tolist()

    prompts = [draw(n) for n in (2, 4, 1)]
    lengths = torch.randint(1, LONGEST + 1, (len(prompts) * GROUP,), generator=generator).tolist()
    answers = [draw(n) if n == LONGEST else [*draw(n - 1), END] for n in lengths]  # the longest are cut, the others end
    rewards = torch.randn(len(answers), generator=generator, dtype=torch.float64)
    rewards[GROUP : 2 * GROUP] = 0.7
    old = table(seed)
    now = table(seed + 1, old, 0.3) if reused else old.clone()
    return Case(prompts, answers, rewards, now.requires_grad_(), old, table(seed + 2, old, 0.5))


def trl_step(trainer_class: type, case: Case, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of TRL's trainer, and the inputs that it made for it."""
    trainer_module = pytest.importorskip(trainer_class.__module__)

    class Given(trainer_class):
        """The trainer with answers and rewards given, and none of the machinery that makes or counts them."""

        def __init__(self) -> None:
            pass

        def _generate(self, prompts: list[list[int]]) -> Any:
            texts = ["" for _ in case.answers]
            if trainer_module.__name__.endswith("rloo_trainer"):
                return prompts, case.answers, texts
            return prompts, case.answers, None, texts, None, {}, None, None

        def _calculate_rewards(self, *args: Any) -> Tensor:
            return case.rewards[:, None]

    trainer = Given()
    same = {
        "device": torch.device("cpu"), "process_index": 0, "num_processes": 1, "is_main_process": True,
        "autocast": nullcontext,
        "gather": lambda x: x, "gather_for_metrics": lambda x: x, "reduce": lambda x, reduction: x,
    }  # fmt: skip
    defaults: dict[str, Any] = {
        "accelerator": SimpleNamespace(**same),
        "model": Bigram(case.old), "ref_model": Bigram(case.reference),
        "_tokenizer": SimpleNamespace(pad_token_id=PAD), "eos_token_ids": [END], "pad_to_multiple_of": None,
        "num_generations": GROUP, "reward_weights": torch.ones(1), "reward_func_names": ["given"], "reward_funcs": [None],
        "mask_truncated_completions": False, "environment_factories": None, "environments": None, "tools": None,
        "use_vllm": False, "aux_loss_enabled": False, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "_entropy_bonus_enabled": False, "multi_objective_aggregation": "sum_then_normalize", "log_multimodal": False,
        "current_gradient_accumulation_steps": 1, "max_completion_length": LONGEST, "epsilon_low": 0.2,
        "epsilon_high": 0.2, "beta": 0.0, "loss_type": "grpo", "scale_rewards": "group", "num_iterations": 1,
        "importance_sampling_level": "token", "reward_clip_range": None, "normalize_advantages": False,
        "_metrics": {"train": defaultdict(list)}, "_pending_extra_logs": {}, "_pending_metrics": {},
        "_logs": {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list), "extra": {}},
    }  # fmt: skip
    arguments = {
        "per_device_train_batch_size": len(case.answers), "gradient_checkpointing_kwargs": None, "delta": None,
        "steps_per_generation": 1, "gradient_accumulation_steps": 1, "use_bias_correction_kl": False,
    }  # fmt: skip
    arguments |= {name: settings.pop(name) for name in list(settings) if name in arguments}
    for name, value in {**defaults, **settings, "args": SimpleNamespace(**arguments)}.items():
        setattr(trainer, name, value)
    prompts = [case.prompts[n // GROUP] for n in range(len(case.answers))]
    inputs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])
    return trainer._compute_loss(Bigram(case.now), inputs), inputs


def our_step(method: Any, case: Case) -> tuple[Tensor, Any]:
    answers = sequences(case.prompts, [n // GROUP for n in range(len(case.answers))], case.answers)
    sampled = torch.where(answers.mask, Bigram(case.old).logprobs(answers), 0.0)
    rollouts = Rollouts(answers, case.rewards, sampled, torch.tensor([a[-1] == END for a in case.answers]))
    models = Models(policy=Bigram(case.now), reference=Bigram(case.reference))
    prepared, _, _ = method.prepare(models, rollouts, method.initial_state())
    return weighted_sum(method.losses(models, prepared)[0], method.weights(prepared)), prepared


def slope(loss: Tensor, case: Case) -> Tensor:
    return torch.autograd.grad(loss, case.now, retain_graph=True)[0]


def gap(loss: Tensor, other: Tensor, case: Case) -> tuple[float, float]:
    """Between two losses: of their values, and the largest of their gradients."""
    return abs((loss - other).item()), float((slope(loss, case) - slope(other, case)).abs().max())


DR = {"advantage": "center", "average": "constant", "max_length": LONGEST}
TRL_DR = {"loss_type": "dr_grpo", "scale_rewards": "none"}
BETA = {"kl_coefficient": 0.3}
GRPO_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # ours, TRL's
    "grpo": ({"average": "sequence", "kl_coefficient": 0.0}, {}),
    "grpo with k3": ({"average": "sequence", "kl": "k3", **BETA}, {"beta": 0.3}),
    "grpo with ratio_k3": ({"average": "sequence", **BETA}, {"beta": 0.3, "use_bias_correction_kl": True}),
    "dr_grpo": ({**DR, "kl_coefficient": 0.0}, TRL_DR),
    "dr_grpo with k3": ({**DR, "kl": "k3", **BETA}, {**TRL_DR, "beta": 0.3}),
    "bnpo": ({"kl_coefficient": 0.0}, {"loss_type": "bnpo"}),
    "dapo": ({"clip_high": 0.28, "kl_coefficient": 0.0}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo with ratio_k3": (
        {"clip_high": 0.28, **BETA},
        {"loss_type": "dapo", "epsilon_high": 0.28, "beta": 0.3, "use_bias_correction_kl": True},
    ),
    "gspo": (
        {"ratio": "sequence", "average": "sequence", "clip_low": 0.03, "clip_high": 0.04, "kl_coefficient": 0.0},
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    "cispo": (
        {"objective": "cispo", "clip_low": 1.0, "clip_high": 0.2, "kl_coefficient": 0.0},
        {"loss_type": "cispo", "epsilon_high": 1.2},
    ),
}  # fmt: skip
WRONG: dict[str, dict[str, Any]] = {
    "grpo": {"average": "token"},
    "grpo with k3": {"kl": "k2"},
    "grpo with ratio_k3": {"kl": "k3"},
    "dr_grpo": {"advantage": "standardize"},
    "dr_grpo with k3": {"kl": "ratio_k3"},
    "bnpo": {"average": "sequence"},
    "dapo": {"clip_high": 0.2},
    "dapo with ratio_k3": {"kl": "k3"},
    "gspo": {"ratio": "token"},
    "cispo": {"objective": "clipped"},
}


@pytest.fixture(scope="module")
def grpo_trainer() -> type:
    return pytest.importorskip("trl", reason="peer absent: trl").GRPOTrainer


@pytest.fixture(scope="module")
def rloo_trainer() -> type:
    return pytest.importorskip("trl", reason="peer absent: trl").RLOOTrainer


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
@pytest.mark.parametrize("name", GRPO_CASES)
def test_grpo(name: str, reused: bool, seed: int, grpo_trainer: type) -> None:
    """The same value and gradient, on the answers' first use and where the policy has moved since."""
    ours, theirs = GRPO_CASES[name]
    case = make_case(seed, reused)
    expected, inputs = trl_step(grpo_trainer, case, num_iterations=1 + reused, **theirs)
    loss, prepared = our_step(GRPO(passes=1 + reused, **ours), case)
    mask = prepared.answers.mask
    assert ("old_per_token_logps" in inputs) == reused
    assert float((prepared.advantages - inputs["advantages"][:, None])[mask].abs().max()) < CLOSE
    assert max(gap(loss, expected, case)) < CLOSE
    assert float(slope(expected, case).abs().max()) > 1e-3
    if reused:
        other, _ = our_step(GRPO(passes=2, **{**ours, **WRONG[name]}), case)
        assert max(gap(other, expected, case)) > 1e-3, "a neighbour would pass too"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo(beta: float, seed: int, rloo_trainer: type) -> None:
    """The same advantages and gradient. TRL's value is that of the ratio, -mean(A); ours that of -A log pi.

    TRL counts the whole answer's KL on each token, as our view of the answer as one action does. The view of tokens as
    actions leaves out the KL of the tokens already said: the same in expectation, not on a sample.
    """
    case = make_case(seed, reused=False)
    expected, inputs = trl_step(rloo_trainer, case, beta=beta)
    loss, prepared = our_step(Reinforce(baseline="leave_one_out", credit="answer", kl_coefficient=beta), case)
    mask = prepared.answers.mask
    assert float((prepared.advantages - inputs["advantages"][:, None])[mask].abs().max()) < CLOSE
    assert gap(loss, expected, case)[1] < CLOSE
    assert float(slope(expected, case).abs().max()) > 1e-3
    assert loss.item() == pytest.approx(-float((inputs["advantages"] * inputs["old_logps"]).mean()), abs=CLOSE)
    for wrong in ({"baseline": "group_mean"}, {"credit": "token"} if beta else {"baseline": "none"}):
        other, _ = our_step(
            Reinforce(**{"baseline": "leave_one_out", "credit": "answer", "kl_coefficient": beta, **wrong}), case
        )
        assert gap(other, expected, case)[1] > 1e-3
