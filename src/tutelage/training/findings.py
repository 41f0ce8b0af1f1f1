"""What a preflight looks at, one function a question: rows, stop token, template, context, vocabulary, and two laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from tutelage.algorithms.base import LanguageModel, Models
from tutelage.data.batch import Rollouts, Rows, Sequences
from tutelage.data.chat import Chat
from tutelage.functional.kl import k1
from tutelage.models.packing import backbone_of
from tutelage.records import Answer, Comparison, Demonstration, Message, Prompt, Rating

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""How far a sampler's log-prob of a token may lie from the trainer's; both round where they run in 16 bits."""
ROUGH = 0.25
"""How far those of a sampler in fewer bits may lie on average: more than that, and weights correct little."""
PROBE = "thanks"


@dataclass(frozen=True)
class Finding:
    """The answer to one question, with its figures; `fix` says what to do where it is not `ok`."""

    name: str
    ok: bool
    text: str
    fix: str = ""

    def line(self) -> str:
        """One line for the console."""
        return f"{'ok   ' if self.ok else 'FAILS'} {self.name}: {self.text}" + ("" if self.ok else f"; {self.fix}")


def row_totals(part: Sequences) -> Tensor:
    """Tokens of each row with its prompt.  [B]"""
    prompts = torch.tensor([len(p) for p in part.prompts.tokens] or [0])
    return part.lengths.cpu() + prompts[part.prompt_of.cpu()]


def rows_trained(batch: Rows, counts: Mapping[str, int]) -> Finding:
    """How many records met which fate, and that the rows of the batch have tokens to train on."""
    parts = batch.sequences()
    empty = sum(int((part.lengths == 0).sum()) for part in parts)
    masked = sum(int(((part.lengths > 0) & ~part.mask.any(-1)).sum()) for part in parts)
    trained = sum(int(part.mask.any(-1).sum()) for part in parts)
    figures = dict(counts) | {"empty": empty} | {"fully_masked": counts.get("fully_masked", 0) + masked}
    total, tokens = sum(counts.values()) or len(batch), sum(int(part.mask.sum()) for part in parts)
    shares = [f"{n:,} {fate.replace('_', ' ')} ({n / total:.1%})" for fate, n in figures.items() if n]
    text = f"{total:,} records: {', '.join(shares) or 'all kept'}; {tokens:,} tokens to train on"
    fix = "every label is masked or cut away: look at the examples, raise --max-tokens, or mend the data's roles"
    return Finding("rows", trained > 0 and not empty, text, fix)


def stop_trained(batch: Rows, counts: Mapping[str, int], stop: Sequence[int], unfinished: int = 0) -> Finding:
    """Every run of trained tokens ends with a stop token, but for rows that were cut and `unfinished` sampled answers.

    Cut rows all have the greatest length. Without the stop token in the mask a policy never learns to end its answers.
    """
    ids, parts = torch.tensor(list(stop)), batch.sequences()
    cap = max((int(row_totals(p).max()) for p in parts if len(p)), default=0) if counts.get("truncated") else None
    without = excused = right = 0
    for part in parts:
        after = nn.functional.pad(part.mask[:, 1:], (0, 1))
        ends, stops = part.mask & ~after, torch.isin(part.tokens, ids.to(part.tokens.device))
        wrong = (ends & ~stops).any(-1).cpu()
        cut = wrong & (row_totals(part) == cap) if cap is not None else torch.zeros_like(wrong)
        without, excused = without + int((wrong & ~cut).sum()), excused + int(cut.sum())
        right += int((ends & stops).any(-1).sum())
    excused_enough = excused <= counts.get("truncated", 0) * len(parts)
    ok = without <= unfinished and excused_enough and (right > 0 or unfinished > 0)
    text = f"{right:,} rows train the end-of-turn token, {without + excused:,} do not ({excused:,} cut, {unfinished:,} unfinished answers)"
    fix = "the policy would never learn to stop: raise --max-tokens, or use a template that ends the assistant's turn (--chat-template)"
    return Finding("stop token", ok, text, fix)


def closed(batch: Rows, closing: Sequence[int]) -> Finding:
    """Every row that a scorer is trained on ends with the closing, cut or not: it is read at the same token everywhere."""
    ends = torch.tensor(list(closing))
    rows = [
        (part.tokens[row].cpu(), int(length)) for part in batch.sequences() for row, length in enumerate(part.lengths)
    ]
    without = sum(not torch.equal(tokens[length - len(ends) : length], ends) for tokens, length in rows)
    text = f"{len(rows) - without:,} answers end where the score is read, {without:,} do not"
    return Finding("closing", not without, text, "the chat template's closing is lost on the way into the batch")


def same_template(chat: Chat, records: Sequence[Any]) -> Finding:
    """What training shows before an answer is what sampling shows, and what the saved tokenizer's own template gives."""
    fix = "use a template that opens the assistant's turn as it renders it, and save it: tokenizer.chat_template = chat.template"
    try:
        saved = Chat.of(chat.tokenizer, None, chat.system)
        for prompt, said in map(conversation, records):
            opening = chat.prompt_tokens(prompt)
            row = chat.demonstration((*prompt.messages, Message("assistant", said)), "last")
            if [*row.prompt, *row.tokens][: len(opening)] != opening:
                return Finding("template", False, f"training and sampling open {prompt.text[:40]!r} differently", fix)
            if saved.prompt_tokens(prompt) != opening:
                text = f"the tokenizer that is saved writes {prompt.text[:40]!r} differently from this run's template"
                return Finding("template", False, text, fix)
    except ValueError as error:
        return Finding("template", False, str(error), fix)
    return Finding("template", True, f"training and sampling agree token by token on {len(records)} conversations")


