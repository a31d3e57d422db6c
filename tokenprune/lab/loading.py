"""A model and its processor by name, and a question about pictures as model inputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import TokenpruneError
from ..verify import adapter_for

PICO = Path(__file__).parent / "pico" / "tokenprune-pico"


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to answer."""

    model: Any
    processor: Any

    def inputs(
        self, question: str, images: Sequence[Image.Image] = (), videos: Sequence[np.ndarray] = ()
    ) -> dict[str, torch.Tensor]:
        """Model inputs of one question, through the processor's chat template, on the model's device."""
        return self.batch([[_ask(question, len(images), len(videos))]], images, videos)

    def batch(
        self,
        talks: Sequence[Sequence[dict[str, Any]]],
        images: Sequence[Image.Image] = (),
        videos: Sequence[np.ndarray] = (),
    ) -> dict[str, torch.Tensor]:
        """Model inputs of several conversations, left-padded; `images` and `videos` are those of all, in order."""
        texts = [self.processor.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in talks]
        media = {
            **({"images": _by_talk(talks, "image", images)} if images else {}),
            **({"videos": _by_talk(talks, "video", videos)} if videos else {}),
        }
        more: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
        if videos and getattr(self.processor, "video_processor", None) is not None:
            more["do_sample_frames"] = False  # frames were chosen where the video was read; some would choose again
        batch = self.processor(text=texts, return_tensors="pt", **more, **media)
        made = batch.to(self.model.device).items()
        # some processors give pixels in half precision, whatever the model's is
        return {name: value.to(self.model.dtype) if _is_real(value) else value for name, value in made}

    def chat(self, question: str, images: int = 0, videos: int = 0) -> str:
        """The text of a question about so many pictures and videos, by the processor's chat template."""
        talk = [_ask(question, images, videos)]
        return str(self.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False))

    def first_token(self, question: str, answer: str, images: int = 1) -> int:
        """The token that begins an answer, as the chat template goes on after the question."""
        user = _ask(question, images)
        assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        render, tokenizer = self.processor.apply_chat_template, self.processor.tokenizer
        asked = tokenizer(render([user], add_generation_prompt=True, tokenize=False)).input_ids
        told = tokenizer(render([user, assistant], tokenize=False)).input_ids
        if told[: len(asked)] != asked or len(told) == len(asked):
            raise TokenpruneError(
                f"the chat template does not go on with the answer {answer!r} where the model begins to write: "
                "its first token cannot be told"
            )
        return int(told[len(asked)])

    def answer(self, inputs: dict[str, torch.Tensor], max_new_tokens: int = 64) -> str:
        """Greedy answer, new text only."""
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return self.processor.batch_decode(new, skip_special_tokens=True)[0].strip()


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _ask(question: str, images: int = 0, videos: int = 0) -> dict[str, Any]:
    """A question as a message of a conversation."""
    media = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*media, {"type": "text", "text": question}]}


def _by_talk(talks: Sequence[Sequence[dict[str, Any]]], kind: str, items: Sequence[Any]) -> list[list[Any]]:
    """The pictures or videos of each conversation, as chat templates hand them to processors: some count them so."""
    left = iter(items)
    return [[next(left) for message in talk for part in message["content"] if part["type"] == kind] for talk in talks]


def encode(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Pictures and videos encoded, as `generate` does before its prefill: one more input, beside `without_pixels`."""
    encoded = {}
    for kind in ("image", "video"):
        encoder = getattr(model.base_model, f"get_{kind}_features", None)
        names = inspect.signature(encoder).parameters if encoder is not None else ()
        given = {name: inputs[name] for name in names if name in inputs}
        if encoder is not None and any(name.startswith("pixel_values") for name in given):
            encoded[kind] = encoder(**given, return_dict=True)
    return {"mm_encoder_outputs": encoded}


def without_pixels(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of the decoder."""
    return {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}


def load_model(
    name: str,
    attention: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    trust_family: bool = False,
) -> Loaded:
    """Load a hub id or a local folder; `pico` is the bundled model. Safetensors only, no remote code.

    `trust_family`: as in `tokenprune.prune`.

    Raises TokenpruneError with the reason if it cannot be loaded.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = str(PICO) if name == "pico" else name
    if name == "pico" and dtype == "auto":
        dtype = "float32"  # its weights ship as 16 bit to be small; it was trained, and runs best on a CPU, in 32
    options = {"attn_implementation": attention} if attention else {}
    model = None
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        adapter_for(model.config, trust_family)
        return Loaded(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError) as error:
        if packages := _missing(error):
            raise TokenpruneError(f"cannot load the model {name!r}: {packages}") from error
        reason = _lacks(path, model is None) or next(
            iter(str(error).strip().splitlines()), type(error).__name__
        ).rstrip(".")
        raise TokenpruneError(
            f"cannot load the model {name!r}: {reason}. Give a hub id, a folder with config.json, safetensors weights "
            "and a processor, or pico."
        ) from error


def _missing(error: Exception) -> str | None:
    """The packages that transformers says a part of a processor needs; None if the error says something else."""
    from transformers.utils.import_utils import BACKENDS_MAPPING

    told = " ".join(str(error).split())
    part = told.partition(" ")[0]
    packages: dict[str, str] = {}  # by what transformers says of them: some go by two names
    for name, (is_there, words) in BACKENDS_MAPPING.items():
        if " ".join(words.replace("{0}", part).split()) in told and not is_there():
            packages.setdefault(words, name)
    if not isinstance(error, ImportError) or not packages:
        return None
    return f"{part} needs {' and '.join(packages.values())}, which is not installed here: install it with pip"


def _lacks(name: str, weights: bool) -> str | None:
    """What a local path lacks whose weights, or else its processor, cannot be loaded; None if nothing, or a hub id."""
    path = Path(name)
    if path.is_file():
        return "it is a file, and a model is a folder"
    if not path.is_dir():
        return "there is no such folder" if path.is_absolute() or len(path.parts) > 2 or name[0] in ".~" else None
    if not any((path / config).is_file() for config in ("config.json", "adapter_config.json")):
        return "the folder has no config.json"
    if not any(path.glob("*.safetensors")):
        others = sorted(file.name for file in path.glob("*.bin"))
        return f"the folder has no safetensors weights{f', but {others[0]}, which is not read' if others else ''}"
    if weights or any((path / config).is_file() for config in ("processor_config.json", "preprocessor_config.json")):
        return None
    return "the folder has no processor_config.json, which processor.save_pretrained writes"
