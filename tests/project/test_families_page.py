"""docs/families.md says of every model type what the check says."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from tokenprune.families.every import image_text_types
from tokenprune.lab.families import owner
from tokenprune.verify import trust
from tokenprune.verify.verdict import ATTENTION, Comparison

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "families.md").read_text()
TABLE = PAGE.partition("<!-- families -->")[2]
ROWS = {line.split("`")[1]: line for line in TABLE.splitlines() if line.startswith("| `")}
SAMPLE = ("blip", "cosmos3_omni", "exaone4_5", "gemma4_unified", "got_ocr2", "kimi_k25", "lfm2_vl", "minicpmv4_6")
SAMPLE += ("mllama", "ovis2", "qwen3_vl", "unlimited_ocr")

pytestmark = pytest.mark.skipif(
    f"transformers {transformers.__version__}:" not in TABLE, reason="the page is of another release of transformers"
)


@pytest.fixture(scope="module")
def row() -> Callable[[str], str]:
    """A line of the table, from a check."""
    script = runpy.run_path(str(DOCS / "generate.py"))
    return lambda model_type: str(script["table"]([], [script["family"](model_type)]).splitlines()[2])


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_row_is_what_the_check_says(model_type: str, row: Callable[[str], str]) -> None:
    assert ROWS[model_type] == row(model_type)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in ROWS if name not in SAMPLE])
def test_every_row_is_what_the_check_says(model_type: str, row: Callable[[str], str]) -> None:
    assert ROWS[model_type] == row(model_type)


def test_every_type_has_a_row() -> None:
    """In the numbers above the table, too."""
    assert list(ROWS) == sorted(image_text_types())
    own = sum(owner(model_type) is not None for model_type in ROWS)
    standard = sum("| standard |" in line for line in ROWS.values())
    numbers = [int(number) for number in re.findall(r"\b\d+\b", TABLE.strip().splitlines()[0].partition(": ")[2])]
    assert numbers == [len(ROWS), own, standard, len(ROWS) - own - standard]


def test_a_row_says_what_failed(row: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Comparison("pruning == masking", "logits differ by up to 3.1e-01 of theirs")]
    monkeypatch.setattr(trust, "check", lambda config, adapter: found)
    assert row("ovis2") == "| `ovis2` | none |  |  | pruning == masking: logits differ |"
    found[:] = [Comparison("pruning == the shortened sequence"), Comparison(ATTENTION, "rows differ by up to 0.2 in 1")]
    assert row("ovis2") == "| `ovis2` | standard | the shortened sequence | no | rows differ in 1 |"
