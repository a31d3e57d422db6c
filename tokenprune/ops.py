"""The pure tensor core: no models, no batches, no state. Public: plugins are made of these functions (docs/api.md).

Letters: `n` visual tokens, `p` prompt columns, `H`/`h` query/kv heads, `dh` head size, `d` width, `r` query rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def spectrum(rows: Float[Tensor, "*batch m w"]) -> Float[Tensor, "*batch e"]:
    """Eigenvalues of `rows^T rows / m`, from whichever Gram matrix is smaller (`e = min(m, w)`), in ascending order.

    The primal `w x w` and the dual `m x m` Gram share their non-zero eigenvalues (arXiv 2602.17196, Eq. 12-14).
    """
    gram = _gram(rows)
    broken = ~gram.isfinite().all(-1).all(-1)  # a NaN stays one, but does not stop the others
    # Some builds of LAPACK give NaN for a matrix as small as 1e-14, so its largest entry is brought near one. By a
    # power of two, which is exact, and divided out again.
    gram = gram.nan_to_num()
    exponent = torch.frexp(gram.abs().amax((-2, -1))).exponent
    found = torch.linalg.eigvalsh(torch.ldexp(gram, -exponent[..., None, None]))
    return torch.ldexp(found, exponent[..., None]).masked_fill(broken[..., None], float("nan"))


def _gram(rows: Float[Tensor, "*batch m w"]) -> Float[Tensor, "*batch e e"]:
    m, w = rows.shape[-2:]
    return (rows @ rows.mT if m <= w else rows.mT @ rows) / m


def spectral_entropy(
    eigenvalues: Float[Tensor, "*batch e"], alpha: float = 1.0, top_k: int | None = None
) -> Float[Tensor, "*batch"]:
    """Matrix entropy in nats: von Neumann for `alpha = 1` (Eq. 4), order-`alpha` otherwise (Eq. 2).

    `top_k` keeps only the largest eigenvalues (Eq. 6). Eigenvalues within round-off of zero are zero: `0 log 0 = 0`.
    """
    size = eigenvalues.shape[-1]
    round_off = size * torch.finfo(eigenvalues.dtype).eps * eigenvalues.amax(-1, keepdim=True)
    s = torch.where(eigenvalues <= round_off, 0, eigenvalues)
    if top_k is not None:
        s = s[..., -top_k:]
    if alpha == 1.0:
        return -torch.special.xlogy(s, s).sum(-1)
    mass = torch.where(s == 0, 0, s.pow(alpha)).sum(-1)
    return torch.where(mass == 0, 1, mass).log() / (1 - alpha)


def centred_rows(
    states: Float[Tensor, "*batch m w"], normalize: Literal["rows", "none"] = "rows"
) -> Float[Tensor, "*batch m w"]:
    """Subtract the mean row, then scale each row to unit length (`rows`) or leave it (`none`).

    A row that equals the mean up to round-off carries no direction: it becomes (and stays) zero.
    """
    centred = states - states.mean(-2, keepdim=True)
    if normalize == "none":
        return centred
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    round_off = 8 * torch.finfo(torch.float32).eps * torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return centred * torch.where(length <= round_off, 0, 1 / length)  # a NaN stays one


def token_entropy(
    states: Float[Tensor, "H n dh"],
    normalize: Literal["rows", "none"] = "rows",
    alpha: float = 1.0,
    top_k: int | None = None,
) -> Float[Tensor, "n"]:
    """Matrix entropy of each token's head-wise states (arXiv 2602.17196, Eq. 7-14), in nats, float32.

    `normalize="none"` is the authors' released variant: unscaled rows, so the trace is not one; it is divided by
    `log H`, which leaves the ranking as it is.
    """
    precise = torch.float32 if alpha in (1.0, 2.0) else torch.float64  # near 1, 1 / (1 - alpha) magnifies round-off
    rows = centred_rows(states.transpose(0, 1).to(precise), normalize)
    if alpha == 2.0 and top_k is None:  # sum of squared eigenvalues = squared Frobenius norm: no eigenvalues needed
        mass = _gram(rows).square().sum((-2, -1))
        return -torch.where(mass == 0, 1, mass).log()
    return spectral_entropy(spectrum(rows), alpha, top_k).float()


def layer_spectrum(states: Float[Tensor, "n w"]) -> Float[Tensor, "e"]:
    """Eigenvalues of one layer's visual states, heads concatenated (arXiv 2602.17196, Eq. 1), ascending; sum 1."""
    return spectrum(centred_rows(states.float()))


def layer_entropy(states: Float[Tensor, "n w"]) -> Float[Tensor, ""]:
    """Matrix entropy of one layer's visual states (Eq. 4), in nats."""
    return spectral_entropy(layer_spectrum(states))


def attention_rows(
    queries: Float[Tensor, "H r dh"],
    keys: Float[Tensor, "h p dh"],
    rows: Int[Tensor, "r"],
    scaling: float,
    past: tuple[Float[Tensor, "h c dh"], Bool[Tensor, "c"]] | None = None,
) -> Float[Tensor, "H r p"]:
    """Causal softmax attention of a few query rows over all keys, float32; the full map is never built.

    `rows` are the prompt columns of the queries: a row sees the columns up to its own, and every valid one of `past`,
    the keys of earlier turns (their columns are not returned). Queries and keys carry RoPE.
    """
    groups = queries.shape[0] // keys.shape[0]
    grouped = rearrange(queries, "(h g) r dh -> h (g r) dh", g=groups)
    logits = rearrange(grouped @ keys.mT, "h (g r) p -> (h g) r p", g=groups).float() * scaling
    future = torch.arange(keys.shape[1], device=rows.device) > rows[:, None]
    logits = logits.masked_fill(future, float("-inf"))
    if past is None:
        return logits.softmax(-1)
    before = rearrange(grouped @ past[0].mT, "h (g r) c -> (h g) r c", g=groups).float() * scaling
    before = before.masked_fill(~past[1], float("-inf"))
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


