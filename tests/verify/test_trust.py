"""Model types without an adapter: checked once, remembered for these versions, then pruned like any other."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from masking import hidden_by_mask
from oracle import close
from transformers import LlamaConfig

import tokenprune
from tokenprune.errors import ScorerError, UnsupportedModelError
from tokenprune.families.standard import Standard
from tokenprune.registry import registry
from tokenprune.registry.entries import types
from tokenprune.verify import adapter_for, trust, verdict
from tokenprune.verify.trial import Trial
from tokenprune.verify.trust import verify, verify_type
from tokenprune.verify.typical import typical
from tokenprune.verify.verdict import ATTENTION, Comparison, all_remembered, remembered

FINE = [Comparison("one"), Comparison(ATTENTION)]


@pytest.fixture(autouse=True)
def nobody_adopted() -> None:
    registry().adopted.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "families"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A check that holds at once, and notes what it was asked."""
    asked: list[Any] = []

    def check(config: Any, adapter: Any) -> list[Comparison]:
        asked.append((config.model_type, type(adapter)))
        return FINE

    monkeypatch.setattr(trust, "check", check)
    yield asked
    registry().adopted.clear()


def again(config: Any) -> Any:
    """As a later process would ask."""
    registry().adopted.clear()
    return adapter_for(config)


# -- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["divprune", "entropyprune", "fastv"])
def test_a_verified_type_prunes_as_masked(recipe: str, folder: Path) -> None:
    trial = Trial.of(typical("ovis2"))
    layer = 0 if recipe == "divprune" else 2
    settings = [f"prune.0.schedule={{name: fixed, layer: {layer}, keep: 4}}"]
    with torch.no_grad(), tokenprune.prune(trial.model, recipe, *settings) as pruning:
        found = trial.logits()[:, -1]
    assert [path.name.rpartition("-transformers")[0][:-9] for path in folder.iterdir()] == ["ovis2-qwen2"]
    assert pruning.state is not None
    assert pruning.state.counts == (14, 0, 12)
    assert all(view.width < trial.prompt.ids.shape[1] for view in pruning.state.views.values())
    assert not close(found, trial.logits()[:, -1])
    compact = recipe == "divprune"
    with hidden_by_mask(trial.model, trial.prompt.mask, pruning.state.views, compact, adapter=Standard()):
        assert close(found, trial.logits()[:, -1])


def test_scorers_of_attention_that_would_be_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the attention rows failed, the rest of the recipes work."""
    monkeypatch.setattr(trust, "check", lambda *_: [Comparison("one"), Comparison(ATTENTION, "rows differ")])
    trial = Trial.of(typical("ovis2"))
    with tokenprune.prune(trial.model, "divprune", "prune.0.schedule.keep=4"):
        trial.logits()
    with (
        tokenprune.prune(trial.model, "fastv", "prune.0.schedule.keep=4"),
        pytest.raises(ScorerError, match="has no queries, keys or values to read: use a scorer of hidden states"),
    ):
        trial.logits()


# -- what is remembered ----------------------------------------------------------------------------------------------


def test_a_second_model_is_not_checked(checks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = typical("ovis2")
    assert isinstance(adapter_for(config), Standard)
    monkeypatch.setattr(trust, "check", lambda *_: pytest.fail("checked again"))
    assert isinstance(adapter_for(config), Standard), "in this process"
    assert isinstance(again(config), Standard), "in the next one"
    assert len(checks) == 1


def test_what_is_remembered_is_what_was_found(folder: Path) -> None:
    found = verify(typical("blip-2"))
    assert found.refusal is not None
    assert remembered(typical("blip-2")) == found
    assert all_remembered() == {"blip-2": [found]}
    assert found.transformers == transformers.__version__
    assert found.tokenprune == tokenprune.__version__


@pytest.mark.parametrize("name", ["transformers", "tokenprune"])
def test_other_versions_are_checked_anew(name: str, checks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = typical("ovis2")
    again(config)
    at = (verdict.transformers, "__version__") if name == "transformers" else (verdict, "__version__")
    monkeypatch.setattr(*at, "99.0")
    assert all_remembered() == {}
    again(config)
    assert len(checks) == 2
    monkeypatch.undo()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"model_type": "ovis2"}', '{"comparisons": [{"a": 1}]}'])
def test_a_file_that_cannot_be_read_is_made_anew(content: str, checks: list[Any], folder: Path) -> None:
    config = typical("ovis2")
    again(config)
    (path,) = folder.iterdir()
    whole = path.read_text()
    path.write_text(content)
    assert all_remembered() == {}
    again(config)
    assert path.read_text() == whole
    assert len(checks) == 2


def test_a_refusal_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    config, failure = typical("ovis2"), "logits differ by up to 1.0e+00 of theirs"
    monkeypatch.setattr(trust, "check", lambda *_: [Comparison("pruning at layer 2 == masking", failure)])
    said = (
        rf"pruning of model type 'ovis2' is not verified on transformers .*: pruning at layer 2 == masking: {failure}. "
        "`tokenprune verify ovis2` shows all comparisons; docs/add-a-family.md says .*; "
        "trust_family=True .--trust-family. prunes"
    )
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=said.replace("+", r"\+")):
            again(config)
        monkeypatch.setattr(trust, "check", lambda *_: pytest.fail("checked again"))


def test_what_could_not_be_run_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package may be there by now."""

    def missing(*_: Any) -> Any:
        raise UnsupportedModelError("a small ovis2 does not run: ImportError: timm")

    monkeypatch.setattr(trust, "check", missing)
    with pytest.raises(UnsupportedModelError, match="ImportError: timm"):
        again(typical("ovis2"))
    monkeypatch.setattr(trust, "check", lambda *_: FINE)
    assert isinstance(again(typical("ovis2")), Standard)


