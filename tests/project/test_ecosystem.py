"""What other people's code does with a model: pipelines, streamers, custom decoding, Trainer, extra outputs."""

from __future__ import annotations

import copy
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_flash import fake_flash
from families import DEPTH, FAMILIES, IMAGE, ONE, RAGGED, answer, inputs, logits, model
from masking import hidden_by_mask
from oracle import ENDING, RECIPES, close
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    TextStreamer,
    Trainer,
    TrainingArguments,
    pipeline,
)

import tokenprune
from tokenprune.errors import PromptError
from tokenprune.lab.loading import load_model
from tokenprune.lab.pico import scenes

MIXTURE = {"prune": RECIPES["mixture"]}
BLIND = {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 0, "keep": 0}}]}  # changes every answer


@pytest.fixture(scope="module")
def pico() -> Any:
    return load_model("pico")


ASKED = [
    (scene.picture, question.text)
    for scene in islice(scenes.held_out(3), 3)
    for question in scene.questions
    if question.kind != "exists"
][:3]


def chat(picture: Any, question: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]},
    ]


PIPELINE_INPUTS: dict[str, Any] = {
    "one chat": lambda: {"text": chat(*ASKED[0])},
    "chats": lambda: {"text": [chat(*asked) for asked in ASKED]},
    "chats, batch_size 2": lambda: {"text": [chat(*asked) for asked in ASKED], "batch_size": 2},
    "prompts, batch_size 2": lambda: {
        "images": [picture for picture, _ in ASKED],
        "text": [f"USER: <image>\n{question} ASSISTANT:" for _, question in ASKED],
        "batch_size": 2,
    },
}


def flat(answers: Any) -> list[str]:
    """A pipeline's texts, however deep it nests them."""
    if isinstance(answers, dict):
        return [answers["generated_text"].strip()]
    return [text for entry in answers for text in flat(entry)]


@pytest.mark.works("Ecosystem", '`transformers.pipeline("image-text-to-text")`')
@pytest.mark.parametrize("given", PIPELINE_INPUTS)
def test_a_pipeline(pico: Any, given: str) -> None:
    """`image-text-to-text` answers as `generate` does; made before or inside the block."""
    before = pipeline("image-text-to-text", model=pico.model, processor=pico.processor)
    asked = PIPELINE_INPUTS[given]()
    count = 1 if given == "one chat" else len(ASKED)
    found = {}
    for name, recipe in {"blind": BLIND, "halved": "fastv"}.items():
        with tokenprune.prune(pico.model, recipe):
            expected = [pico.answer(pico.inputs(question, [picture])) for picture, question in ASKED[:count]]
            inside = pipeline("image-text-to-text", model=pico.model, processor=pico.processor)
            for pipe in (before, inside):
                found[name] = flat(pipe(**asked, max_new_tokens=64, return_full_text=False))
                assert found[name] == expected
    assert found["blind"] != flat(before(**asked, max_new_tokens=64, return_full_text=False))


# -- streamers ---------------------------------------------------------------------------------------------------


