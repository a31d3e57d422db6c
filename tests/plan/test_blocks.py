"""Costs by the type of a block: FLOPs as torch counts them, KV as caches hold it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import ONE, inputs, model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

import tokenprune
from tokenprune.parts.published import BlockSize
from tokenprune.plan.blocks import blocks
from tokenprune.plan.cost import DecoderSize, KvBlocks
from tokenprune.show.report import report

N = 64  # tokens: more than the windows, and one whole chunk of a delta rule
PLAIN = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
WINDOWS = {"sliding_window": 8, "layer_types": [SLIDING, SLIDING, SLIDING, FULL]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
}
SIX = {"num_hidden_layers": 6, "sliding_window": 8, "layer_types": [SLIDING, SLIDING, FULL] * 2, "global_head_dim": 32}


@dataclass(frozen=True)
class Case:
    """A decoder, and one of its fields without which the formula must be another one."""

    model_type: str
    fields: dict[str, Any]
    special: str | None


CASES = {
    "plain": Case("llama", {}, None),
    "windows": Case("gemma3_text", WINDOWS, "layer_types"),
    "shared KV, wide global heads, inputs of each block": Case(
        "gemma4_text",
        {
            **SIX,
            "num_kv_shared_layers": 3,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
            "use_double_wide_mlp": True,
        },
        "num_kv_shared_layers",
    ),
    "keys as values, experts beside the feed-forward": Case(
        "gemma4_text",
        {
            **SIX,
            "hidden_size_per_layer_input": 0,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
        "enable_moe_block",
    ),
    "gated delta nets": Case("qwen3_5_text", DELTA, "layer_types"),
    "gated delta nets, experts, a gated shared one": Case(
        "qwen3_5_moe_text", {**DELTA, **EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 40}, "layer_types"
    ),
    "experts but in one block": Case(
        "qwen3_vl_moe_text", {**EXPERTS, "num_experts": 8, "mlp_only_layers": [1]}, "mlp_only_layers"
    ),
    "a dense first block, experts, a shared one": Case(
        "glm4v_moe_text",
        {
            **EXPERTS,
            "n_routed_experts": 8,
            "first_k_dense_replace": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        "first_k_dense_replace",
    ),
    "chunks, experts in every other block": Case(
        "llama4_text",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 160,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
        },
        "layer_types",
    ),
    "short convolutions": Case(
        "lfm2", {"layer_types": ["conv", FULL, "conv", FULL], "block_multiple_of": 16}, "layer_types"
    ),
    "latent attention": Case(
        "deepseek_v3",
        {
            **EXPERTS,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "num_key_value_heads": 4,
            "head_dim": 8,
        },
        "kv_lora_rank",
    ),
}


@cache
def measured(name: str) -> tuple[Any, list[int], list[int]]:
    """The config, and of each block the FLOPs that torch counts and the numbers in its cache, after N tokens."""
    case = CASES[name]
    config = AutoConfig.for_model(case.model_type, **{**PLAIN, **case.fields})
    config._experts_implementation = "eager"  # grouped matrix products are not counted
    torch.manual_seed(0)
    decoder = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        held = decoder(input_ids=torch.randint(10, 120, (1, N)), use_cache=True).past_key_values
    counts = counter.get_flop_counts()
    depth = range(config.num_hidden_layers)
    flops = [sum(next(counts[key] for key in counts if key.endswith(f"layers.{i}")).values()) for i in depth]
    layers = [held.layers[i] if i < len(held.layers) else None for i in depth]
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    return config, flops, [sum(state.numel() for state in pair if state is not None) for pair in pairs]


def left_out(config: Any, number: int, block: BlockSize) -> int:
    """What torch counts in a block besides: work that kernels for this type do not do, or only in their own way."""
    kind = config.layer_types[number] if getattr(config, "layer_types", None) else FULL
    extra = 0
    if block.window:  # a mask hides what lies outside; it is computed all the same
        extra += 4 * N * (N - block.window) * block.attention
    if kind == LINEAR:  # a chunk's tokens among each other, and what the padding of a convolution costs
        heads, kernel = config.linear_num_value_heads, config.linear_conv_kernel_dim
        channels = 2 * config.linear_num_key_heads * config.linear_key_head_dim + heads * config.linear_value_head_dim
        extra += heads * N * 64 * (4 * config.linear_key_head_dim + 2 * config.linear_value_head_dim)
        extra += 2 * kernel * (kernel - 1) * channels
    if kind == "conv":
        extra += 2 * config.conv_L_cache * (config.conv_L_cache - 1) * config.hidden_size
    if number in (getattr(config, "moe_layers", None) or ()):  # this model sends every token through all experts
        unused = config.num_local_experts - config.num_experts_per_tok
        extra += unused * 6 * N * config.intermediate_size * config.hidden_size
    return extra


@pytest.mark.parametrize("name", CASES)
def test_flops_of_every_block_are_those_that_torch_counts(name: str) -> None:
    config, counted, _ = measured(name)
    for number, block in enumerate(blocks(config)):
        assert block.flops(N) == counted[number] - left_out(config, number, block), number


@pytest.mark.parametrize("name", CASES)
def test_kv_of_every_block_is_what_its_cache_holds(name: str) -> None:
    config, _, held = measured(name)
    assert [block.held(N) for block in blocks(config)] == held


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.special])
def test_the_comparisons_see_what_is_special(name: str) -> None:
    """Without the field that says it, neither would hold."""
    config, counted, held = measured(name)
    case = CASES[name]
    plain = {key: value for key, value in case.fields.items() if key != case.special}
    if case.special == "layer_types":
        plain["layer_types"] = [FULL] * config.num_hidden_layers
    without = blocks(SimpleNamespace(**{**PLAIN, **plain}))
    wrong = [
        number
        for number, block in enumerate(without)
        if block.flops(N) != counted[number] - left_out(config, number, block) or block.held(N) != held[number]
    ]
    assert wrong


def test_plain_decoders_need_no_description_of_their_blocks() -> None:
    size = DecoderSize.of_text(measured("plain")[0])
    assert size.blocks == ()
    assert size.kv_blocks is None
    assert blocks(measured("plain")[0]) == (size.plain,) * 4


def test_a_config_says_a_window_of_all_blocks_without_layer_types() -> None:
    """As transformers' caches read it; and a list of types that is too short repeats."""
    text = SimpleNamespace(**PLAIN, sliding_window=8)
    assert {block.window for block in blocks(text)} == {8}
    text = SimpleNamespace(**PLAIN, sliding_window=8, layer_types=[SLIDING, FULL])
    assert [block.window for block in blocks(text)] == [8, None, 8, None]


