"""Random recipes and random plans: never a traceback, and always pruning == masking."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from families import DEPTH, FAMILIES, answer, has_video, inputs, logits, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from masking import hidden_by_mask
from oracle import close

import tokenprune
from tokenprune.cli import main
from tokenprune.plan.stages import plan_stages
from tokenprune.recipe import load

QUICK = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

WORDS = """name prune scorer schedule entropy random fixed ecl pyramid layer layers keep average ratio merge nearest
positions compact presets ${oc.env:HOME} 1/3 16/32"""
words = st.sampled_from(WORDS.split())
scalars = words | st.integers(-3, 40) | st.floats(width=16) | st.booleans() | st.none() | st.text(max_size=4)
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4), max_leaves=12
)
budgets = st.sampled_from([0, 1, 5, 12, 0.0, 0.3, 0.75, "1/3"])
layers = st.integers(0, DEPTH - 1)
scorers = st.sampled_from(
    [
        {"name": "diversity"},
        {"name": "random", "seed": 3},
        {"name": "attention", "block": "next"},
        {"name": "attention", "queries": "text", "block": "next"},
        {"name": "attention", "queries": [-1, -2], "block": "next"},
    ]
)
later = st.sampled_from(
    [{"name": "entropy"}, {"name": "entropy", "states": "key", "alpha": 2.0}, {"name": "attention"}]
)


@st.composite
def recipes(draw: Any) -> dict[str, Any]:
    """One to three passes that go down the decoder."""
    places = sorted(draw(st.sets(layers, min_size=1, max_size=3)))
    passes = []
    for layer in places:
        scorer = draw(scorers | later if layer else scorers)
        passes.append({"scorer": scorer, "schedule": {"name": "fixed", "layer": layer, "keep": draw(budgets)}})
    return {"prune": passes}


@st.composite
def batches(draw: Any, family: str) -> tuple[Any, ...]:
    """One to three prompts of text, pictures and videos."""
    kinds = ["image", "image", "video"] if has_video(family) else ["image"]
    prompts = []
    for seed in range(draw(st.integers(1, 3))):
        media = draw(st.lists(st.sampled_from(kinds), max_size=2))
        segments: list[Any] = [draw(st.integers(1, 3))]
        for kind in media:
            segments += [kind, draw(st.integers(1, 4))]
        prompts.append((seed + 1, tuple(segments)))
    return tuple(prompts)


@pytest.mark.works("Inputs", "any plan on any batch (hypothesis)")
@pytest.mark.parametrize("family", FAMILIES)
@settings(QUICK, max_examples=25)
@given(data=st.data())
def test_any_plan_on_any_batch_equals_masking(family: str, data: Any) -> None:
    recipe, prompts = data.draw(recipes()), data.draw(batches(family))
    lm = model(family)
    with tokenprune.prune(lm, recipe) as pruning:
        pruned = logits(answer(family, "sdpa", prompts, steps=2))
    state = pruning.state
    assert state is not None
    assert sorted(state.views) == sorted(state.stages)
    with hidden_by_mask(lm, inputs(family, prompts)["attention_mask"], state.views):
        masked = logits(answer(family, "sdpa", prompts, steps=2))
    assert close(pruned, masked)


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of the command line; any other exception is the failure this test looks for."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as done:
        main(arguments)
    return int(done.value.code or 0), err.getvalue()


@QUICK
@given(document=documents)
def test_random_documents_never_give_a_traceback(document: Any, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(document))
    code, err = run(["check", str(path)])
    assert code in (0, 1)
    assert bool(err) == (code == 1)


@settings(QUICK, max_examples=80)
@given(content=st.binary(max_size=60) | st.text(alphabet="{}[]:,-&*!|>'\" \nab1${}", max_size=60).map(str.encode))
def test_random_bytes_never_give_a_traceback(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    assert run(["check", str(path)])[0] == 1


@settings(QUICK, max_examples=80)
@given(key=st.lists(words | st.integers(0, 2).map(str), min_size=1, max_size=4), value=scalars | documents.map(str))
def test_random_overrides_never_give_a_traceback(key: list[str], value: Any) -> None:
    code, err = run(["explain", "entropy-at-5", f"{'.'.join(key)}={value}"])
    assert code in (0, 2)
    assert bool(err) == (code == 2)


@settings(QUICK, max_examples=200)
@given(recipe=recipes(), counts=st.lists(st.integers(0, 50), min_size=1, max_size=4))
def test_stages_go_down(recipe: dict[str, Any], counts: list[int]) -> None:
    """Layers ascend, counts never grow, each stage drops something, and it starts where the one before ended."""
    left = tuple(counts)
    stages = plan_stages(load(recipe), DEPTH, counts, {})
    assert list(stages) == sorted(stages)
    for stage in stages.values():
        assert stage.before == left
        assert all(kept <= before for kept, before in zip(stage.kept, stage.before, strict=True))
        assert stage.kept != stage.before
        left = stage.kept
