"""A random two-layer model and a byte tokenizer for tests and dry runs: made in memory, no file and no network."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|pad|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny(
    *,
    vocabulary: int = 256 + len(SPECIALS),
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = True,
    std: float = 0.1,
    float64: bool = False,
    seed: int = 0,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama-architecture model with weights drawn from `seed` (std 0.1: alive, unlike 0.02 at this width) + tokenizer.

    The global random state is left as it was. With `float64` everything that depends on other tokens is computed in float64
    (transformers' own norm would round to float32 inside). Raises ValueError for a vocabulary below the tokenizer's 259.
    """
    if vocabulary < 256 + len(SPECIALS):
        raise ValueError(f"tiny: vocabulary must hold the tokenizer's {256 + len(SPECIALS)} tokens; got {vocabulary}")
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=tied,
        initializer_range=std,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if float64:
        _to_float64(model)
    return model.eval(), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token id = byte value for 0..255, then <|im_start|> 256, <|im_end|> 257 (the stop token) and <|pad|> 258."""
    letters = bytes_to_unicode()
    backend = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    start, end, pad = SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start,
        eos_token=end,
        pad_token=pad,
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def _to_float64(model: LlamaForCausalLM) -> None:
    """Float64 weights, and torch's norm in place of the one that always computes in float32 (same weights, same names)."""
    model.double()
    config = model.config
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=torch.float64)
                norm.weight = child.weight  # type: ignore[assignment]
                setattr(module, name, norm)
    config.dtype = torch.float64
