"""Passes inside the vision tower: tokens are dropped or merged while pictures are encoded.

One encoding, in order: `_start` (before the tower) hooks the blocks it has now; `_enter` (before each block) and
`_project` (before the projector, which counts as the last block) rank, fold and drop, and let the block see the rows
that are left; `_land` (after the projector) gives the rows their old places back. Between them stand holes: rows of
NaN, so that placeholders still match, every packing and cropping may follow, and a leak is loud. The first channels of
a hole say before which block its token went, by which pass, and whose hole it is. The engine takes the holes out before
decoder block 0, where `VisionPruner.read` reads them.

What is true of one encoding goes with its rows or its object, and nowhere else: a picture whose scorer broke its word
is all holes, which say so; a picture that lost nothing has no hole, so its rows are known by their bits
(`encodings.py`). Threads, prompts and encodings that nobody uses cannot mix.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import ops
from ..errors import PromptError, ScorerError, UnsupportedModelError
from ..parts import guard
from ..parts.vision import BlockRun, Call, VisionAdapter
from ..plan.stages import Stage
from ..recipe import VisionPass
from ..registry import spell_part
from ..seen.pictures import Pictures, Ranking
from ..seen.vision import VisionBlock
from .match import Encodings, Landed

Plan = Callable[[int, Sequence[int]], dict[int, Stage]]
"""`plan(depth, counts)`: stages of pictures of so many tokens, by layer of a tower so deep."""

_HOW = (None, guard.NAN, guard.LOST)
"""What a hole may say of its picture's scorer: nothing, or what it did."""


@dataclass(eq=False)
class _Group:
    """Pictures of one size, and what is left of each. A slot is a CLS row or a token, counted in its picture."""

    members: list[int]  # which pictures of the run
    slots: Int[Tensor, "u l"]
    sizes: Float[Tensor, "u l"]  # how many tokens each stands for
    wrong: Int[Tensor, "u"]  # what a scorer did wrong first, as a hole says it; 0: nothing

    @property
    def left(self) -> int:
        return self.slots.shape[1]


class _Run:
    """One encoding: its pictures, in groups by size."""

    def __init__(self, tower: nn.Module, call: Call) -> None:
        self.tower, self.call = tower, call
        self.hooks = ExitStack()
        self.stages: dict[int, Stage] = {}
        self.counts: list[int] = []  # slots of each picture, as it came
        self.groups: list[_Group] = []
        self.cls = 0  # 1 where a CLS row is the first slot
        self.unit = 1  # rows of a slot
        self.said: Int[Tensor, "s"] = torch.empty(0)  # of every slot that came: what its hole says, -1 if it is left
        self.landed = Landed()
        self.kept: Int[Tensor, "r"] | None = None  # rows that are left, counted in those that came; None: all
        self.calls: dict[tuple[int, ...], tuple[Call, Call]] = {}  # of blocks, by the identity of what is in them
        self.weighed = False  # whether attention is proportional to sizes
        self.looked: dict[str, Tensor] = {}  # projections of the block before a stage
        self.last: tuple[Call, Tensor] | None = None  # its call and output
        self.over = False

    def begin(self, counts: Sequence[int], unit: int, rows: int, device: torch.device) -> None:
        self.unit, self.cls = unit, (rows - unit * sum(counts)) // len(counts)
        self.counts = [count + self.cls for count in counts]
        self.said = torch.full((sum(self.counts),), -1, device=device)
        for count in dict.fromkeys(self.counts):
            members = [number for number, other in enumerate(self.counts) if other == count]
            slots = torch.arange(count, device=device).expand(len(members), count)
            wrong = torch.zeros(len(members), dtype=torch.long, device=device)
            self.groups.append(_Group(members, slots, torch.ones(slots.shape, device=device), wrong))

    def strip(self) -> None:
        """Forget the CLS rows: the model has cut them off."""
        for group in self.groups:
            group.slots, group.sizes = group.slots[:, 1:] - 1, group.sizes[:, 1:]
        self.said, self.cls = torch.cat([slots[1:] for slots in torch.split(self.said, self.counts)]), 0
        self.counts = [count - 1 for count in self.counts]

    def starts(self, whole: bool = False) -> list[Int[Tensor, "u"]]:
        """By group, the first slot of each picture, counted in all slots that are left or that came."""
        if len(self.groups) == 1:
            (group,) = self.groups
            step = self.counts[0] if whole else group.left
            return [torch.arange(len(group.members), device=group.slots.device) * step]
        lengths = list(self.counts)
        for group in () if whole else self.groups:
            for number in group.members:
                lengths[number] = group.left
        firsts = [0, *accumulate(lengths)]
        device = self.said.device
        return [torch.tensor([firsts[number] for number in group.members], device=device) for group in self.groups]

    def came(self) -> list[Int[Tensor, "u l"]]:
        """By group, the slots that are left, counted in all that came."""
        return [s[:, None] + group.slots for s, group in zip(self.starts(whole=True), self.groups, strict=True)]

    def wrong(self) -> Int[Tensor, "s"]:
        """Of every slot that came: what was done wrong to its picture."""
        spread = torch.zeros_like(self.said)
        for start, group in zip(self.starts(whole=True), self.groups, strict=True):
            slots = start[:, None] + torch.arange(self.counts[group.members[0]], device=start.device)
            spread[slots] = group.wrong[:, None].expand_as(slots)
        return spread

    def places(self) -> list[Int[Tensor, "u l m"]]:
        """By group, the rows of each slot that is left, counted in those that are left."""
        device = self.said.device
        return [
            self.rows_of(start[:, None] + torch.arange(group.left, device=device))
            for start, group in zip(self.starts(), self.groups, strict=True)
        ]

    def rows_of(self, slots: Int[Tensor, "u l"]) -> Int[Tensor, "u l m"]:
        return self.unit * slots[..., None] + torch.arange(self.unit, device=slots.device)

    @staticmethod
    def ascending(parts: Sequence[Tensor]) -> Int[Tensor, "r"]:
        """The parts of all groups together; each ascends by itself."""
        return parts[0].flatten() if len(parts) == 1 else torch.cat([part.flatten() for part in parts]).sort().values


