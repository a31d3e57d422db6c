"""`tokenprune horizon`: information against a slow loop with masks, the rule, the oracle, runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from families import EVERY, ONE, inputs, model
from masking import hidden_by_mask
from PIL import Image

from tokenprune.errors import BudgetError
from tokenprune.families.llava import LlavaAdapter
from tokenprune.lab import horizon
from tokenprune.lab.horizon import probe
from tokenprune.lab.loading import load_model
from tokenprune.model.anatomy import Anatomy
from tokenprune.registry import registry
from tokenprune.state.view import View

LAVA, N, LAYERS, TOKEN = LlavaAdapter(), 16, [0, 2, 5], 77
CUT = horizon.windows(LAVA, model("llava").config, inputs("llava", ONE), 3)


@torch.no_grad()
def masked(layer: int, tokens: tuple[int, ...]) -> float:
    """p(TOKEN) with every other visual token hidden by a mask from `layer` on, without the engine."""
    lm, given = model("llava"), inputs("llava", ONE)
    visual = LAVA.visual(lm.config, given["input_ids"])[0]
    columns = (~visual).clone()
    columns[visual.nonzero()[list(tokens), 0]] = True
    index = columns.nonzero().T
    view = View(index, torch.ones_like(index, dtype=torch.bool), (index.shape[1],), len(visual))
    with hidden_by_mask(lm, given["attention_mask"], {layer: view}):
        return float(lm(**given).logits[0, -1].float().softmax(-1)[TOKEN])


def row(**more: Any) -> dict[str, Any]:
    return horizon.row(Anatomy.of(model("llava")), inputs("llava", ONE), TOKEN, CUT, LAYERS, **more)


def test_windows_cover_the_picture() -> None:
    """4 x 4 tokens in windows of 3 x 3: whole ones and what is left at the far edges."""
    assert [len(window.tokens) for window in CUT] == [9, 3, 3, 1]
    assert sorted(token for window in CUT for token in window.tokens) == list(range(N))
    assert CUT[1].tokens == (3, 7, 11)
    assert CUT[1].box == pytest.approx((0.75, 0, 1, 0.75))
    two = horizon.windows(LAVA, model("llava").config, inputs("llava", [(3, (2, "image", 3, "image", 5))]), 9)
    assert [len(w.tokens) for w in two] == [N, N]
    assert [w.picture for w in two] == [0, 1]
    assert two[1].tokens == tuple(range(N, 2 * N))


@pytest.mark.parametrize("family", EVERY)
def test_windows_of_every_family(family: str) -> None:
    """Every token with a place is in one window; newlines have none."""
    lm, given = model(family), inputs(family, ONE)
    adapter = registry().adapter(lm.config)
    cut = horizon.windows(adapter, lm.config, given, 2, sizes=((64, 64),))
    tokens = sorted(token for window in cut for token in window.tokens)
    n = int(adapter.visual(lm.config, given["input_ids"]).sum())
    assert len(tokens) == len(set(tokens)) <= n
    assert tokens[-1] < n
    assert (len(tokens) < n) == (family in ("llava_next", "llava_next_video", "llava_onevision"))


def test_information_equals_a_slow_loop_with_masks() -> None:
    lm = model("llava")
    masked(0, ())  # transformers' own hooks come with the first pass
    before = [[list(m._forward_hooks), list(m._forward_pre_hooks)] for m in lm.modules()]
    ticks: list[int] = []
    found = row(advance=lambda: ticks.append(1))
    assert [[list(m._forward_hooks), list(m._forward_pre_hooks)] for m in lm.modules()] == before
    assert len(ticks) == len(LAYERS)
    none = [masked(layer, ()) for layer in LAYERS]
    kept = [[masked(layer, window.tokens) for window in CUT] for layer in LAYERS]
    assert found["none"] == pytest.approx(none, rel=1e-3)
    wanted = np.array(kept) - np.array(none)[:, None]
    assert np.allclose(horizon.information(found), wanted, rtol=1e-2, atol=1e-6)
    assert np.abs(wanted).max() > 1e-4  # it could have failed
    assert len({round(value, 7) for line in kept for value in line}) == len(LAYERS) * len(CUT)
    assert found["full"] == pytest.approx(masked(0, tuple(range(N))), rel=1e-3)
    assert found["tokens"] == N


def test_rows_of_a_batch_keep_their_own_windows() -> None:
    """Windows of one size share a batch; alone they tell the same."""
    given = inputs("llava", ONE)
    cut = horizon.windows(LAVA, model("llava").config, given, 2)
    found = [
        horizon.row(Anatomy.of(model("llava")), given, TOKEN, cut, [1], batch=size)["windows"] for size in (1, 3, 32)
    ]
    assert found[0][0] == pytest.approx(found[2][0], rel=1e-4)
    assert found[1][0] == pytest.approx(found[2][0], rel=1e-4)
    assert len(set(found[0][0])) == 4


@pytest.mark.parametrize(
    ("strengths", "at"),
    [
        ([1.0, 0.5, 0.04, 0.01], 4),
        ([1.0, 0.05, 0.05, 0.05], 2),
        ([1.0, 0.01, 0.3, 0.01], 6),  # a layer that comes back counts
        ([0.2, 0.4, 0.6, 0.8], None),
        ([0.0, 0.0, 0.0, 0.0], 0),
    ],
)
def test_the_rule(strengths: list[float], at: int | None) -> None:
    assert horizon.vanishes(strengths, [0, 2, 4, 6], 0.05) == at


def test_the_oracle_keeps_the_tokens_of_most_information() -> None:
    found = row()
    given = inputs("llava", ONE)
    kept = horizon.oracle_row(model("llava"), given, TOKEN, CUT, LAYERS, found, keep=4)
    for i, layer in enumerate(LAYERS):
        order = sorted(range(len(CUT)), key=lambda w: -horizon.information(found)[i][w])
        tokens = [token for which in order for token in CUT[which].tokens][:4]
        assert kept["oracle"]["p"][i] == pytest.approx(masked(layer, tuple(tokens)), rel=1e-3)
    assert kept["random"]["p"] != kept["oracle"]["p"]


def test_tokens_without_a_window_come_last() -> None:
    scores = horizon.token_scores([-0.5, 0.2, 0.1, 0.0], CUT, N + 1)
    assert scores.tolist()[3] == pytest.approx(0.2)
    assert int(scores.argmin()) == N


@pytest.mark.parametrize("keep", [0, 16, 99])
def test_an_oracle_drops_something(keep: int) -> None:
    with pytest.raises(BudgetError, match="use 1 to 15"):
        horizon.check_oracle(keep, N)


def test_the_first_token_of_an_answer_is_the_one_the_model_writes() -> None:
    pico = load_model("pico")
    tokenizer = pico.processor.tokenizer
    for answer in ("yes", "red", "3 5 8"):
        assert tokenizer.decode([pico.first_token("read the digits", answer)]).strip() == answer.split()[0]


# -- the command -----------------------------------------------------------------------------------------------------

OPTIONS = ("horizon", "pico", "--limit", "1", "--window", "6", "--layers", "7,5", "--oracle", "36")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code, out, _ = run(capsys, *OPTIONS, "--output", str(whole))
    assert code == 0
    assert "at most 0.05 of its largest" in out
    measure, count = horizon.row, list[int]()

    def killed(*args: Any) -> dict[str, Any]:
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(probe, "row", killed)
    code, _, err = run(capsys, *OPTIONS, "--output", str(cut))
    assert code == 130
    assert f"stay in {cut}/rows, the same command goes on" in err
    assert [path.name for path in cut.iterdir()] == ["rows"]
    assert all(json.loads(path.read_text()) for path in (cut / "rows").iterdir())
    assert run(capsys, *OPTIONS, "--output", str(cut))[0] == 0
    assert len(count) == 3 + 3  # two were there
    numbers = [sorted(path.relative_to(folder) for path in folder.rglob("*.json")) for folder in (cut, whole)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 1 + 5 + 5  # with the oracle's
    for name in numbers[0]:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    for name in ("horizon", "heatmaps"):
        with Image.open(whole / f"{name}.png") as picture:
            assert picture.size[0] > 500
    result = json.loads((whole / "horizon.json").read_text())
    assert result["layers"] == [5, 7]
    assert list(result["kinds"]) == ["exists", "color", "count", "digit", "read", "all"]
    assert result["kinds"]["all"]["right"] == 5  # the model knows: its information is about answers it gives
    assert result["kinds"]["all"]["full"] > 0.9
    assert np.array(result["prompts"][0]["information"]).shape == (2, 4)
    assert result["oracle"]["keep"] == 36
    assert len(result["oracle"]["kinds"]["read"]["oracle"]["p"]) == 2
    assert "at most 0.05" in result["rule"]


BAD = {
    "unknown task": (("--task", "textvqa"), 2, "expected pico"),
    "layer beyond the depth": (("--layers", "8"), 2, "from 0 to 7"),
    "oracle that keeps all": (("--oracle", "144"), 2, "use 1 to 143"),
    "unknown model": (("--device", "nonesuch"), 1, "nonesuch"),
    "output in a file": (("--output", "file/out"), 1, "cannot write"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_nothing_is_written(
    case: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    arguments, expected, message = BAD[case]
    code, _, err = run(capsys, "horizon", "pico", "--limit", "1", "--output", "out", *arguments)
    assert code == expected
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
