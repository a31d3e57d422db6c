"""The bundled model: stock classes, its questions, and answers that are mostly right on digits it never saw."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel, LlamaModel, LlavaForConditionalGeneration, LlavaProcessor

import tokenprune
from tokenprune.lab.loading import PICO, load_model
from tokenprune.lab.pico import scenes


@pytest.fixture(scope="module")
def pico():
    return load_model("pico")


def test_it_is_a_stock_llava(pico) -> None:
    assert type(pico.model) is LlavaForConditionalGeneration
    assert type(pico.model.model.vision_tower) is CLIPVisionModel
    assert type(pico.model.model.language_model) is LlamaModel
    assert type(pico.processor) is LlavaProcessor


def test_scenes_repeat_and_differ() -> None:
    first, again, other = (list(islice(scenes.held_out(seed), 3)) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert a.questions == b.questions
        assert np.array_equal(np.asarray(a.picture), np.asarray(b.picture))
    assert not np.array_equal(np.asarray(first[0].picture), np.asarray(other[0].picture))


def test_every_kind_is_asked_and_exists_is_balanced() -> None:
    asked = [q for scene in islice(scenes.held_out(0), 200) for q in scene.questions]
    assert {q.kind for q in asked} == set(scenes.KINDS)
    answers = [q.answer for q in asked if q.kind == "exists"]
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def right(pico, recipe: str | None, count: int) -> float:
    """Share of exact answers, in left-padded batches."""
    hits = total = 0
    for scene in islice(scenes.held_out(11), count):
        prompts = [f"USER: <image>\n{q.text} ASSISTANT:" for q in scene.questions]
        batch = pico.processor(images=[scene.picture] * len(prompts), text=prompts, padding=True, return_tensors="pt")
        if recipe is None:
            out = pico.model.generate(**batch, max_new_tokens=8, do_sample=False)
        else:
            with tokenprune.prune(pico.model, recipe):
                out = pico.model.generate(**batch, max_new_tokens=8, do_sample=False)
        answers = pico.processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        hits += sum(a.strip() == q.answer for a, q in zip(answers, scene.questions, strict=True))
        total += len(prompts)
    return hits / total


def test_it_answers(pico) -> None:
    """On a small sample; the model card has the measured accuracy of each kind."""
    assert right(pico, None, 30) >= 0.8


def test_the_card_meets_what_is_promised() -> None:
    """Measured by benchmarks/pico/evaluate.py on the shipped weights."""
    measured = json.loads((PICO / "accuracy.json").read_text())
    assert measured["accuracy"]["all"] >= 0.85
    assert set(measured["questions"]) == set(scenes.KINDS)
    assert min(measured["questions"].values()) >= 300


def test_chat_template_is_the_form_it_was_trained_on(pico) -> None:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "read the digits"}]}
    text = pico.processor.apply_chat_template([message], add_generation_prompt=True)
    assert text == "USER: <image>\nread the digits ASSISTANT:"


def test_loading_is_float32_and_greedy(pico) -> None:
    assert pico.model.dtype == torch.float32
    assert not pico.model.generation_config.do_sample