def row_hashes(rows: Float[Tensor, "n w"]) -> Int[Tensor, "n"]:
    """A 64-bit number per row that depends on its bits and nothing else: equal rows have equal ones."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    odd = _mix(torch.arange(1, rows.shape[1] + 1, device=rows.device)) | 1
    return _mix((rows.contiguous().view(whole).long() * odd).sum(-1))


def find_equal(wanted: Int[Tensor, "n"], among: Int[Tensor, "m"]) -> Int[Tensor, "n"]:
    """The place of each wanted number, -1 where there is none. The k-th of equal ones goes to the k-th place."""
    if not len(among):
        return torch.full_like(wanted, -1)
    sorted_among, order = among.sort(stable=True)
    first, after = (torch.searchsorted(sorted_among, wanted, right=right) for right in (False, True))
    sorted_wanted, back = wanted.sort(stable=True)
    rank = torch.empty_like(wanted)
    rank[back] = torch.arange(len(wanted), device=wanted.device) - torch.searchsorted(sorted_wanted, sorted_wanted)
    at = torch.minimum(first + rank, after - 1)
    return torch.where(after > first, order[at.clamp_min(0)], -1)


def farthest_first(features: Float[Tensor, "n d"], keep: int) -> Int[Tensor, "k"]:
    """Greedy max-min selection on cosine distance, in the order picked (DivPrune, arXiv 2503.02175).

    The first pick is the token whose nearest other token is farthest; ties go to the lower column. One n x n matrix,
    then a running maximum of similarity: O(n^2 d + n k) time, O(n^2) memory.
    """
    likeness = cosines(features).fill_diagonal_(float("-inf"))
    picked = torch.empty(keep, dtype=torch.long, device=features.device)
    nearest = likeness.amax(0)  # of the empty selection: likeness to the nearest other token
    for i in range(keep):
        pick = nearest.argmin(0, keepdim=True)  # one element: a number would be a sync
        picked[i : i + 1] = pick
        row = likeness.index_select(0, pick)[0]
        nearest = row if i == 0 else torch.maximum(nearest, row)
        nearest.index_fill_(0, pick, float("inf"))  # taken, for good
    return picked


def cosines(features: Float[Tensor, "n d"], block: int = 480) -> Float[Tensor, "n n"]:
    """Cosine similarity of all pairs, float32. Half of a symmetric matrix, then mirrored: exactly symmetric."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    n = len(unit)
    found = unit.new_empty(n, n)
    for start in range(0, n, block):
        stop = min(start + block, n)
        part = unit[start:stop] @ unit[start:].T
        found[start:stop, start:] = part
        found[stop:, start:stop] = part[:, stop - start :].T
    return found


def rank_scores(order: Int[Tensor, "k"], n: int) -> Float[Tensor, "n"]:
    """Scores that make the ordinary top-k pick `order` in its order; tokens not listed come last."""
    score = torch.full((n,), float(-n - 1), device=order.device)
    return score.index_put((order,), -torch.arange(len(order), device=order.device, dtype=score.dtype))


def hashed_uniform(columns: Int[Tensor, "n"], ids: Int[Tensor, "p"], seed: int) -> Float[Tensor, "n"]:
    """Uniform numbers in [0, 1) that depend only on the prompt's token ids, the column and the seed.

    A counter-based generator (SplitMix64 mixing) on the device of its inputs: no generator state, no device sync,
    so a prompt draws the same numbers alone, in any batch and on any device.
    """
    place = torch.arange(1, len(ids) + 1, device=ids.device)
    key = _mix(ids.long() * 0x9E3779B1 + _mix(place)).sum() + ((seed + 2**63) % 2**64 - 2**63)  # any int, as 64 bits
    bits = _mix(_mix(key) + columns.long() * 0x61C8864680B583EB)
    return ((bits >> 11) & ((1 << 24) - 1)).float() / (1 << 24)


def _mix(x: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47  # logical shifts: int64 is signed
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def compact_right(keep: Bool[Tensor, "b k"], width: int) -> tuple[Int[Tensor, "b {width}"], Bool[Tensor, "b {width}"]]:
    """Columns to gather so that each row's kept columns stand at the right end in their order, and which are real.

    Rows that keep fewer than `width` get dropped columns on the left, marked False (left padding). No device sync.
    """
    order = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return order, keep.gather(1, order)


def gather_columns(states: Float[Tensor, "*lead b k w"], index: Int[Tensor, "b j"]) -> Float[Tensor, "*lead b j w"]:
    """Pick columns per row; a broadcast row axis (`b = 1`) is expanded first."""
    states = states.expand(*states.shape[:-3], index.shape[0], *states.shape[-2:])
    return states.gather(-2, index[:, :, None].expand(*states.shape[:-2], index.shape[1], states.shape[-1]))


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
