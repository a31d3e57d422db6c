"""The components of the page, by what they are for. Gradio has no types: each is a component or a block of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asking:
    """What is asked: examples, a picture, one of the visitor's own, a question, questions to try."""

    examples: Any
    picture: Any
    own: Any
    question: Any
    texts: Any
    button: Any


@dataclass(frozen=True)
class Settings:
    """How it is pruned."""

    recipe: Any
    preset: Any
    layer: Any
    own_layer: Any
    budget: Any
    own_budget: Any


@dataclass(frozen=True)
class Answer:
    """What comes out."""

    message: Any
    table: Any
    figures: Any
    overlays: Any
    curve: Any
    words: Any


@dataclass(frozen=True)
class Page:
    """All that events read and write; `truths` are right answers by question, where the picture's are known."""

    blocks: Any
    truths: Any
    asking: Asking
    settings: Settings
    answer: Answer
