"""What lmms-eval logs of an answer, and what pruning left of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.models.model_utils.gen_metrics import log_metrics


@dataclass
class Kept(TokenCounts):  # type: ignore[misc]
    """lmms-eval's token counts of one answer, and what pruning left of its prompt's visual tokens.

    Attributes:
        visual: visual tokens of the prompt.
        stages: how many were kept, by layer.
        average: mean over the decoder blocks of the visual tokens that each sees.
    """

    visual: int = 0
    stages: dict[int, int] = field(default_factory=dict)
    average: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the log of samples."""
        kept = {"visual_tokens": self.visual, "visual_kept": self.stages, "visual_average": self.average}
        return {**super().to_dict(), **kept}


def log(results: Sequence[GenerationResult], seconds: float) -> None:
    """Speed and visual tokens of this process's answers, in lmms-eval's summary."""
    if not results:
        return
    counts = [result.token_counts for result in results]
    tokens = sum(count.output_tokens for count in counts)
    means = {
        "visual_tokens": sum(count.visual for count in counts) / len(counts),
        "visual_average": sum(count.average for count in counts) / len(counts),
    }
    log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, additional_metrics=means)
