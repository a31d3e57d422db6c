"""`tokenprune verify` and `tokenprune ls families`: what they say, in 80 columns, and their exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import run

from tokenprune.families.every import image_text_types
from tokenprune.lab import families
from tokenprune.lab.loading import PICO
from tokenprune.registry import Entry, registry
from tokenprune.verify import trust
from tokenprune.verify.trial import Trial
from tokenprune.verify.typical import typical
from tokenprune.verify.verdict import ATTENTION, Comparison

FINE = [Comparison("pruning at layer 2 == masking"), Comparison(ATTENTION)]
WRONG = [Comparison("pruning at layer 2 == masking", "logits differ by up to 1.0e+00 of theirs"), Comparison(ATTENTION)]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def words(text: str) -> str:
    return " ".join(text.split())


def outcome(monkeypatch: pytest.MonkeyPatch, found: list[Comparison]) -> None:
    monkeypatch.setattr(trust, "check", lambda config, adapter: found)


def test_verify_says_what_was_compared_and_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", "ovis2")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    said = words(out)
    assert "keeping all == no pruning holds pruning before block 0 == masking holds" in said
    assert said.endswith("attention rows == the model's own holds ovis2 is pruned by the standard adapter")


def test_verify_takes_a_types_own_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", "llava")
    assert code == 0
    assert words(out).endswith("llava is pruned by its own adapter, llava")


def test_verify_in_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", "ovis2", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["verified"], found["refusal"], found["attention"]) == (True, None, None)
    assert (found["model_type"], found["decoder"]) == ("ovis2", "qwen2")
    assert {"name": "keeping all == no pruning", "failure": None} in found["comparisons"]


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (WRONG, 1, "ovis2 is not pruned: pruning at layer 2 == masking: logits differ by up to 1.0e+00 of theirs"),
        (
            [FINE[0], Comparison(ATTENTION, "rows differ")],
            0,
            "ovis2 is pruned by the standard adapter and scorers that read no attention: rows differ",
        ),
    ],
)
def test_verify_says_what_failed(
    found: Any, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome(monkeypatch, found)
    done, out, _ = run(capsys, "verify", "ovis2")
    assert done == code
    assert words(out).endswith(said)
    assert json.loads(run(capsys, "verify", "ovis2", "--json")[1])["verified"] == (code == 0)


def test_verify_says_why_nothing_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", "mllama")
    assert code == 1
    assert "mllama is not pruned:" in words(out)
    assert "which looks at them by cross-attention" in words(out)
    code, out, _ = run(capsys, "verify", "llama")  # a type that takes no pictures
    assert code == 1
    assert "its config names no token that stands for those of a picture" in words(out)


def test_verify_reads_configs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(typical("ovis2").to_dict()))
    for place in (str(path), str(tmp_path)):
        code, out, _ = run(capsys, "verify", place)
        assert (code, words(out).endswith("ovis2 is pruned by the standard adapter")) == (0, True)
    code, out, _ = run(capsys, "verify", "pico")
    assert (code, words(out).endswith("llava is pruned by its own adapter, llava")) == (0, True)
    assert run(capsys, "verify", str(PICO))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["llavaa"], 2, "error: there is no model type 'llavaa': did you mean 'llava'? `tokenprune ls families` lists"),
        (["./nowhere/at/all"], 1, "error: ./nowhere/at/all has no config of a model that transformers knows: "),
        ([], 2, "give a model type or a model, or --all"),
        (["llava", "--all"], 2, "give a model type or a model, or --all"),
    ],
)
def test_verify_of_what_is_not_there(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done, out, err = run(capsys, "verify", *arguments)
    assert (done, out) == (code, "")
    assert said in words(err.replace("│", " "))


def test_verify_of_a_file_that_is_no_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", '{"model_type": "nobody"}')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        code, _, err = run(capsys, "verify", str(path))
        assert code == 1
        assert f"{number}.json has no config of a model that transformers knows: " in words(err)


# -- all of them -----------------------------------------------------------------------------------------------------


def test_ls_families_builds_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trial, "of", lambda config: pytest.fail("a model was built"))
    code, out, _ = run(capsys, "ls", "families")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    said = words(out)
    assert "ovis2 standard not checked here yet" in said
    assert "llava_next llava-next a file of its own" in said
    rows = json.loads(run(capsys, "ls", "families", "--json")[1])
    assert [row["model_type"] for row in rows] == sorted(row["model_type"] for row in rows)
    assert {row["model_type"] for row in rows} >= set(image_text_types())
    assert next(row for row in rows if row["model_type"] == "qwen3_vl")["adapter"] == "qwen3-vl"


def test_ls_families_says_what_checks_came_to(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the adapter that a type has now."""
    run(capsys, "verify", "mllama")
    checked = {"ovis2": FINE, "aria": WRONG, "llava": FINE, "emu3": [FINE[0], Comparison(ATTENTION, "no")]}
    for model_type, found in checked.items():
        outcome(monkeypatch, found)
        run(capsys, "verify", model_type)
    said = words(run(capsys, "ls", "families")[1])
    assert "aria standard not verified: pruning at layer 2 == masking: logits differ by up to 1.0e+00 of " in said
    assert "emu3 standard verified here, for scorers that read no attention " in said
    assert "llava llava verified here llava_next llava-next a file of its own" in said
    assert "ovis2 standard verified here " in said
    assert "the standard one is verified for 2 more here" in said
    plugin = type("Plugin", (registry().entries["adapter"]["llava"].part,), {"model_types": ("ovis2", "mine")})
    monkeypatch.setitem(registry().entries["adapter"], "plugin", Entry("adapter", "plugin", plugin, "plugin"))
    said = words(run(capsys, "ls", "families")[1])
    assert "ovis2 plugin a file of its own paddleocr_vl" in said, (
        "what the standard adapter came to is not what the plugin's does"
    )
    assert " mine plugin " in said, "a type that transformers does not know of"


def test_several_decoders_of_one_type() -> None:
    trust.verify_type("nobody")
    (verdict,) = families.all_remembered()["nobody"]
    known = families.Known("nobody", None, (verdict, verdict, replace(verdict, decoder="other")))
    assert known.told.startswith("with unknown: not verified: ValueError: Unrecognized model identifier: nobody. ")
    assert known.told.count("with unknown: ") == known.told.count("with other: ") == 1


def test_why_leaves_out_what_all_refusals_begin_with() -> None:
    refusals = {
        "blip": "its config names no token that stands for those of a picture",
        "mllama": "pictures are not columns of its decoder, which looks at them by cross-attention",
        "blip-2": "modules and blocks are such as pruning follows: "
        "AttributeError: 'OPTModel' object has no attribute 'layers'",
    }
    for model_type, why in refusals.items():
        assert families.why(trust.verify_type(model_type)) == why


def test_verify_all_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def check(config: Any, adapter: Any) -> list[Comparison]:
        asked.append(config.model_type)
        if asked.count("emu3") == 1:
            raise KeyboardInterrupt
        return FINE

    monkeypatch.setattr(trust, "check", check)
    monkeypatch.setattr(families, "owner", lambda model_type: None)
    monkeypatch.setattr(families, "model_types", lambda: ["aria", "emu3", "ovis2"])
    code, out, err = run(capsys, "verify", "--all")
    assert (code, out) == (130, "")
    assert "what was checked is remembered, the same command goes on from there" in words(err)
    code, out, _ = run(capsys, "verify", "--all")
    assert code == 0
    assert asked == ["aria", "emu3", "emu3", "ovis2"]
    assert "the standard one is verified for 3 more here" in words(out)
