"""The built-in plugin: registers through the same hooks as everybody else."""

from __future__ import annotations

from pathlib import Path

from .adapters.llava import LlavaAdapter
from .adapters.llava_next import LlavaNextAdapter
from .adapters.qwen2_5_vl import Qwen2_5VLAdapter
from .adapters.video_llava import VideoLlavaAdapter
from .hookspecs import hookimpl
from .interfaces import Adapter, Merger, Scheduler, Scorer, TowerScorer
from .mergers import nearest
from .schedules import Ecl, Fixed, Pyramid, Spread, Table
from .scorers.attention import Attention
from .scorers.diversity import Diversity
from .scorers.entropy import Entropy
from .scorers.random import Random


def configs() -> Path:
    """The folder of shipped configs: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


@hookimpl
def tokenprune_scorers() -> dict[str, type[Scorer] | type[TowerScorer]]:
    return {"entropy": Entropy, "attention": Attention, "diversity": Diversity, "random": Random}


@hookimpl
def tokenprune_schedulers() -> dict[str, type[Scheduler]]:
    return {"fixed": Fixed, "ecl": Ecl, "pyramid": Pyramid, "spread": Spread, "table": Table}


@hookimpl
def tokenprune_adapters() -> dict[str, type[Adapter]]:
    return {
        "llava": LlavaAdapter,
        "llava-next": LlavaNextAdapter,
        "video-llava": VideoLlavaAdapter,
        "qwen2.5-vl": Qwen2_5VLAdapter,
    }


@hookimpl
def tokenprune_mergers() -> dict[str, Merger]:
    return {"nearest": nearest}


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {path.stem: path for path in (configs() / "recipes").glob("*.yaml")}
