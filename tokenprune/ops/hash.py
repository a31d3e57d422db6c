"""Numbers that depend on bits and nothing else: rows known again, draws that a batch does not change."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
