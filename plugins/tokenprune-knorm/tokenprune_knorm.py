from dataclasses import dataclass

from tokenprune import Scorer, hookimpl


@dataclass(frozen=True)
class Knorm(Scorer):
    """Keep the tokens with the shortest keys (arXiv 2406.11430)."""

    equivariant = True
    order: float = 2.0

    def score(self, seen):
        return -seen.keys.norm(p=self.order, dim=-1).mean(0)  # h n dh -> n


@hookimpl
def tokenprune_scorers():
    return {"knorm": Knorm}
