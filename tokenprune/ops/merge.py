"""Folding tokens into one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def fold(
    states: Float[Tensor, "u n *w"], into: Int[Tensor, "u n"], sizes: Float[Tensor, "u n"]
) -> tuple[Float[Tensor, "u n *w"], Float[Tensor, "u n"]]:
    """Every token added to the one it goes `into` (itself if it stays), as means weighted by sizes, and the new sizes.

    A token that gets nothing stays as it is, bit for bit. What is left of tokens that went elsewhere means nothing.
    """
    u, n = into.shape
    flat = (into + n * torch.arange(u, device=into.device)[:, None]).flatten()
    total = torch.zeros_like(sizes).flatten().index_add(0, flat, sizes.flatten()).view(u, n)
    weighted = states.to(sizes.dtype) * sizes.view(u, n, *[1] * (states.ndim - 2))
    summed = torch.zeros_like(weighted).flatten(0, 1).index_add(0, flat, weighted.flatten(0, 1)).view(states.shape)
    got = (total != sizes).view(u, n, *[1] * (states.ndim - 2))
    mean = summed / total.clamp_min(1).view(got.shape)
    return torch.where(got, mean.to(states.dtype), states), total


def fold_pairs(
    states: Float[Tensor, "u n d"],
    sizes: Float[Tensor, "u n"],
    remove: int,
    score: Callable[[Float[Tensor, "u m d"], Int[Tensor, "u m"]], Float[Tensor, "u a b"]],
) -> Int[Tensor, "u n"]:
    """Where each token goes when `remove` of them are merged, pair by pair (bipartite matching, arXiv 2210.09461).

    Tokens at odd places look for the best partner among those at even places, and the best pairs are merged. This
    removes at most half of the tokens; where more must go, what is left is matched again (folded, arXiv 2501.02430).

    Args:
        states: what tokens are compared by; merged ones are compared by their weighted mean.
        sizes: how many tokens each stands for.
        remove: below n.
        score: of every pair (odd place, even place), given the states that are left and their places among the n.
            Called once for each round of matching.
    """
    u, n = sizes.shape
    into = torch.arange(n, device=sizes.device).expand(u, n)
    left = into  # places of the tokens that are left
    while remove > 0:
        count = min(remove, left.shape[1] // 2)
        best, partner = score(states, left).max(-1)
        odd = best.argsort(dim=-1, descending=True, stable=True)[:, :count]
        gone, home = 2 * odd + 1, 2 * partner.gather(1, odd)
        local = torch.arange(left.shape[1], device=left.device).expand_as(left).scatter(1, gone, home)
        into = into.scatter(1, left, left.gather(1, local)).gather(1, into)  # through tokens that went before
        remove -= count
        if remove:
            states, sizes = fold(states, local, sizes)
            stays = torch.ones_like(left).scatter(1, gone, 0).argsort(dim=-1, descending=True, stable=True)
            stays = stays[:, : left.shape[1] - count]
            states = states.gather(1, stays[..., None].expand(-1, -1, states.shape[-1]))
            left, sizes = left.gather(1, stays), sizes.gather(1, stays)
    return into


def pair_cosines(states: Float[Tensor, "u m d"]) -> Float[Tensor, "u a b"]:
    """Cosine similarity of every pair of an odd and an even place."""
    unit = torch.nn.functional.normalize(states, dim=-1)
    return unit[:, 1::2] @ unit[:, 0::2].mT
