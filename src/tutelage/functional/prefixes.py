"""Values of an answer's prefixes, [B, T+1]: column t speaks of the state after the first t answer tokens (0: the prompt alone)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def prefix_mask(mask: Bool[Tensor, "B T"], lengths: Int[Tensor, "B"]) -> Bool[Tensor, "B T+1"]:
    """The prefixes that count: those that the policy goes on from (its token follows), and the whole answer.

    What a user or a tool says in between belongs to no prefix of its own: the policy chooses nothing there.
    """
    wide = torch.nn.functional.pad(mask.bool(), (0, 1))
    return wide.scatter(1, lengths[:, None], True)


def intermediate_rewards(values: Float[Tensor, "B T+1"], prefixes: Bool[Tensor, "B T+1"]) -> Float[Tensor, "B T"]:
    """r_t = V(next prefix) - V(prefix before token t): what each of the policy's tokens changed in the expected reward.

    0 where the policy says nothing. A row sums to V(whole answer) - V(prompt): potential-based shaping (Ng, Harada and
    Russell 1999), so as rewards beside the final one they leave the best policy as it is.
    """
    assert values.shape == prefixes.shape, (values.shape, prefixes.shape)
    kept = torch.where(prefixes, values, 0)
    columns = torch.arange(values.shape[1], device=values.device).expand_as(prefixes)
    own = torch.where(prefixes, columns, values.shape[1])
    # The nearest prefix to the right: a running minimum from the end
    following = own[:, 1:].flip(1).cummin(1).values.flip(1)
    change = kept.gather(1, following.clamp(max=values.shape[1] - 1)) - kept[:, :-1]
    return torch.where(prefixes[:, :-1] & (following < values.shape[1]), change, 0)
