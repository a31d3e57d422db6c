"""The families as models: published ones as numbers, tiny ones to test with. Nothing is heavy to import."""

from __future__ import annotations

from . import llava, llava_next, qwen2_5_vl, video_llava

PUBLISHED = {form.PUBLISHED.name: form.PUBLISHED for form in (llava, llava_next, video_llava, qwen2_5_vl)}
"""By name, for those that may not import the adapters, which need torch."""

CORE = ("llava", "llava_next", "video_llava", "qwen2_5_vl")
"""The tiny models that every part is tested in: one grid, tiles and newlines, videos, positions in pictures."""
