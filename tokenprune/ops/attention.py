"""Attention probabilities, recomputed for the few rows that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attention_rows(
    queries: Float[Tensor, "H r dh"],
    keys: Float[Tensor, "h p dh"],
    rows: Int[Tensor, "r"],
    scaling: float,
    past: tuple[Float[Tensor, "h c dh"], Bool[Tensor, "c"]] | None = None,
    allowed: Bool[Tensor, "r c+p"] | None = None,
    cap: float | None = None,
) -> Float[Tensor, "H r p"]:
    """Softmax attention of a few query rows over all keys, float32; the full map is never built.

    `rows` are the prompt columns of the queries: a row sees the columns up to its own, and every valid one of `past`,
    the keys of earlier turns (their columns are not returned); or what is `allowed`. Queries and keys carry RoPE. With
    a `cap`, logits l become `cap * tanh(l / cap)`.
    """
    groups = queries.shape[0] // keys.shape[0]
    grouped = rearrange(queries, "(h g) r dh -> h (g r) dh", g=groups)

    def against(keys: Float[Tensor, "h n dh"]) -> Float[Tensor, "H r n"]:
        logits = rearrange(grouped @ keys.mT, "h (g r) n -> (h g) r n", g=groups).float() * scaling
        return logits if cap is None else (logits / cap).tanh() * cap

    logits = against(keys)
    hidden = torch.arange(keys.shape[1], device=rows.device) > rows[:, None]
    if allowed is not None:
        hidden = ~allowed[:, allowed.shape[1] - keys.shape[1] :]
    logits = logits.masked_fill(hidden, float("-inf"))
    if past is None:
        return logits.softmax(-1)
    before = against(past[0])
    seen = past[1] if allowed is None else past[1] & allowed[:, : before.shape[-1]]
    before = before.masked_fill(~seen, float("-inf"))
    return torch.cat([before, logits], dim=-1).softmax(-1)[..., before.shape[-1] :]


def stretch_attention(
    queries: Float[Tensor, "H r dh"],
    keys: Float[Tensor, "H r dh"],
    lengths: Sequence[int],
    scaling: float,
    first_only: bool = False,
    room: int = 1 << 24,
) -> Float[Tensor, "r"]:
    """Attention that each row gets from the rows of its own stretch (or the first one only), averaged over heads.

    Attention is not causal and stays inside stretches of the given lengths, one after the other. Probabilities are
    summed over the asking rows, float32 or better. At most about `room` of them exist at a time.
    """
    heads, r = queries.shape[:2]
    precise = torch.promote_types(queries.dtype, torch.float32)
    got = torch.zeros(r, dtype=precise, device=queries.device)
    starts: dict[int, list[int]] = {}
    for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
        starts.setdefault(length, []).append(start)
    for length, begins in starts.items():
        asking = 1 if first_only else length
        together = max(1, room // (heads * length * asking))  # stretches
        step = max(1, room // (heads * length))  # asking rows, where one stretch is too much
        for i in range(0, len(begins), together):
            begin = torch.tensor(begins[i : i + together], device=queries.device)
            at = begin[:, None] + torch.arange(length, device=queries.device)  # stretches x length
            every = keys[:, at].mT
            total = torch.zeros(at.shape, dtype=precise, device=queries.device)
            for j in range(0, asking, step):
                logits = queries[:, at[:, j : min(j + step, asking)]] @ every
                total += (logits.to(precise) * scaling).softmax(-1).sum(-2).mean(0)
            got[at] = total
    return got