def test_where_nothing_can_be_written_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, checks: list[Any]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="tokenprune"):
        assert isinstance(again(typical("ovis2")), Standard)
        assert isinstance(again(typical("ovis2")), Standard)
    assert "what was verified of ovis2 is not remembered: cannot write" in caplog.text
    assert len(checks) == 2


def test_a_first_check_is_said(caplog: pytest.LogCaptureFixture, checks: list[Any]) -> None:
    for _ in range(2):
        with caplog.at_level(logging.WARNING, logger="tokenprune"):
            again(typical("ovis2"))
    assert caplog.text.count("has no adapter of its own: checking pruning on a tiny one, once") == 1


def test_decoders_of_one_type_are_entries_of_their_own(checks: list[Any], folder: Path) -> None:
    """Another decoder, or the same with blocks of other kinds."""
    one, other, windows = (typical("ovis2") for _ in range(3))
    other.text_config = LlamaConfig()
    windows.text_config.layer_types = ["full_attention", "sliding_attention"] * (
        windows.text_config.num_hidden_layers // 2
    )
    for config in (one, other, windows):
        again(config)
        adapter_for(config)
    assert len(checks) == len(list(folder.iterdir())) == 3
    assert [types(config)[1] for config in (one, other, windows)] == [
        "qwen2", "llama", "qwen2 (full_attention, sliding_attention)",
    ]  # fmt: skip
    assert len(all_remembered()["ovis2"]) == 3


def test_what_is_switched_on_is_an_entry_of_its_own(checks: list[Any]) -> None:
    """But neither sizes nor token ids are."""
    configs = [typical("gemma4_unified") for _ in range(3)]
    configs[1].text_config.hidden_size, configs[1].text_config.pad_token_id = 768, 1
    configs[2].text_config.num_kv_shared_layers = 3 - bool(configs[2].text_config.num_kv_shared_layers) * 3
    for config, times in zip(configs, (1, 1, 2), strict=True):
        again(config)
        assert len(checks) == times


def test_what_another_adapter_came_to_counts_for_nothing(checks: list[Any]) -> None:
    """A plugin's adapter is verified, and uninstalled."""
    plugin = type("Plugin", (Standard,), {"model_types": ("ovis2",)})
    found = verify(typical("ovis2"), plugin())
    assert found.refusal is None
    assert remembered(typical("ovis2")) is None
    again(typical("ovis2"))
    assert [adapter for _, adapter in checks] == [plugin, Standard]


def test_a_type_that_is_in_use_is_checked_as_before() -> None:
    """The adapter in use reads no attention, since that failed; what is compared is what the standard one reads."""
    config = typical("fuyu")
    before = verify(config)
    assert before.refusal is None
    assert before.attention is not None
    adopted = adapter_for(config)
    assert isinstance(adopted, Standard)
    assert not adopted.reads_attention
    asked: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "check", lambda config, adapter: asked.append(adapter) or FINE)
        verify(config)
    assert asked[0].reads_attention


# -- what is not checked ---------------------------------------------------------------------------------------------


def test_trust_leaves_the_check_out(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(trust, "check", lambda *_: pytest.fail("checked"))
    trial = Trial.of(typical("ovis2"))
    with tokenprune.prune(trial.model, "divprune", "prune.0.schedule.keep=4", trust_family=True) as pruning:
        trial.logits()
    assert pruning.state is not None
    assert pruning.state.stages
    assert not folder.exists()


def test_trust_is_of_one_call(checks: list[Any]) -> None:
    """Whoever does not say so afterwards has the type checked."""
    config = typical("ovis2")
    assert not adapter_for(config, True).checked  # type: ignore[attr-defined]
    assert not checks
    assert adapter_for(config).checked  # type: ignore[attr-defined]
    assert len(checks) == 1
    assert adapter_for(config, True).checked  # type: ignore[attr-defined]


def test_families_with_a_file_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "check", lambda *_: pytest.fail("checked"))
    assert type(adapter_for(typical("llava"))).model_types == ("llava",)


@pytest.mark.parametrize("trusted", [False, True])
def test_models_without_pictures_are_told_what_is_supported(trusted: bool) -> None:
    with pytest.raises(UnsupportedModelError, match="no adapter for model type 'llama': supported are "):
        adapter_for(LlamaConfig(), trusted)


# -- by name ---------------------------------------------------------------------------------------------------------


def test_a_type_is_verified_with_its_own_adapter(checks: list[Any]) -> None:
    assert verify_type("llava").adapter == "tokenprune.families.llava.LlavaAdapter"
    assert verify_type("ovis2").adapter == "tokenprune.families.standard.Standard"


def test_a_type_without_a_default_config_is_remembered_too(folder: Path) -> None:
    found = verify_type("nobody")
    assert "transformers has no default config of model type 'nobody'" in str(found.refusal)
    (path,) = folder.iterdir()
    assert json.loads(path.read_text())["decoder"] == "unknown"
    assert all_remembered() == {"nobody": [found]}
