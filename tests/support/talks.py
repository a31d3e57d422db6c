"""Conversations, pruned and masked."""

from __future__ import annotations

from typing import Any

import torch
from families import Prompt, inputs, model
from oracle import numbered_anew
from transformers import DynamicCache

from tokenprune.model.anatomy import Anatomy
from tokenprune.state.prompt import Prompt as PromptState
from tokenprune.verify.masking import own_mask

FIRST: list[Prompt] = [(3, (2, "image", 3, "image", 5)), (2, (7,)), (1, (4, "image", 9))]


SECOND: list[Prompt] = [(13, (3, "image", 4)), (12, (2, "image", 5)), (11, (8,))]  # the last without a picture


THIRD: list[Prompt] = [(23, (3, "image", 2)), (22, (2, "image", 6)), (21, (2, "image", 1))]


class Talk:
    """A conversation of a batch: turns and answers of one cache, with masks and positions as a processor gives them."""

    def __init__(self, family: str, cache: Any = None) -> None:
        self.family, self.lm = family, model(family)
        self.cache = DynamicCache(config=self.lm.config.get_text_config()) if cache is None else cache
        self.mask = torch.zeros(3, 0, dtype=torch.long)

    def turn(self, prompts: list[Prompt]) -> torch.Tensor:
        """The prompts' logits at their last column, b x vocab."""
        given = inputs(self.family, prompts)
        return self._pass(given.pop("input_ids"), given.pop("attention_mask"), **given)

    def say(self, token: torch.Tensor) -> torch.Tensor:
        return self._pass(token, torch.ones_like(token))

    @torch.no_grad()
    def _pass(self, ids: torch.Tensor, mask: torch.Tensor, **given: Any) -> torch.Tensor:
        self.mask = torch.cat([self.mask, mask], dim=1)
        positions = (self.mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        out = self.lm(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache, **given
        )
        return out.logits[:, -1]


def converse(talk: Talk) -> list[torch.Tensor]:
    """Three turns with pictures, two words of answer after each."""
    found = []
    for prompts in (FIRST, SECOND, THIRD):
        found.append(talk.turn(prompts))
        for word in (17, 23):
            found.append(talk.say(torch.full((3, 1), word)))
    return found


class Masked(Talk):
    """The same talk on the unpruned model, where blocks do not see what was dropped: written without the engine."""

    def __init__(self, family: str, states: list[PromptState], cache: Any = None) -> None:
        super().__init__(family, cache)
        self.states, self.anatomy = states, Anatomy.of(self.lm)

    def _pass(self, ids: torch.Tensor, mask: torch.Tensor, **given: Any) -> torch.Tensor:
        past, q = self.mask.shape[1], ids.shape[1]
        valid = torch.cat([self.mask, mask], dim=1).bool()

        def left(block: int, views_of: Any) -> torch.Tensor:
            columns = valid.clone()
            for state in self.states:
                views = views_of(state)
                layers = [layer for layer in views if layer <= block]
                if not layers or state.start >= past + q:
                    continue
                view, span = views[max(layers)], state.visual.shape[1]
                kept = torch.zeros(3, span, dtype=torch.bool)
                for row in range(3):
                    kept[row, view.index[row][view.valid[row]]] = True
                columns[:, state.start : state.start + span] &= kept
            return columns

        def enter(block: int, module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            columns = left(block, lambda state: state.views)
            if any(numbered_anew(state) for state in self.states):
                positions = (left(block, numbered_anew).cumsum(1) - 1).clamp_min(0)[:, past:]
                rotary = self.anatomy.rotary(args[0], positions, self.anatomy.kinds[block])
                kwargs = {**kwargs, "position_embeddings": rotary}
            own = own_mask(self.anatomy, block, args[0], kwargs, past + q)
            allowed = own & columns[:, None, None, past + q - own.shape[-1] :]
            floats = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
            return args, {**kwargs, "attention_mask": floats}

        handles = [
            module.register_forward_pre_hook(lambda m, a, k, block=block: enter(block, m, a, k), with_kwargs=True)
            for block, module in enumerate(self.anatomy.blocks)
        ]
        try:
            return super()._pass(ids, mask, **given)
        finally:
            for handle in handles:
                handle.remove()
