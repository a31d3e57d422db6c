"""A recipe on a model: hooks attached and removed, in any thread. What they do stands in `decoder/` and `vision/`.

Nothing is patched or subclassed and no attribute is left on a module.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from .amounts import Budget
from .decoder import additions, forward, inputs, masks
from .decoder.inputs import PassInput
from .decoder.pipeline import Pipeline, assemble
from .decoder.run import ForwardPass
from .errors import AlreadyPrunedError
from .model.anatomy import Anatomy
from .model.taps import BlockHooks, Live, Taps
from .parts.adapter import Adapter
from .recipe import Recipe
from .state import cache as caches
from .state.prompt import Prompt
from .vision.forward import VisionPruner
from .vision.recorder import Recorder

PREFILL_OUTSIDE = (
    "pruning prepares prompts outside of compiled code. With fullgraph=True compile decode steps only, by "
    "cache_implementation='static' in generate; else leave fullgraph at False"
)
_apart: Any = torch.compiler.disable
if "reason" in inspect.signature(torch.compiler.disable).parameters:  # torch 2.6 has nowhere to say it
    _apart = partial(torch.compiler.disable, reason=PREFILL_OUTSIDE)


class Pruner:
    """Injects a recipe into a model with forward hooks, and takes it out again.

    Use `tokenprune.prune` or `.attach`. Passes of several threads may run at once; each finds its own in `live`.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        adapter: Adapter,
        budget: Budget | None = None,
        processor: Any = None,
    ) -> None:
        self.anatomy = Anatomy.of(model, adapter)
        self.recipe, self.budget, self.processor = recipe, budget, processor
        self._pipeline: Pipeline | None = None
        self.live = Live()
        self.state: Prompt | None = None  # the last prompt batch
        self._hooks = ExitStack()
        self._blocks = BlockHooks(self.anatomy.blocks, self._block_hook)
        self._compiled = _is_compiled(self.anatomy)
        self._attached = False
        self._running: dict[ForwardPass, threading.Thread] = {}  # passes, and who runs them
        self._idle = threading.Condition()  # guards these two and the hooks

    # -- in and out ----------------------------------------------------------------------------------------------

    def attach(self) -> Pruner:
        """Register the hooks.

        Raises:
            AlreadyPrunedError: the model is inside another pruning block.
            UnsupportedModelError: its decoder does something pruning cannot follow.
            LayerError: the recipe names a layer the model does not have, or a block that its vision tower does not.
        """
        _refuse_twice(self.anatomy)
        self._pipeline = assemble(self.anatomy, self.recipe, self.budget, self.processor, self.live)
        anatomy = self.anatomy
        with ExitStack() as undo:
            undo.callback(self._hooks.close)
            for part in self._wings():
                part.attach(self._add)
            for outer in anatomy.model.modules():
                if any(part is anatomy.base for part in outer.children()):
                    self._add(outer.register_forward_pre_hook(self._before_outer, with_kwargs=True))
            self._add(anatomy.base.register_forward_pre_hook(self._before_base, with_kwargs=True))
            self._add(anatomy.base.register_forward_hook(self._after_base, always_call=True))
            self._add(anatomy.decoder.register_forward_hook(self._after_decoder))
            undo.pop_all()
        torch.compiler.reset()  # compiled code does not notice hooks that come or go: have it compiled anew
        self._attached = True
        return self

    @property
    def pipeline(self) -> Pipeline:
        """The recipe on this model, from the first `attach` on."""
        assert self._pipeline is not None
        return self._pipeline

    def _wings(self) -> list[VisionPruner | Recorder]:
        """What hooks vision towers."""
        parts = () if self._pipeline is None else (self._pipeline.recorder, self._pipeline.vision)
        return [part for part in parts if part is not None]

    def remove(self) -> None:
        """Take every hook out, when passes that run in other threads are through.

        The last `state` stays readable; caches pruned so far stay valid inside a new block.
        """
        self._end()
        with self._idle:
            self._attached = False
            try:
                while any(thread.is_alive() for thread in self._running.values()):
                    self._idle.wait(0.1)  # a thread that was killed in its pass tells nobody
            finally:
                while self._running:
                    _close(self._running.popitem()[0])
                self._hooks.close()
                self._blocks.close()
                for part in self._wings():
                    part.close()
                torch.compiler.reset()

    def _add(self, handle: Any) -> None:
        self._hooks.callback(handle.remove)

    # -- one forward pass ----------------------------------------------------------------------------------------

    def _before_outer(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the model with its head: who asks for more logits than the last has drafts there to check."""
        if not torch.compiler.is_compiling():  # no prefill
            self.live.drafts = _drafts(kwargs)

    def _before_base(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before the base model. Nothing behind this can tell whether the pass runs in code of torch.compile."""
        arguments = {**dict(zip(self.anatomy.base_arguments, args, strict=False)), **kwargs} if args else kwargs
        if not torch.compiler.is_compiling():
            self._begin(arguments, False)
        elif not self._traced(arguments):
            self._begin_apart(arguments, True)

    def _begin(self, arguments: Mapping[str, Any], compiled: bool) -> None:
        """A pass that runs as it stands, or up to here."""
        live = self.live
        if live.paused:
            return
        self._end()
        drafts, live.drafts = live.drafts or _drafts(arguments), 0  # the base may have a head of its own
        given = inputs.read(arguments, self.anatomy, drafts, compiled)
        if given is None:
            return
        live.paused = True  # a fact may be measured now, in passes of its own
        try:
            made = forward.before_model(self.pipeline, given)
        finally:
            live.paused = False
        if made.prefill:
            self.state = made.prompt
        with self._idle:
            if not self._attached:
                return  # the block was left while this pass began
            self._running[made] = threading.current_thread()
            live.forward_pass = made
            self._hook(made, given, compiled)
        caches.mark_active(given.cache, True)

    _begin_apart = _apart(_begin)

    def _hook(self, made: ForwardPass, given: PassInput, compiled: bool) -> None:
        """Hook the blocks that this pass needs, and in a prefill what its stages look at.

        A decode step where nothing is hidden needs none: blocks that hold fewer columns get what the model gives all.
        One block is watched, to see whether the model does find something to hide.
        """
        if made.prefill:
            self._compiled = _is_compiled(self.anatomy)
            made.taps = Taps(lambda: self.live.forward_pass is made)
            forward.capture(made)
            if made.prompt.stages or self.pipeline.vision is not None:
                additions.take_over(made)
            first = 0 if self.pipeline.vision is not None else min(map(_block, made.prompt.stages), default=None)
            earlier = made.prompt.first_pruned
            first = min((each for each in (first, earlier) if each is not None), default=None)
        else:
            first = made.prompt.first_pruned
        if first is None:
            return
        compiled = compiled or self._compiled or caches.room(made.cache) is not None
        compiled = compiled or self.anatomy.blocks[first]._compiled_call_impl is not None  # since the prefill
        step = not made.prefill and given.width == 1
        made.as_unpruned = step and not compiled and self._plain(made)
        if made.as_unpruned:
            self._blocks.watch(first)
        else:
            self._blocks.hook(first, keep=compiled)
        if compiled and not made.prefill:  # what follows may be traced: no sizes of this prompt in there
            for block in range(first, self.anatomy.depth):
                masks.held(made, block, given.device)

    def _plain(self, made: ForwardPass) -> bool:
        """Whether later passes go as if nothing was dropped, as far as anybody knows now."""
        return self.anatomy.uniform and made.prompt.plain

    def _traced(self, arguments: Mapping[str, Any]) -> bool:
        """`_begin` of a decode step on a static cache, as torch.compile traces it; False if it is something else."""
        new, cache = arguments.get("input_ids"), arguments.get("past_key_values")
        new = new if new is not None else arguments.get("inputs_embeds")
        if new is None or new.shape[1] != 1 or caches.room(cache) is None or self.live.forward_pass is not None:
            return False
        prompt, first = caches.owned(cache), caches.first_pruned(cache)
        if prompt is None or first is None:
            return True
        mask = inputs.columns_of(arguments.get("attention_mask"), 0, 1)
        plain = mask is None or (isinstance(mask, torch.Tensor) and mask.ndim == 2)
        if not plain or first < self._blocks.first:
            return False
        made = ForwardPass(self.pipeline, None, prompt, cache=cache)
        made.held = masks.held_in_static_cache(cache, mask)
        self.live.forward_pass = made
        caches.mark_active(cache, True)
        return True

    def _block_hook(self, number: int) -> Callable[..., Any]:
        """The hook of a block. In a decode step blocks get what the first of their type got: that must be quick."""
        live, kind = self.live, self.anatomy.kinds[number]

        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
            made = live.forward_pass
            if made is None or kwargs is None:  # torch calls a hook that another thread registers so for a moment
                return None
            if number < made.until and not made.prefill and kind in made.changed:
                changed = made.changed[kind]
                return None if changed is None else (args, {**kwargs, **changed})
            return self._before_block(number, made, args, kwargs)

        return hook

    def _before_block(self, number: int, made: ForwardPass, args: Any, kwargs: dict[str, Any]) -> Any:
        """Before a decoder block of a prefill, or the first one of those that see alike in a later pass."""
        if made.as_unpruned:
            if kwargs.get("attention_mask") is None:
                return None  # the model found nothing to hide, and nothing else is different
            made.as_unpruned = False
            with self._idle:
                self._blocks.hook(number, keep=False)
        changed = forward.before_block(made, number, args[0], args[1:], kwargs)
        if made.prefill:
            self.state = made.prompt
        return changed

    def _after_decoder(self, module: nn.Module, args: Any, output: Any) -> Any:
        made = self.live.forward_pass
        return None if made is None else forward.after_decoder(made, output)

    def _after_base(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the base model, also after an exception: nothing of the pass stays but what the cache owns."""
        made = self.live.forward_pass
        if made is not None and made.given is None:
            caches.mark_active(made.cache, False)
            self.live.forward_pass = None
        elif made is not None:
            (self._finish_apart if torch.compiler.is_compiling() else self._finish)(made, output)

    def _finish(self, made: ForwardPass, output: Any) -> None:
        if self.live.paused:
            return
        self._end()
        if output is not None:
            try:
                forward.after_model(made)
            finally:
                if made.prefill:
                    self.state = made.prompt

    _finish_apart = _apart(_finish)

    def _end(self) -> None:
        """End this thread's pass; also one that Ctrl-C left behind, after which torch runs no hook."""
        made, self.live.forward_pass = self.live.forward_pass, None
        if made is None:
            return
        _close(made)
        with self._idle:
            self._running.pop(made, None)
            first = made.prompt.first_pruned
            if not self._running and first is not None and (made.as_unpruned or (made.prefill and self._plain(made))):
                self._blocks.rest(first)
            self._idle.notify_all()


def _drafts(arguments: Mapping[str, Any]) -> int:
    """How many logits besides the last one are asked for."""
    keep = arguments.get("logits_to_keep")
    return keep - 1 if isinstance(keep, int) and keep > 1 else 0


def _block(layer: int) -> int:
    return max(layer, 0)


def _close(made: ForwardPass) -> None:
    if made.taps is not None:
        made.taps.close()
    if made.given is not None:
        caches.mark_active(made.given.cache, False)


def _refuse_twice(anatomy: Anatomy) -> None:
    """Raise AlreadyPrunedError if another block has its hooks here."""
    if any(isinstance(getattr(hook, "__self__", None), Pruner) for hook in anatomy.base._forward_pre_hooks.values()):
        raise AlreadyPrunedError(
            "this model is already being pruned: leave the other block (or call its handle's remove()) first, or "
            "write both steps as passes of one recipe"
        )


def _is_compiled(anatomy: Anatomy) -> bool:
    """Whether torch.compile was put on something around the blocks: it does not notice hooks that come and go."""
    around = (anatomy.model, anatomy.base, anatomy.decoder, *anatomy.blocks)
    return any(
        getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(part, "_orig_mod")
        or hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for part in around
    )
