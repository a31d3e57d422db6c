"""The engine: the only file with hooks, and the only caller of the three interfaces.

One prefill, in order: `_begin` (before the base model) finds or makes the PromptState; `_look` keeps references to
the projections of block L-1; `_enter` (before blocks >= L) scores, selects, narrows and hands every block the mask and
rotary tables of what it sees; `_restore` gives the output the length the caller expects; `_end` lets the cache own
the state. Decode steps pass through `_begin` and `_enter` alone, where only masks are rebuilt.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from . import cache as caches
from . import ops
from .analysis import ecl
from .errors import (
    AlreadyPrunedError,
    BudgetError,
    PromptError,
    ScorerError,
    UnsupportedModelError,
)
from .interfaces import Adapter, RotaryTables
from .prompt import PromptState, Stage, plan, plan_stages
from .recipe import Recipe
from .registry import registry
from .values import Seen, Shape, View

log = logging.getLogger("tokenprune")

# What can be sorted everywhere.
NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


@dataclass(eq=False)
class _Turn:
    """One forward pass: what its hooks hand to each other."""

    prompt: Any  # a PromptState before any block runs
    attention_mask: Tensor | None
    total: int  # columns of the conversation, with those of this pass
    cache: Any
    prefill: bool = False  # this pass prunes
    after: ExitStack = field(default_factory=ExitStack)  # what to undo when this pass is over
    looked: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    masks: dict[tuple[int | None, ...], Any] = field(default_factory=dict)  # by `PromptState.layers`
    rotary: dict[tuple[int | None, ...], RotaryTables] = field(default_factory=dict)
    numbers: list[tuple[str, Tensor]] = field(default_factory=list)  # scores checked for NaN at the end: one sync


def _own(shown: Tensor) -> Tensor:
    """A copy of what a scorer is shown, where torch would not notice that it is changed in place."""
    return shown.clone() if shown.is_inference() else shown


PACKED = "several prompts share one row (continuous batching, padding-free training); give each prompt a row of its own"


def _unreadable(ids: Tensor | None, mask: Any, cache: Any, starts: bool, packed: bool) -> str | None:
    """What keeps pruning from following this pass, and what to do instead; None if it can."""
    if packed:
        return PACKED
    if ids is None and starts:
        return "it needs input_ids to see which columns are visual, got only inputs_embeds; pass input_ids"
    if getattr(cache, "is_compileable", False):
        return "static caches are not supported yet; leave cache_implementation at its default"
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        got = f"{mask.ndim}-D mask" if isinstance(mask, Tensor) else type(mask).__name__
        return f"it needs a 2-D attention mask (prompts x columns) or none, got a {got}; pass the tokenizer's mask"
    return None


class Pruner:
    """Injects a recipe into a model with forward hooks, and takes it out again.

    Nothing is patched or subclassed and no attribute is left on a module. Use `tokenprune.prune` or `.attach`.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, adapter: Adapter) -> None:
        self.model, self.recipe, self.adapter = model, recipe, adapter
        self.config: Any = model.config
        self.base = adapter.base(model)
        self.decoder = adapter.decoder(self.base)
        self.blocks = adapter.blocks(self.decoder)
        self.ecl: int | None = None
        self.state: PromptState | None = None  # the last prompt batch
        self._signature = inspect.signature(self.base.forward)
        self._live = threading.local()
        self._attached = False
        self._running: set[_Turn] = set()  # passes, of any thread
        self._idle = threading.Condition()  # guards these two and the hooks
        self._hooks = ExitStack()
        self._first = len(self.blocks)  # from here on blocks are hooked

    def attach(self) -> Pruner:
        """Register the hooks.

        Raises:
            AlreadyPrunedError: the model is inside another pruning block.
            UnsupportedModelError: its decoder does something pruning cannot follow.
            LayerError: the recipe names a layer the model does not have.
        """
        if any(isinstance(getattr(hook, "__self__", None), Pruner) for hook in self.base._forward_pre_hooks.values()):
            raise AlreadyPrunedError(
                "this model is already being pruned: leave the other block (or call its handle's remove()) first, or "
                "write both steps as passes of one recipe"
            )
        reason = self.adapter.refuse(self.config)
        if (getattr(self.model, "_tp_size", None) or 1) > 1:
            reason = "it is tensor parallel, so each rank would score its own heads only; use device_map instead"
        if reason:
            raise UnsupportedModelError(f"this {self.config.model_type} model cannot be pruned: {reason}")
        needs_ecl = any(work.schedule.needs_ecl for work in self.recipe.passes)
        self.ecl = ecl.known(self.model, self.adapter) if needs_ecl else None
        for work in self.recipe.passes:
            if self.ecl is None and work.schedule.needs_ecl:
                continue
            with suppress(BudgetError):  # depends on the prompt: said at its prefill
                plan(work, Shape(len(self.blocks), visual=1, ecl=self.ecl))
        self._add(self.base.register_forward_pre_hook(self._begin, with_kwargs=True))
        self._add(self.base.register_forward_hook(self._end, always_call=True))
        self._add(self.decoder.register_forward_hook(self._restore))
        self._attached = True
        return self

    def remove(self) -> None:
        """Take every hook out, when passes that run in other threads are through.

        The last `state` stays readable; caches pruned so far stay valid inside a new block.
        """
        self._forget()
        with self._idle:
            self._attached = False
            try:
                self._idle.wait_for(lambda: not self._running)
            finally:
                self._hooks.close()
                self._first = len(self.blocks)

    def _add(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _hook(self, turn: _Turn) -> None:
        """Hook the blocks that this pass needs, and for a prefill the projections that its stages may look at.

        Block hooks stay; projections are hooked for one pass only, on the modules that are there now: a LoRA wrapped
        around them in between is seen, and decode steps do not pay.
        """
        first = min((layer for prompt in turn.prompt.turns() for layer in prompt.stages), default=len(self.blocks))
        for block in range(first, self._first):
            enter = partial(self._enter, block)
            self._add(self.blocks[block].register_forward_pre_hook(enter, with_kwargs=True))
        self._first = min(self._first, first)
        for layer in turn.prompt.stages if turn.prefill else ():
            if layer:
                for name, module in self.adapter.projections(self.blocks[layer - 1]).items():
                    look = partial(self._look, turn, layer, name)
                    turn.after.callback(module.register_forward_hook(look).remove)

    @property
    def _turn(self) -> _Turn | None:
        return getattr(self._live, "turn", None)

    def _forget(self) -> None:
        """End this thread's pass; also one that Ctrl-C left behind, after which torch runs no hook."""
        if (turn := self._turn) is not None:
            turn.after.close()
            with self._idle:
                self._running.discard(turn)
                self._idle.notify_all()
        self._live.turn = None

    # -- one forward pass, in order ------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the base model: columns with visual tokens make a PromptState, a later step finds it in its cache."""
        if getattr(self._live, "paused", False):
            return
        self._forget()
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids, cache, mask = given.get("input_ids"), given.get("past_key_values"), given.get("attention_mask")
        past = cache.get_seq_length() if cache is not None else 0
        new = ids if ids is not None else given.get("inputs_embeds")
        if new is None:
            return  # the model says what is missing
        turn = _Turn(caches.owned(cache), mask, total=int(past) + new.shape[1], cache=cache)
        starts = not past or (ids is not None and new.shape[1] > 1 and self._shows(ids))
        packed = given.get("cu_seq_lens_q") is not None
        if (starts or turn.prompt is not None) and (reason := _unreadable(ids, mask, cache, starts, packed)):
            if ids is not None and turn.prompt is None and not self._shows(ids):
                return  # no picture: nothing to prune, nothing to refuse
            raise PromptError(f"pruning cannot read these inputs: {reason}")
        if starts and ids is not None:
            self.state = turn.prompt = self._plan(module, args, kwargs, ids, turn, given.get("position_ids"))
            turn.prefill = True
            if turn.prompt.stages and self._recomputed():
                raise UnsupportedModelError(
                    "under gradient checkpointing this transformers runs hooks a second time, without their prompt: "
                    "call model.gradient_checkpointing_disable(), or install a later transformers"
                )
        if turn.prompt is not None:
            with self._idle:
                if not self._attached:
                    return  # the block was left while this pass began
                self._running.add(turn)
                self._live.turn = turn
                self._hook(turn)
            turn.after.callback(caches.follow, cache, False)
            caches.follow(cache, True)

    def _recomputed(self) -> bool:
        """Whether the backward pass will run blocks with their hooks again; later transformers leave hooks out."""
        checkpointed = any(block.training and getattr(block, "gradient_checkpointing", False) for block in self.blocks)
        return checkpointed and torch.is_grad_enabled() and "__call__" in vars(GradientCheckpointingLayer)

    def _shows(self, ids: Tensor) -> bool:
        return bool(self.adapter.visual(self.config, ids).any())

    def _plan(
        self, module: nn.Module, args: Any, kwargs: Any, ids: Tensor, turn: _Turn, positions: Tensor | None
    ) -> PromptState:
        """The state of a new prompt batch; without stages if nothing will be dropped."""
        start = turn.total - ids.shape[1]
        valid = torch.ones_like(ids, dtype=torch.bool)
        if turn.attention_mask is not None:
            valid = turn.attention_mask[:, start : turn.total].to(ids.device, torch.bool)
        visual = self.adapter.visual(self.config, ids) & valid
        columns = torch.arange(ids.shape[1], device=ids.device)
        after = valid & (columns > torch.where(visual, columns, -1).amax(1, keepdim=True))
        if turn.prompt and turn.prompt.end == start and (turn.prompt.visual[:, -1] & visual[:, 0]).any():
            raise PromptError(
                "a picture was split between two passes, so its tokens cannot be compared: leave prefill_chunk_size at "
                "None, or choose one that ends between pictures"
            )
        restarts = torch.zeros_like(valid)  # of positions, within a row
        if positions is not None:
            positions = positions.reshape(-1, *positions.shape[-2:])[0].to(
                ids.device
            )  # M-RoPE: text or time comes first
            restarts[:, 1:] = (positions[:, 1:] < positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]
        numbers = torch.stack([tensor.sum(1) for tensor in (valid, visual, after, restarts)])
        lengths, counts, question, packed = numbers.tolist()  # the one sync
        if any(counts) and any(packed):
            raise PromptError(f"pruning cannot read these inputs: {PACKED}")
        if self.ecl is None and any(counts) and any(work.schedule.needs_ecl for work in self.recipe.passes):
            self.ecl = self._find_ecl(module, visual, args, kwargs)
        stages = plan_stages(self.recipe, len(self.blocks), counts, self.ecl)
        everything = View.full(valid, lengths)
        return PromptState(ids, visual, everything, tuple(counts), tuple(question), stages, start, turn.prompt)

    def _find_ecl(self, module: nn.Module, visual: Tensor, args: Any, kwargs: dict[str, Any]) -> int:
        """One extra unpruned prefill; its first prompt with a picture decides. Remembered, and said once."""
        self._live.paused = True
        try:
            alone = {**kwargs, "use_cache": False, "past_key_values": None}
            entropies = ecl.layer_entropies(self.adapter, self.decoder, visual, lambda: module(*args, **alone))
        finally:
            self._live.paused = False
        layer = ecl.collapse(entropies)
        path = ecl.remember(self.model, self.adapter, entropies)
        log.warning(
            "Entropy Collapse Layer of this model: %d of %d, measured on its first prompt, %s",
            layer,
            len(entropies),
            f"remembered in {path}" if path else "not remembered (cache not writable, or weights offloaded)",
        )
        return layer

    def _look(self, turn: _Turn, layer: int, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        """After a projection of block `layer - 1`: keep what the model computed, for the stage at `layer`."""
        if turn is self._turn:  # and not of a pass in another thread
            turn.looked[layer, name] = output

    def _enter(self, block: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a block: prune if its stage is here; then let it see its view and nothing else."""
        turn = self._turn
        if turn is None:
            return None
        hidden, prompt = args[0], turn.prompt
        turn.cache = kwargs.get("past_key_values")
        if turn.prefill and block in prompt.stages:
            hidden = self._prune(turn, block, hidden, kwargs["position_embeddings"])
        layers = prompt.layers(block)
        if not any(layer is not None for layer in layers):
            return None
        if layers not in turn.masks:
            turn.masks[layers] = self._mask(turn, block, hidden)
            turn.rotary[layers] = self._rotary(turn, block, hidden, kwargs)
        # position_ids stay away from the blocks: flash attention would read their gaps as packed sequences.
        changed = {
            "attention_mask": turn.masks[layers],
            "position_embeddings": turn.rotary[layers],
            "position_ids": None,
        }
        return (hidden, *args[1:]), {**kwargs, **changed}

    def _mask(self, turn: _Turn, block: int, hidden: Tensor) -> Any:
        """The causal mask of this forward pass for a block, in whatever form the attention backend wants."""
        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=hidden,
            attention_mask=turn.prompt.mask(block, turn.attention_mask, turn.total, hidden.device),
            past_key_values=None if turn.cache is None else caches.PhysicalLength(turn.cache, block),
            layer_idx=block,
        )

    def _rotary(self, turn: _Turn, block: int, hidden: Tensor, kwargs: dict[str, Any]) -> RotaryTables:
        """Rotary tables of the columns a block sees: those of their old places, or of new ones if compact."""
        cos, sin = (table.to(hidden.device) for table in kwargs["position_embeddings"])  # blocks may lie apart
        prompt = turn.prompt
        everything, view = prompt.everything.to(hidden.device), prompt.seen(block).to(hidden.device)
        if kwargs["position_ids"] is not None and any(earlier.compact(block) for earlier in prompt.turns()):
            positions = kwargs["position_ids"].to(hidden.device) - prompt.dropped(block, hidden.device)
            if turn.prefill:  # not every dropped token of this prompt lies before each kept one
                ahead = everything.valid.sum(1, keepdim=True) - everything.valid.cumsum(1).gather(1, view.index)
                ahead = ahead - view.valid.sum(1, keepdim=True) + view.valid.cumsum(1)
                positions = positions.gather(1, view.index) + (ahead if prompt.compact(block) else 0)
            renumbered = self.adapter.rotary(self.decoder, hidden, positions.clamp_min(0))
            if renumbered is not None:
                return renumbered
        if not turn.prefill or prompt.layer(block) is None:
            return cos, sin
        return ops.gather_columns(cos, view.index), ops.gather_columns(sin, view.index)

    def _prune(
        self, turn: _Turn, layer: int, hidden: Float[Tensor, "b k d"], tables: RotaryTables
    ) -> Float[Tensor, "b j d"]:
        """Score, select and gather at one stage; adds its view to the prompt."""
        prompt, stage = turn.prompt, turn.prompt.stages[layer]
        view = prompt.seen(layer).to(hidden.device)
        visual = prompt.visual.to(hidden.device).gather(1, view.index) & view.valid
        tables = turn.rotary.get(prompt.layers(layer - 1), tables)  # the model hands out those of the whole prompt
        places = visual.int().argsort(dim=1, stable=True)  # visual columns stand last, in order
        keep = view.valid & ~visual
        for row, (n, kept) in enumerate(zip(stage.before, stage.kept, strict=True)):
            at = places[row, view.width - n :]
            if kept < n:
                seen = self._seen(turn, layer, row, view, at, hidden, tables)
                chosen, folded = self._select(turn, stage, row, seen)
                if folded is not None:
                    hidden = hidden.clone()
                    hidden[row].index_copy_(0, at, folded)
                at = at[chosen]
            keep[row].index_fill_(0, at, True)
        lengths = [length - n + kept for length, n, kept in zip(view.lengths, stage.before, stage.kept, strict=True)]
        narrowed, local = view.narrow(keep, lengths)
        prompt.views[layer] = narrowed
        for key in [key for key in turn.looked if key[0] == layer]:
            del turn.looked[key]
        hidden = ops.gather_columns(hidden, local)
        return hidden.masked_fill(~narrowed.valid[..., None], 0) if narrowed.padded else hidden

    def _select(
        self, turn: _Turn, stage: Stage, row: int, seen: Seen
    ) -> tuple[Int[Tensor, "j"], Float[Tensor, "n d"] | None]:
        """Which of one prompt's visual tokens stay (in order), and all of them after merging, if any."""
        where = f"at layer {seen.layer}, prompt {row},"
        scorer, merger = stage.work.scorer, stage.work.merger
        who = f"{registry().origin('scorer', type(scorer))} {where}"
        with torch.no_grad():
            score = self._call(turn, who, seen, partial(scorer.score, seen))
            self._check(turn, who, "one number per visual token", score, seen.visual, NUMBERS)
            chosen = score.argsort(descending=True, stable=True)[: seen.keep].sort().values
        if merger is None:
            return chosen, None
        who, hidden = f"{registry().origin('merger', merger)} {where}", seen.hidden
        folded = self._call(turn, who, seen, partial(merger, hidden, chosen, seen))
        self._check(turn, who, "as many rows as it got", folded, hidden, (hidden.dtype,))
        return chosen, folded

    def _call(self, turn: _Turn, who: str, seen: Seen, plugin: Callable[[], Any]) -> Any:
        """What a scorer or merger gives; its own errors are said with its name."""
        # Inference tensors count no versions: `_seen` hands out copies of them.
        shared = [t for t in (seen.ids, seen.states, *turn.looked.values()) if not t.is_inference()]
        versions = [t._version for t in shared]
        try:
            given = plugin()
        except (PromptError, torch.OutOfMemoryError):  # not its fault; callers catch the latter to try less at once
            raise
        except Exception as error:
            raise ScorerError(f"{who} failed with {type(error).__name__}: {error}") from error
        if versions != [t._version for t in shared]:
            raise ScorerError(f"{who} changed what it was shown in place: work on a copy, such as seen.hidden.clone()")
        return given

    def _check(
        self, turn: _Turn, who: str, what: str, given: Any, like: Tensor, dtypes: tuple[torch.dtype, ...]
    ) -> None:
        """Refuse what does not fit; NaN is looked for here and asked about at the end of the pass."""
        if not isinstance(given, Tensor):
            raise ScorerError(f"{who} must give {what}: expected a tensor, got {type(given).__name__}")
        if given.shape != like.shape:
            raise ScorerError(f"{who} must give {what}: expected shape {tuple(like.shape)}, got {tuple(given.shape)}")
        if given.device != like.device:
            raise ScorerError(f"{who} must give {what}: expected them on {like.device}, got {given.device}")
        if given.dtype not in dtypes:
            wanted = str(dtypes[0]) if len(dtypes) == 1 else "real numbers"
            raise ScorerError(f"{who} must give {what}: expected {wanted}, got {given.dtype}")
        turn.numbers.append((who, ~given.isnan().any()))

    def _seen(
        self,
        turn: _Turn,
        layer: int,
        row: int,
        view: View,
        at: Int[Tensor, "n"],
        hidden: Float[Tensor, "b k d"],
        tables: RotaryTables,
    ) -> Seen:
        """One prompt's lazy view of the batch, pads left out."""
        prompt, length = turn.prompt, view.lengths[row]
        real = slice(None) if length == view.width else view.valid[row].int().argsort(stable=True)[-length:]
        states = _own(hidden[row][real])
        cos, sin = (table[min(row, len(table) - 1)].to(hidden.device)[real] for table in tables)
        before, here = self.blocks[layer - 1] if layer else None, self.blocks[layer]

        def heads(flat: Float[Tensor, "r w"]) -> Float[Tensor, "heads r dh"]:
            return rearrange(flat, "r (heads dh) -> heads r dh", dh=self.adapter.head_size(here))

        def looked(name: str, rows: Tensor | None) -> Tensor:
            mine = turn.looked[layer, name][row][real]
            return heads(_own(mine) if rows is None else mine[rows])

        def following(name: str, rows: Tensor | None) -> Tensor:
            return heads(self.adapter.project(here, name, states if rows is None else states[rows]))

        def rotate(heads_rows: Tensor, rows: Tensor | None) -> Tensor:
            picked = (cos, sin) if rows is None else (cos[rows], sin[rows])
            return self.adapter.rotate(heads_rows, *picked)

        def past(which: str) -> tuple[Tensor, Tensor]:
            block = layer if which == "next" else layer - 1
            held = prompt.mask(block, turn.attention_mask, turn.total, hidden.device)
            keys = caches.keys(turn.cache, block, row, hidden.device)
            keys = keys if which == "next" else keys[:, : -view.width]  # that block added its own already
            every = torch.ones(keys.shape[1], dtype=torch.bool, device=keys.device)
            return keys, every if held is None else held[row, : keys.shape[1]]

        full = prompt.everything.lengths[row]
        ids = prompt.ids[row]
        if full != len(ids):
            ids = ids[prompt.everything.valid[row].int().argsort(stable=True)[-full:]]
        rank = view.valid[row].cumsum(0) - 1  # column of the view -> place among the real ones
        place = prompt.everything.valid[row].cumsum(0) - 1  # column of the prompt -> place among its real ones
        return Seen(
            layer=layer,
            keep=prompt.stages[layer].kept[row],
            ids=_own(ids.to(hidden.device)),
            columns=place.to(hidden.device)[view.index[row, at]],
            visual=rank[at],
            question=prompt.question[row],
            states=states,
            previous=looked if before is not None else None,
            following=following,
            past=past if prompt.start else None,
            rotate=rotate,
            scaling=self.adapter.scaling(here),
        )

    def _restore(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the decoder: kept rows go back to their prompt columns, dropped columns are zeros."""
        turn = self._turn
        if turn is None or not turn.prefill or not turn.prompt.views:
            return None
        spread = partial(self._spread, turn.prompt)
        if isinstance(output, tuple):
            return (spread(len(self.blocks), output[0]), *output[1:])
        output.last_hidden_state = spread(len(self.blocks), output.last_hidden_state)
        if getattr(output, "hidden_states", None):  # what entered the first block, then what left each one
            output.hidden_states = tuple(spread(i, hidden) for i, hidden in enumerate(output.hidden_states))
        return output

    def _spread(self, prompt: PromptState, ran: int, hidden: Tensor | None) -> Tensor | None:
        """Hidden states after `ran` blocks, each row at its prompt column."""
        view = prompt.seen(max(ran - 1, 0))
        if hidden is None or view is prompt.everything:
            return hidden
        view = view.to(hidden.device)
        hidden = hidden.masked_fill(~view.valid[..., None], 0) if view.padded else hidden
        full = hidden.new_zeros(hidden.shape[0], view.span, hidden.shape[-1])
        return full.scatter(1, view.index[..., None].expand_as(hidden), hidden)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the base model, also after an exception: nothing of this pass stays behind but what the cache owns."""
        if getattr(self._live, "paused", False):
            return
        turn = self._turn
        self._forget()
        if turn is None or output is None:
            return
        if turn.prefill and turn.cache is not None:
            caches.own(turn.cache, turn.prompt)
        if turn.numbers:
            names, fine = zip(*turn.numbers, strict=True)
            good = torch.stack([flag.to(fine[0].device) for flag in fine]).tolist()
            if not all(good):
                name = names[good.index(False)]
                raise ScorerError(f"{name} gave NaN: this pass's outputs and cache are not to be used")
