"""Past policies come back from the disk bit for bit, and leave the live weights as they were."""

from __future__ import annotations

import pytest
import torch

from tutelage.models.load import load_policy, load_tokenizer, save_policy
from tutelage.models.lora import LoRA, add_lora
from tutelage.models.tiny import tiny
from tutelage.training.checkpoint import trainable_tensors
from tutelage.training.pool import PolicyPool


def moved(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.fixture(params=["lora", "full"])
def setting(request, tmp_path):
    """(the live policy, its pool)"""
    model, tokenizer = tiny(hidden=32)
    save_policy(model, tokenizer, tmp_path / "base")
    if request.param == "full":
        policy = model.requires_grad_(True)
    else:
        policy = moved(load_policy(tmp_path / "base", lora=LoRA(rank=2, alpha=4), dtype="float32"), 1)
    return policy, PolicyPool(tmp_path / "pool", tokenizer, str(tmp_path / "base"))


def said(policy):
    with torch.no_grad():
        return policy(input_ids=torch.arange(60, 80)[None]).logits


def test_a_member_speaks_with_its_own_weights_and_the_live_ones_come_back(setting):
    policy, pool = setting
    past = said(policy)
    pool.keep(10, policy)
    moved(policy, 2)
    now, weights = said(policy), {n: t.clone() for n, t in trainable_tensors(policy).items()}
    assert not torch.allclose(past, now, atol=1e-3)
    with pool.worn(policy, 10):
        assert torch.equal(said(policy), past)
    assert torch.equal(said(policy), now)
    with pytest.raises(RuntimeError, match="in the middle"), pool.worn(policy, 10):
        raise RuntimeError("in the middle")
    assert all(torch.equal(t, weights[n]) for n, t in trainable_tensors(policy).items())


def test_it_is_read_from_the_disk_each_time(setting):
    policy, pool = setting
    pool.keep(0, policy)
    first = said(policy)
    pool.keep(5, moved(policy, 3))
    second = said(policy)
    pool.path(5).rename(pool.folder / "aside")
    pool.path(0).rename(pool.path(5))
    with pool.worn(policy, 5):
        assert torch.equal(said(policy), first)
    assert torch.equal(said(policy), second)


def test_every_tool_loads_a_member(setting):
    policy, pool = setting
    pool.keep(3, policy)
    loaded = load_policy(pool.path(3), dtype="float32")
    assert torch.allclose(said(loaded), said(policy), atol=1e-5)
    assert load_tokenizer(pool.path(3)).get_vocab() == pool.tokenizer.get_vocab()


def test_what_is_gone_broken_or_of_another_model_is_said(setting):
    policy, pool = setting
    pool.keep(0, policy)
    pool.check([0])
    with pytest.raises(ValueError, match=r"step-000007: the run's pool has this past policy, and it is gone"):
        pool.check([0, 7])
    other = add_lora(tiny(hidden=32)[0], LoRA(rank=2, alpha=4, targets=("q_proj",)), task="CAUSAL_LM")
    with pytest.raises(ValueError, match="this past policy is not of this model"), pool.worn(other, 0):
        pass
    file = next(pool.path(0).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step-000000: this past policy cannot be read"), pool.worn(policy, 0):
        pass