def conversation(record: Demonstration | Comparison | Rating | Prompt) -> tuple[Prompt, str]:
    """A prompt and what the assistant says to it: its last turn, what was chosen, or a word in place of a sampled answer."""
    if isinstance(record, Comparison):
        return record.prompt, record.chosen.text or PROBE
    if isinstance(record, Rating):
        return record.prompt, record.answer.text or PROBE
    if isinstance(record, Prompt):
        return record, PROBE
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return Prompt(record.messages[:last]), record.messages[last].content


def unfinished_answers(records: Sequence[Any]) -> int:
    """Judged answers whose author the token limit cut: they carry no stop token and should not."""
    sides: list[Answer] = [x for r in records if isinstance(r, Comparison) for x in (r.chosen, r.rejected)]
    sides += [r.answer for r in records if isinstance(r, Rating)]
    return sum(not side.finished for side in sides)


def within_context(trained: Mapping[str, nn.Module], longest: int) -> Finding:
    """The longest row fits the positions that each model knows."""
    known = {name: getattr(trunk(module).config, "max_position_embeddings", None) for name, module in trained.items()}
    short = [f"{name} reads {n:,}" for name, n in known.items() if n is not None and n < longest]
    fix = "lower --max-tokens (and --max-new-tokens)"
    return Finding("context", not short, f"longest row {longest:,} tokens" + "".join(f", {s}" for s in short), fix)


def one_vocabulary(trained: Mapping[str, nn.Module], tokenizer: Any) -> Finding:
    """Modules that read the same token ids have an embedding for each of them, and the same ones."""
    rows = {name: trunk(module).get_input_embeddings().num_embeddings for name, module in trained.items()}  # type: ignore[union-attr]
    ok = min(rows.values()) >= len(tokenizer) and len(set(rows.values())) == 1
    text = f"tokenizer {len(tokenizer):,}, " + ", ".join(f"{name} {n:,} embeddings" for name, n in rows.items())
    return Finding("vocabulary", ok, text, "these models read the same token ids: load them from the same --model")


def step_zero(models: Models, rows: Sequences) -> Finding:
    """Before the first update the ratio of the policy to itself is exactly 1 and its KL from the reference exactly 0."""
    with torch.no_grad():
        if models.policy is None:
            assert models.reward is not None
            return _steady_scores(models.reward.scores(rows), models.reward.scores(rows))
        now, again = models.policy.logprobs(rows), models.policy.logprobs(rows)
        ratio = float(((now - again)[rows.mask].exp() - 1).abs().max())
        kl = 0.0
        if models.reference is not None:
            kl = float(k1(now, models.reference.logprobs(rows))[rows.mask].abs().max())
    fix = "switch dropout off, start the adapter at B = 0, and take the reference from the policy's own start"
    against = "" if models.reference is None else f", largest |log pi/ref| {kl:.2g}"
    text = f"on {int(rows.mask.sum())} tokens |ratio - 1| {ratio:.2g}{against}"
    return Finding("step 0", ratio == 0 and kl == 0, text, fix)


def _steady_scores(now: Tensor, again: Tensor) -> Finding:
    moved = float((now - again).abs().max())
    text = f"on {len(now)} answers two scorings differ by {moved:.2g}"
    return Finding("step 0", moved == 0, text, "switch dropout off: a score must not depend on chance")


def sampler_agrees(policy: LanguageModel, sampled: Rollouts, dtype: torch.dtype, rough: bool = False) -> Finding:
    """The sampler's log-prob of each token is the trainer's, at the temperature of training; a `rough` one's is so on average."""
    mask = sampled.answers.mask
    with torch.no_grad():
        apart = (policy.logprobs(sampled.answers) - sampled.sampler_logprobs)[mask].abs()
    limit = ROUGH if rough else TOLERANCE[dtype]
    text = (
        f"on {int(mask.sum())} sampled tokens the log-probs of sampler and trainer differ by up to {float(apart.max()):.2g} "
        f"(mean {float(apart.mean()):.2g}; allowed in {str(dtype).removeprefix('torch.')}: {limit:g})"
    )
    fix = "sampler and trainer need the same weights, temperature and template; top-p and min-p belong in evaluation"
    return Finding("sampler", bool((apart.mean() if rough else apart.max()) <= limit), text, fix)


def gradient_reaches(reached: Mapping[str, tuple[int, int, int]]) -> Finding:
    """Of each trained module: adapted layers (-1 without LoRA), trainable tensors, and those that got a gradient."""
    parts = [
        f"{name}: " + (f"LoRA on {layers} modules, " if layers >= 0 else "") + f"gradient in {got} of {tensors} tensors"
        for name, (layers, tensors, got) in reached.items()
    ]
    ok = all(layers != 0 and got > 0 for layers, _, got in reached.values())
    fix = "nothing would be learnt: check --lora.targets, and that the adapter is on (not the reference) in training"
    return Finding("gradient", ok and bool(reached), "; ".join(parts) or "nothing is trainable", fix)


def trunk(module: nn.Module) -> Any:
    """The decoder inside a policy or a model with a scalar head."""
    return backbone_of(getattr(module, "backbone", module))


def adapted_layers(module: nn.Module) -> int:
    """Layers with a LoRA adapter; -1 where the module has none by design."""
    from peft.tuners.lora import LoraLayer

    if not any(isinstance(part, PeftModel) for part in module.modules()):
        return -1
    return sum(isinstance(part, LoraLayer) and len(part.lora_B) > 0 for part in module.modules())
