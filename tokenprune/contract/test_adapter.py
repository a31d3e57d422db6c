"""The contract of adapters: what they answer is what their model does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..api import prune
from ..builtin.schedules import Fixed, Spread, Table
from ..builtin.scorers.diversity import Diversity
from ..builtin.scorers.random import Random
from ..errors import PromptError, TokenpruneError
from ..model.anatomy import Anatomy
from ..parts.adapter import Adapter, Given
from ..parts.attention import RotaryTables
from ..parts.scheduler import Scheduler
from ..parts.vision import VisionAdapter
from ..state.prompt import Prompt as PromptState
from .base import Contract
from .families import ONE, RAGGED, Family, Prompt
from .reference import reference
from .trials import Tried, same, watched


class Run:
    """One unpruned, eager prefill of a prompt: what entered and left modules."""

    def __init__(self, adapter: Adapter, family: Family) -> None:
        self.model, self.inputs = family.model("eager"), family.inputs(ONE)
        self.anatomy = Anatomy.of(self.model, adapter)
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
        self.attentions = {b: found for b in range(self.anatomy.depth) if (found := self.anatomy.attention(b))}
        projections = [module for attention in self.attentions.values() for module in attention.modules.values()]
        hooks = [
            module.register_forward_hook(self._note, with_kwargs=True)
            for module in (self.anatomy.decoder, *self.anatomy.blocks, *projections)
        ]
        try:
            with torch.no_grad():
                self.out = self.model(**self.inputs, output_attentions=True, output_hidden_states=True)
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls[id(module)] = args, kwargs, output

    def entering(self, block: int) -> Tensor:
        """Hidden states, `b s d`."""
        hidden: Tensor = self.calls[id(self.anatomy.blocks[block])][0][0]
        return hidden

    def additions(self) -> dict[int, Tensor]:
        """What the adapter finds in the decoder's arguments."""
        given = self.calls[id(self.anatomy.decoder)][1]
        left, added = self.anatomy.adapter.additions(dict(given))
        assert left.keys() <= given.keys()
        return added

    def tables(self, block: int) -> RotaryTables:
        """Rotary tables that the block got."""
        tables: RotaryTables = self.calls[id(self.anatomy.blocks[block])][1]["position_embeddings"]
        return tables

    def positions(self, block: int) -> Tensor:
        """Of the columns, as the block got them."""
        given = self.calls[id(self.anatomy.blocks[block])][1].get("position_ids")
        return torch.arange(self.entering(block).shape[1])[None] if given is None else given

    def of(self, module: nn.Module) -> Tensor:
        """What a module gave: of a block, its hidden states."""
        output = self.calls[id(module)][2]
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@contextmanager
def unless_made_anew(tower: VisionAdapter) -> Iterator[None]:
    """Skip if these pictures are refused because the model makes new rows of those of the projector."""
    try:
        yield
    except PromptError as error:
        if not tower.caveat or tower.caveat not in str(error):
            raise
        pytest.skip(tower.caveat)