@pytest.mark.works("Ecosystem", "TextStreamer")
def test_a_text_streamer_prints_the_answer(pico: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = pico.inputs(ASKED[0][1], [ASKED[0][0]])
    with tokenprune.prune(pico.model, BLIND):
        expected = pico.answer(given)
        capsys.readouterr()
        streamer = TextStreamer(pico.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        pico.model.generate(**given, max_new_tokens=64, streamer=streamer)
    assert capsys.readouterr().out.strip() == expected != pico.answer(given)


@pytest.mark.works("Ecosystem", "TextIteratorStreamer, one or two threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_streams_from_threads(pico: Any, threads: int) -> None:
    """`generate` in threads inside one block, read here."""
    with tokenprune.prune(pico.model, BLIND):
        expected, running = [], []
        for picture, question in ASKED[:threads]:
            given = pico.inputs(question, [picture])
            expected.append(pico.answer(given))
            streamer = TextIteratorStreamer(pico.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            more = {**given, "max_new_tokens": 64, "streamer": streamer}
            thread = threading.Thread(target=pico.model.generate, kwargs=more)
            running.append((thread, streamer))
        for thread, _ in running:
            thread.start()
        assert ["".join(streamer).strip() for _, streamer in running] == expected
        for thread, _ in running:
            thread.join()


# -- decoding ----------------------------------------------------------------------------------------------------


def greedy(lm: Any, input_ids: torch.Tensor, **given: Any) -> torch.Tensor:
    """A hand-written loop, as `custom_generate` takes one."""
    kept = {key: given[key] for key in ("attention_mask", "past_key_values")}
    media = {key: value for key, value in given.items() if key in ("pixel_values", "mm_encoder_outputs", "image_sizes")}
    ids = input_ids
    for _ in range(6):
        kept["attention_mask"] = torch.ones_like(input_ids)
        token = lm(input_ids=ids, **kept, **media).logits[:, -1:].argmax(-1)
        ids, media = token, {}
        input_ids = torch.cat([input_ids, token], dim=1)
    return input_ids


@pytest.mark.works("Ecosystem", "`custom_generate`")
def test_custom_generate_takes_a_function() -> None:
    with tokenprune.prune(model("llava"), MIXTURE):
        expected = answer("llava", "sdpa", ONE).sequences
        with torch.no_grad():
            found = model("llava").generate(**inputs("llava", ONE), custom_generate=greedy)
    assert torch.equal(found, expected)
    assert not torch.equal(found, answer("llava", "sdpa", ONE).sequences)


@pytest.mark.works("Ecosystem", "classifier-free guidance")
def test_guidance_equals_its_formula() -> None:
    """Classifier-free guidance runs a second conversation, without the picture, on the same model."""
    lm, scale = model("llava"), 1.5
    with tokenprune.prune(lm, MIXTURE):
        plain = answer("llava", "sdpa", ONE)
        guided = answer("llava", "sdpa", ONE, guidance_scale=scale, output_scores=True)
        ids = guided.sequences[:, inputs("llava", ONE)["input_ids"].shape[1] - 1 :]
        with torch.no_grad():
            without = lm(input_ids=ids[:, :-1]).logits.log_softmax(-1)
    scores, seen = torch.stack(guided.scores, dim=1), logits(guided).log_softmax(-1)
    assert close(scores, without + scale * (seen - without))
    assert torch.equal(logits(guided)[:, 0], logits(plain)[:, 0])
    assert not torch.equal(guided.sequences, plain.sequences)


@pytest.mark.works("Ecosystem", "assisted decoding with an assistant model")
@pytest.mark.parametrize("recipe", ["mixture", "pyramid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistant_model(family: str, recipe: str) -> None:
    """Its drafts come along with the prompt, and have no part in what is dropped: the same tokens as without it."""
    small = copy.deepcopy(model(family))
    with torch.no_grad():
        small.lm_head.weight[7::2] *= 0.9  # drafts that are right at times and wrong at times
    with tokenprune.prune(model(family), {"prune": RECIPES[recipe]}):
        expected = answer(family, "sdpa", ONE, steps=12).sequences
        assert torch.equal(answer(family, "sdpa", ONE, steps=12, assistant_model=small).sequences, expected)


@pytest.mark.works("Ecosystem", "assisted decoding of a prompt that ends with its picture")
@pytest.mark.parametrize("recipe", ["attention", "mixture", "withdraw", "compact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistant_where_a_picture_ends_the_prompt(family: str, recipe: str) -> None:
    """What is asked for is the logits of the picture's last token and of the drafts."""
    ending, small = [(1, (3, "image"))], copy.deepcopy(model(family))
    with torch.no_grad():
        small.lm_head.weight[7::2] *= 0.9
    compact = [{**stage, "positions": "compact"} for stage in RECIPES["mixture"]]
    with tokenprune.prune(model(family), {"prune": compact if recipe == "compact" else RECIPES[recipe]}):
        expected = answer(family, "sdpa", ending, steps=12).sequences
        assert torch.equal(answer(family, "sdpa", ending, steps=12, assistant_model=small).sequences, expected)


def test_drafts_after_a_picture_are_refused_with_flash_attention() -> None:
    given = inputs("llava", [(1, (3, "image", 2))])
    drafted, longer = {"logits_to_keep": 3}, inputs("llava", [(1, (3, "image", 4))])
    with fake_flash(model("llava")), torch.no_grad(), tokenprune.prune(model("llava"), {"prune": RECIPES["withdraw"]}):
        with pytest.raises(PromptError, match="flash attention cannot hide the picture's last token: use sdpa"):
            model("llava")(**given, **drafted)
        assert model("llava")(**longer, **drafted).logits.isfinite().all()


class Says(LogitsProcessor):
    """Makes the model say a word as the third of its answer."""

    def __init__(self, prompt: int, word: int) -> None:
        self.at, self.word = prompt + 2, word

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] != self.at:
            return scores
        return torch.full_like(scores, -1e4).index_fill(1, torch.tensor([self.word]), 0.0)


@pytest.mark.works("Ecosystem", "prompt look-up decoding that drafts placeholders")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_drafted_placeholder_is_a_word(family: str) -> None:
    """The word that stands before the picture is said again: look-up drafts placeholders, no picture comes along."""
    asked = [(12, (3, "image", 9))]  # no word of it is said before the picture
    given, found, passes = inputs(family, asked), {}, []
    width = given["input_ids"].shape[1]
    before = int(given["input_ids"][0][(given["input_ids"][0] == IMAGE).int().argmax() - 1])

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        passes.append((ids.shape[1], bool((ids == IMAGE).any())))

    handle = model(family).register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with tokenprune.prune(model(family), MIXTURE) as pruning:
            for lookup in ({}, {"prompt_lookup_num_tokens": 3}):
                says = LogitsProcessorList([Says(width, before)])
                out = answer(family, "sdpa", asked, steps=8, logits_processor=says, **lookup)
                found[bool(lookup)], state = out.sequences, pruning.state
                assert state.start == 0
    finally:
        handle.remove()
    assert torch.equal(found[True], found[False])
    assert any(1 < columns < width and shows for columns, shows in passes)


@pytest.mark.refused("Ecosystem", "a pruned assistant model")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_assistant_is_refused(family: str) -> None:
    lm, small = model(family), copy.deepcopy(model(family))
    with tokenprune.prune(small, MIXTURE), pytest.raises(PromptError, match="assistant_model has to stay unpruned"):
        answer(family, "sdpa", ONE, steps=12, assistant_model=small)
    expected = answer(family, "sdpa", ONE, steps=12).sequences
    assert torch.equal(lm.generate(**inputs(family, ONE), max_new_tokens=12, do_sample=False), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [ONE, RAGGED, *ENDING.values()])
def test_drafts_have_no_part_in_what_is_dropped(family: str, batch: Any) -> None:
    """Words that come along with the prompt, for logits of their own, do not move the question's last token."""
    lm, given = model(family), inputs(family, batch)
    drafts = torch.full((len(given["input_ids"]), 3), 17)
    more = {
        **given,
        "input_ids": torch.cat([given["input_ids"], drafts], dim=1),
        "attention_mask": torch.cat([given["attention_mask"], torch.ones_like(drafts)], dim=1),
    }
    if "mm_token_type_ids" in given:
        more["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros_like(drafts)], dim=1)
    for recipe in ("attention", "pyramid", "mixture"):
        with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
            plain, kept = lm(**given).logits[:, -1], dict(pruning.state.views)
            drafted = lm(**more, logits_to_keep=4)
            for layer, view in pruning.state.views.items():
                assert torch.equal(view.shorten(3).index, kept[layer].index)
            assert close(drafted.logits[:, 0], plain)
            drafted.past_key_values.crop(-2)
            assert pruning.state is not None
            with pytest.raises(PromptError, match="they had a part in what was dropped"):
                drafted.past_key_values.crop(-2)  # only one draft is left


def restarting() -> dict[str, torch.Tensor]:
    given = inputs("llava", ONE)
    del given["attention_mask"]
    half = given["input_ids"].shape[1] - 4
    return {**given, "position_ids": torch.cat([torch.arange(half), torch.arange(4)])[None]}


def boundaries() -> dict[str, torch.Tensor]:
    given = inputs("llava", ONE)
    ends = torch.tensor([0, given["input_ids"].shape[1]], dtype=torch.int32)
    return {**given, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}


PACKED = {"positions that restart": restarting, "sequence boundaries": boundaries}


@pytest.mark.refused("Inputs", "several prompts packed in one row")
@pytest.mark.parametrize("packing", PACKED)
def test_rows_of_several_prompts_are_refused(packing: str) -> None:
    """As continuous batching (`generate_batch`) and padding-free collators make them."""
    lm, given = model("llava"), PACKED[packing]()
    with torch.no_grad():
        assert lm(**given, use_cache=False).logits.isfinite().all()
        with tokenprune.prune(lm, MIXTURE), pytest.raises(PromptError, match="give each prompt a row of its own"):
            lm(**given, use_cache=False)


# -- outputs -----------------------------------------------------------------------------------------------------


def kept_columns(state: Any, block: int) -> torch.Tensor:
    view, kept = state.view_at(block), torch.zeros_like(state.visual)
    for row in range(len(kept)):
        kept[row, view.index[row][view.valid[row]]] = True
    return kept


@pytest.mark.works("Generation", "`output_hidden_states`")
@pytest.mark.parametrize("recipe", ["mixture", "pyramid"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_stand_at_their_columns(family: str, recipe: str) -> None:
    """Of every block, those of the masked model; columns that a block did not see are zeros."""
    lm, given = model(family), inputs(family, RAGGED)
    with torch.no_grad(), tokenprune.prune(lm, {"prune": RECIPES[recipe]}) as pruning:
        pruned = lm(**given, output_hidden_states=True).hidden_states
        written = answer(family, "sdpa", RAGGED, output_hidden_states=True).hidden_states
    with torch.no_grad(), hidden_by_mask(lm, given["attention_mask"], pruning.state.views):
        masked = lm(**given, output_hidden_states=True).hidden_states
    with torch.no_grad():
        plain = lm(**given, output_hidden_states=True).hidden_states
    assert len(pruned) == len(masked) == DEPTH + 1
    for i, (a, b) in enumerate(zip(pruned, masked, strict=True)):
        kept = kept_columns(pruning.state, max(i - 1, 0))
        assert a.shape == b.shape == written[0][i].shape
        assert close(a[kept], b[kept])
        assert close(written[0][i][kept], b[kept])
        if pruning.state.view_layer(max(i - 1, 0)) is not None:
            assert not a[~kept].any()
    assert not close(pruned[-1][kept], plain[-1][kept])
    assert all(states.shape[1] == 1 for step in written[1:] for states in step)


@pytest.mark.works("Generation", "`output_attentions`")
def test_attention_maps_have_the_columns_that_a_block_holds() -> None:
    """Not the prompt's: `pruning.state.view_at(block).index` says which ones they are."""
    lm, given = model("llava", "eager"), inputs("llava", RAGGED)
    with torch.no_grad(), tokenprune.prune(lm, MIXTURE) as pruning:
        pruned = lm(**given, output_attentions=True).attentions
    with torch.no_grad(), hidden_by_mask(lm, given["attention_mask"], pruning.state.views):
        masked = lm(**given, output_attentions=True).attentions
    widths = set()
    for block, (small, whole) in enumerate(zip(pruned, masked, strict=True)):
        view = pruning.state.view_at(block)
        assert small.shape[-2:] == (view.width, view.width)
        widths.add(view.width)
        for row in range(3):
            at, valid = view.index[row][view.valid[row]], view.valid[row]
            assert close(small[row][:, valid][:, :, valid], whole[row][:, at][:, :, at])
    assert len(widths) == 3


# -- Trainer -----------------------------------------------------------------------------------------------------


def example(seed: int) -> dict[str, torch.Tensor]:
    given = inputs("llava", [(seed, (3, "image", 9))])
    labels = given["input_ids"].masked_fill(given["input_ids"] == IMAGE, -100)
    return {**given, "labels": labels}


@pytest.mark.works("Ecosystem", "Trainer")
def test_trainer(tmp_path: Path) -> None:
    """Evaluation, prediction and training inside a block see the pruned model."""
    lm, data = copy.deepcopy(model("llava")), [example(seed) for seed in (1, 2, 3)]

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=2, logging_steps=1, save_strategy="no",
        per_device_train_batch_size=3, per_device_eval_batch_size=2, remove_unused_columns=False, disable_tqdm=True,
        label_names=["labels"],
    )  # fmt: skip
    trainer = Trainer(model=lm, args=arguments, data_collator=collate, train_dataset=data, eval_dataset=data)

    @torch.no_grad()
    def loss() -> float:
        return sum(lm(**collate(rows)).loss.item() * len(rows) for rows in (data[:2], data[2:])) / 3

    ignored = ["past_key_values", "image_hidden_states"]  # transformers 5.19 cannot gather caches
    plain, hooks = loss(), sum(len(part._forward_pre_hooks) for part in lm.modules())
    with tokenprune.prune(lm, MIXTURE):
        pruned = loss()
        assert trainer.evaluate(ignore_keys=ignored)["eval_loss"] == pytest.approx(pruned, rel=1e-4)
        predicted = trainer.predict(data, ignore_keys=ignored).predictions
        assert predicted.shape[:2] == (3, data[0]["input_ids"].shape[1])
        trainer.train()
    first, second = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert first == pytest.approx(pruned, rel=1e-3)
    assert second < first
    assert abs(pruned - plain) > 0.01 > 100 * abs(first - pruned)
    assert sum(len(part._forward_pre_hooks) for part in lm.modules()) == hooks
