"""A head hidden -> 1 on a decoder, for rewards and values; and any Hugging Face classifier as a scorer."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from tutelage.models.load import choose_device, choose_dtype, load_tokenizer, pretrained, resolve_model, write_model
from tutelage.models.lora import LoRA, add_lora, merged_state, unwrapped

SHIFT, SCALE = "tutelage_reward_shift", "tutelage_reward_scale"
"""Fields of the saved config.json: the score that users see is (raw - shift) / scale. Folded into no weight."""
TWO_ANSWERS = "tutelage_two_answers"
"""Field of the saved config.json: True where the model reads two answers and says which is preferred (data/two_answers)."""

OUTPUT = "tutelage_output"
"""Field of the saved config.json: `probability` where the score is the log-odds of a yes and users see P(yes); else `score`."""
EVERY_PREFIX = "tutelage_every_prefix"
"""Field of the saved config.json: True where the model was trained to be read after any token, not behind a whole turn."""
Output = Literal["score", "probability"]


class ScalarHead(nn.Linear):
    """(w . h - shift) / scale, in float32 whatever the backbone's precision (float64 for a float64 backbone)."""

    def __init__(self, hidden: int, dtype: torch.dtype = torch.float32, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(hidden, 1, bias=False, dtype=dtype)  # no bias: transformers' `score` layer has none
        self.shift, self.scale = shift, scale

    def forward(self, input: Float[Tensor, "... D"]) -> Float[Tensor, "... 1"]:
        return (super().forward(input.to(self.weight.dtype)) - self.shift) / self.scale


class ScalarModel(nn.Module):
    """A decoder without language-model head (adapters may be on it) and a `ScalarHead`."""

    def __init__(self, backbone: nn.Module, head: ScalarHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, **inputs: Any) -> Float[Tensor, "B T"]:
        """The head after every token; which positions mean something is the caller's knowledge (`models/packing`)."""
        return self.head(self.backbone(**inputs).last_hidden_state).squeeze(-1)


def new_scalar_model(backbone: nn.Module, *, seed: int = 0) -> ScalarModel:
    """A fresh head with weights N(0, 1/(hidden+1)^2) from `seed`: scores start near 0, so Bradley-Terry starts at log 2."""
    weights = next(backbone.parameters())
    hidden = unwrapped(backbone).config.hidden_size
    head = ScalarHead(hidden, torch.promote_types(weights.dtype, torch.float32))
    with torch.no_grad():
        head.weight.normal_(std=1 / (hidden + 1), generator=torch.Generator().manual_seed(seed))
    return ScalarModel(backbone, head.to(weights.device))


def save_reward_model(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    two_answers: bool = False,
    output: Output = "score",
    every_prefix: bool = False,
) -> None:
    """Writes a directory that `AutoModelForSequenceClassification` loads; its logit is the raw score of the last token.

    `two_answers` marks a preference model, which no single answer can be scored with; `output` and `every_prefix` say what
    users see of a score and where it may be read.

    Atomic; an adapter is merged into a copy. Transformers finds the last token by the padding id, so where padding is the
    stop token (which ends every answer) the saved config and tokenizer pad with another special token.
    Raises ValueError for an architecture whose classifier is not a bias-free layer on the last token.
    """
    tokenizer, config = deepcopy(tokenizer), deepcopy(unwrapped(model.backbone).config)
    config.pad_token_id = _separate_padding(tokenizer)
    config.num_labels = 1
    setattr(config, SHIFT, float(model.head.shift))
    setattr(config, SCALE, float(model.head.scale))
    for name, mark in ((TWO_ANSWERS, two_answers), (OUTPUT, output), (EVERY_PREFIX, every_prefix)):
        setattr(config, name, mark)
    with torch.device("meta"):
        plain = AutoModelForSequenceClassification.from_config(config)
    _score_layer(plain, str(directory))
    state = {f"{plain.base_model_prefix}.{key}": tensor for key, tensor in merged_state(model.backbone).items()}
    state["score.weight"] = model.head.weight.detach()
    write_model(plain, state, tokenizer, directory)


def load_reward_model(
    name: str | Path,
    *,
    lora: LoRA | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    seed: int = 0,
) -> ScalarModel:
    """Ours, or any decoder classifier with one label; the head stays float32. Raises ValueError for any other model."""
    path = resolve_model(name, ("reward_model",))
    place = choose_device(device)
    whole = pretrained(AutoModelForSequenceClassification, path, torch.float32)
    score = _score_layer(whole, str(path))
    precision = choose_dtype(dtype, place)
    shift, scale = _normalisation(whole)
    head = ScalarHead(score.in_features, torch.promote_types(precision, torch.float32), shift, scale)
    with torch.no_grad():
        head.weight.copy_(score.weight)
    backbone = cast(PreTrainedModel, getattr(whole, whole.base_model_prefix)).to(place, precision)  # type: ignore[call-overload]
    return ScalarModel(add_lora(backbone, lora, seed=seed) if lora else backbone, head.to(place))


@dataclass(frozen=True)
class Classifier:
    """A Hugging Face sequence classifier of any architecture, encoders too, and which of its logits is the score."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    index: int
    """Column of the logits."""
    shift: float = 0.0
    scale: float = 1.0

    def score(self, output: Output = "score", **inputs: Tensor) -> Float[Tensor, "B"]:
        """(logit of the label - shift) / scale in float32, or the label's probability, for inputs as the tokenizer makes them."""
        logits = self.model(**inputs).logits.float()
        if output == "probability" and self.one_of_several:
            return logits.softmax(-1)[:, self.index]
        score = (logits[:, self.index] - self.shift) / self.scale
        return score.sigmoid() if output == "probability" else score

    @property
    def one_of_several(self) -> bool:
        """Whether exactly one of the labels holds, so that their probabilities sum to 1; otherwise each is a yes or no."""
        return (
            len(self.model.config.id2label or ()) > 1 and self.model.config.problem_type != "multi_label_classification"
        )


def load_classifier(
    name: str | Path, *, label: str | None = None, dtype: str | torch.dtype = "float32", device: str = "auto"
) -> Classifier:
    """A classifier as a scorer; float32 because a bfloat16 head has steps of 1/128 of the score, and ties with them.

    `label` names the logit that is the score; a model with one label needs none. Raises ValueError (listing the labels)
    where it is needed and missing or unknown, and where the model has no trained classification head.
    """
    path = resolve_model(name, ("reward_model",))
    place = choose_device(device)
    model = pretrained(AutoModelForSequenceClassification, path, choose_dtype(dtype, place))
    labels = {str(text): int(index) for index, text in (model.config.id2label or {}).items()}
    if label is None and len(labels) > 1:
        raise ValueError(
            f"reward: {path} has {len(labels)} labels; name the one that is the score: {', '.join(labels)}"
        )
    if label is not None and label not in labels:
        raise ValueError(f"reward: {path} has no label {label!r}; allowed: {', '.join(labels)}")
    index = 0 if label is None else labels[label]
    shift, scale = _normalisation(model)
    return Classifier(model.to(place), load_tokenizer(path), index, shift, scale)  # type: ignore[arg-type]


def _normalisation(model: PreTrainedModel) -> tuple[float, float]:
    return float(getattr(model.config, SHIFT, 0.0)), float(getattr(model.config, SCALE, 1.0))


def _score_layer(model: PreTrainedModel, where: str) -> nn.Linear:
    """The layer that a last-token classifier applies, checked to be hidden -> 1 without bias."""
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.bias is not None or score.out_features != 1:
        got = f"{type(model).__name__} with {model.config.num_labels} labels"
        raise ValueError(f"reward model: {where} must be a decoder with a bias-free one-label `score` layer; got {got}")
    return score


def _separate_padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Gives `tokenizer` a padding token that ends no text; None (transformers then scores one text at a time) if it has none."""
    used = (tokenizer.eos_token_id, tokenizer.bos_token_id, None)
    if tokenizer.pad_token_id not in used:
        return cast(int, tokenizer.pad_token_id)
    special = [i for i, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special and i not in used]
    if not special:
        return None
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(special[0])
    return special[0]