class TestAdapter(Contract):
    """What every adapter must do."""

    def test_it_supports_its_model(self, adapter: Adapter, family: Family) -> None:
        assert adapter.refuse(family.model().config) is None

    def test_blocks_are_all_and_in_order(self, adapter: Adapter, family: Family) -> None:
        run = Run(adapter, family)
        assert run.anatomy.depth == run.anatomy.text.num_hidden_layers
        assert run.anatomy.depth >= 4, "give a tiny model of four blocks or more"
        added = run.additions()
        for block, state in zip(range(run.anatomy.depth), run.out.hidden_states, strict=False):
            state = state + added[block - 1] if block - 1 in added else state
            assert torch.equal(run.entering(block), state), "blocks are not in the order in which they run"

    def test_additions_are_what_comes_between_blocks(self, adapter: Adapter, family: Family) -> None:
        """What enters a block is what left the one before it, and what the decoder adds there."""
        run = Run(adapter, family)
        added = run.additions()
        assert all(0 <= block < run.anatomy.depth for block in added)
        for block in range(run.anatomy.depth - 1):
            left = run.of(run.anatomy.blocks[block])
            rows = added.get(block, torch.zeros_like(left))
            assert rows.shape == left.shape
            close(run.entering(block + 1), left + rows)

    def test_visual_columns_are_where_pictures_go(self, adapter: Adapter, family: Family) -> None:
        """What enters block 0 differs from the embedding of the ids exactly there."""
        run = Run(adapter, family)
        ids = run.inputs["input_ids"]
        visual = run.anatomy.visual(ids)
        assert visual.dtype == torch.bool
        assert visual.shape == ids.shape
        assert visual.any()
        with torch.no_grad():
            embedded = run.model.get_input_embeddings()(ids)
        assert torch.equal(visual, (run.entering(0) != embedded).any(-1))

    def test_projections_are_what_the_model_computes(self, adapter: Adapter, family: Family) -> None:
        """`Attention.project` gives what its modules gave; heads have one size."""
        run = Run(adapter, family)
        assert run.attentions, "no block has queries and keys"
        for block, attention in run.attentions.items():
            assert sorted(attention.modules) == ["keys", "queries", "values"]
            for name, module in attention.modules.items():
                output = run.of(module)[0]
                assert output.shape[-1] % attention.size == 0
                with torch.no_grad():
                    close(attention.project(name, run.entering(block)[0]), output)
            assert attention.scaling > 0

    @pytest.mark.parametrize("block", ["previous", "next"])
    def test_attention_is_the_models_own(self, adapter: Adapter, family: Family, block: Any) -> None:
        """Projections, norms, heads, rotation, mask and scaling: the eager weights of a block of each layer type."""
        anatomy, rows = Anatomy.of(family.model(), adapter), list[Tensor]()
        readable = [number for number in range(anatomy.depth) if anatomy.attention(number) is not None]
        with torch.no_grad():
            weights = family.model("eager")(**family.inputs(RAGGED), output_attentions=True).attentions
        if len(weights) == anatomy.depth:  # else only blocks with attention have some
            weights = [weights[number] for number in readable]
        last = anatomy.last_layer - (block == "previous")
        firsts = {anatomy.kinds[number]: number for number in reversed(readable) if 1 <= number <= last}
        assert firsts, "no block with attention that scorers can read"

        def attempt(tried: Tried) -> None:
            rows.append(tried.seen.attention("text", block))

        mask = family.inputs(RAGGED)["attention_mask"][0].nonzero()[:, 0]
        for number in firsts.values():
            rows.clear()
            seen = watched(family, torch.float32, number + (block == "previous"), (), attempt)[0].seen
            asked = mask[seen.words]
            expected = weights[readable.index(number)][0][:, asked][..., mask[seen.columns]]
            torch.testing.assert_close(rows[0], expected, rtol=1e-4, atol=1e-5)

    def test_the_norm_is_the_decoders_last(self, adapter: Adapter, family: Family) -> None:
        run = Run(adapter, family)
        with torch.no_grad():
            found = run.anatomy.norm(run.of(run.anatomy.blocks[-1])[0])
        close(found, run.out.hidden_states[-1][0])

    def test_rotary_tables_are_the_models_own(self, adapter: Adapter, family: Family) -> None:
        run = Run(adapter, family)
        for kind, number in {kind: number for number, kind in enumerate(run.anatomy.kinds)}.items():
            hidden = run.entering(number)
            tables = run.anatomy.rotary(hidden, run.positions(number), kind)
            if tables is None:
                pytest.skip("positions of this family cannot be renumbered")
            for made, own in zip(tables, run.tables(number), strict=True):
                close(made, own)

    def test_published_models_are_of_its_family(self, adapter: Adapter) -> None:
        for form in vars(type(adapter)).get("published", ()):
            types = {form.sizes.family, form.config["model_type"]}
            assert len(types) == 1
            assert types.issubset(adapter.model_types)

    def test_boxes_are_as_many_as_tokens(self, adapter: Adapter, family: Family) -> None:
        """By placeholder, picture after picture; each has a size, or is NaN."""
        config, given = family.model().config, family.inputs(RAGGED)
        found = adapter.boxes(Given(config, given))
        if found is None:
            pytest.skip("this family does not say where its tokens lie")
        pictures = sum(segment == "image" for _, segments in RAGGED for segment in segments)
        for mark, boxes in found.items():
            some = list(islice(boxes, pictures))
            tokens = int((given["input_ids"] == mark).sum())
            if tokens:
                assert sum(map(len, some)) == tokens
            for box in some:
                assert box.shape[1:] == (5,)
                corners = box[~box.isnan().any(1), 1:]
                assert (corners[:, :2] < corners[:, 2:]).all()

    def test_a_window_has_a_size(self, adapter: Adapter) -> None:
        for size in ((32, 32), (64, 32), (30, 70)):
            try:
                left, top, right, bottom = adapter.window(None, *size)
            except TokenpruneError:
                continue  # it needs a processor
            assert left < right
            assert top < bottom

    def test_the_tower_is_seen_from_every_token(self, adapter: Adapter, family: Family) -> None:
        """Its states for the tokens of a prompt: numbers, and places that are places in pictures."""
        tower = adapter.vision_adapter()
        if tower is None:
            pytest.skip("states of this family's vision tower cannot be read")
        anatomy = Anatomy.of(family.model(), adapter)
        for module in tower.towers(anatomy.base):
            depth = len(tower.blocks(module))
            assert 0 <= tower.features(anatomy.config, depth) < depth
        states: list[Tensor] = []

        def attempt(tried: Tried) -> None:
            vision = tried.seen.vision
            states.extend([vision.features(), vision.keys(), vision.salience(), vision.received(), vision.places])
            assert all(len(state) == tried.n for state in states[-5:])

        with unless_made_anew(tower):
            tries = watched(family, torch.float32, 0, ("features",), attempt)
        assert len(states) == 5 * len(tries) > 0
        assert all(state.isfinite().all() for state in states)
        for tried in tries:
            places = tried.seen.vision.places
            known = [tuple(place) for place in places.tolist() if min(place) >= 0]
            assert len(set(known)) == len(known) > 0, "two tokens have one place"

    def test_passes_inside_the_tower_drop_what_they_say(self, adapter: Adapter, family: Family) -> None:
        """After every block; and right before the projector, where nothing reads them any more, as without them."""
        tower = adapter.vision_adapter()
        if tower is None or tower.refuse(family.model().config):
            pytest.skip("this family's vision tower cannot be pruned")
        model, answered = family.model(), partial(_answered, family, steps=1)

        def pruned(schedule: Scheduler) -> tuple[Tensor, PromptState]:
            step = {"tower": "vision", "scorer": Random(), "schedule": schedule}
            with prune(model, {"prune": [step]}) as pruning:
                logits = answered(RAGGED)
            assert pruning.state is not None
            left = zip(pruning.state.count_after_vision, pruning.state.counts, strict=True)
            assert all(n < count for n, count in left if count), "nothing was dropped"
            return logits, pruning.state

        with unless_made_anew(tower):
            everywhere, _ = pruned(Spread(keep=0.5, strategy="mean"))
        last, state = pruned(Table(layers=("99/100",), keep=(0.5,)))
        close(last, reference(model, family.inputs, RAGGED, state.views, answered))
        assert everywhere.isfinite().all()
        assert not torch.allclose(last, everywhere, rtol=1e-3), "dropping earlier changed nothing"

    @pytest.mark.parametrize("scorer", [Random(), Diversity()], ids=["random", "diversity"])
    @pytest.mark.parametrize("layer", [0, 2])
    def test_pruning_equals_masking(self, adapter: Adapter, family: Family, layer: int, scorer: Any) -> None:
        """The same tokens hidden by a mask give the same logits, in a ragged batch, at the prefill and two steps on.

        Where blocks keep states, which no mask hides anything from: the same tokens taken out of each prompt alone.
        """
        model, answered = family.model(), partial(_answered, family)
        plain = answered(RAGGED)
        with prune(model, {"prune": [{"scorer": scorer, "schedule": Fixed(layer=layer, keep=5)}]}) as pruning:
            pruned = answered(RAGGED)
        assert pruning.state is not None
        close(pruned, reference(model, family.inputs, RAGGED, pruning.state.views, answered))
        assert not torch.allclose(pruned, plain, rtol=1e-3), "pruning changed nothing"

    def test_keeping_all_is_no_pruning(self, adapter: Adapter, family: Family) -> None:
        model, given = family.model(), family.inputs(RAGGED)
        with torch.no_grad():
            plain = model(**given).logits
            with prune(model, {"prune": [{"scorer": Random(), "schedule": Fixed(layer=2, keep=1.0)}]}):
                kept = model(**given).logits
        assert same(plain, kept)


def _answered(family: Family, prompts: Sequence[Prompt], steps: int = 3) -> Tensor:
    """The logits of every step of a greedy answer, `steps b v`."""
    given = {"max_new_tokens": steps, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return torch.stack(family.model().generate(**family.inputs(prompts), **given).logits)
