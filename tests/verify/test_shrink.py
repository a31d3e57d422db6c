"""Any config made small, the tiny model of it, and the batch that pruning is checked on."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, Gemma3TextConfig, Lfm2Config
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as TYPES

from tokenprune.errors import UnsupportedModelError
from tokenprune.lab import random_models
from tokenprune.verify import fit
from tokenprune.verify.blocks import Blocks
from tokenprune.verify.prompt import configs
from tokenprune.verify.shrink import shrunk
from tokenprune.verify.sizes import VOCAB, WINDOW, small
from tokenprune.verify.trial import Trial
from tokenprune.verify.typical import typical

SAMPLE = ("llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4", "mistral3", "internvl", "llama4")
SAMPLE += ("glm4v_moe", "kimi_k25", "ovis2", "chameleon")

WITHOUT_COLUMNS = {"blip", "evolla", "florence2", "git", "idefics", "instructblipvideo", "kosmos-2", "kosmos-2.5"}
WITHOUT_COLUMNS |= {"mistral4", "mllama", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"}
"""No visual tokens in the decoder, or none that its config tells from text."""

NOT_RUN = {"fast_vlm": "timm", "gemma3n": "timm", "perception_lm": "timm", "pi0": "its forward demands state"}
NOT_RUN |= {"diffusion_gemma": "a row for each column"}
"""No trial, and what the error says."""

NEWER = {"diffusion_gemma", "granite4_vision", "paddleocr_vl", "qwen4_exp"}
"""Older releases have no working default config of these, or do not take their features."""


@cache
def trial(model_type: str) -> Trial:
    if model_type in NEWER and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("transformers is older than its working default config")
    return Trial.of(typical(model_type))


def check(one: Trial) -> None:
    """What a check of pruning builds on."""
    assert sum(weight.numel() for weight in one.model.parameters()) < 10_000_000
    assert one.form is not None, "its features are not handed over"
    eager = one.logits()
    assert eager.isfinite().all()
    if one.model._supports_sdpa:
        one.model.set_attn_implementation("sdpa")
        difference = (one.logits() - eager).abs()[one.prompt.mask.bool()].max()
        one.model.set_attn_implementation("eager")
        assert difference < 1e-3


# -- what stays of a config ------------------------------------------------------------------------------------------


def test_two_blocks_of_each_kind_stay() -> None:
    config = Gemma3TextConfig(num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=1, sliding_window=4096)
    assert config.layer_types.index("full_attention") == 5
    made = shrunk(config)
    assert made.layer_types == ["sliding_attention"] * 4 + ["full_attention"] * 2
    assert (made.sliding_window, made.num_attention_heads, made.num_key_value_heads) == (WINDOW, 4, 1)
    assert len(config.layer_types) == 26, "the config itself was changed"


def test_numbers_of_blocks_follow_the_blocks_that_stay() -> None:
    kinds = ["full_attention" if block in (2, 5, 8, 10, 12, 14) else "conv" for block in range(16)]
    config = Lfm2Config(layer_types=kinds, num_hidden_layers=16, full_attn_idxs=[2, 5, 8, 10, 12, 14])
    made = shrunk(config)
    assert made.layer_types == ["conv", "conv", "full_attention", "conv", "conv", "full_attention"]
    assert made.full_attn_idxs == [2, 5]


def test_blocks() -> None:
    fields = {"layer_types": ["a", "b"] * 6, "num_kv_shared_layers": 4, "first_k_dense_replace": 1}
    blocks = Blocks.of(fields, 12, 8)
    assert blocks.kept == [0, 1, 2, 3, 4, 8, 9, 10]  # the dense one, a and b of their own keys, a and b of others'
    assert blocks.value("num_kv_shared_layers", 4) == 3
    assert blocks.value("first_k_dense_replace", 1) == 1
    assert blocks.value("moe_layers", [2, 3, 5]) == [2, 3]
    assert blocks.value("kv_source_layers", [0, 1, 2, 3, 3, 3, 6, 7, 6, 7, 10, 7]) == [0, 1, 2, 3, 3, 4, 4, 7]
    assert blocks.value("num_hidden_layers", 12) == 8
    assert blocks.value("hidden_size", 12) == 12
    assert blocks.layers({"01": {"a": 5}, "07": {"a": 6}, 9: {"a": 7}}) == {1: {"a": 5}, 6: {"a": 7}}


def test_many_kinds_stay_few() -> None:
    assert len(Blocks.of({"layer_widths": list(range(100, 0, -1))}, 100, 6).kept) == 12


def test_sizes_never_grow() -> None:
    assert small("hidden_size", 4096) == 128
    assert small("qk_rope_head_dim", 0) == 0
    assert small("num_key_value_heads", 1) == 1
    assert small("a_field_that_nobody_knows", 4096) == 4096


@pytest.mark.parametrize(
    ("shares", "total", "expected"),
    [
        ((16, 24, 24), 16, [4, 6, 6]),
        ((24, 20, 20), 16, [6, 5, 5]),
        ((22, 22, 20), 16, [5, 5, 6]),
        ((11, 11, 10), 4, [1, 1, 2]),
        ((1, 1, 1), 16, [5, 5, 6]),
    ],
)
def test_sections_of_a_rotation(shares: tuple[int, ...], total: int, expected: list[int]) -> None:
    assert fit.sections(shares, total) == expected


def test_heads_keep_their_relation() -> None:
    made = shrunk(typical("gemma4")).get_text_config()
    assert made.layer_types.count("full_attention") == 2
    queries = trial("gemma4").model.get_decoder().layers
    widths = [block.self_attn.q_proj.out_features for block in queries]
    assert widths == [128, 128, 128, 128, 256, 256]


@pytest.mark.parametrize("model_type", SAMPLE)
def test_special_tokens_stay_distinct(model_type: str) -> None:
    """Those that were the same are the same still, and all have a place below the text."""
    before, after = typical(model_type), shrunk(typical(model_type))
    pairs = set()
    for old, new in zip(configs(before), configs(after), strict=True):
        for name in vars(old):
            if name.endswith(("_token_id", "_token_index")) and isinstance(getattr(old, name), int):
                pairs.add((getattr(old, name), getattr(new, name)))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    assert all(0 < new <= VOCAB // 2 for _, new in pairs)


def test_a_config_that_falls_apart_is_an_error() -> None:
    config = typical("gemma3")
    config.text_config.layer_types = ["of no kind"] * config.text_config.num_hidden_layers
    with pytest.raises(UnsupportedModelError, match="cannot make a small gemma3 to check pruning on: "):
        shrunk(config)


def test_too_many_special_tokens_are_an_error() -> None:
    config = typical("llava")
    config.more_token_ids = list(range(1000))
    with pytest.raises(UnsupportedModelError, match="special tokens, at most 64 have a place"):
        shrunk(config)


@pytest.mark.parametrize("name", random_models.NAMES)
def test_published_sizes(name: str) -> None:
    check(Trial.of(random_models.config(name)))


# -- trials ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", SAMPLE)
def test_trials(model_type: str) -> None:
    check(trial(model_type))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in SAMPLE])
def test_trials_of_every_type(model_type: str) -> None:
    expected = {**dict.fromkeys(WITHOUT_COLUMNS, "has no visual tokens to prune|no default config"), **NOT_RUN}
    if model_type in expected:
        with pytest.raises(UnsupportedModelError, match=expected[model_type]):
            trial(model_type)
    else:
        check(trial(model_type))


def test_the_batch_is_ragged() -> None:
    made = trial("llava").prompt
    assert made.visual.sum(-1).tolist() == [14, 0, 12]
    assert made.sizes == (6, 8, 12)
    assert made.mask.sum(-1).tolist()[1] < made.mask.shape[1]
    assert (made.mask.diff() >= 0).all(), "padding lies on the left"
    assert made.ids.shape[1] > 2 * WINDOW
    text = made.ids[made.mask.bool() & ~made.visual]
    assert (text > VOCAB // 2).all()


def test_inputs_are_new_each_time() -> None:
    one = trial("qwen3_vl")
    first, before = one.inputs, one.logits()
    first["input_ids"].zero_()
    first["mm_encoder_outputs"].pop("image")
    first.pop("attention_mask")
    assert torch.equal(one.logits(), before)
    assert one.inputs["mm_encoder_outputs"]["image"].pooler_output is not None


def test_a_form_that_says_nothing_does_not_count() -> None:
    one = trial("llava")
    assert one._counts()
    form = one.form
    assert form is not None
    deaf = replace(one, form=lambda pictures, config: form([picture.abs() for picture in pictures], config))
    assert not deaf._counts()
    assert not replace(one, form=lambda pictures, config: 1 / 0)._counts()


@pytest.mark.parametrize("model_type", ["qwen3_vl", "granite4_vision"])
def test_what_is_added_to_later_blocks_counts(model_type: str) -> None:
    one = trial(model_type)
    form = one.form
    assert form is not None

    def less(pictures, config):
        encoded = form(pictures, config)
        encoded.deepstack_features = encoded.deepstack_features[:1]
        return encoded

    assert (replace(one, form=less).logits() - one.logits()).abs().max() > 1e-3


def test_windows_are_crossed() -> None:
    one = trial("gemma3")
    wide = copy.deepcopy(one.model)
    for module in wide.modules():
        if hasattr(module, "config"):
            module.config.get_text_config().sliding_window = 4096
    assert (replace(one, model=wide).logits() - one.logits()).abs().max() > 1e-3


def test_pictures_that_see_each_other_do() -> None:
    """Token types arrive: without them every picture is causal."""
    one = trial("gemma3")
    causal = replace(one, arguments={name: value for name, value in one.arguments.items() if "type" not in name})
    assert (causal.logits() - one.logits()).abs().max() > 1e-3


def test_grids_give_positions() -> None:
    one = trial("qwen2_5_vl")
    flat = replace(one, arguments={name: value for name, value in one.arguments.items() if "grid" not in name})
    assert (flat.logits() - one.logits()).abs().max() > 1e-3


def test_norms_scale() -> None:
    """Of weights that are all one, nobody could tell whether a norm comes before or after a rotation."""
    norms = [weight for name, weight in trial("qwen3_vl").model.named_parameters() if "q_norm" in name]
    assert norms
    assert all(norm.std() > 0.1 for norm in norms)


def test_trials_are_always_the_same() -> None:
    torch.manual_seed(5)
    again = Trial.of(typical("llava"))
    assert torch.equal(again.logits(), trial("llava").logits())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Trial.of(typical("llava"))
    assert torch.equal(torch.rand(3), expected), "the random state of the caller was used"


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("florence2", "florence2 has no visual tokens to prune: pictures are not columns of its decoder"),
        ("mllama", "by cross-attention"),
        ("blip", "its config names no token that stands for those of a picture"),
        ("pi0", "a small pi0 does not run, so pruning cannot be checked on one: ValueError: its forward demands state"),
        ("nobody", "transformers has no default config of model type 'nobody'"),
    ],
)
def test_reasons(model_type: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        trial(model_type)


def test_sections_that_a_config_leaves_to_the_code() -> None:
    trial("paddleocr_vl")
    config = AutoConfig.for_model("paddleocr_vl")
    assert "mrope_section" not in config.get_text_config().rope_parameters
    assert Trial.of(config).model.config.get_text_config().rope_parameters["mrope_section"] == [4, 6, 6]
