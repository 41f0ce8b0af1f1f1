"""The rival for decoding: vLLM's CPU build, in its own environment. Imports nothing of ours but the two ends of a worker."""

from __future__ import annotations

import os
from typing import Any

from speed_process import Channel
from speed_work import Work

SPACE = "2"
"""GiB for keys and values: more than any of our works needs."""


def generate(work: Work, channel: Channel) -> None:
    """vLLM in its offline engine: token ids in and out, every answer as long as ours, prompts shared by prefix caching."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": SPACE,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(work.threads)
    rows = len(work.prompts) * work.group
    engine: Any = LLM(
        model=work.model,
        dtype="float32",
        max_model_len=max(map(len, work.prompts)) + work.max_tokens + 1,  # one more where log-probs are asked for
        max_num_seqs=rows,
        enable_prefix_caching=True,
        seed=work.seed,
        disable_log_stats=True,
        **work.settings,
    )
    logprob = _given(engine, work)
    sampling = SamplingParams(
        n=work.group, temperature=1.0, ignore_eos=True, max_tokens=work.max_tokens, detokenize=False
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts]
    channel.ready()
    while True:
        engine.reset_prefix_cache()
        channel.wait()
        answers = engine.generate(prompts, sampling, use_tqdm=False)
        channel.done()
        said = [len(one.token_ids) for answer in answers for one in answer.outputs]
        assert said == [work.max_tokens] * rows, "vLLM's answers have another length"
        channel.report(tokens=sum(said), logprob=logprob)


def _given(engine: Any, work: Work) -> float:
    """Mean log-prob that vLLM gives to the first tokens of our answers."""
    from vllm import SamplingParams

    groups = zip(work.prompts, work.answers, work.listened, strict=True)
    pairs = [(prompt, a[:n]) for prompt, group, counts in groups for a, n in zip(group, counts, strict=True)]
    asked = [(prompt, answer) for prompt, answer in pairs if answer]
    sampling = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
    given = [{"prompt_token_ids": prompt + answer} for prompt, answer in asked]
    heard = []
    for (prompt, answer), out in zip(asked, engine.generate(given, sampling, use_tqdm=False), strict=True):
        heard += [table[token].logprob for token, table in zip(answer, out.prompt_logprobs[len(prompt) :], strict=True)]
    return sum(heard) / len(heard)
