"""The engine: with its parts for the vision tower (`vision.py`, `recorder.py`) the only caller of the interfaces.

One prefill, in order: `_begin` (before the base model) finds or makes the Prompt; `_close` (before block 0) takes
out the holes that passes inside the vision tower left (`vision.py`); `_look` keeps references to the projections of
block L-1; `_enter` (before blocks >= L) scores, selects, narrows and hands every block the mask and rotary tables of
what it sees; `_restore` gives the output the length the caller expects; `_end` lets the cache own the state. Decode
steps pass through `_begin` and `_enter` alone, where only masks are rebuilt.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import ecl, ops
from ..amounts import Budget
from ..errors import AlreadyPrunedError, BudgetError, LayerError, PromptError, UnsupportedModelError
from ..model import ranks as parallel
from ..parts import guard
from ..parts.adapter import Adapter
from ..parts.attention import RotaryTables
from ..parts.merger import reads
from ..parts.scheduler import PlanInput
from ..plan.stages import Stage, plan, plan_stages, plan_vision
from ..recipe import Recipe
from ..registry import spell_part
from ..seen.prompt import Seen
from ..seen.vision import Vision
from ..state import cache as caches
from ..state.prompt import Prompt
from ..state.view import View
from ..vision.forward import VisionPruner
from ..vision.recorder import Recorder
from . import inputs

log = logging.getLogger("tokenprune")

WHOLE = (
    "pruning prepares prompts outside of compiled code. With fullgraph=True compile decode steps only, by "
    "cache_implementation='static' in generate; else leave fullgraph at False"
)
_apart: Any = torch.compiler.disable
if "reason" in inspect.signature(torch.compiler.disable).parameters:  # torch 2.6 has nowhere to say it
    _apart = partial(torch.compiler.disable, reason=WHOLE)


_Depth = tuple[int | None, ...]
"""`Prompt.layers`: blocks with the same one hold the same columns."""


@dataclass(eq=False)
class _Turn:
    """One forward pass: what its hooks hand to each other."""

    prompt: Any  # a Prompt before any block runs
    attention_mask: Tensor | None
    total: int  # columns of the conversation with those of this pass, or of its mask where that has room for more
    cache: Any
    prefill: bool = False  # this pass prunes
    traced: bool = False  # by torch.compile: `_step`
    after: ExitStack = field(default_factory=ExitStack)  # what to undo when this pass is over
    looked: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    embedded: Tensor | None = None  # what entered block 0, until the last stage is over
    held: dict[_Depth, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)  # `_held`
    masks: dict[_Depth, Any] = field(default_factory=dict)
    rotary: dict[_Depth, RotaryTables] = field(default_factory=dict)
    flags: list[guard.Flag] = field(default_factory=list)  # what is asked at the end, with one sync
    # Prompts that end with their picture, and the layer where the last token was dropped. The answer is read from it:
    # it goes on to the end of this pass, as the columns of text do, and only then out of sight.
    spared: dict[int, int] = field(default_factory=dict)


_NOTHING = ExitStack()  # torch.compile does not trace how one is made


class Pruner:
    """Injects a recipe into a model with forward hooks, and takes it out again.

    Nothing is patched or subclassed and no attribute is left on a module. Use `tokenprune.prune` or `.attach`.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        adapter: Adapter,
        budget: Budget | None = None,
        processor: Any = None,
    ) -> None:
        self.model, self.recipe, self.adapter, self.budget = model, recipe, adapter, budget
        self.config: Any = model.config
        self.base = adapter.base(model)
        self.decoder = adapter.decoder(self.base)
        self.text: Any = self.decoder.config
        self.blocks = adapter.blocks(self.decoder)
        self.ranks = parallel.Ranks.of(model)
        self.processor = processor
        self.ecl: int | None = None
        self.recorder: Recorder | None = None
        self.tower: VisionPruner | None = None
        self.state: Prompt | None = None  # the last prompt batch
        self._signature = inspect.signature(self.base.forward)
        self._words = inspect.signature(self.decoder.forward).parameters  # what is not for pictures
        self._live = threading.local()
        self._attached = False
        self._running: dict[_Turn, threading.Thread] = {}  # passes, and who runs them
        self._idle = threading.Condition()  # guards these two and the hooks
        self._hooks = ExitStack()
        self._first = len(self.blocks)  # from here on blocks are hooked

    def attach(self) -> Pruner:
        """Register the hooks.

        Raises:
            AlreadyPrunedError: the model is inside another pruning block.
            UnsupportedModelError: its decoder does something pruning cannot follow.
            LayerError: the recipe names a layer the model does not have, or a block that its vision tower does not.
        """
        if any(isinstance(getattr(hook, "__self__", None), Pruner) for hook in self.base._forward_pre_hooks.values()):
            raise AlreadyPrunedError(
                "this model is already being pruned: leave the other block (or call its handle's remove()) first, or "
                "write both steps as passes of one recipe"
            )
        reason = self.adapter.refuse(self.config) or parallel.refuse(self.model, self.adapter, self.ranks)
        parts = (part for block in self.blocks for part in block.modules())
        if not all(getattr(part, "is_causal", True) for part in (self.text, *parts)):
            reason = reason or inputs.BOTH_WAYS
        if reason:
            raise UnsupportedModelError(f"this {self.config.model_type} model cannot be pruned: {reason}")
        if any(step.schedule.needs_ecl for step in self.recipe.decoder_passes):
            self.ecl = self._agreed(ecl.known(self.model, self.adapter) or 0) or None
            if self.ecl is None:
                parallel.check_extra_pass(self.model)  # and when it is measured: weights may be sharded later
        for step in self.recipe.decoder_passes:
            if self.ecl is None and step.schedule.needs_ecl:
                continue
            with suppress(BudgetError):  # depends on the prompt: said at its prefill
                plan(step, PlanInput(len(self.blocks), visual=1, ecl=self.ecl))
        self.recorder = self._recorder()
        self.tower = self._tower()
        with ExitStack() as undo:
            undo.callback(self._hooks.close)
            if self.recorder is not None:
                self.recorder.attach(self._add)
            if self.tower is not None:
                self.tower.attach(self._add)
            for outer in self.model.modules():
                if any(part is self.base for part in outer.children()):
                    self._add(outer.register_forward_pre_hook(self._expect, with_kwargs=True))
            self._add(self.base.register_forward_pre_hook(self._enter_base, with_kwargs=True))
            self._add(self.base.register_forward_hook(self._leave_base, always_call=True))
            self._add(self.decoder.register_forward_hook(self._restore))
            undo.pop_all()
        torch.compiler.reset()  # compiled code does not notice hooks that come or go: have it compiled anew
        self._attached = True
        return self

    def _recorder(self) -> Recorder | None:
        """For the vision tower's blocks that scorers and mergers read; None if they read none."""
        wanted = [
            block
            for step in self.recipe.decoder_passes
            for block in (*step.scorer.reads_blocks, *reads(step.merger))  # type: ignore[union-attr]
        ]
        if not wanted:
            return None
        tower = self.adapter.vision_adapter()
        if tower is None:
            raise UnsupportedModelError(
                f"the recipe reads states of the vision tower, and the adapter for {self.config.model_type} does not "
                "know that tower: give it a `vision_adapter`, or use a scorer of hidden states such as diversity"
            )
        return Recorder(tower, self.base, self.config, wanted)

    def _tower(self) -> VisionPruner | None:
        """For passes inside the vision tower; None if the recipe has none."""
        if not self.recipe.vision_passes:
            return None
        tower, blocks = self.adapter.vision_adapter(), len(self.blocks)
        if tower is None:
            raise UnsupportedModelError(
                f"the recipe prunes inside the vision tower, and the adapter for {self.config.model_type} does not "
                "know that tower: give it a `vision_adapter`"
            )

        def stages(depth: int, counts: Sequence[int]) -> dict[int, Stage]:
            return plan_vision(self.recipe, depth, blocks, counts, self.ecl, self.budget)

        made = VisionPruner(tower, self.base, self.config, self.recipe.vision_passes, stages)
        stages(made.depth, [])  # a budget of tokens
        plan_vision(self.recipe, made.depth, blocks, [1], None)  # a layer that is not there
        return made

    def remove(self) -> None:
        """Take every hook out, when passes that run in other threads are through.

        The last `state` stays readable; caches pruned so far stay valid inside a new block.
        """
        self._forget()
        with self._idle:
            self._attached = False
            try:
                while any(thread.is_alive() for thread in self._running.values()):
                    self._idle.wait(0.1)  # a thread that was killed in its pass tells nobody
            finally:
                while self._running:
                    self._running.popitem()[0].after.close()
                self._hooks.close()
                for part in (self.recorder, self.tower):
                    if part is not None:
                        part.close()
                self._first = len(self.blocks)
                torch.compiler.reset()

    def _add(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    def _hook(self, turn: _Turn) -> None:
        """Hook the blocks that this pass needs, and for a prefill the projections that its stages may look at.

        Block hooks stay; projections are hooked for one pass only, on the modules that are there now: a LoRA wrapped
        around them in between is seen, and decode steps do not pay.
        """
        first = min(
            (layer for prompt in turn.prompt.conversation() for layer in prompt.stages), default=len(self.blocks)
        )
        first = 0 if self.tower is not None else max(first, 0)
        for block in range(first, self._first):
            enter = partial(self._enter, block)
            self._add(self.blocks[block].register_forward_pre_hook(enter, with_kwargs=True))
        if first < self._first:
            self._first = first
            torch.compiler.reset()
        self._hook_projections(turn)

    def _hook_projections(self, turn: _Turn) -> None:
        """Those that this prefill's stages may look at."""
        if turn.prefill and turn.prompt.stages and self.tower is None:
            embed = partial(self._embed, turn)
            hook = self.blocks[0].register_forward_pre_hook(embed, prepend=True)  # before `_enter`
            turn.after.callback(hook.remove)
        for layer in turn.prompt.stages if turn.prefill else ():
            if layer > 0:
                for name, module in self.adapter.attention(self.blocks[layer - 1]).modules.items():
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
                self._running.pop(turn, None)
                self._idle.notify_all()
        self._live.turn = None

    # -- one forward pass, in order ------------------------------------------------------------------------------

    def _expect(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the model with its head: who asks for more logits than the last has words there to check."""
        if not torch.compiler.is_compiling():  # no prefill
            keep = kwargs.get("logits_to_keep")
            self._live.drafts = keep - 1 if isinstance(keep, int) and keep > 1 else 0

    def _enter_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the base model. Nothing behind `_begin` can tell whether the pass runs in code of torch.compile."""
        compiled = torch.compiler.is_compiling()
        if not (compiled and self._step({**dict(zip(self._signature.parameters, args, strict=False)), **kwargs})):
            self._begin(module, args, kwargs, compiled)

    def _step(self, given: Mapping[str, Any]) -> bool:
        """`_begin` of a decode step on a static cache, as torch.compile traces it; False if it is something else."""
        new, cache = given.get("input_ids"), given.get("past_key_values")
        new = new if new is not None else given.get("inputs_embeds")
        if new is None or new.shape[1] != 1 or caches.room(cache) is None or self._turn is not None:
            return False
        prompt = caches.owned(cache)
        if prompt is None or not prompt.pruned:
            return True
        mask = inputs.columns(given.get("attention_mask"), 0, 1)
        stages = [max(layer, 0) for turn in prompt.conversation() for layer in turn.stages]
        if not (mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)) or min(stages) < self._first:
            return False
        turn = _Turn(prompt, mask, 0, cache=cache, traced=True, after=_NOTHING)
        for layers, (places, lag) in caches.fixed(cache).items():
            held = places >= 0
            if mask is not None:
                room = functional.pad(mask.bool(), (0, places.shape[1] - mask.shape[1]))
                held = held & room.gather(1, places.clamp_min(0))
            turn.held[layers] = held, lag
        self._live.turn = turn
        caches.follow(cache, True)
        return True

    @_apart
    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any], compiled: bool) -> None:
        """Before the base model: columns with visual tokens make a Prompt, a later step finds it in its cache."""
        if getattr(self._live, "paused", False):
            return
        self._forget()
        drafts = vars(self._live).pop("drafts", 0)
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids, cache, mask = given.get("input_ids"), given.get("past_key_values"), given.get("attention_mask")
        new = ids if ids is not None else given.get("inputs_embeds")
        if new is None:
            return  # the model says what is missing
        prompt, width = caches.owned(cache), new.shape[1]
        step = prompt is not None and width == 1 and mask is not None  # a decode step that need not ask the cache
        past = 0 if step or cache is None else int(cache.get_seq_length())
        mask = inputs.columns(mask, past, width)
        total = mask.shape[1] if isinstance(mask, Tensor) else past + width
        turn = _Turn(prompt, mask, total, cache=cache)
        fed = not step and any(inputs.pictures(value) for name, value in given.items() if name not in self._words)
        # Without pictures a placeholder of a later pass is a word like any other: drafted, say. But transformers 5.19
        # loses the pictures of a prompt that it prefills in chunks: what follows such a prompt may be more of it.
        brings = fed or (prompt is not None and prompt.bare)
        starts = not step and (not past or (ids is not None and width > 1 and brings and self._shows(ids)))
        reason = inputs.refusal(
            mask,
            cache,
            packed=given.get("cu_seq_lens_q") is not None,
            causal=step or (given.get("is_causal") is not False and getattr(self.text, "is_causal", True)),
            flash="flash" in self.text._attn_implementation,
            starts=starts,
            compiled=compiled,
        )
        if starts and ids is None and (ids := self._recovered(new)) is None:
            reason = (
                "it needs input_ids to see which columns are visual, got inputs_embeds without a row that is the "
                "embedding of a placeholder; pass input_ids, or such embeddings together with the pictures"
            )
        if (starts or prompt is not None) and reason:
            pruned = prompt is not None and prompt.pruned
            if ids is not None and not pruned and not (starts and self._shows(ids)):
                return  # no picture: nothing to prune, nothing to refuse
            raise PromptError(f"pruning cannot read these inputs: {reason}")
        if starts and ids is not None:
            self.state = turn.prompt = self._plan(
                module,
                args,
                kwargs,
                ids,
                turn,
                start=past,
                positions=given.get("position_ids"),
                drafts=drafts,
                fed=fed,
            )
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
                self._running[turn] = threading.current_thread()
                self._live.turn = turn
                self._hook(turn)
            turn.after.callback(caches.follow, cache, False)
            caches.follow(cache, True)
            for block in () if turn.prefill else range(self._first, len(self.blocks)):
                self._held(turn, block, new.device)  # what follows may be compiled: no sizes of this prompt in there

    def _recomputed(self) -> bool:
        """Whether the backward pass will run blocks with their hooks again; later transformers leave hooks out."""
        checkpointed = any(block.training and getattr(block, "gradient_checkpointing", False) for block in self.blocks)
        return checkpointed and torch.is_grad_enabled() and "__call__" in vars(GradientCheckpointingLayer)

    def _shows(self, ids: Tensor) -> bool:
        return bool(self.adapter.visual(self.config, ids).any())

    def _recovered(self, embeds: Float[Tensor, "b s d"]) -> Int[Tensor, "b s"] | None:
        """Token ids read back from embeddings, as models look for placeholders: -1 for text, None without any."""
        table: nn.Module = self.base.get_input_embeddings()  # type: ignore[operator]
        every = torch.arange(self.text.vocab_size, device=embeds.device)
        ids = embeds.new_full(embeds.shape[:2], -1, dtype=torch.long)
        for mark in every[self.adapter.visual(self.config, every)]:
            ids = ids.where((embeds != table(mark)).any(-1), mark)
        return ids if (ids >= 0).any() else None

    def _plan(
        self,
        module: nn.Module,
        args: Any,
        kwargs: Any,
        ids: Tensor,
        turn: _Turn,
        start: int,
        positions: Tensor | None,
        drafts: int,
        fed: bool,
    ) -> Prompt:
        """The state of a new prompt batch, `start` columns into its conversation; without stages if nothing drops."""
        valid = torch.ones_like(ids, dtype=torch.bool)
        if turn.attention_mask is not None:
            valid = turn.attention_mask[:, start : start + ids.shape[1]].to(ids.device, torch.bool)
        visual = self.adapter.visual(self.config, ids) & valid
        columns = torch.arange(ids.shape[1], device=ids.device)
        after = valid & (columns > torch.where(visual, columns, -1).amax(1, keepdim=True))
        if turn.prompt and turn.prompt.end == start and (turn.prompt.visual[:, -1] & visual[:, 0]).any():
            ends = start + int(visual.cumprod(1).sum(1).max())
            size = f"at least {ends}, which ends after this one" if ends < start + ids.shape[1] else "the whole prompt"
            raise PromptError(
                "a picture was split between two passes, so its tokens cannot be compared: leave prefill_chunk_size at "
                f"None, or choose {size}"
            )
        restarts = torch.zeros_like(valid)  # of positions, within a row
        if positions is not None:
            # M-RoPE: text or time comes first
            positions = positions.reshape(-1, *positions.shape[-2:])[0].to(ids.device)
            restarts[:, 1:] = (positions[:, 1:] < positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]
        numbers = torch.stack([tensor.sum(1) for tensor in (valid, visual, after, restarts)])
        lengths, counts, question, packed = numbers.tolist()  # the one sync
        if any(counts) and any(packed):
            raise PromptError(f"pruning cannot read these inputs: {inputs.PACKED}")
        if self.ecl is None and any(counts) and any(step.schedule.needs_ecl for step in self.recipe.decoder_passes):
            self.ecl = self._find_ecl(module, visual, args, kwargs)
        if any(n and drafts > text for n, text in zip(counts, question, strict=True)):
            drafts = 0  # logits of more than the picture's last token are asked for: nobody drafted that
        stages = {}
        if self.tower is None:  # else `_close` says how many tokens there are
            stages = plan_stages(self.recipe, len(self.blocks), counts, self.ecl, self.budget)
        return Prompt(
            ids=ids,
            visual=visual,
            full_view=View.full(valid, lengths),
            counts=tuple(counts),
            question=tuple(question),
            stages=stages,
            start=start,
            earlier=turn.prompt,
            drafts=drafts,
            bare=not fed and any(counts),
        )

    def _find_ecl(self, module: nn.Module, visual: Tensor, args: Any, kwargs: dict[str, Any]) -> int:
        """One extra unpruned prefill; its first prompt with a picture decides. Remembered, and said once."""
        if self.tower is not None:
            raise LayerError(
                "the Entropy Collapse Layer of this model is not known, and it is not measured on pictures that passes "
                "inside the vision tower have thinned out: run `tokenprune calibrate` first, or give a layer"
            )
        parallel.check_extra_pass(self.model)
        self._live.paused = True
        try:
            alone = {**kwargs, "use_cache": False, "past_key_values": None}
            entropies = ecl.layer_entropies(
                self.adapter, self.decoder, lambda: visual, lambda: module(*args, **alone), ranks=self.ranks
            )
        finally:
            self._live.paused = False
        found = ecl.collapse(entropies)
        path = ecl.remember(self.model, self.adapter, entropies)
        log.warning(
            "Entropy Collapse Layer, measured on this model's first prompt: %s; the schedule `ecl` prunes there, %s",
            found.tell(),
            f"remembered in {path}" if path else "not remembered (cache not writable, or weights offloaded)",
        )
        return self._agreed(found.layer)

    def _agreed(self, layer: int) -> int:
        """The first rank's, under tensor parallelism: each looks in a cache directory of its own."""
        if self.ranks.group is None:
            return layer
        return int(self.ranks.agree(torch.tensor(layer, device=next(self.decoder.parameters()).device)))

    def _look(self, turn: _Turn, layer: int, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        """After a projection of block `layer - 1`: keep what the model computed, for the stage at `layer`."""
        if turn is self._turn:  # and not of a pass in another thread
            turn.looked[layer, name] = output

    def _embed(self, turn: _Turn, module: nn.Module, args: Any) -> None:
        """Before block 0: keep what enters it, for scorers that ask."""
        if turn is self._turn:
            turn.embedded = args[0]

    def _enter(self, block: int, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """Before a block: prune if its stage is here; then let it see its view and nothing else."""
        turn = self._turn
        if turn is None or kwargs is None:  # torch runs a hook that another thread registers without them for a moment
            return None
        hidden, prompt = args[0], turn.prompt
        turn.cache = kwargs.get("past_key_values")
        tower = self.tower if turn.prefill and not block else None
        if tower is not None or (turn.prefill and block in prompt.stages and not turn.masks):
            self._check_blocks(turn, hidden, kwargs)
        if tower is not None:
            hidden = self._close(turn, tower, hidden, kwargs)
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

    def _check_blocks(self, turn: _Turn, hidden: Float[Tensor, "b s d"], kwargs: Mapping[str, Any]) -> None:
        """Refuse what the model made for its blocks, where pruning cannot go on from it."""
        width, tables = hidden.shape[1], kwargs["position_embeddings"][0].shape[-2]
        if tables != width:
            raise PromptError(
                f"the model made rotary tables of {tables} columns for {width} new ones, which no block can use: pass "
                "position_ids of the new columns"
            )
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4:
            reason = (
                "the masks that this decoder makes are not causal, and those of pruning are: this pass's outputs and "
                "cache are not to be used"
            )
            turn.flags.append((PromptError(reason), inputs.causal(mask, turn.prompt.start, width)))

    def _close(self, turn: _Turn, tower: VisionPruner, hidden: Float[Tensor, "b s d"], kwargs: Any) -> Tensor:
        """Before block 0: take out the holes that passes inside the vision tower left, then plan the decoder's stages.

        The tower's stages are those before layer 0: its last one, before the projector, has the number -1.
        """
        prompt, everything = turn.prompt, turn.prompt.full_view.to(hidden.device)
        gone, left = tower.read(hidden, prompt.visual.to(hidden.device))
        before, view, local = prompt.counts, everything, None
        for layer, (step, kept) in enumerate(left):
            if kept != before:
                lengths = [every - n + k for every, n, k in zip(everything.lengths, prompt.counts, kept, strict=True)]
                view, local = everything.narrow(everything.valid & (gone > layer), lengths)
                at = layer - tower.depth
                prompt.stages[at] = Stage(step, before, kept, vision_layer=layer)
                prompt.views[at], before = view, kept
        depth = len(self.blocks)
        prompt.stages.update(plan_stages(self.recipe, depth, before, self.ecl, self.budget, whole=prompt.counts))
        self._hook_projections(turn)
        if max(prompt.stages, default=-1) >= 0:
            turn.embedded = hidden.masked_fill((gone < tower.depth)[..., None], 0)
        if local is None:
            return hidden
        if any(prompt.ends):  # one more sync, but prompts that end so are rare
            last = torch.where(prompt.visual, torch.arange(gone.shape[1], device=prompt.visual.device), 0).amax(1)
            went = gone.gather(1, last.to(gone.device)[:, None])[:, 0] < tower.depth
            if (went & torch.tensor(prompt.ends, device=gone.device)).any():
                raise PromptError(
                    "a prompt ends with its picture, and passes inside the vision tower dropped the last of its "
                    "tokens, from which the answer is read: let words follow the picture"
                )
        hidden = ops.gather_columns(hidden, local)
        hidden = hidden.masked_fill(~view.valid[..., None], 0) if view.padded else hidden
        turn.rotary[prompt.layers(0)] = self._rotary(turn, 0, hidden, kwargs)
        return hidden

    def _held(self, turn: _Turn, block: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """The 2-D mask over what a block holds, and how many positions it lags behind if those are compact."""
        prompt = turn.prompt
        layers = prompt.layers(block)
        if layers not in turn.held:
            mask = prompt.mask(block, turn.attention_mask, turn.total, device)
            if mask is not None and (room := caches.room(turn.cache)):
                mask = functional.pad(mask, (0, room - mask.shape[1]))
            compact = any(earlier.compact(block) is not None for earlier in prompt.conversation())
            turn.held[layers] = mask, prompt.dropped(block, device, turn.spared) if compact else None
        return turn.held[layers]

    def _mask(self, turn: _Turn, block: int, hidden: Tensor) -> Any:
        """The causal mask of this forward pass for a block, in whatever form the attention backend wants."""
        cache = None if turn.cache is None else caches.PhysicalLength(turn.cache, block)
        return create_causal_mask(
            config=self.text,
            inputs_embeds=hidden,
            attention_mask=self._held(turn, block, hidden.device)[0],
            past_key_values=cache,
            and_mask_function=self._without_spared(turn, block, hidden, 0 if cache is None else cache.length),
            layer_idx=block,
        )

    def _spared(self, turn: _Turn, block: int, device: torch.device) -> Bool[Tensor, "b 1"]:
        """For which prompts this block has a column of `turn.spared`."""
        rows = [turn.spared.get(row, len(self.blocks)) <= block for row in range(len(turn.prompt.counts))]
        return torch.tensor(rows, device=device)[:, None]

    def _without_spared(self, turn: _Turn, block: int, hidden: Tensor, past: int) -> Callable[..., Any] | None:
        """What hides `turn.spared` from the drafts that follow; None where there are no such columns."""
        if not turn.spared or not turn.prompt.drafts:
            return None
        if "flash" in self.text._attn_implementation:
            raise PromptError(
                "a prompt ends with its picture and brings drafts along, from which flash attention cannot hide the "
                "picture's last token: use sdpa, decode without drafts, or let words follow the picture"
            )
        rows, column = self._spared(turn, block, hidden.device)[:, 0], past + hidden.shape[1] - 1 - turn.prompt.drafts
        return lambda b, h, q, kv: (kv != column) | (q <= column) | ~rows[b]

    def _hide_spared(self, turn: _Turn) -> None:
        """After the pass nobody sees them any more: they were dropped."""
        prompt = turn.prompt
        for row, since in turn.spared.items():
            for layer, view in prompt.views.items():
                if layer >= since:
                    valid, lengths = view.valid.clone(), list(view.lengths)
                    valid[row, view.width - 1 - prompt.drafts] = False
                    lengths[row] -= 1
                    prompt.views[layer] = replace(view, valid=valid, lengths=tuple(lengths))

    def _rotary(self, turn: _Turn, block: int, hidden: Tensor, kwargs: dict[str, Any]) -> RotaryTables:
        """Rotary tables of the columns a block sees: those of their old places, or of new ones if compact."""
        cos, sin = (table.to(hidden.device) for table in kwargs["position_embeddings"])  # blocks may lie apart
        prompt, lag = turn.prompt, self._held(turn, block, hidden.device)[1]
        pruned = turn.prefill and prompt.layer(block) is not None
        view = prompt.seen(block).to(hidden.device) if pruned else None
        if lag is not None and kwargs["position_ids"] is not None:
            positions = kwargs["position_ids"].to(hidden.device) - lag.to(hidden.device)
            if view is not None:  # not every dropped token of this prompt lies before each kept one
                freed = prompt.freed(block, hidden.device, turn.spared)
                positions = (positions + freed[:, -1:] - freed).gather(1, view.index)
            renumbered = self.adapter.rotary(self.decoder, hidden, positions.clamp_min(0))
            if renumbered is not None:
                return renumbered
        if view is None:
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
        for spared in turn.spared:
            visual[spared, view.width - 1 - prompt.drafts] = False
        places = visual.int().argsort(dim=1, stable=True)  # visual columns stand last, in order
        keep = view.valid & ~visual
        scores = torch.full(prompt.ids.shape, torch.nan, dtype=torch.float32, device=hidden.device)
        lengths = [length - n + kept for length, n, kept in zip(view.lengths, stage.before, stage.kept, strict=True)]
        for row, (n, kept) in enumerate(zip(stage.before, stage.kept, strict=True)):
            at = places[row, view.width - n :]
            if kept < n:
                seen = self._seen(turn, layer, row, view, at, hidden, tables)
                chosen, folded, score = self._select(turn, stage, row, seen)
                scores[row].index_copy_(0, view.index[row, at], score.float())
                last, before = at[n - 1 :], hidden
                if folded is not None:
                    hidden = hidden.clone()
                    hidden[row].index_copy_(0, at, folded)
                at = at[chosen]
                if prompt.ends[row] and row not in turn.spared and not (at == last).any():  # asked of few prompts
                    turn.spared[row] = layer
                    lengths[row] += 1
                    at = torch.cat([at, last])
                    if folded is not None:
                        hidden[row].index_copy_(0, last, before[row][last])
            keep[row].index_fill_(0, at, True)
        narrowed, local = view.narrow(keep, lengths)
        prompt.views[layer], prompt.scores[layer] = narrowed, scores
        for key in [key for key in turn.looked if key[0] == layer]:
            del turn.looked[key]
        if layer == max(prompt.stages):
            turn.embedded = None
        hidden = ops.gather_columns(hidden, local)
        return hidden.masked_fill(~narrowed.valid[..., None], 0) if narrowed.padded else hidden

    def _select(
        self, turn: _Turn, stage: Stage, row: int, seen: Seen
    ) -> tuple[Int[Tensor, "j"], Float[Tensor, "n d"] | None, Float[Tensor, "n"]]:
        """Which of one prompt's visual tokens stay (in order), all of them after merging, if any, and their scores."""
        where = f"at layer {seen.layer}, prompt {row},"
        scorer, merger = stage.step.scorer, stage.step.merger
        who = spell_part("scorer", type(scorer), where)
        with torch.no_grad():
            score = self._call(turn, who, seen, partial(scorer.score, seen))  # type: ignore[union-attr]
            guard.check(who, "one number per visual token", score, seen.visual, guard.NUMBERS)
            turn.flags.append((guard.broken(who, guard.NAN), ~score.isnan().any()))
            score = self.ranks.agree(score)
            chosen = score.argsort(descending=True, stable=True)[: seen.keep].sort().values
        if merger is None:
            return chosen, None, score
        who, hidden = spell_part("merger", merger, where), seen.hidden
        seen = replace(seen, scores=guard.own(score))
        folded = self._call(turn, who, seen, partial(merger, hidden, chosen, seen))
        guard.check(who, "as many rows as it got", folded, hidden, (hidden.dtype,))
        turn.flags.append((guard.broken(who, guard.NAN), ~folded.isnan().any()))
        return chosen, folded, score

    def _call(self, turn: _Turn, who: str, seen: Seen, part: Callable[[], Any]) -> Any:
        """What a scorer or merger gives, of what `_seen` shows it."""
        return guard.call(who, part, (seen.ids, seen.states, turn.embedded, *turn.looked.values()))

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
        real: Any = slice(view.width - prompt.drafts)
        if length != view.width:
            real = view.valid[row].int().argsort(stable=True)[-length:][: length - prompt.drafts]
        states = guard.own(hidden[row][real])
        cos, sin = (table[min(row, len(table) - 1)].to(hidden.device)[real] for table in tables)
        attention = self.adapter.attention(self.blocks[layer])

        def heads(name: str, flat: Float[Tensor, "r w"]) -> Float[Tensor, "heads r dh"]:
            return self.ranks.all_heads(name, attention.heads(flat))

        def looked(name: str, rows: Tensor | None) -> Tensor:
            mine = turn.looked[layer, name][row][real]
            return heads(name, guard.own(mine) if rows is None else mine[rows])

        def following(name: str, rows: Tensor | None) -> Tensor:
            return heads(name, attention.project(name, states if rows is None else states[rows]))

        def rotate(heads_rows: Tensor, rows: Tensor | None) -> Tensor:
            picked = (cos, sin) if rows is None else (cos[rows], sin[rows])
            return attention.rotate(heads_rows, *picked)

        def past(which: str) -> tuple[Tensor, Tensor]:
            block = layer if which == "next" else layer - 1
            held = prompt.mask(block, turn.attention_mask, turn.total, hidden.device)
            keys = caches.keys(turn.cache, block, row, hidden.device)
            keys = keys if which == "next" else keys[:, : -view.width]  # that block added its own already
            every = torch.ones(keys.shape[1], dtype=torch.bool, device=keys.device)
            return self.ranks.all_heads("keys", keys), every if held is None else held[row, : keys.shape[1]]

        full, width = prompt.full_view.lengths[row], prompt.full_view.width
        every: Any = slice(width - prompt.drafts)
        if full != width:
            every = prompt.full_view.valid[row].int().argsort(stable=True)[-full:][: full - prompt.drafts]
        ids = prompt.ids[row][every]
        question = prompt.question[row] - prompt.drafts

        def embedded() -> tuple[Tensor, Tensor]:
            assert turn.embedded is not None  # `_embed`; until the last stage is over
            entered, marked = turn.embedded[row], prompt.visual_after_vision[row][every]
            entered = entered[every if isinstance(every, slice) else every.to(entered.device)]
            shown = marked.int().argsort(stable=True)[len(marked) - prompt.count_after_vision[row] :]
            return guard.own(entered.to(hidden.device)), shown.to(hidden.device)

        @cache
        def look() -> Vision:
            return self.recorder.find(states[rank[at]])  # type: ignore[union-attr]

        def spell() -> str:
            reader = getattr(self.processor, "tokenizer", self.processor)
            asked = ids[len(ids) - question :].tolist()
            if any(token < 0 for token in asked):
                raise PromptError("the scorer reads the question as text: pass input_ids, not embeddings alone")
            return str(reader.decode(asked, skip_special_tokens=True))

        rank = view.valid[row].cumsum(0) - 1  # column of the view -> place among the real ones
        place = prompt.full_view.valid[row].cumsum(0) - 1  # column of the prompt -> place among its real ones
        return Seen(
            layer=layer,
            keep=prompt.stages[layer].kept[row],
            ids=guard.own(ids.to(hidden.device)),
            columns=place.to(hidden.device)[view.index[row, at]],
            visual=rank[at],
            question=question,
            states=states,
            previous=looked if layer else None,
            following=following,
            past=past if prompt.start else None,
            rotate=rotate,
            scaling=attention.scaling,
            norm=partial(self.adapter.norm, self.decoder),
            embedded=embedded,
            look=look if self.recorder is not None and not layer else None,
            spell=spell if self.processor is not None else None,
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

    def _spread(self, prompt: Prompt, ran: int, hidden: Tensor | None) -> Tensor | None:
        """Hidden states after `ran` blocks, each row at its prompt column."""
        view = prompt.seen(max(ran - 1, 0))
        if hidden is None or view is prompt.full_view:
            return hidden
        view = view.to(hidden.device)
        hidden = hidden.masked_fill(~view.valid[..., None], 0) if view.padded else hidden
        full = hidden.new_zeros(hidden.shape[0], view.span, hidden.shape[-1])
        return full.scatter(1, view.index[..., None].expand_as(hidden), hidden)

    def _leave_base(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the base model, also after an exception."""
        turn = self._turn
        if turn is not None and turn.traced:
            caches.follow(turn.cache, False)
            self._live.turn = None
        elif turn is not None:
            self._end(module, args, output)

    @_apart
    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the base model, also after an exception: nothing of this pass stays behind but what the cache owns."""
        if getattr(self._live, "paused", False):
            return
        turn = self._turn
        self._forget()
        if turn is None or output is None:
            return
        self._hide_spared(turn)
        if turn.prefill and turn.cache is not None:
            caches.own(turn.cache, turn.prompt)
        guard.settle(turn.flags if turn.prompt.views else ())
