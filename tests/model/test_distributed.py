"""Two processes keep the same tokens and give the same answers as one: tensor parallel, DDP and FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import spread
import torch
from families import FAMILIES, RAGGED, inputs, model
from oracle import close
from spread import CASES, MEASURED, OF_HEADS, OTHER, TALKS, UNEQUAL, WRAPPED, WRAPS

import tokenprune
from tokenprune.errors import UnsupportedModelError

Ranks = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What every case gave on each of two ranks; one launch runs them all."""
    folder = tmp_path_factory.mktemp("ranks")
    for family in FAMILIES:
        model(family).save_pretrained(folder / family)
    spread.one_kv_head().save_pretrained(folder / "one_kv_head")
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", str(Path(spread.__file__)), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return first, second


def same(found: Any, expected: dict[str, Any]) -> bool:
    """The same tokens kept and said, the same report, and logits within round-off."""
    assert isinstance(found, dict), found
    exact = [key for key in expected if key not in ("logits", "tokens")]
    return (
        all(found[key] == expected[key] for key in exact)
        and torch.equal(found.get("tokens", torch.empty(0)), expected.get("tokens", torch.empty(0)))
        and close(found["logits"], expected["logits"])
    )


# -- tensor parallel -------------------------------------------------------------------------------------------------


@pytest.mark.works("Several processes", "tensor parallel, two ranks")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_parallel(family: str, case: str, ranks: Ranks) -> None:
    """A ragged batch, prefill and decode; the KV cache and FLOPs reported are those of all ranks together."""
    expected = spread.pruned(model(family), family, CASES[case])
    assert expected["left"]
    for found in ranks:
        assert found[f"heads: {family}"] == [32, 64]  # two of four query heads each
        assert same(found[f"tensor parallel: {family}, {case}"], expected)


@pytest.mark.parametrize("case", OF_HEADS)
def test_a_plan_that_gathers_the_heads_itself(case: str, ranks: Ranks) -> None:
    """Each rank has every head: none is counted twice."""
    expected = spread.pruned(model("llava"), "llava", CASES[case])
    assert all(same(found[f"whole heads: {case}"], expected) for found in ranks)


@pytest.mark.works("Several processes", "tensor parallel conversations")
@pytest.mark.parametrize("case", TALKS)
def test_tensor_parallel_conversations(case: str, ranks: Ranks) -> None:
    expected = spread.talked(model("llava"), "llava", TALKS[case])
    assert all(expected["left"])
    for found in ranks:
        assert same(found[f"talk: {case}"], expected)


def test_tensor_parallel_measures_the_collapse_layer(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one process and remembered for the same weights; a rank that has not remembered it takes the first's."""
    monkeypatch.setenv("TOKENPRUNE_CACHE", str(tmp_path))
    expected = spread.pruned(model("llava"), "llava", MEASURED)
    for found in ranks:
        assert found["remembered"] == [path.name for path in tmp_path.rglob("*.json")]
        assert same(found["measured"], expected)
        assert same(found["measured on one rank"], expected)
        assert found["not measured again"] is True


def test_ranks_that_disagree_keep_the_tokens_of_the_first(ranks: Ranks) -> None:
    first, second = (found["quarrel"] for found in ranks)
    assert first["left"]
    assert same(second, first)


@pytest.mark.parametrize("case", OF_HEADS)
def test_the_comparison_can_fail(case: str, ranks: Ranks) -> None:
    """Scorers that see the heads of one rank only keep other tokens."""
    expected = spread.pruned(model("llava"), "llava", CASES[case])
    for found in ranks:
        alone = found[f"own heads only: {case}"]
        assert alone["left"].keys() == expected["left"].keys()
        assert alone["left"] != expected["left"]
        assert not same(alone, expected)


# -- data parallel ---------------------------------------------------------------------------------------------------


@pytest.mark.works("Several processes", "DDP and FSDP2 by accelerate")
@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_wrapped_by_accelerate(family: str, wrap: str, case: str, ranks: Ranks) -> None:
    """Every rank answers prompts of its own as one process does, by the wrapper's forward and by generate."""
    for found, prompts in zip(ranks, (RAGGED, OTHER), strict=True):
        with torch.no_grad(), tokenprune.prune(model(family), {"prune": CASES[case]}):
            forward = model(family)(**inputs(family, prompts)).logits
        expected = spread.pruned(model(family), family, CASES[case], prompts)
        got = found[f"{wrap}: {family}, {case}"]
        assert same(got, expected)
        assert close(got["forward"], forward)
        wrapper, weight = got["kinds"]
        assert wrapper == "DistributedDataParallel" if "ddp" in wrap else wrapper.startswith("FSDP")
        assert weight == ("Parameter" if "ddp" in wrap else "DTensor")


@pytest.mark.parametrize("case", WRAPPED)
def test_fsdp2_ranks_out_of_step(case: str, ranks: Ranks) -> None:
    """Only one rank prunes, the other says more: pruning calls for no collective that the other would miss."""
    for found, (prompts, steps) in zip(ranks, UNEQUAL, strict=True):
        expected = spread.pruned(model("llava"), "llava", CASES[case], prompts, steps=steps)
        assert same(found[f"out of step: {case}"], expected)
    assert bool(ranks[0][f"out of step: {case}"]["left"]) > bool(ranks[1][f"out of step: {case}"]["left"])


def test_a_layer_measured_before_is_known_under_fsdp2(ranks: Ranks) -> None:
    for found in ranks:
        alone, sharded = found["measured before fsdp2"]
        assert same(sharded, alone)


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("heads", "its 4 query heads and 1 key heads cannot be shared by 2 tensor-parallel ranks; use a number of"),
        ("ddp", "got DistributedDataParallel: pass the model inside it, accelerator.unwrap_model"),
        (
            "fsdp2 measures",
            "FSDP shards its weights, so no rank can run the extra forward pass that measures it; prune",
        ),
        ("fsdp2 measures later", "FSDP shards its weights, so no rank can run the extra forward pass"),
    ],
    ids=["heads", "ddp", "fsdp2 measures", "fsdp2 measures later"],
)
def test_refused_on_two_ranks(what: str, sentence: str, ranks: Ranks) -> None:
    for found in ranks:
        assert found[f"refused: {what}"].startswith("UnsupportedModelError: ")
        assert sentence in found[f"refused: {what}"]


@pytest.mark.refused("Several processes", "pipeline parallel")
def test_pipeline_parallel_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model("llava"), "_pp_stage", object(), raising=False)
    with pytest.raises(UnsupportedModelError, match=r"pipeline parallel.*use device_map or tensor"):
        tokenprune.attach(model("llava"), "divprune")


@pytest.mark.refused("Several processes", "FSDP1")
def test_fsdp1_is_refused() -> None:
    """Torch has it on accelerators only: here a wrapper that looks like it."""

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = model("llava")
            self.config = model("llava").config

    with pytest.raises(UnsupportedModelError, match=r"FSDP1.*use FSDP2"):
        tokenprune.attach(Wrapped(), "divprune")
