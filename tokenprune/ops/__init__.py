"""The pure tensor core: no models, no batches, no state. Public: plugins are made of these functions (docs/api.md).

Letters: `n` visual tokens, `p` prompt columns, `H`/`h` query/kv heads, `dh` head size, `d` width, `r` query rows.
"""

from __future__ import annotations

from .attention import attention_rows, stretch_attention
from .entropy import centred_rows, layer_entropy, layer_spectrum, spectral_entropy, spectrum, token_entropy
from .hash import find_equal, hashed_uniform, row_hashes
from .merge import fold, fold_pairs, pair_cosines
from .select import compact_right, cosines, farthest_first, gather_columns, rank_scores

__all__ = [
    "attention_rows",
    "centred_rows",
    "compact_right",
    "cosines",
    "farthest_first",
    "find_equal",
    "fold",
    "fold_pairs",
    "gather_columns",
    "hashed_uniform",
    "layer_entropy",
    "layer_spectrum",
    "pair_cosines",
    "rank_scores",
    "row_hashes",
    "spectral_entropy",
    "spectrum",
    "stretch_attention",
    "token_entropy",
]