class VisionPruner:
    """Hooks on a model's vision towers, for a recipe's passes inside them (`works`)."""

    def __init__(
        self, adapter: VisionAdapter, base: nn.Module, config: Any, steps: Sequence[VisionPass], plan: Plan
    ) -> None:
        if reason := adapter.refuse(config):
            raise UnsupportedModelError(
                f"this {config.model_type} model cannot be pruned in its vision tower: {reason}"
            )
        self.adapter, self.base, self.steps, self.plan = adapter, base, steps, plan
        features = adapter.features(config, len(adapter.blocks(adapter.towers(base)[0])))
        self.depth = features + 2  # blocks whose work the projector gets, and the projector
        self.mark = secrets.token_bytes(3)  # of its own holes: whole numbers that bfloat16 holds too
        self.encodings: Encodings[Landed] = Encodings(adapter, base)
        self._live = threading.local()
        self._open: set[_Run] = set()

    def attach(self, add: Callable[[Any], None]) -> None:
        """Register the hooks; `add` takes their handles."""
        for tower in self.adapter.towers(self.base):
            add(tower.register_forward_pre_hook(self._start, with_kwargs=True))
            add(tower.register_forward_hook(self._finish, always_call=True))
        projector = self.adapter.projector(self.base)
        add(projector.register_forward_pre_hook(self._project))
        add(projector.register_forward_hook(self._land))

    def close(self) -> None:
        """Forget everything, also runs that Ctrl-C left behind, after which torch runs no hook."""
        for run in list(self._open):
            run.hooks.close()
        self._open.clear()
        self.encodings.clear()

    @property
    def _run(self) -> _Run | None:
        return getattr(self._live, "run", None)

    # -- one encoding, in order ----------------------------------------------------------------------------------

    @torch.compiler.disable
    def _start(self, tower: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._unhook()
        named = {name: value for name, value in kwargs.items() if name not in ("pixel_values", "hidden_states")}
        self._live.run = run = _Run(tower, ((None, *args[1:]), named))
        self._open.add(run)
        for number, block in enumerate(self.adapter.blocks(tower)[: self.depth - 1]):
            enter = partial(self._enter, run, number)
            run.hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)

    @torch.compiler.disable
    def _enter(self, run: _Run, number: int, block: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """Before a block: prune if a stage is here; then let it see what is left and nothing else."""
        if run is not self._run or kwargs is None:
            return None  # of another thread, whose hook torch runs without keywords for a moment
        hidden = args[0]
        call: Call = (None, *args[1:]), kwargs
        if number == 0:
            self._plan(run, hidden)
        if number in run.stages:
            hidden = self._prune(run, number, hidden, run.places())
        if run.kept is not None:
            shared = (*map(id, args[1:]), *map(id, kwargs.values()))  # many blocks get the same arguments
            if shared not in run.calls:
                run.calls[shared] = call, self.adapter.narrow(call, run.kept)
            call = run.calls[shared][1]
        if run.weighed:
            call = self.adapter.weigh(block, call, self._weights(run, hidden))
        if number + 1 in run.stages:
            self._watch(run, block, call)
        return (hidden, *call[0][1:]), dict(call[1])

    def _plan(self, run: _Run, hidden: Tensor) -> None:
        """What will go, now that the sizes of the pictures are known."""
        counts, unit = self.adapter.pictures(run.tower, run.call, hidden)
        if not counts:
            return
        run.begin(counts, unit, hidden.shape[:-1].numel(), hidden.device)
        sizes = [run.counts[group.members[0]] - run.cls for group in run.groups]
        run.stages = self.plan(self.depth, sizes)

    def _weights(self, run: _Run, hidden: Tensor) -> Tensor:
        """How many tokens each row stands for, in the shape of the rows."""
        sizes = torch.ones(hidden.shape[:-1].numel(), device=hidden.device)
        for group, place in zip(run.groups, run.places(), strict=True):
            sizes = sizes.index_copy(0, place.flatten(), group.sizes.repeat_interleave(run.unit, 1).flatten())
        return sizes.to(hidden.dtype).view(hidden.shape[:-1])

    def _watch(self, run: _Run, block: nn.Module, call: Call) -> None:
        """Keep what this block computes: the next stage may ask for it."""
        run.looked.clear()
        once = ExitStack()

        def look(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
            if run is self._run:
                run.looked[name] = output.detach()

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if run is self._run:
                once.close()
                run.last = call, (output[0] if isinstance(output, tuple) else output).detach()

        for name, module in self.adapter.projections(block).items():
            once.callback(module.register_forward_hook(partial(look, name)).remove)
        once.callback(block.register_forward_hook(after).remove)
        run.hooks.callback(once.close)

    @torch.compiler.disable
    def _project(self, projector: nn.Module, args: Any) -> Any:
        """Before the projector, at the end of the tower's run or right after it."""
        run = self._run
        if run is None or run.over or not run.groups:
            return None
        hidden, places = args[0], run.places()
        left = sum(place.shape[:-1].numel() for place in places)
        rows = hidden.shape[:-1].numel()
        if run.cls and rows == left - len(run.counts):
            run.strip()
            places = [place[:, 1:] for place in places]
        elif rows != left * run.unit:
            raise PromptError(
                f"the projector gets {rows} rows where passes inside the vision tower left {left * run.unit}: leave "
                "vision_feature_layer and vision_feature_select_strategy as the config has them"
            )
        if self.depth - 1 not in run.stages:
            return None
        return (self._prune(run, self.depth - 1, hidden, places), *args[1:])

    @torch.compiler.disable
    def _land(self, projector: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """After the projector, which makes one row of each slot: every row at its old place, holes between them."""
        run = self._run
        if run is None or run.over:
            return None
        run.over = True
        if run.kept is None:
            run.landed.land(output)
            return None
        wrong = run.wrong()
        holes = self._holes(torch.where(wrong > 0, wrong, run.said), output)
        full = holes.index_copy(0, run.ascending(run.came()), output.flatten(0, -2))
        full = torch.where((wrong > 0)[:, None], holes, full)
        run.landed.land(full)
        return full.view(*output.shape[:-2], -1, output.shape[-1])

    @torch.compiler.disable
    def _finish(self, tower: nn.Module, args: Any, output: Any) -> None:
        """After a tower, also after an exception; the projector may still be to come."""
        self._unhook()
        if output is None:
            self._live.run = None
        elif (run := self._run) is not None:
            self.encodings.keep(output, run.landed)

    def _unhook(self) -> None:
        if (run := self._run) is not None:
            run.hooks.close()
            self._open.discard(run)

    # -- one stage -----------------------------------------------------------------------------------------------

    def _prune(self, run: _Run, layer: int, hidden: Tensor, known: Sequence[Int[Tensor, "u l m"]]) -> Tensor:
        """Rank, fold and drop: the rows that are left. `known` are their places in what the block before gave."""
        stage, flat = run.stages[layer], hidden.flatten(0, -2)
        states = self._states(run, layer)
        rows = []
        for number, (group, place, came) in enumerate(zip(run.groups, run.places(), run.came(), strict=True)):
            keep = stage.kept[number]
            if keep < group.left - run.cls:
                own = slice(run.cls, None)
                tokens = flat[place[:, own]]  # u n m d
                mean = tokens.mean(2)
                seen = Pictures(
                    layer=layer,
                    keep=keep,
                    tokens=group.slots[:, own] - run.cls,
                    sizes=guard.own(group.sizes[:, own]),
                    hidden=guard.own(mean),
                    read=states and partial(_gathered, states, known[number][:, own]),
                    look=partial(self._grid, run, came[:, own]),
                )
                chosen, into = self._select(group, stage, seen, mean)
                if into is not None:
                    tokens, sizes = ops.fold(tokens, into, group.sizes[:, own])
                    flat = flat.index_copy(0, place[:, own].flatten(), tokens.flatten(0, 2))
                    group.sizes = torch.cat([group.sizes[:, : run.cls], sizes], 1)
                    run.weighed |= stage.step.scorer.proportional
                front = torch.arange(run.cls, device=chosen.device).expand(len(chosen), -1)
                chosen = torch.cat([front, chosen + run.cls], 1)
                run.said.index_fill_(0, came.flatten(), self._code(layer, stage.step))
                run.said.index_fill_(0, came.gather(1, chosen).flatten(), -1)
                group.slots, group.sizes = group.slots.gather(1, chosen), group.sizes.gather(1, chosen)
                place = place.gather(1, chosen[..., None].expand(-1, -1, run.unit))
            rows.append(place)
        run.kept = run.ascending([run.rows_of(came) for came in run.came()])
        run.last, run.looked, run.calls = None, {}, {}
        return flat[run.ascending(rows)].view(*hidden.shape[:-2], -1, hidden.shape[-1])

    def _states(self, run: _Run, layer: int) -> Callable[[str], Tensor] | None:
        """States of the block before, of every row that left it, by name; None before the first block."""
        if layer == 0:
            return None
        assert run.last is not None  # `_watch`
        call, output = run.last
        block, seen = self.adapter.blocks(run.tower)[layer - 1], BlockRun(call, output, dict(run.looked))

        @cache
        def read() -> VisionBlock:
            return self.adapter.read(run.tower, block, seen)

        def state(name: str) -> Tensor:
            if name == "salience":
                name = "cls_attention" if read().cls else "received"
            return read().keys.mean(0) if name == "keys" else getattr(read(), name)

        return state

    def _grid(self, run: _Run, came: Int[Tensor, "u n"]) -> Int[Tensor, "u n 2"]:
        places = self.adapter.places(run.tower, run.call, (len(run.counts), run.counts[0]))
        return places[:, 1:].to(came.device)[came]

    def _select(
        self, group: _Group, stage: Stage, seen: Pictures, hidden: Float[Tensor, "u n d"]
    ) -> tuple[Int[Tensor, "u k"], Int[Tensor, "u n"] | None]:
        """Which tokens of each picture stay, in order, and where every token goes; None if those dropped are lost."""
        who, scorer = self._who(stage.step, seen.layer), stage.step.scorer
        with torch.no_grad():
            rank: Callable[[], Any] = partial(scorer.rank, seen)
            given = guard.call(who, rank, (seen.tokens, seen.sizes, seen.hidden))
            if not isinstance(given, Ranking):
                raise ScorerError(f"{who} must give a Ranking, got {type(given).__name__}")
            scores, into = given.scores, given.into
            guard.check(who, "scores of every token", scores, seen.tokens, guard.NUMBERS)
            self._blame(group, stage.step, seen.layer, guard.NAN, scores.isnan().any(1))
            chosen = scores.argsort(dim=1, descending=True, stable=True)[:, : seen.keep].sort().values
            if stage.step.merge is None or not seen.keep:
                return chosen, None
            if into is None:
                unit = nn.functional.normalize(hidden.float(), dim=-1)
                kept = unit.gather(1, chosen[..., None].expand(-1, -1, unit.shape[-1]))
                into = chosen.gather(1, (unit @ kept.mT).argmax(-1))
            guard.check(who, "tokens to merge into", into, seen.tokens, (torch.long,))
            there = into.clamp(0, into.shape[1] - 1)  # an index that is none would end more than this pass on a GPU
            goes = there.scatter(1, chosen, chosen)
            stays = torch.zeros_like(goes, dtype=torch.bool).scatter(1, chosen, True)
            lost = (~stays.gather(1, goes) | ((there != into) & ~stays)).any(1)
            self._blame(group, stage.step, seen.layer, guard.LOST, lost)
            return chosen, goes

    # -- what holes say ------------------------------------------------------------------------------------------

    def _who(self, step: VisionPass, layer: int) -> str:
        return spell_part("scorer", type(step.scorer), f"inside the vision tower at layer {layer}")

    def _code(self, layer: int, step: VisionPass, how: str | None = None) -> int:
        """One number: before which layer, which pass, and what its scorer did wrong."""
        number = next(i for i, other in enumerate(self.steps) if other is step)
        return (layer * len(self.steps) + number) * len(_HOW) + _HOW.index(how)

    def _blame(self, group: _Group, step: VisionPass, layer: int, how: str, pictures: Bool[Tensor, "u"]) -> None:
        """Note of these pictures what was done wrong to them, unless something was before."""
        group.wrong = torch.where((group.wrong == 0) & pictures, self._code(layer, step, how), group.wrong)

    def _holes(self, said: Int[Tensor, "s"], like: Tensor) -> Float[Tensor, "s d"]:
        """Rows of NaN that say this: two digits and the mark, in numbers that every dtype holds."""
        holes = like.new_full((len(said), like.shape[-1]), torch.nan)
        holes[:, 1], holes[:, 2] = said // 256, said % 256
        for channel, byte in enumerate(self.mark, 3):
            holes[:, channel] = byte
        return holes

    def read(
        self, hidden: Float[Tensor, "b s d"], visual: Bool[Tensor, "b s"]
    ) -> tuple[Int[Tensor, "b s"], list[tuple[VisionPass, tuple[int, ...]]]]:
        """What the rows that enter the decoder say: before which layer each went, `depth` for those that are left; and
        by layer, which pass dropped some there and how many visual tokens it left of each prompt.

        One device sync; a second one only if some picture has no hole, to look where it comes from.

        Raises:
            ScorerError: a scorer broke its word on a picture shown here.
            PromptError: a picture was encoded outside of the pruning block, or NaN enters that is no hole.
        """
        hidden = hidden.detach()
        holes = hidden[..., 0].isnan() & visual
        mine = holes
        for channel, byte in enumerate(self.mark, 3):
            mine = mine & (hidden[..., channel] == byte)
        foreign = holes & ~mine & ~hidden[..., 1].isnan()  # of another block
        strange = hidden.isnan().any(-1) & ~mine & ~foreign
        digits = hidden[..., 1:3].masked_fill(~mine[..., None], 0).long()
        code = digits[..., 0] * 256 + digits[..., 1]
        how, dropped = code % len(_HOW), code // len(_HOW)
        gone = torch.where(mine, dropped // len(self.steps), self.depth)
        number = torch.where(mine, dropped % len(self.steps), 0)
        without = _without(mine, visual)
        layers = torch.arange(self.depth, device=hidden.device)[:, None, None]
        left = (visual & (gone > layers)).sum(2)
        by = torch.where(gone == layers, number, 0).amax((1, 2))
        flags = torch.stack([torch.where(how > 0, code, 0).max(), *(f.any() for f in (foreign, strange, without))])
        numbers = torch.cat([left.flatten(), by, flags]).tolist()  # the one sync
        *numbers, wrong, outside, nan, unsure = numbers  # of each layer and prompt, of each layer, then of all
        if wrong:
            where, broken = divmod(wrong, len(_HOW))
            layer, culprit = divmod(where, len(self.steps))
            raise guard.broken(self._who(self.steps[culprit], layer), str(_HOW[broken]))
        if nan:
            passes = ", ".join(f"prune.{i}" for i in range(len(self.steps)))
            raise PromptError(
                f"rows of NaN enter the decoder that are no holes of {passes} (tower: vision): a picture holds NaN, or "
                "the adapter does not name all columns of visual tokens"
            )
        if not outside and unsure:
            *_, unknown = self.encodings.find(hidden.flatten(0, 1))
            outside = bool((unknown.view_as(without) & without).any())
        if outside:
            raise PromptError(
                "the recipe has passes with tower: vision, and a prompt's pictures were encoded outside of the pruning "
                "block: encode them inside it, and hold on to what get_image_features returns until the prefill"
            )
        rows = len(hidden)
        kept = [tuple(numbers[rows * layer : rows * (layer + 1)]) for layer in range(self.depth)]
        return gone, [(self.steps[i], counts) for i, counts in zip(numbers[rows * self.depth :], kept, strict=True)]


def _without(holes: Bool[Tensor, "b s"], visual: Bool[Tensor, "b s"]) -> Bool[Tensor, "b s"]:
    """Visual columns in stretches without a hole: of pictures that lost nothing, or that nobody pruned."""
    begins = visual & ~nn.functional.pad(visual[:, :-1], (1, 0))
    stretch = torch.where(visual, begins.flatten().cumsum(0).view_as(visual), 0)  # counted from 1
    holed = torch.zeros(visual.numel() + 1, dtype=torch.bool, device=visual.device)
    holed = holed.index_fill(0, torch.where(holes, stretch, 0).flatten(), True)
    return visual & ~holed[stretch]


def _gathered(states: Callable[[str], Tensor], rows: Int[Tensor, "u n m"], name: str) -> Float[Tensor, "u n *w"]:
    return states(name)[rows].mean(2)
