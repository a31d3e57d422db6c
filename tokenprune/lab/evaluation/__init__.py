"""Benchmarks through lmms-eval. Nothing here is imported unless lmms-eval is installed and asked for."""

from __future__ import annotations

from typing import Any

MODEL = "tokenprune_hf"


def manifest() -> Any:
    """What lmms-eval reads from the entry point group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path="tokenprune.lab.evaluation.lmms.TokenpruneHf")
