"""Small values for the fields of any config, by their names alone."""

from __future__ import annotations

import re

WIDTH, HEADS, HEAD, FFN, WINDOW, VOCAB = 128, 4, 32, 64, 8, 128
"""Hidden size, heads, head size, inner size of an MLP or expert, columns that a window sees, token ids in all.

Four heads of 32 are as wide as the hidden states, which some models take for granted. A head of 32 that is rotated for
a quarter still has an angle for each axis of a picture's positions.
"""

DEPTH, TOWER = 6, 4
"""Blocks of the text decoder, and of everything else: a tower needs some for features of several depths."""

_SMALL = (
    # not sizes, whatever the rest of the name says
    (r"image_seq_length|video_seq_length|mm_tokens_per_image|default_output_length", 8),
    (r"index_topk|indexer_budget|sliding_window(_size)?|attention_chunk_size", WINDOW),
    (r"window_size|index_block_size|index_kpool|indexer_compress_ratio", 4),
    (r"n_groups?|index_topk_blocks|.*experts_per_tok|moe_(topk?|k|top_k)|top_k.*", 2),
    (r"depths|topk_group|.*num_nextn_predict_layers", 1),
    # how many
    (r".*vocab_size.*", VOCAB),
    (r".*(num|n)_(cls|query|image|latents?).*|.*n(um)?_latents|latent_query_num", 8),
    (r".*max_.*positions?(_embeddings)?|.*num_position_embeddings|.*position_embedding_size|.*num_patches", 512),
    (r".*pos_emb_(height|width)|posemb_grid_size|rel_extent", 16),
    (r".*(num|n)_(routed_|local_)?experts", 4),
    (r".*num_.*heads|.*_heads|num_groups", HEADS),
    # pixels
    (r"(.*_)?(image|img)_size|resolution|scale", 64),
    (r".*patch_size", 8),
    # how wide
    (r".*_channels", 32),
    (r".*(linear|mamba).*head_dim|ssm_state_size|.*_rank|hc_lowrank", 16),
    (r".*head_dim|.*dim_head|d_kv", HEAD),
    (r".*(intermediate|ffn).*(size|dim).*|mlp_dim|d_ff|.*expert_dim|merged_hidden_size", FFN),
    (r"d_model|.*_dim|hidden_sizes?|.*_hidden_size.*|.*(input|output|proj)_size", WIDTH),
)
_RULES = tuple((re.compile(pattern), most) for pattern, most in _SMALL)


def small(name: str, value: int) -> int:
    """At most the small value of its field. Fields that no rule knows keep theirs, and nothing grows."""
    return next((min(value, most) for pattern, most in _RULES if pattern.fullmatch(name)), value)