# -- what is said of it ----------------------------------------------------------------------------------------------

WORDS = {
    "gated delta nets": (KvBlocks(1, 0, 3, ()), "in 1 of 4 blocks"),
    "windows": (KvBlocks(1, 3, 0, (8,)), "all in 1 of 4 blocks, a window of 8 in 3"),
    "shared KV, wide global heads, inputs of each block": (
        KvBlocks(1, 2, 3, (8,)),
        "all in 1 of 6 blocks, a window of 8 in 2",
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_which_blocks_keep_kv(name: str) -> None:
    found = DecoderSize.of_text(measured(name)[0]).kv_blocks
    assert (found, str(found)) == WORDS[name]


def test_kv_shrinks_where_blocks_keep_some() -> None:
    """A delta net saves no cache, and a window only what it would have kept."""
    hybrid = DecoderSize.of_text(measured("gated delta nets")[0])
    one = 2 * 2 * 16 * 2 / 2**20  # MiB that a token takes in a block
    assert hybrid.kv_mib({}, 100) == pytest.approx(100 * one)
    assert hybrid.kv_mib({1: 40}, 100) == pytest.approx(40 * one)
    windows = DecoderSize.of_text(measured("windows")[0])
    assert windows.kv_mib({}, 100) == pytest.approx((3 * 7 + 100) * one)
    assert windows.kv_mib({1: 40}, 100) == pytest.approx((3 * 7 + 40) * one)
    assert windows.kv_mib({1: 4}, 100) == pytest.approx((7 + 3 * 4) * one)


def test_the_report_says_where_kv_is() -> None:
    """After the MiB; of a plain decoder it says what it always said."""
    lm, recipe = model("llava"), {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 4}}]}
    with torch.no_grad(), tokenprune.prune(lm, recipe) as pruning:
        lm(**inputs("llava", ONE))
    size = DecoderSize.of(lm.config)
    hybrid = replace(size, blocks=(size.plain, *[replace(size.plain, attention=0, kv=0)] * 5))
    plain, found = report(pruning.state, size, 2), report(pruning.state, hybrid, 2)
    assert plain.kv_blocks is None
    assert "MiB, decoder prefill" in str(plain)
    assert found.kv_blocks == KvBlocks(1, 0, 5, ())
    assert "MiB (in 1 of 6 blocks), decoder prefill" in str(found)
    assert found.kv_mib.full == pytest.approx(plain.kv_mib.full / 6)
    assert found.kv_mib.pruned == found.kv_mib.full  # the one block with KV comes before the stage
