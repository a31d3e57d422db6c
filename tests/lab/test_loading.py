"""A processor whose package is not there: the commands say which."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run
from families import model
from PIL import Image
from real_processors import tokenizer
from transformers import AutoProcessor, Qwen2VLImageProcessorPil
from transformers.utils import is_torchvision_available
from transformers.utils.import_utils import BACKENDS_MAPPING

from tokenprune.errors import TokenpruneError, UnsupportedModelError
from tokenprune.lab.loading import PICO, _missing, load_model
from tokenprune.registry import registry
from tokenprune.verify import trust
from tokenprune.verify.trial import Trial
from tokenprune.verify.typical import typical
from tokenprune.verify.verdict import Comparison

FOR_VIDEOS = {"video_processor_type": "Qwen3VLVideoProcessor"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose processor also has a part for videos, as on the hub."""
    model("qwen3_vl").save_pretrained(tmp_path)
    tokenizer("<|image_pad|>", "<|video_pad|>").save_pretrained(tmp_path)
    parts = {"image_processor": Qwen2VLImageProcessorPil().to_dict(), "video_processor": FOR_VIDEOS}
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor", **parts}))
    return tmp_path


needs_none = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there")


@needs_none
def test_the_package_of_a_processor_is_named(folder: Path) -> None:
    with pytest.raises(TokenpruneError) as raised:
        load_model(str(folder))
    assert str(raised.value) == (
        f"cannot load the model {str(folder)!r}: Qwen3VLVideoProcessor needs torchvision, which is not installed here: "
        "install it with pip"
    )


@needs_none
def test_a_command_says_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64)).save(picture)
    code, _, said = run(capsys, "generate", str(folder), "--image", str(picture), "--prompt", "what is it ?")
    assert code != 0
    assert "Qwen3VLVideoProcessor needs torchvision" in " ".join(said.split())


@pytest.mark.parametrize("there", [True, False])
def test_only_packages_that_are_not_there_are_named(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {
        "one": (lambda: there, "\n{0} requires\nthe One library."),
        "two": (lambda: False, "{0} two"),
    }
    monkeypatch.setattr("transformers.utils.import_utils.BACKENDS_MAPPING", said)
    error = ImportError("\nPart requires\nthe One library.\nPart two")
    both = "Part needs one and two, which is not installed here: install it with pip"
    assert _missing(error) == (both.replace("one and ", "") if there else both)
    assert _missing(ImportError("something else")) is None
    assert _missing(ValueError(str(error))) is None


def test_transformers_still_says_it_in_these_words() -> None:
    assert {"torchvision", "av", "sentencepiece"} <= set(BACKENDS_MAPPING)
    assert all("{0}" in words for _, words in BACKENDS_MAPPING.values())


@pytest.fixture
def unknown(tmp_path: Path) -> Iterator[Path]:
    """A model that nobody wrote an adapter for, in a folder with some processor."""
    made = Trial.of(typical("ovis2")).model
    made.save_pretrained(tmp_path / "model")
    AutoProcessor.from_pretrained(PICO).save_pretrained(tmp_path / "model")
    registry().adopted.clear()
    yield tmp_path / "model"
    registry().adopted.clear()


def test_a_model_without_an_adapter_is_checked(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "check", lambda *_: [Comparison("this", "it failed")])
    with pytest.raises(UnsupportedModelError, match=r"'ovis2' is not verified on transformers .*: this: it failed"):
        load_model(str(unknown))
    load_model(str(unknown), trust_family=True)


def test_a_command_that_trusts(
    unknown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trust, "check", lambda *_: [Comparison("this", "it failed")])
    asked = ("generate", str(unknown), "--prompt", "read the digits", "--max-new-tokens", "1")
    code, _, said = run(capsys, *asked)
    assert code == 1
    assert "this: it failed" in " ".join(said.split())
    assert "trust_family=True (--trust-family) prunes it all the same" in " ".join(said.split())
    assert run(capsys, *asked, "--trust-family")[0] == 0
