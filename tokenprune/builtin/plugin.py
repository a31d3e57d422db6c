"""The built-in plugin: registers through the same hooks as everybody else."""

from __future__ import annotations

from pathlib import Path

from ..ecl.fact import EntropyCollapse
from ..families.cohere2_vision import Cohere2VisionAdapter
from ..families.gemma3 import Gemma3Adapter
from ..families.gemma4 import Gemma4Adapter
from ..families.glm4v import Glm4vAdapter
from ..families.idefics3 import Idefics3Adapter
from ..families.internvl import InternVLAdapter
from ..families.llama4 import Llama4Adapter
from ..families.llava import LlavaAdapter
from ..families.llava_next import LlavaNextAdapter
from ..families.llava_next_video import LlavaNextVideoAdapter
from ..families.llava_onevision import LlavaOnevisionAdapter
from ..families.mistral3 import Mistral3Adapter
from ..families.paligemma import PaliGemmaAdapter
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
        "gemma3": Gemma3Adapter,
        "gemma4": Gemma4Adapter,
        "internvl": InternVLAdapter,
        "llava-onevision": LlavaOnevisionAdapter,
        "llava-next-video": LlavaNextVideoAdapter,
        "mistral3": Mistral3Adapter,
        "idefics3": Idefics3Adapter,
        "llama4": Llama4Adapter,
        "cohere2-vision": Cohere2VisionAdapter,
        "paligemma": PaliGemmaAdapter,
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
