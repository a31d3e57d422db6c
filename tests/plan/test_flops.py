"""Formulas of the paper (Eq. 15, 16) and the figures of its Table 5."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BATCHES, FAMILIES, inputs, model

import tokenprune
from tokenprune.builtin.schedules import Fixed
from tokenprune.errors import TokenpruneError, UnknownNameError
from tokenprune.families.llava import LlavaAdapter
from tokenprune.lab import random_models
from tokenprune.parts.scheduler import PlanInput
from tokenprune.plan.cost import DecoderSize
from tokenprune.plan.shapes import PUBLISHED, geometry, published, visual_tokens
from tokenprune.registry import Entry, registry

LLAVA = PUBLISHED["llava-1.5-7b"]
TEXT = 96  # tokens; gives the published percentages


@pytest.mark.parametrize(("average", "share", "kv"), [(192, 42.2, 95.8), (128, 32.8, 63.9)])
def test_table_5_of_the_paper(average: int, share: float, kv: float) -> None:
    """Table 5 prints 42.3 and 32.7 % of the FLOPs: a rounding away, with an unknown text length."""
    plan = Fixed(layer=2, average=average).plan(PlanInput(32, 576))
    assert round(100 * LLAVA.flops_share(plan, 576, TEXT), 1) == share
    assert round(LLAVA.kv_mib(plan, 576), 1) == kv


def test_full_kv_cache_of_table_5() -> None:
    assert LLAVA.kv_mib({}, 576) == 288.0


@pytest.mark.parametrize(("kept", "kv"), [(192, 96.0), (128, 64.0)])
def test_kv_cache_of_methods_before_the_decoder(kept: int, kv: float) -> None:
    assert LLAVA.kv_mib({0: kept}, 576) == kv


@pytest.mark.parametrize("n", [1, 100, 672])
def test_block_flops_are_equation_15(n: int) -> None:
    d, m = 4096, 11008
    assert LLAVA.block_flops(n) == 4 * n**2 * d + 8 * n * d**2 + 6 * n * m * d


def test_flops_share_is_equation_16() -> None:
    full, left = LLAVA.block_flops(576 + TEXT), LLAVA.block_flops(166 + TEXT)
    assert LLAVA.flops_share({2: 166}, 576, TEXT) == pytest.approx((2 * full + 30 * left) / (32 * full))
    assert LLAVA.flops_share({}, 576, TEXT) == 1


def test_fewer_kv_heads_shrink_projections_and_cache() -> None:
    """GQA with a quarter of the heads: k and v projections and the cache are a quarter; the rest stays."""
    grouped, n = replace(LLAVA, kv_heads=8), 100
    saved = 2 * 2 * n * 4096 * (32 - 8) * 128  # two projections, two operations per weight
    assert LLAVA.block_flops(n) - grouped.block_flops(n) == saved
    assert grouped.kv_mib({}, 576) == LLAVA.kv_mib({}, 576) / 4


def test_tokens_per_block_follow_a_plan_of_several_stages() -> None:
    small = replace(LLAVA, depth=6)
    assert small.tokens({1: 50, 4: 7}, 100) == [100, 50, 50, 50, 7, 7]
    assert small.tokens({0: 3}, 100) == [3] * 6
    assert small.tokens({}, 100) == [100] * 6


def test_bytes_per_element_scale_the_cache() -> None:
    assert LLAVA.kv_mib({2: 166}, 576, element_bytes=4) == 2 * LLAVA.kv_mib({2: 166}, 576)


@pytest.mark.parametrize("family", FAMILIES)
def test_reported_kv_is_what_the_cache_really_holds(family: str) -> None:
    lm, given = model(family), inputs(family, BATCHES["one"])
    recipe = {"prune": [{"scorer": "random", "schedule": {"name": "pyramid", "layers": [1, 3], "ratio": 0.5}}]}
    with torch.no_grad(), tokenprune.prune(lm, recipe) as pruning:
        pruned = lm(**given).past_key_values
    with torch.no_grad():
        full = lm(**given).past_key_values
    state = pruning.state
    assert state is not None
    text = given["input_ids"].shape[1] - state.counts[0]
    for cache, reported in ((full, pruning.report().kv_mib.full), (pruned, pruning.report().kv_mib.pruned)):
        visual = [t[:, :, text:] for layer in cache.layers for t in (layer.keys, layer.values)]
        assert sum(t.numel() * t.element_size() for t in visual) / 2**20 == pytest.approx(reported)


# -- shapes ----------------------------------------------------------------------------------------------------------


def test_named_shapes_are_the_published_ones() -> None:
    llama = DecoderSize(depth=32, width=4096, ffn=11008, heads=32, kv_heads=32, head_size=128)
    qwen = DecoderSize(depth=28, width=3584, ffn=18944, heads=28, kv_heads=4, head_size=128)
    tower = {"llava-1.5-7b": (24, 1, 0), "llava-next-7b": (24, 5, 0), "video-llava-7b": (24, 8, 1)}
    for name, shape in PUBLISHED.items():
        assert (shape.vision_depth, shape.pictures, shape.cls) == tower.get(name, (33, 1, 0))
    assert {
        name: replace(shape, family="", vision_depth=0, pictures=1, cls=0) for name, shape in PUBLISHED.items()
    } == {
        "llava-1.5-7b": llama,
        "llava-next-7b": llama,
        "video-llava-7b": llama,
        "qwen2.5-vl-7b": qwen,
    }
    assert {shape.family for shape in PUBLISHED.values()} == set(FAMILIES)
    assert geometry("qwen2.5-vl-7b") is PUBLISHED["qwen2.5-vl-7b"]


def test_a_plugin_brings_published_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with random weights. What an adapter inherits is not its own."""
    stem = LlavaAdapter.published[0]
    mine = replace(stem, name="mine-7b", sizes=replace(stem.sizes, depth=40), visual=100)
    for name, part in (
        ("mine", type("Mine", (LlavaAdapter,), {"model_types": ("mine",), "published": (mine,)})),
        ("heir", type("Heir", (LlavaAdapter,), {"model_types": ("heir",)})),
        ("late", type("Late", (LlavaAdapter,), {"model_types": ("late",), "published": (replace(mine, visual=7),)})),
    ):
        monkeypatch.setitem(registry().entries["adapter"], name, Entry("adapter", name, part, name))
    assert list(published()) == [*PUBLISHED, "mine-7b"]
    assert geometry("mine-7b") == replace(LLAVA, depth=40)
    assert [visual_tokens(name) for name in ("mine-7b", "llava-1.5-7b", "qwen2.5-vl-7b")] == [100, 576, 576]
    assert random_models.config("mine-7b", random_models.check("mine-7b", "1/8")).text_config.num_hidden_layers == 5
    with pytest.raises(UnknownNameError, match="did you mean 'mine-7b'"):
        geometry("mine-7bb")


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_geometry_of_a_config_file(family: str, as_folder: bool, tmp_path: Path) -> None:
    config = model(family).config
    config.save_pretrained(tmp_path)
    found = geometry(str(tmp_path if as_folder else tmp_path / "config.json"))
    kv_heads = 4 if family == "llava_next" else 2
    tower = 4 if family == "qwen2_5_vl" else 3
    sizes = {"depth": 6, "width": 64, "ffn": 96, "heads": 4, "kv_heads": kv_heads, "head_size": 16}
    assert found == DecoderSize(**sizes, family=family, vision_depth=tower)


def test_unknown_shapes_say_what_was_meant() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'llava-1\.5-7b'.*qwen2\.5-vl-7b"):
        geometry("llava-1.5-7bb")


LLAMA = {"model_type": "llava", "text_config": {"model_type": "llama"}}


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1],
        {"model_type": "no-such-model"},
        {"model_type": "resnet"},
        {**LLAMA, "text_config": {"model_type": "llama", "hidden_size": "wide"}},
        {**LLAMA, "text_config": {"model_type": "llama", "num_attention_heads": 0}},
        {**LLAMA, "text_config": {"model_type": "llama", "num_attention_heads": 3}},
        b"\xff\xfe\x00",
        b"{",
        b"",
    ],
)
def test_files_that_are_no_config_are_refused_by_name(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(TokenpruneError, match=r"config\.json"):
        geometry(str(path))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenpruneError, match=r"config\.json"):
        geometry(str(tmp_path))
