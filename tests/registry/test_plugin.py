"""The template plugin, installed, through its real entry point."""

from __future__ import annotations

from pathlib import Path

import torch
from families import RAGGED
from oracle import check_oracle

from tokenprune import Seen
from tokenprune.recipe import load
from tokenprune.registry import registry

SOURCE = Path(__file__).parents[2] / "plugins" / "tokenprune-knorm" / "tokenprune_knorm.py"


def test_it_is_found_with_its_distribution() -> None:
    assert registry().entries["scorer"]["knorm"].distribution == "tokenprune-knorm"


def test_it_is_used_in_a_recipe_like_a_built_in() -> None:
    recipe = {
        "prune": [{"scorer": {"name": "knorm", "order": 1.0}, "schedule": {"name": "fixed", "layer": 2, "keep": 5}}]
    }
    assert load(recipe).passes[0].scorer.order == 1.0
    check_oracle("qwen2_5_vl", "sdpa", RAGGED, recipe)


def test_it_keeps_the_shortest_keys() -> None:
    keys = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    seen = Seen.of(keep=2, keys=keys)
    assert registry().get("scorer", "knorm")().score(seen).topk(2).indices.tolist() == [1, 2]


def test_it_is_fifteen_lines() -> None:
    code = [line for line in SOURCE.read_text().splitlines() if line.strip() and '"""' not in line]
    assert len(code) <= 15
