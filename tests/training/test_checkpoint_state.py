"""Training goes on from a checkpoint with the same bits: weights and optimiser by parameter name."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.training.checkpoint import (
    Checkpoints,
    load_optimizer,
    load_trainable,
    optimizer_tensors,
    trainable_tensors,
)


class Tied(nn.Module):
    """Embedding and head share their weight, as small language models do; one parameter is frozen."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(7, 5)
            self.mix = nn.Linear(5, 5)
            self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.mix.bias.requires_grad_(False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def _optimizer(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.requires_grad]
    if kind == "adamw":
        return torch.optim.AdamW(
            [{"params": weights[:1], "lr": 0.02}, {"params": weights[1:], "lr": 0.01, "weight_decay": 0.3}]
        )
    if kind == "sgd":
        return torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    return torch.optim.AdamW(weights, lr=0.01, amsgrad=True, betas=(0.8, 0.95))


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd", "amsgrad"])
def test_training_goes_on_from_disk_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    model = Tied(seed=0)
    optimizer = _optimizer(kind, model)
    _steps(model, optimizer, range(3))
    tensors, info = optimizer_tensors(optimizer, model.named_parameters())
    Checkpoints(tmp_path).save(3, {"policy": trainable_tensors(model), "optimizer": tensors}, {"optimizer": info})
    at_three = {name: tensor.clone() for name, tensor in trainable_tensors(model).items()}
    assert set(at_three) == {"embed.weight", "mix.weight"}  # the tied weight once, the frozen one not at all
    _steps(model, optimizer, range(3, 6))

    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    fresh = Tied(seed=1)
    fresh.mix.bias.data.copy_(model.mix.bias)  # frozen weights come from the model's own files
    other = _optimizer(kind, fresh)
    load_trainable(fresh, saved.tensors("policy"))
    assert all(torch.equal(at_three[n], t) for n, t in trainable_tensors(fresh).items())
    load_optimizer(other, dict(fresh.named_parameters()), saved.tensors("optimizer"), saved.info["optimizer"])
    for was, now in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert {**was, "params": 0} == {**now, "params": 0}  # rates and betas too, of the same types
    _steps(fresh, other, range(3, 6))
    assert fresh.head.weight is fresh.embed.weight
    for name, tensor in trainable_tensors(model).items():
        assert torch.equal(tensor, trainable_tensors(fresh)[name]), name
        assert not torch.equal(tensor, at_three[name]), "three more steps must have moved it"


def test_without_the_optimizers_state_the_bits_differ(tmp_path: Path) -> None:
    """The control of the test above: weights alone are not enough, so equality there says something."""
    model, fresh = Tied(seed=0), Tied(seed=0)
    optimizer, other = _optimizer("adamw", model), _optimizer("adamw", fresh)
    _steps(model, optimizer, range(3))
    load_trainable(fresh, trainable_tensors(model))
    _steps(model, optimizer, range(3, 4))
    _steps(fresh, other, range(3, 4))
    assert not torch.equal(model.mix.weight, fresh.mix.weight)


def test_loading_copies_the_optimizers_state(tmp_path: Path) -> None:
    model = Tied(seed=0)
    optimizer = _optimizer("adamw", model)
    _steps(model, optimizer, range(2))
    tensors, info = optimizer_tensors(optimizer, model.named_parameters())
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    fresh = Tied(seed=0)
    other = _optimizer("adamw", fresh)
    load_optimizer(other, fresh.named_parameters(), tensors, json.loads(json.dumps(info)))
    _steps(fresh, other, range(2, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors.items())


def test_tensors_of_another_model_are_refused() -> None:
    model = Tied(seed=0)
    good = trainable_tensors(model)
    for wrong, said in [
        ({**good, "extra": torch.zeros(1)}, r"unknown 1 \['extra'\]"),
        ({"mix.weight": good["mix.weight"]}, r"missing 1 \['embed.weight'\]"),
        ({**good, "mix.weight": torch.zeros(5, 4)}, r"mix.weight is torch.float32 \[5, 4\]; the model's .*\[5, 5\]"),
        ({**good, "mix.weight": good["mix.weight"].half()}, "torch.float16"),
    ]:
        before = model.mix.weight.clone()
        with pytest.raises(ValueError, match=said):
            load_trainable(model, wrong)
        assert torch.equal(model.mix.weight, before), "a refused checkpoint must change nothing"


def test_an_optimizer_of_other_groups_is_refused() -> None:
    model = Tied(seed=0)
    optimizer = _optimizer("adamw", model)
    _steps(model, optimizer, range(1))
    tensors, info = optimizer_tensors(optimizer, model.named_parameters())
    with pytest.raises(ValueError, match="other groups or another order"):
        load_optimizer(_optimizer("amsgrad", model), model.named_parameters(), tensors, info)
    small = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="of another model"):
        load_optimizer(torch.optim.AdamW(small.parameters()), small.named_parameters(), tensors, info)
