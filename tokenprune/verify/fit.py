"""Sizes that must fit each other, once each is small: heads to the heads that share them, rotations to heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .blocks import whole
from .sizes import HEAD

_SHARED = (("key_value_heads", "attention_heads"), ("kv_heads", "heads"), ("num_key_heads", "num_value_heads"))
_SIZES = {
    "head_dim",
    "global_head_dim",
    "swa_head_dim",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
}
_ROTATIONS = ("rope_parameters", "rope_scaling")


def heads(found: dict[str, Any], before: Mapping[str, Any]) -> None:
    """As many share as before, as far as few heads can: all, half, or one. Their sizes keep their relation."""
    for few, many in _SHARED:
        for name in [name for name in found if name.endswith(few)]:
            every = name.removesuffix(few) + many
            if not found[name] or not found.get(every):
                continue
            if before[name] == before[every]:
                found[name] = found[every]
            elif found[name] > 1:
                found[name] = max(1, found[every] // 2)
    base = before.get("head_dim") or before.get("qk_nope_head_dim") or HEAD
    for name, value in before.items():
        if name in _SIZES and value and base > HEAD:
            found[name] = value * HEAD // base


def layers(found: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """What single blocks have of their own is to the rest as it was."""
    for own in found["per_layer_config"].values():
        for name, value in own.items():
            if whole(value) and whole(before.get(name)) and found.get(name) and before[name]:
                own[name] = value * found[name] // before[name]


def rotary(found: dict[str, Any], before: Mapping[str, Any], sectioned: bool) -> None:
    """Sections of a rotation, one for each axis of a position, have as many angles as a head has.

    `sectioned`: there may be sections, and where a config leaves them to the code, they are those of full-size heads.
    """
    size = found.get("head_dim") or HEAD
    old = before.get("head_dim") or (before.get("hidden_size") or 0) // (before.get("num_attention_heads") or 1)
    if before.get("rotary_dim") and old:
        found["rotary_dim"] = before["rotary_dim"] * size // old
    for name in _ROTATIONS:
        if isinstance(rotation := found.get(name), dict):
            each = [value for value in rotation.values() if isinstance(value, dict)]
            for one in each or [rotation]:
                part = one.get("partial_rotary_factor") or found.get("partial_rotary_factor") or 1.0
                _fit(one, int(size * part) // 2, sectioned)


def left_to_code(model: Any, text: Any) -> bool:
    """Whether sections were those of the code, for full-size heads. They are in the config then: build it anew."""
    rotation = getattr(text, "rope_parameters", None)
    if not isinstance(rotation, dict) or "mrope_section" in rotation:
        return False
    for module in model.modules():
        shares, angles = getattr(module, "mrope_section", None), getattr(module, "inv_freq", None)
        if isinstance(shares, (list, tuple)) and angles is not None and sum(shares) != len(angles):
            rotation["mrope_section"] = sections(shares, len(angles))
            return True
    return False


def _fit(rotation: dict[str, Any], angles: int, sectioned: bool) -> None:
    for name in ("long_factor", "short_factor"):
        if rotation.get(name):
            rotation[name] = rotation[name][:angles]
    for name in ("mrope_section", "xdrope_section"):
        if rotation.get(name):
            rotation[name] = sections(rotation[name], angles)
            sectioned = False
    if sectioned:
        rotation["mrope_section"] = sections((1, 1, 1), angles)


def sections(shares: Sequence[int], total: int) -> list[int]:
    """As large in relation as `shares`; what does not divide goes to the one that is alone in its size, or the last."""
    found = [total * share // sum(shares) for share in shares]
    alone = next((i for i, share in enumerate(shares) if list(shares).count(share) == 1), len(found) - 1)
    found[alone] += total - sum(found)
    return found
