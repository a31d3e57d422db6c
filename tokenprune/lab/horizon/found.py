"""What was measured of a horizon, as numbers and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from .. import plots
from ..pico import scenes
from ..results import Results
from .means import RULE, oracle_summary, summary
from .probe import information
from .windows import Window


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        limit: scenes, with a question of each kind about every one.
        seed: which scenes.
        window: side of a window, in visual tokens.
        layers: as they were written; None for all.
        threshold: share of the maximum that counts as nothing.
        oracle: also keep this many tokens of most information, and as many random ones.
        batch: windows in one forward pass.
    """

    limit: int
    seed: int
    window: int
    layers: str | None
    threshold: float
    oracle: int | None
    batch: int


@dataclass(frozen=True)
class Prompt:
    """A question about a scene, and the key of its row."""

    key: str
    scene: scenes.Scene
    question: scenes.Question

    def oracle_key(self, keep: int) -> str:
        """Of the row of an oracle that keeps so many tokens."""
        return f"{self.key} oracle {keep}"


@dataclass(frozen=True)
class Horizon:
    """What was measured, and where it is written.

    Attributes:
        asked: what was asked for.
        results: the folder.
        prompts: each question, in order.
        windows: of every prompt's picture.
        layers: measured ones.
    """

    asked: Asked
    results: Results
    prompts: Sequence[Prompt]
    windows: Sequence[Window]
    layers: list[int]

    @property
    def title(self) -> str:
        """Of tables and figures."""
        side = self.asked.window
        return f"{self.results.settings['model']}, {self.asked.limit} scenes, {side} x {side} tokens"

    @property
    def total(self) -> int:
        """Prompts times layers."""
        return len(self.prompts) * len(self.layers)

    @property
    def rule(self) -> str:
        """What the horizon is, in words."""
        return RULE.format(threshold=self.asked.threshold)

    @cached_property
    def groups(self) -> dict[str, list[Prompt]]:
        """Prompts by kind of question, and `all` of them."""
        kinds = [kind for kind in scenes.KINDS if any(one.question.kind == kind for one in self.prompts)]
        by_kind = {kind: [one for one in self.prompts if one.question.kind == kind] for kind in kinds}
        return {**by_kind, "all": list(self.prompts)}

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Of every prompt, by key."""
        rows = self.results.rows
        return {one.key: rows[one.key] for one in self.prompts}

    @cached_property
    def kinds(self) -> dict[str, dict[str, Any]]:
        """The `summary` of each group."""
        return {
            name: summary([self.rows[one.key] for one in group], self.layers, self.asked.threshold)
            for name, group in self.groups.items()
        }

    @cached_property
    def oracle(self) -> dict[str, Any] | None:
        """How many tokens the oracle kept, and the `oracle_summary` of each group; None where there was none."""
        keep = self.asked.oracle
        if keep is None:
            return None
        rows = self.results.rows
        told = {one.key: rows[one.oracle_key(keep)] for one in self.prompts}
        parts = {name: oracle_summary([told[one.key] for one in group]) for name, group in self.groups.items()}
        return {"keep": keep, "kinds": parts}

    def numbers(self) -> dict[str, Any]:
        """All of it, as JSON."""
        found: dict[str, Any] = {
            "rule": self.rule,
            "threshold": self.asked.threshold,
            "layers": self.layers,
            "windows": [{"picture": w.picture, "box": w.box, "tokens": w.tokens} for w in self.windows],
            "kinds": self.kinds,
            "prompts": [_plain(row) for row in self.rows.values()],
        }
        return found if self.oracle is None else {**found, "oracle": self.oracle}

    def save(self) -> list[Path]:
        """JSON and figures. Raises TokenpruneError if another run under other settings ended there meanwhile."""
        self.results.check()
        figures: dict[str, Callable[[], bytes]] = {
            "horizon.png": partial(plots.horizon, self.kinds, self.layers, self.asked.threshold, self.title),
            "heatmaps.png": self.heatmaps,
        }
        return self.results.save(self.numbers(), figures=figures, indent=None)

    def heatmaps(self) -> bytes:
        """The first scene's questions, in up to eight layers."""
        few = sorted({round(i * (len(self.layers) - 1) / 7) for i in range(8)})
        parts = [
            (
                f"{one.question.kind}: {one.question.answer}",
                one.scene.picture,
                information(self.rows[one.key])[few],
            )
            for one in self.prompts
            if one.key.startswith("0/")
        ]
        boxes, shown = [window.box for window in self.windows], [self.layers[i] for i in few]
        return plots.heatmaps(parts, boxes, shown, f"{self.title}: p(only this window) - p(none)")


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it stands in the results: information instead of probabilities."""
    about = {name: value for name, value in row.items() if name != "windows"}
    return {**about, "information": [[round(x, 7) for x in line] for line in information(row).tolist()]}
