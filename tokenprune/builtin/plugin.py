"""The built-in plugin: registers through the same hooks as everybody else."""

from __future__ import annotations

from pathlib import Path

from ..ecl.fact import EntropyCollapse
from ..families.glm4v import Glm4vAdapter
from ..families.llava import LlavaAdapter
from ..families.llava_next import LlavaNextAdapter
from ..families.qwen2_5_vl import Qwen2_5VLAdapter
from ..families.qwen2_vl import Qwen2VLAdapter
from ..families.qwen3_5 import Qwen3_5Adapter
from ..families.qwen3_vl import Qwen3VLAdapter
from ..families.video_llama_3 import VideoLlama3Adapter
from ..families.video_llava import VideoLlavaAdapter
from ..parts.adapter import Adapter
from ..parts.fact import Fact
from ..parts.merger import Merger
from ..parts.scheduler import Scheduler
from ..parts.scorer import Scorer, VisionScorer
from ..registry.hookspecs import hookimpl
from ..shipped import configs
from .mergers import Nearest
from .schedules import Ecl, Fixed, Pyramid, Spread, Table
from .scorers.attention import Attention
from .scorers.diversity import Diversity
from .scorers.entropy import Entropy
from .scorers.random import Random


@hookimpl
def tokenprune_scorers() -> dict[str, type[Scorer] | type[VisionScorer]]:
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
        "qwen2-vl": Qwen2VLAdapter,
        "qwen2.5-vl": Qwen2_5VLAdapter,
        "qwen3-vl": Qwen3VLAdapter,
        "qwen3.5": Qwen3_5Adapter,
        "glm4v": Glm4vAdapter,
        "video-llama-3": VideoLlama3Adapter,
    }


@hookimpl
def tokenprune_mergers() -> dict[str, type[Merger]]:
    return {"nearest": Nearest}


@hookimpl
def tokenprune_facts() -> dict[str, type[Fact]]:
    return {"ecl": EntropyCollapse}


@hookimpl
def tokenprune_recipes() -> dict[str, Path]:
    return {path.stem: path for path in (configs() / "recipes").glob("*.yaml")}
