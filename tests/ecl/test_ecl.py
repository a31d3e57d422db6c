"""The Entropy Collapse Layer: measured as in the paper, looked up, remembered for the same weights and no others."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import DEPTH, FAMILIES, ONE, RAGGED, Prompt, answer, inputs, logits, model
from spectra import explicit

import tokenprune
from tokenprune import Adapter, ecl
from tokenprune.errors import LayerError
from tokenprune.families.llava import LlavaAdapter
from tokenprune.registry import registry
from tokenprune.shipped import configs

LAVA = LlavaAdapter()
TEXT_FIRST: Sequence[Prompt] = [RAGGED[1], RAGGED[0], RAGGED[2]]  # the first prompt has no picture
BY_ECL = {"prune": [{"scorer": "entropy", "schedule": {"name": "ecl", "keep": 4}}]}


def fresh(attention: str = "sdpa") -> Any:
    """The tiny llava loaded once more: the same weights in other tensors."""
    return copy.deepcopy(model("llava", attention))


@torch.no_grad()
def generate(lm: Any, prompts: Sequence[Prompt] = ONE) -> torch.Tensor:
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 3}
    return torch.stack(lm.generate(**inputs("llava", prompts), **options).logits, dim=1)


# -- the layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropies", "layer"),
    [
        ([5.0, 5.1, 1.0, 1.1], 2),
        ([5.0, 1.0, 0.9, 0.8], 1),
        ([5.0, 4.9, 4.8, 0.0], 3),
        ([3.0, 2.0, 1.0, 0.0], 1),  # ties: the earlier
        ([1.0, 2.0, 2.5, 4.0], 2),  # it never drops: where it rises least
        ([2.0, 1.0], 1),
    ],
)
def test_the_layer_is_the_one_before_the_largest_drop(entropies: list[float], layer: int) -> None:
    """ "After the second layer" is layer 2: two blocks see every token."""
    assert ecl.collapse(entropies).layer == layer


PICO = [1.36156, 1.65524, 1.60576, 1.67992, 1.71579, 1.77758, 1.81235, 1.83401]  # query states, 64 scenes


@pytest.mark.parametrize(
    ("entropies", "found", "drop"),
    [
        ([5.0, 5.1, 1.0, 1.1], True, 4.1),
        ([5.0, 1.0, 2.0, 3.0], True, 4.0),  # it recovers in part
        ([1.0, 2.0, 2.5, 4.0], False, -0.5),  # it never falls
        ([2.0, 2.0, 2.0], False, 0.0),
        (PICO, False, 0.04948),  # it falls once, and rises over the depth
        ([1.0, 5.0, 4.0, 6.0], False, 1.0),
    ],
)
def test_a_collapse_is_found_where_entropy_stays_down(entropies: list[float], found: bool, drop: float) -> None:
    """The layer is told either way, and whether it is one; the words say which."""
    collapse = ecl.collapse(entropies)
    assert (collapse.found, collapse.depth) == (found, len(entropies))
    assert collapse.drop == pytest.approx(drop)
    words = collapse.tell((drop - 1, drop + 1))
    assert ("no collapse found" in words) is not found
    assert f"layer {collapse.layer} of {len(entropies)}" in words
    assert f"{drop:.4f} [{drop - 1:.4f}, {drop + 1:.4f}] nats" in words


@pytest.mark.parametrize("states", ["queries", "keys"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer_entropies_equal_the_explicit_computation(family: str, states: str) -> None:
    """Of the first prompt that has pictures, its padding and its text left out; nothing stays in the model."""
    lm, given = model(family), inputs(family, TEXT_FIRST)
    adapter = registry().adapter(lm.config)
    decoder = adapter.decoder(adapter.base(lm))
    visual = adapter.visual(lm.config, given["input_ids"])
    assert not visual[0].any()
    assert visual[1].any()
    captured: list[torch.Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        for block in decoder.layers:
            linear = block.self_attn.q_proj if states == "queries" else block.self_attn.k_proj
            hooks.callback(linear.register_forward_hook(lambda module, args, out: captured.append(out)).remove)
        lm(**given)
    before = [list(module._forward_hooks) for module in lm.modules()]
    found = ecl.layer_entropies(adapter, decoder, lambda: visual, lambda: lm(**given), states)
    assert found == pytest.approx([explicit(out[1][visual[1]]) for out in captured], abs=1e-4)
    assert len(set(found)) == DEPTH
    assert [list(module._forward_hooks) for module in lm.modules()] == before


# -- remembering -----------------------------------------------------------------------------------------------------

ENTROPIES = [5.0, 4.9, 4.8, 1.0, 0.9, 0.8]  # collapses after layer 3


def test_what_is_remembered_is_known() -> None:
    assert ecl.known(model("llava"), LAVA) is None
    path = ecl.remember(model("llava"), LAVA, ENTROPIES)
    assert ecl.known(model("llava"), LAVA) == 3
    assert path is not None
    assert json.loads(path.read_text()) == {"layer": 3, "entropies": ENTROPIES}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("twin", ["eager", "bfloat16", "elsewhere"])
def test_the_same_weights_are_known_in_another_guise(twin: str) -> None:
    ecl.remember(model("llava"), LAVA, ENTROPIES)
    lm = fresh("eager" if twin == "eager" else "sdpa")
    lm = lm.bfloat16() if twin == "bfloat16" else lm
    if twin == "elsewhere":
        lm.config._name_or_path = "/some/other/folder"
    assert ecl.known(lm, LAVA) == 3


@pytest.mark.parametrize("block", [0, DEPTH - 1])
def test_other_weights_are_not_known(block: int) -> None:
    ecl.remember(model("llava"), LAVA, ENTROPIES)
    lm = fresh()
    with torch.no_grad():
        lm.model.language_model.layers[block].self_attn.q_proj.weight.mul_(1.1)
    assert ecl.known(lm, LAVA) is None


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_other_families_are_not_known(family: str) -> None:
    ecl.remember(model("llava"), LAVA, ENTROPIES)
    assert ecl.known(model(family), registry().adapter(model(family).config)) is None


def test_weights_that_cannot_be_read_are_not_taken_for_each_other() -> None:
    """Offloaded weights are on the meta device: no two models are the same by their sizes alone."""
    ecl.remember(fresh().to("meta"), LAVA, ENTROPIES)
    other = fresh()
    with torch.no_grad():
        other.model.language_model.layers[0].self_attn.q_proj.weight.mul_(1.1)
    assert ecl.known(other.to("meta"), LAVA) is None


NO_MEMORY = (b"", b"{", b"\xff\xfe", b"[]", b"[3]", b"null", b"3", b"{}")
NO_LAYER = ('"3"', "2.5", "null", "0", "-1", "6", "99", "true")


@pytest.mark.parametrize("content", [*NO_MEMORY, *(b'{"layer": %s}' % layer.encode() for layer in NO_LAYER)])
def test_a_corrupt_memory_is_no_memory(content: bytes) -> None:
    path = ecl.remember(model("llava"), LAVA, ENTROPIES)
    assert path is not None
    path.write_bytes(content)
    assert ecl.known(model("llava"), LAVA) is None
    assert ecl.remember(model("llava"), LAVA, ENTROPIES) == path
    assert ecl.known(model("llava"), LAVA) == 3


def test_a_folder_that_cannot_be_written_is_survived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path / "file"))
    assert ecl.remember(model("llava"), LAVA, ENTROPIES) is None
    assert ecl.known(model("llava"), LAVA) is None


@pytest.mark.parametrize(
    ("settings", "folder"),
    [
        ({"TOKENPRUNE_CACHE": "own"}, "own"),
        ({"TOKENPRUNE_CACHE": "", "XDG_CACHE_HOME": "xdg"}, "xdg/tokenprune"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/tokenprune"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/tokenprune"),
        ({}, "home/.cache/tokenprune"),
    ],
)
def test_the_memory_lies_in_the_users_cache(
    settings: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TOKENPRUNE_CACHE, else XDG_CACHE_HOME/tokenprune, else ~/.cache/tokenprune; an empty variable is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("TOKENPRUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in settings.items():
        monkeypatch.setenv(name, value and str(tmp_path / value))
    path = ecl.remember(model("llava"), LAVA, ENTROPIES)
    assert path is not None
    assert path.resolve().parent == tmp_path / folder / "ecl"


# -- shipped ---------------------------------------------------------------------------------------------------------


class Deep(Adapter):
    """Sees a tiny decoder as one of `depth` blocks."""

    model_types = ("llava",)

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def blocks(self, decoder: Any) -> list[Any]:
        return [decoder.layers[i % DEPTH] for i in range(self.depth)]


def named(name: str) -> Any:
    lm = copy.copy(model("llava"))
    lm.config = copy.deepcopy(lm.config)
    lm.config._name_or_path = name
    return lm


@pytest.mark.parametrize(
    ("name", "depth", "layer"),
    [("llava-1.5-7b-hf", 32, 2), ("llava-v1.6-vicuna-7b-hf", 32, 2), ("Qwen2.5-VL-7B-Instruct", 28, 1)],
)
@pytest.mark.parametrize("folder", ["", "some-org/", "/models/"])
def test_published_layers_are_known_by_the_models_name(folder: str, name: str, depth: int, layer: int) -> None:
    lm = named(folder + name)
    assert ecl.known(lm, Deep(depth)) == layer
    ecl.remember(lm, Deep(depth), [2.0] * 4 + [1.0] * (depth - 4))
    assert ecl.known(lm, Deep(depth)) == 4  # what was measured on these weights goes before what is shipped


@pytest.mark.parametrize("path", sorted((configs() / "ecl").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_layer_says_its_source_and_lies_in_its_model(path: Path) -> None:
    entry = yaml.safe_load(path.read_text())
    assert 0 < entry["layer"] < entry["depth"]
    assert entry["source"]
    assert ecl.known(named(path.stem), Deep(entry["depth"])) == entry["layer"]


@pytest.mark.parametrize("name", ["llava-1.5-7b-hf", "x/llava-1.5-7b-hf", "", "..", "nobody/knows-me", "/"])
def test_a_namesake_of_another_depth_is_not_known(name: str) -> None:
    assert ecl.known(named(name), LAVA) is None
    ecl.remember(named(name), LAVA, ENTROPIES)
    assert ecl.known(named(name), LAVA) == 3


# -- in a pruning block ----------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Every measurement that really happens."""
    calls: list[list[float]] = []
    measure = ecl.layer_entropies

    def counted(*args: Any, **kwargs: Any) -> list[float]:
        calls.append(measure(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr("tokenprune.ecl.fact.layer_entropies", counted)
    return calls


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "Entropy Collapse Layer" in record.getMessage()]


@pytest.mark.parametrize("prompts", [ONE, TEXT_FIRST], ids=["one", "ragged"])
def test_the_first_generate_measures_once_says_it_once_and_remembers(
    prompts: Sequence[Prompt], measured: list[list[float]], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "tokenprune")
    lm = fresh()
    with tokenprune.prune(lm, BY_ECL) as pruning:
        first = generate(lm, prompts)
        state = pruning.state
        again = generate(lm, prompts)
    assert len(measured) == 1
    layer = ecl.collapse(measured[0]).layer
    assert state is not None
    assert list(state.views) == [layer]
    assert len(said(caplog)) == 1
    assert f"{layer} of {DEPTH}" in said(caplog)[0]
    assert str(tmp_path / "cache") in said(caplog)[0]
    assert ecl.known(lm, LAVA) == layer
    assert torch.equal(first, again)


def test_a_model_without_a_collapse_is_told_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pruned at the steepest drop all the same."""
    monkeypatch.setattr("tokenprune.ecl.fact.layer_entropies", lambda *args, **kwargs: [1.0, 1.2, 1.1, 1.3, 1.4, 1.5])
    lm = fresh()
    with tokenprune.prune(lm, BY_ECL) as pruning:
        generate(lm)
        state = pruning.state
    assert state is not None
    assert list(state.views) == [2]
    assert "no collapse found, entropy drops most after layer 2 of 6, by 0.1000 nats" in said(caplog)[0]


def test_a_second_load_of_the_same_weights_does_not_measure(
    measured: list[list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    answers = []
    for attention in ("sdpa", "sdpa", "eager"):
        lm = fresh(attention)
        for _ in range(2):
            with tokenprune.prune(lm, BY_ECL):
                answers.append(generate(lm))
    assert len(measured) == len(said(caplog)) == 1
    assert all(torch.allclose(each, answers[0], atol=1e-3) for each in answers)


def test_other_weights_are_measured_again(measured: list[list[float]], caplog: pytest.LogCaptureFixture) -> None:
    one, other = fresh(), fresh()
    with torch.no_grad():
        for block in other.model.language_model.layers:
            block.self_attn.q_proj.weight.mul_(-0.5)
    for lm in (one, other):
        with tokenprune.prune(lm, BY_ECL):
            generate(lm)
    assert len(measured) == len(said(caplog)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_measuring_prefill_leaves_no_trace_in_the_answer(family: str, measured: list[list[float]]) -> None:
    """The first answer by `ecl` is the answer at that fixed layer, bit by bit; and it is not the unpruned one."""
    with tokenprune.prune(model(family), BY_ECL):
        by_ecl = logits(answer(family, "sdpa", TEXT_FIRST, steps=2))
    fixed = {"name": "fixed", "layer": ecl.collapse(measured[0]).layer, "keep": 4}
    with tokenprune.prune(model(family), {"prune": [{"scorer": "entropy", "schedule": fixed}]}):
        assert torch.equal(by_ecl, logits(answer(family, "sdpa", TEXT_FIRST, steps=2)))
    unpruned = logits(answer(family, "sdpa", TEXT_FIRST, steps=2))
    assert not torch.allclose(by_ecl[1:], unpruned[1:], atol=1e-2)
    assert len(measured) == 1


def test_a_memory_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, measured: list[list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path / "file"))
    lm = fresh()
    with tokenprune.prune(lm, BY_ECL):
        generate(lm)
        generate(lm)
    assert len(measured) == 1
    assert len(said(caplog)) == 1
    assert "not remembered" in said(caplog)[0]


@pytest.mark.parametrize(
    "recipe",
    [{"prune": [{"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 4}}]}, BY_ECL],
    ids=["fixed", "ecl"],
)
def test_nothing_is_measured_without_need(recipe: Any, measured: list[list[float]]) -> None:
    """A schedule that gives its layer needs no ECL; a prompt without pictures cannot tell it."""
    prompts = ONE if recipe is not BY_ECL else [RAGGED[1]]
    with tokenprune.prune(model("llava"), recipe) as pruning:
        answer("llava", "sdpa", prompts, steps=1)
    assert measured == []
    assert (pruning.report().stages == []) == (recipe is BY_ECL)


def test_a_known_layer_is_checked_when_the_block_is_entered() -> None:
    """A plan that cannot be is refused before the first prompt."""
    recipe = {
        "prune": [BY_ECL["prune"][0], {"scorer": "random", "schedule": {"name": "fixed", "layer": 99, "keep": 1}}]
    }
    with pytest.raises(LayerError, match="6 blocks"), tokenprune.prune(model("llava"), recipe):
        pytest.fail("entered")
    assert not any(module._forward_pre_hooks for module in model("llava").modules())
