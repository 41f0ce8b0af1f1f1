"""The rival for training: TRL's own trainers, full steps of their own loop, with the settings that suit a CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessorList,
    TrainerCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.data_utils import pack_dataset

from speed_process import Channel
from speed_replay import Replay
from speed_work import RATE, Demonstration, Pair, Work
from tutelage.models.gemm import multiplying

OWN = ("by_length", "gemm", "max_length")
"""Settings of a work that are no fields of all of TRL's configurations; they are read here."""
STEPS = 1000
"""More than anybody asks for: the driver ends the worker."""


class Gate(TrainerCallback):
    """Holds the trainer before every step until a unit is asked for; tells the loss and norm that the trainer logs."""

    def __init__(self, channel: Channel, more: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._channel, self._more = channel, more
        self._begun = False

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """The trainer has its rows; it has computed nothing."""
        if not self._begun:
            self._begun = True
            self._channel.ready()
        self._channel.wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The weights have moved."""
        self._channel.done()

    def on_log(self, *_: Any, logs: Mapping[str, Any], **__: Any) -> None:
        """What the trainer says of the step."""
        if "grad_norm" in logs:
            figures = {"loss": float(logs["loss"]), "gradient_norm": float(logs["grad_norm"])}
            self._channel.report(**figures, **self._more())


def grpo(work: Work, channel: Channel) -> None:
    """GRPO with `generate`; the answers are those of the work."""
    rows = work.settings.get("per_device_train_batch_size", 8)
    passes = len(work.prompts) * work.group // rows
    arguments = GRPOConfig(
        **_common(work, passes),
        num_generations=work.group,
        steps_per_generation=passes,
        max_completion_length=work.max_tokens,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        shuffle_dataset=False,
    )
    model, tokenizer = _policy(work)
    earned = [value for group in work.rewards for value in group]

    def fixed(completions: list[Any], **_: Any) -> list[float]:
        return earned

    earns: Any = fixed
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=earns,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": rows} for rows in work.messages]),
        processing_class=tokenizer,
    )
    plain, replay = model.generate, Replay(work)
    model.generate = lambda **given: plain(**given, logits_processor=LogitsProcessorList([replay]))
    _train(trainer, channel, work)


def sft(work: Work, channel: Channel) -> None:
    """SFT without packing: rows padded to the longest of their micro-batch."""
    rows = work.settings.get("per_device_train_batch_size", 8)
    demonstrations = _ordered(work.demonstrations, lambda row: len(row.prompt) + len(row.answer), work)
    passes = -(-len(demonstrations) // rows)
    arguments = SFTConfig(**_common(work, passes), max_length=None, shuffle_dataset=False)
    model, tokenizer = _policy(work)
    data = Dataset.from_list([_labelled(row) for row in demonstrations])
    _train(SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer), channel, work)


def sft_packed(work: Work, channel: Channel) -> None:
    """SFT with TRL's packing: best-fit-decreasing into rows of `max_length` tokens, without padding."""
    length = work.settings.get("max_length", 1024)
    data = Dataset.from_list([_labelled(row) for row in work.demonstrations])
    passes = len(pack_dataset(data, length, "bfd"))
    common: dict[str, Any] = {**_common(work, passes), "per_device_train_batch_size": 1}
    arguments = SFTConfig(**common, packing=True, max_length=length, shuffle_dataset=False)
    model, tokenizer = _policy(work)
    _train(SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer), channel, work)


def dpo(work: Work, channel: Channel) -> None:
    """DPO; the reference's log-probs are computed in the step, as ours are."""
    rows = work.settings.get("per_device_train_batch_size", 8)
    pairs = _ordered(work.pairs, _pair_length, work)
    arguments = DPOConfig(**_common(work, len(pairs) // rows), beta=0.1, max_length=None)
    model, tokenizer = _policy(work)
    keys = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_list([dict(zip(keys, (p.prompt, p.chosen, p.rejected), strict=True)) for p in pairs])
    trainer = _WithIds(
        model=model, ref_model=_policy(work)[0], args=arguments, train_dataset=data, processing_class=tokenizer
    )
    _train(trainer, channel, work)


def reward(work: Work, channel: Channel) -> None:
    """A reward model: every answer behind its own copy of the prompt."""
    rows = work.settings.get("per_device_train_batch_size", 8)
    pairs = _ordered(work.pairs, _pair_length, work)
    arguments = RewardConfig(**_common(work, len(pairs) // rows), max_length=None)
    torch.set_num_threads(work.threads)
    model = AutoModelForSequenceClassification.from_pretrained(work.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    data = Dataset.from_list(
        [{"chosen_ids": p.prompt + p.chosen, "rejected_ids": p.prompt + p.rejected} for p in pairs]
    )
    _train(RewardTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer), channel, work)


class _WithIds(DPOTrainer):
    """DPO on token ids: this trainer, unlike the others, has no way to be given them."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def _common(work: Work, passes: int) -> dict[str, Any]:
    """What all trainers are given: fp32 on the CPU, AdamW, nothing recomputed, nothing written."""
    settings = {name: value for name, value in work.settings.items() if name not in OWN}
    return {
        "output_dir": tempfile.mkdtemp(prefix="speed-trl-"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": passes,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_drop_last": False,
        "train_sampling_strategy": "sequential",
        **settings,
    }


def _policy(work: Work) -> tuple[Any, Any]:
    torch.set_num_threads(work.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(work.model)


def _ordered(rows: list[Any], length: Callable[[Any], int], work: Work) -> list[Any]:
    """In the data's order, or by length: then a micro-batch has hardly any padding."""
    return sorted(rows, key=length) if work.settings.get("by_length") else rows


def _pair_length(pair: Pair) -> int:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))


def _labelled(row: Demonstration) -> dict[str, list[int]]:
    return {"input_ids": row.prompt + row.answer, "labels": [-100] * len(row.prompt) + row.answer}


def _train(trainer: Any, channel: Channel, work: Work) -> None:
    """Steps of the trainer's own loop until no more are wanted."""
    trainer.add_callback(Gate(channel))
    with multiplying(work.settings.get("gemm", "default")):
        trainer.train()
