"""Any config made small: few blocks of every kind, narrow states, small token ids. By the names of fields alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

from ..errors import UnsupportedModelError
from . import fit
from .blocks import Blocks, whole
from .sizes import DEPTH, TOWER, VOCAB, small

_TOKENS = re.compile(r"(?!.*layer).*(_token(_id|_ids|_index)?|_ids?)|image_patch_id")
_TOWER_BLOCKS = re.compile(r"vision_.*layers?|.*_vision_layer|insert_layer_id")
_LEFT_OUT = {"quantization_config", "auto_map", "dtype", "torch_dtype", "id2label", "label2id", "transformers_version"}
_NONE = Blocks(0, ())


def shrunk(config: Any) -> Any:
    """A copy of a config of transformers with at most a few million weights, of the same kind in all else.

    Every kind of decoder block stays, twice where there are two; so does how many queries share a key, what part of a
    head is rotated, and which tokens are special.

    Raises:
        UnsupportedModelError: its fields do not fit together any more.
    """
    try:
        special = sorted({token for tokens in _special(config) for token in tokens if whole(token) and token >= 0})
        if len(special) > VOCAB // 2:
            raise ValueError(f"it names {len(special)} special tokens, at most {VOCAB // 2} have a place")
        text = config.get_text_config(decoder=True)
        return type(config).from_dict(_small(config, text, {old: new for new, old in enumerate(special, start=1)}))
    except Exception as error:
        raise UnsupportedModelError(
            f"cannot make a small {config.model_type} to check pruning on: {said(error)}"
        ) from error


def said(error: Exception) -> str:
    """On one line: some list every class of transformers."""
    return shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")


def _small(config: Any, text: Any, ids: Mapping[int, int]) -> dict[str, Any]:
    """Its fields, and those of the configs in it."""
    inner = _inner(config)
    fields = {name: value for name, value in config.to_dict().items() if name not in _LEFT_OUT | inner.keys()}
    depth = getattr(config, "num_hidden_layers", None)
    blocks = Blocks.of(fields, depth if whole(depth) else 0, DEPTH if config is text else TOWER)
    found = {name: _value(name, value, blocks, ids) for name, value in fields.items()}
    fit.heads(found, fields)
    fit.rotary(found, fields, "mrope_section" in (getattr(config, "ignore_keys_at_rope_validation", None) or ()))
    if overrides := fields.get("per_layer_config"):
        found["per_layer_config"] = blocks.layers(overrides)
        fit.layers(found, fields)
    return found | {name: _small(one, text, ids) for name, one in inner.items()}


def _value(name: str, value: Any, blocks: Blocks, ids: Mapping[int, int]) -> Any:
    value = blocks.value(name, value)
    if name == "vocabulary_map" and value:
        return {token: ids[number] for token, number in value.items() if number in ids}
    if isinstance(value, dict):
        return {key: _value(str(key), one, blocks, ids) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(name, one, _NONE, ids) for one in value]
    return _number(name, value, ids) if whole(value) else value


def _number(name: str, value: int, ids: Mapping[int, int]) -> int:
    if name == "vocab_size":
        return VOCAB  # whose ids prompts are made of, however few it had
    if _TOKENS.fullmatch(name):
        return ids.get(value, value)
    if _TOWER_BLOCKS.fullmatch(name):  # counted from the last block where negative
        return max(-TOWER, min(value, TOWER - 1))
    return small(name, value)


def _inner(config: Any) -> dict[str, Any]:
    """Configs that are fields of it."""
    return {name: value for name, value in vars(config).items() if hasattr(value, "get_text_config")}


def _special(config: Any) -> Iterator[list[Any]]:
    """Ids of special tokens, of all configs in it."""
    for name, value in vars(config).items():
        if _TOKENS.fullmatch(name):
            yield list(value) if isinstance(value, (list, tuple)) else [value]
        elif name == "vocabulary_map" and value:
            yield [value.get("<image>")]
    for inner in _inner(config).values():
        yield from _special(inner)
