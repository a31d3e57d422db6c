"""Matrix entropy of states (arXiv 2602.17196)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
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
