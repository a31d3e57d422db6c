"""A CPU stand-in for the functions of `flash_attn`, by plain attention; records which one was called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as utils


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """One sequence, `s h d`; a causal mask is aligned to the end, as in flash attention."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    logits = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        offset = k.shape[0] - q.shape[0]
        future = torch.arange(k.shape[0]) > torch.arange(q.shape[0])[:, None] + offset
        logits = logits.masked_fill(future, float("-inf"))
    return torch.einsum("hqk,khd->qhd", logits.softmax(-1), v)


@contextmanager
def fake_flash(model: Any) -> Iterator[list[str]]:
    """The decoder of `model` runs on flash_attention_2 inside the block; gives the names of the functions called."""
    calls: list[str] = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), **_):
        calls.append("plain")
        return torch.stack([_attend(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), **_,
    ):  # fmt: skip
        calls.append("varlen")
        spans = zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False)
        return torch.cat([_attend(q[a:b], k[c:d], v[c:d], softmax_scale, causal) for a, b, c, d in spans])

    names = (
        "_loaded_implementation",
        "_flash_fn",
        "_flash_varlen_fn",
        "_pad_fn",
        "_unpad_fn",
        "_process_flash_kwargs_fn",
    )
    before = {name: getattr(utils, name) for name in names}
    config = model.model.language_model.config
    attention = config._attn_implementation
    fakes = (
        "flash_attention_2",
        flash_attn_func,
        flash_attn_varlen_func,
        utils._pad_input,
        utils._unpad_input,
        utils._lazy_define_process_function(flash_attn_varlen_func),
    )
    try:
        for name, fake in zip(names, fakes, strict=True):
            setattr(utils, name, fake)
        config._attn_implementation = "flash_attention_2"
        yield calls
    finally:
        config._attn_implementation = attention
        for name, value in before.items():
            setattr(utils, name, value)
