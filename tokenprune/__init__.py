"""tokenprune: drop visual tokens inside multimodal LLMs on stock Hugging Face transformers.

with tokenprune.prune(model, "entropyprune") as pruning:
    out = model.generate(**inputs)
print(pruning.report())

What is listed here is imported when it is first asked for: `import tokenprune` alone costs nothing.
"""

from __future__ import annotations

from .version import __version__ as __version__

TYPE_CHECKING = False  # type checkers take it for true; `typing` itself is not needed for what the command says at once
if TYPE_CHECKING:
    from typing import Any

    from .api import Pruning, attach, prune
    from .errors import TokenpruneError
    from .parts.adapter import Adapter, Given
    from .parts.attention import Attention
    from .parts.fact import Fact, Sample
    from .parts.merger import Merger
    from .parts.published import Published
    from .parts.scheduler import PlanInput, Scheduler
    from .parts.scorer import Scorer, VisionScorer
    from .parts.tiny import Tiny
    from .parts.vision import VisionAdapter
    from .recipe import Pass, Recipe, VisionPass
    from .registry.hookspecs import hookimpl
    from .seen.pictures import Pictures, Ranking
    from .seen.prompt import Seen

__all__ = [
    "Adapter",
    "Attention",
    "Fact",
    "Given",
    "Merger",
    "Pass",
    "Pictures",
    "PlanInput",
    "Pruning",
    "Published",
    "Ranking",
    "Recipe",
    "Sample",
    "Scheduler",
    "Scorer",
    "Seen",
    "Tiny",
    "TokenpruneError",
    "VisionAdapter",
    "VisionPass",
    "VisionScorer",
    "attach",
    "hookimpl",
    "prune",
]
_WHERE = {
    "api": ("Pruning", "attach", "prune"),
    "errors": ("TokenpruneError",),
    "parts.adapter": ("Adapter", "Given"),
    "parts.attention": ("Attention",),
    "parts.merger": ("Merger",),
    "parts.fact": ("Fact", "Sample"),
    "parts.published": ("Published",),
    "parts.scheduler": ("PlanInput", "Scheduler"),
    "parts.scorer": ("Scorer", "VisionScorer"),
    "parts.tiny": ("Tiny",),
    "parts.vision": ("VisionAdapter",),
    "recipe": ("Pass", "Recipe", "VisionPass"),
    "registry.hookspecs": ("hookimpl",),
    "seen.pictures": ("Pictures", "Ranking"),
    "seen.prompt": ("Seen",),
}


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    import importlib

    for module, names in _WHERE.items():
        if name in names:
            globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
