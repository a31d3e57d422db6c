"""What the four families share: a Llama-style decoder under `base.language_model`, as Hugging Face lays it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..parts.adapter import Adapter, Box, RotaryTables


class LlamaStyleAdapter(Adapter):
    """Answers every decoder question for Llama, Vicuna, Mistral and Qwen2 bodies; families add their pictures."""

    placeholders: tuple[str, ...] = ("image_token_id",)
    """Config attributes that hold the token ids of visual placeholders."""

    def base(self, model: nn.Module) -> nn.Module:
        return next(part for part in model.modules() if "language_model" in part._modules)  # also inside wrappers

    def decoder(self, base: nn.Module) -> nn.Module:
        return base.language_model  # type: ignore[return-value]

    def blocks(self, decoder: nn.Module) -> list[nn.Module]:
        return list(decoder.layers)  # type: ignore[arg-type]

    def projections(self, block: Any) -> Mapping[str, nn.Module]:
        attn = block.self_attn
        return {"queries": attn.q_proj, "keys": attn.k_proj, "values": attn.v_proj}

    def project(self, block: Any, name: str, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r w"]:
        return self.projections(block)[name](block.input_layernorm(hidden))

    def head_size(self, block: Any) -> int:
        return block.self_attn.head_dim

    def scaling(self, block: Any) -> float:
        return block.self_attn.scaling

    def rotate(self, states: Float[Tensor, "h r dh"], cos: Tensor, sin: Tensor) -> Float[Tensor, "h r dh"]:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat((-second, first), dim=-1) * sin

    def norm(self, decoder: Any, hidden: Float[Tensor, "p d"]) -> Float[Tensor, "p d"]:
        return decoder.norm(hidden)

    def rotary(self, decoder: Any, hidden: Tensor, positions: Int[Tensor, "b s"]) -> RotaryTables | None:
        return decoder.rotary_emb(hidden, position_ids=positions)

    def visual(self, config: Any, input_ids: Int[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for name in self.placeholders:
            mask |= input_ids == getattr(config, name)
        return mask

    def refuse(self, config: Any) -> str | None:
        text = config.get_text_config()
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"]) - {"full_attention"}
        if getattr(text, "sliding_window", None) is not None or kinds:
            return "its decoder uses a sliding attention window, which would slide over dropped tokens"
        return None

    def boxes(self, config: Any, inputs: Mapping[str, Any]) -> Mapping[int, Iterable[Float[Tensor, "n 5"]]] | None:
        return None

    def window(self, processor: Any, width: int, height: int) -> Box:
        return 0.0, 0.0, 1.0, 1.0
