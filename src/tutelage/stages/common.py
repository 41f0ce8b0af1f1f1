"""What every training command shares: its settings, and the networks, tokenizer and run folder made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from tutelage.config import config
from tutelage.console import say
from tutelage.data.chat import Chat
from tutelage.models.load import choose_device, describe, load_policy, load_tokenizer
from tutelage.models.logprobs import CausalModel
from tutelage.models.lora import LoRA, frozen_copy, reference_mode
from tutelage.models.sampling import Decoder
from tutelage.stages.folders import fresh_folder
from tutelage.training.opening import check_opening
from tutelage.training.optim import Optimization
from tutelage.training.run import Run

Count = Annotated[int, Field(gt=0)]
DEMO_MODEL = "builtin:smollm2-135m-instruct"


@config
class Common:
    """Settings that every command understands."""

    model: str = DEMO_MODEL
    """`builtin:smollm2-135m-instruct`, a Hugging Face directory, a run folder of ours, or a hub id."""
    data: tuple[str, ...] = ()
    """Files, directories or hub names; `PATH=0.3` weighs one against the others. docs/data.md lists the shapes."""
    out: str | None = None
    """The run folder; default: a fresh runs/COMMAND-TIME."""
    seed: int = 0
    """Decides data order, sampling and the adapter's start; the same seed on one machine gives the same bits."""
    resume: bool = False
    """Go on with the run in `--out` from its newest checkpoint."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of frozen weights and of the forward pass; auto: float32 on a CPU, bfloat16 on a GPU that has it."""
    gemm: Literal["auto", "default", "onednn", "amx"] = "auto"
    """Which library multiplies float32 matrices on a CPU (amx: Intel's matrix unit, in training); auto: the fastest, measured at the start."""
    kernels: Literal["auto", "torch", "loops", "numba", "amx"] = "auto"
    """What computes a decoding step on a CPU: PyTorch, compiled loops between its products, or compiled products too (amx: by Intel's matrix unit); auto: what is fastest here."""
    chat_template: str | None = None
    """`chatml`, a template file, or (default) the tokenizer's own."""
    system: str | None = None
    """System message for conversations that bring none (default: the template's own)."""
    max_tokens: Count = 1024
    """Longest prompt and answer together, in tokens; what is longer is cut (counted and reported), a longer prompt refused."""
    bad_rows: Literal["error", "skip"] = "error"
    """What to do with rows that cannot be read: stop and list them, or skip and count them."""


@config
class Training(Common):
    """Settings of every command that moves weights."""

    steps: Count | None = None
    """Steps of the loop; default: stated by the command."""
    batch_size: Count = 8
    """Rows (prompts, for `rl` and `reward`) a step."""
    full: bool = False
    """Train all weights; default: a LoRA adapter, merged when the result is saved."""
    lora: LoRA = field(default_factory=LoRA)
    """Shape of the adapter."""
    optimization: Optimization = field(default_factory=Optimization)
    """AdamW, schedule, size of a pass, checkpoints."""
    require_packed: bool = False
    """Stop where rows could not run packed (each prompt once, no padding) and would fall back to padded ones."""
    log_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl."""

    @property
    def adapter(self) -> LoRA | None:
        """The adapter to train, or None for all weights."""
        return None if self.full else self.lora

    @property
    def peak_rate(self) -> float:
        """The learning rate, or the usual one for an adapter or for all weights."""
        return self.optimization.learning_rate or (1e-5 if self.full else 3e-4)


@dataclass(frozen=True)
class Actor:
    """A policy with all that speaks through it. `reference` is the start: adapter off, or a frozen copy."""

    module: nn.Module
    tokenizer: Any
    chat: Chat
    policy: CausalModel
    reference: CausalModel
    decoder: Decoder
    reference_decoder: Decoder


def precision(dtype: str, device: str) -> str:
    """float32 on a CPU, always: bfloat16 there moves log-probs by 0.1 and ends bit-reproducibility across machines."""
    return "float32" if dtype == "auto" and choose_device(device).type == "cpu" else dtype


def load_actor(
    cfg: Common, adapter: LoRA | None, trained: bool = True, temperature: float = 1.0, tokens: int = 2048
) -> Actor:
    """The policy of a command. Without training there is no reference apart from the policy itself."""
    tokenizer = load_tokenizer(cfg.model, ("policy",))
    chat = Chat.of(tokenizer, cfg.chat_template, cfg.system)
    tokenizer.chat_template = chat.template  # what is saved asks in the form it was trained in
    wanted = "float32" if trained and adapter is None else precision(cfg.dtype, cfg.device)
    module = load_policy(cfg.model, lora=adapter, dtype=wanted, device=cfg.device, seed=cfg.seed)
    if not trained:
        module.requires_grad_(False)
    say(describe(module))
    policy = CausalModel(module, temperature, tokens_per_pass=tokens)
    if adapter is not None:
        reference, context = CausalModel(module, temperature, reference_mode, tokens), reference_mode
        start = module
    else:
        start, context = (frozen_copy(module) if trained else module), None
        reference = CausalModel(start, temperature, tokens_per_pass=tokens)
    decoder = Decoder(module, chat.stop_tokens, chat.decode)
    return Actor(
        module,
        tokenizer,
        chat,
        policy,
        reference,
        decoder,
        Decoder(start, chat.stop_tokens, chat.decode, context=context),
    )


def out_folder(cfg: Common, command: str) -> Path:
    """`--out`, or a fresh runs/COMMAND-TIME (a second run within a second gets a number)."""
    if cfg.out is not None:
        return Path(cfg.out)
    if cfg.resume:
        raise ValueError(f"--resume needs the folder to go on with: tutelage {command} --out runs/... --resume")
    return fresh_folder(command)


def check_out(cfg: Training, command: str) -> None:
    """Refuses an `--out` that cannot be opened, before data and models are read; nothing is written."""
    check_opening(out_folder(cfg, command), cfg, command, cfg.resume, sinks=cfg.log_to)


def open_run(cfg: Training, command: str) -> Run:
    """The run folder, once the data are known to be good."""
    keep = cfg.optimization.keep_checkpoints
    return Run.open(out_folder(cfg, command), cfg, command, cfg.resume, keep=keep, sinks=cfg.log_to)


def resume_line(command: str, run: Run, recipe: str | None = None) -> str:
    """What to type to go on with a run: its own config.yaml is the recipe."""
    return f"tutelage {command} {recipe or run.folder / 'config.yaml'} --out {run.folder} --resume"
