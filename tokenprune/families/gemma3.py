"""Gemma 3 (arXiv 2503.19786): a square grid per picture, seen both ways; sliding windows."""

from __future__ import annotations

from ..parts.adapter import Adapter
from .forms.gemma3 import TINY


class Gemma3Adapter(Adapter):
    """`Gemma3ForConditionalGeneration`."""

    model_types = ("gemma3",)
    tiny = TINY
