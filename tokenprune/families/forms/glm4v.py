"""GLM-4.1V, GLM-4.5V (a mixture of experts) and GLM-4.6V as models.

Frames of a video have the placeholders of pictures, so transformers takes no pictures beside them: no videos here.
"""

from __future__ import annotations

from typing import Any

from ...parts import tiny
from .packed import BLOCKS, VISION, media

IDS = {
    "image_token_id": tiny.IMAGE,
    "video_token_id": tiny.VIDEO,
    "image_start_token_id": 3,
    "image_end_token_id": 4,
    "video_start_token_id": 7,
    "video_end_token_id": 8,
}
TOWER = {**VISION, **BLOCKS, "image_size": 32}


def text(**more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5, "rope_theta": 10000.0}
    return tiny.text_config(rope_parameters=rope, **more)


def build() -> Any:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return Glm4vForConditionalGeneration(Glm4vConfig(text_config=text(), vision_config=TOWER, **IDS))


def build_moe() -> Any:
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    sizes = text(head_dim=16, first_k_dense_replace=1, **experts)
    return Glm4vMoeForConditionalGeneration(Glm4vMoeConfig(text_config=sizes, vision_config=TOWER, **IDS))


def build_46() -> Any:
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration

    kinds = {"text_config": {"model_type": "glm4v_text"}, "vision_config": {"model_type": "glm4v_vision"}}
    sizes = {"text_config": kinds["text_config"] | text(), "vision_config": kinds["vision_config"] | TOWER}
    return Glm46VForConditionalGeneration(Glm46VConfig(**sizes, **IDS))


TINY = tuple(
    tiny.Tiny(name, make, media, types="mm_token_type_ids")
    for name, make in (("glm4v", build), ("glm4v_moe", build_moe), ("glm46v", build_46))
)
