"""The model types of the installed transformers that take pictures and text."""

from __future__ import annotations


def image_text_types() -> tuple[str, ...]:
    """All of them, in order."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES))
