"""Vision towers of newer families: passes inside them equal masking, and states are those of the right patches."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_flash import fake_flash
from families import IMAGE, VIDEO, Prompt, inputs, model
from family_towers import own_attention, squares, tokens_gone
from masking import hidden_by_mask
from torch import Tensor
from transformers.models.pixtral.modeling_pixtral import PixtralVisionModel

import tokenprune
from tokenprune import Ranking, Scorer, Seen, VisionScorer
from tokenprune.errors import PromptError, UnsupportedModelError
from tokenprune.parts.vision import VisionAdapter
from tokenprune.plan.stages import plan_vision
from tokenprune.recipe import load
from tokenprune.registry import registry
from tokenprune.seen.pictures import Pictures
from tokenprune.seen.vision import Vision
from tokenprune.verify.shortened import kept_columns, shortened
from tokenprune.vision.forward import VisionPruner
from tokenprune.vision.recorder import Recorder

PRUNED = (
    "qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v", "video_llama_3", "internvl", "gemma3", "smolvlm", "idefics3",
    "aya_vision", "cohere2_vision", "paligemma", "mistral3", "llava_onevision", "llava_next_video",
)  # fmt: skip
READ = (*PRUNED, "llama4", "gemma4_small")
SHUFFLED = ("internvl", "gemma3", "smolvlm", "idefics3", "aya_vision", "cohere2_vision", "mistral3")

BATCH: list[Prompt] = [(3, (2, "image", 3, "image", 5)), (2, (7,)), (5, (4, "image", 9))]
"""Three pictures of two or three sizes, none so large that LLaVA-OneVision interpolates what its projector gave."""


@dataclass(frozen=True)
class Salient(VisionScorer):
    """Reads all there is to read: the tokens of each picture differ from picture to picture."""

    def rank(self, pictures: Pictures) -> Ranking:
        assert pictures.places.shape == (*pictures.tokens.shape, 2)
        return Ranking(pictures.salience + pictures.received + pictures.keys.norm(dim=-1))


@dataclass(frozen=True)
class Folding(VisionScorer):
    """Token j goes into token j % keep."""

    proportional: bool = False

    def rank(self, pictures: Pictures) -> Ranking:
        return Ranking(-pictures.tokens.float(), pictures.tokens % pictures.keep)


@dataclass(frozen=True)
class Reader(Scorer):
    """Reads what left the tower."""

    @property
    def reads_blocks(self) -> tuple[str]:
        return ("features",)

    def score(self, seen: Seen) -> Tensor:
        assert seen.vision is not None
        return seen.vision.features().norm(dim=-1)


def tower(scorer: Any, merge: str | None = None, **schedule: Any) -> dict[str, Any]:
    return {"tower": "vision", "scorer": scorer, "schedule": schedule, "merge": merge}


LAST = {"name": "table", "layers": ["99/100"], "keep": [0.5]}
RECIPES = {
    "embeddings": tower("random", name="fixed", layer=0, keep=3),
    "stages": tower(Salient(), name="spread", strategy="mean", keep=0.4),
    "projector": tower(Salient(), **LAST),
}


class Encoded(Exception):
    """The decoder would begin: nothing more is asked of the model."""


@dataclass
class Setup:
    """A tiny model and its tower."""

    family: str
    attention: str = "sdpa"
    prompts: tuple[Prompt, ...] = tuple(BATCH)

    def __post_init__(self) -> None:
        self.model = model(self.family, self.attention)
        family = registry().adapter(self.model.config)
        adapter = family.vision_adapter()
        assert adapter is not None
        self.adapter: VisionAdapter = adapter
        self.base = family.base(self.model)
        self.text = next(module for module in self.model.modules() if hasattr(module, "embed_tokens"))
        self.given = inputs(self.family, self.prompts)

    @contextmanager
    def pruned(self, *passes: Any) -> Iterator[None]:
        """Passes inside the tower, whatever the decoder."""
        recipe = load({"prune": list(passes)})

        def plan(depth: int, counts: Any) -> Any:
            return plan_vision(recipe, depth, len(self.text.layers), counts, {})

        pruner = VisionPruner(self.adapter, self.base, self.model.config, recipe.vision_passes, plan)
        with ExitStack() as hooks:
            hooks.callback(pruner.close)
            pruner.attach(lambda handle: hooks.callback(handle.remove))
            yield

    def own_attention(self, gone: Any = ()) -> Any:
        return own_attention(self.family, self.adapter, self.base, gone)

    def encode(self, see: Any = lambda hidden: None, given: Any = None) -> list[Tensor]:
        """Rows that leave the projector, and the modules beside it; `see` what enters the decoder."""
        modules = [self.adapter.projector(self.base), *self.adapter.sides(self.base)]
        left: dict[int, Tensor] = {}

        def note(number: int, module: Any, args: Any, output: Tensor) -> None:
            left[number] = output.flatten(0, -2)

        def begin(block: Any, args: Any) -> None:
            see(args[0])
            raise Encoded

        handles = [module.register_forward_hook(partial(note, i)) for i, module in enumerate(modules)]
        handles.append(self.text.layers[0].register_forward_pre_hook(begin))
        try:
            with torch.no_grad(), pytest.raises(Encoded):
                self.model(**(self.given if given is None else given))
        finally:
            for handle in handles:
                handle.remove()
        return [left[i] for i in range(len(modules))]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def check_passes(setup: Setup, recipe: str, monkeypatch: Any) -> None:
    with tokens_gone(monkeypatch) as runs, setup.pruned(RECIPES[recipe]):
        pruned = setup.encode()
    left = runs[0] < 0
    assert 0 < left.sum() < len(left)
    with setup.own_attention(runs):
        masked = setup.encode()
    with setup.own_attention():
        plain = setup.encode()
    assert torch.equal(pruned[0].isnan().any(-1), ~left)
    for number, (ours, theirs, unpruned) in enumerate(zip(pruned, masked, plain, strict=True)):
        assert ours.shape == unpruned.shape
        assert close(ours[left], theirs[left])
        if number == 0:  # right before the projector nobody looks back
            assert close(ours[left], unpruned[left]) == (recipe == "projector")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PRUNED)
def test_passes_inside_the_tower_are_masking_in_it(family: str, attention: str, recipe: str, monkeypatch: Any) -> None:
    """Pictures of several sizes in one run; the projector's rows, and those of modules beside it."""
    check_passes(Setup(family, attention), recipe, monkeypatch)


@pytest.mark.parametrize("family", SHUFFLED)
def test_tokens_of_the_wrong_rows_are_noticed(family: str, monkeypatch: Any) -> None:
    """As if the rows of a token were neighbours."""
    setup = Setup(family)
    token_rows = type(setup.adapter).token_rows
    monkeypatch.setattr(
        type(setup.adapter), "token_rows", lambda self, *given: replace(token_rows(self, *given), rows=None)
    )
    with pytest.raises(AssertionError):
        check_passes(setup, "stages", monkeypatch)


def test_rows_of_deepstack_that_are_off_by_one_are_noticed(monkeypatch: Any) -> None:
    beside = tokenprune.vision.encoding.Encoding.beside
    monkeypatch.setattr(
        tokenprune.vision.encoding.Encoding, "beside", lambda self, output: beside(self, output).roll(1, 0)
    )
    with pytest.raises(AssertionError):
        check_passes(Setup("qwen3_vl"), "embeddings", monkeypatch)


@pytest.mark.parametrize("family", [*SHUFFLED, "qwen2_vl", "qwen3_vl", "video_llama_3"])
def test_merged_tokens_are_means_of_their_rows(family: str) -> None:
    """Row by row of each unit, right before the projector; the model makes of them what it makes of any rows."""
    setup, shapes = Setup(family), []

    def fold(block: Any, args: Any, output: Tensor) -> Tensor:
        flat = output.flatten(0, -2).clone()
        first = 0
        for count in shapes:
            units = torch.tensor(run.rows[first : first + count])
            keep = count // 2
            for token in range(keep):
                flat[units[token]] = flat[units[token::keep]].mean(0)
            first += count
        return flat.view_as(output)

    with setup.own_attention() as runs:
        setup.encode()
    (run,) = runs
    shapes += pictures_of(setup)
    assert sum(shapes) == len(run.rows)
    blocks = setup.adapter.blocks(setup.adapter.towers(setup.base)[0])
    handle = blocks[-1].register_forward_hook(fold, prepend=True)
    expected = setup.encode()[0]
    handle.remove()
    with setup.pruned(tower(Folding(), "nearest", **LAST)):
        found = setup.encode()[0]
    left = ~found.isnan().any(-1)
    assert int(left.sum()) == sum(count // 2 for count in shapes)
    assert close(found[left], expected[left])
    assert not close(found[left], setup.encode()[0][left])


def pictures_of(setup: Setup) -> list[int]:
    """Tokens of each picture or tile, by the processor's output."""
    given = setup.given
    if "image_merge_sizes" in given:
        return given["image_grid_thw"].prod(1).tolist()
    if "image_grid_thw" in given:
        return (given["image_grid_thw"].prod(1) // 4).tolist()
    if "image_sizes" in given:
        return (given["image_sizes"].prod(1) // 64).tolist()
    pixels = given["pixel_values"].flatten(0, -4)
    tokens = 16 if setup.family == "gemma3" else 4
    return [tokens] * int((pixels != 0).flatten(1).any(1).sum())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", PRUNED)
def test_keeping_all_is_no_pruning(family: str, attention: str) -> None:
    setup = Setup(family, attention)
    with setup.pruned(tower(Salient(), name="spread", strategy="mean", keep=1.0)):
        kept = setup.encode()
    assert all(torch.equal(ours, plain) for ours, plain in zip(kept, setup.encode(), strict=True))


@pytest.mark.parametrize("family", ["gemma3", "smolvlm", "cohere2_vision", "paligemma"])
def test_proportional_attention_counts_what_was_merged(family: str) -> None:
    """As often as tokens went into a row: in sdpa and eager alike."""

    def encode(attention: str, proportional: bool) -> Tensor:
        setup = Setup(family, attention)
        with setup.pruned(tower(Folding(proportional), "nearest", name="fixed", layer=1, keep=3)):
            return setup.encode()[0]

    one, other, plain = encode("sdpa", True), encode("eager", True), encode("sdpa", False)
    left = ~one.isnan().any(-1)
    assert close(one[left], other[left])
    assert not close(one[left], plain[left])


@pytest.mark.parametrize("family", ["internvl", "mistral3", "qwen2_vl"])
def test_proportional_attention_without_a_mask_is_refused(family: str) -> None:
    setup = Setup(family)
    step = tower(Folding(True), "nearest", name="fixed", layer=1, keep=3)
    with setup.pruned(step), torch.no_grad(), pytest.raises(UnsupportedModelError, match="set proportional=false"):
        setup.model(**setup.given)


@pytest.mark.parametrize("family", PRUNED)
def test_flash_attention_sees_what_is_left(family: str) -> None:
    """It gets the ends of pictures instead of masks, or masks of columns."""
    setup = Setup(family)
    with setup.pruned(RECIPES["stages"]):
        expected = setup.encode()
    config = setup.adapter.towers(setup.base)[0].config
    lm = SimpleNamespace(model=SimpleNamespace(language_model=SimpleNamespace(config=config)))
    with fake_flash(lm) as calls, setup.pruned(RECIPES["stages"]):
        if family == "mistral3" and "cu_seq_lens_q" not in inspect.getsource(PixtralVisionModel):  # transformers 5.19
            with pytest.raises(UnsupportedModelError, match="where pictures end: load the tower with sdpa"):
                setup.encode()
            return
        found = setup.encode()
    assert calls
    for ours, theirs in zip(found, expected, strict=True):
        left = ~theirs.isnan().any(-1)
        assert torch.equal(ours.isnan().any(-1), ~left)
        assert close(ours[left], theirs[left])


# -- states ------------------------------------------------------------------------------------------------------------


def recorded(setup: Setup, see: Any, given: Any = None, blocks: tuple[int, ...] = (0, -1)) -> list[Tensor]:
    """`see(vision, rows)` of all visual tokens of the batch, as their rows enter the decoder."""
    recorder = Recorder(setup.adapter, setup.base, setup.model.config, blocks)
    ids = setup.given["input_ids"]

    def find(hidden: Tensor) -> None:
        rows = hidden[(ids == IMAGE) | (ids == VIDEO)]
        see(recorder.find(rows), rows)

    with ExitStack() as hooks:
        hooks.callback(recorder.close)
        recorder.attach(lambda handle: hooks.callback(handle.remove))
        return setup.encode(find, given)


def check_states(setup: Setup) -> None:
    found: dict[str, Tensor] = {}

    def see(vision: Vision, rows: Tensor) -> None:
        found["rows"], found["places"] = rows, vision.places
        for block in (0, -1):
            found[f"features{block}"], found[f"received{block}"] = vision.features(block), vision.received(block)

    left = recorded(setup, see)[0]
    modules = setup.adapter.blocks(setup.adapter.towers(setup.base)[0])
    outputs: dict[int, Tensor] = {}

    def note(block: int, module: Any, args: Any, output: Any) -> None:
        outputs[block] = (output[0] if isinstance(output, tuple) else output).flatten(0, -2)

    handles = [modules[block].register_forward_hook(partial(note, block)) for block in (0, -1)]
    with setup.own_attention() as runs:
        setup.encode()
    for handle in handles:
        handle.remove()
    (run,) = runs
    at = (found["rows"][:, None] == left).all(-1).int()
    known = at.any(1)  # the others are newlines
    assert known.float().mean() > 0.6
    units = [run.rows[token] for token in at.argmax(1)[known].tolist()]
    for block in (0, -1):
        for name, states in (("features", outputs[block]), ("received", run.received[block])):
            expected = torch.stack([states[unit].mean(0) for unit in units])
            assert close(found[f"{name}{block}"][known], expected)
            assert not found[f"{name}{block}"][~known].any()
    places = found["places"]
    assert (places[~known] == -1).all()
    assert len(places[known].unique(dim=0)) == int(known.sum()), "two tokens have one place"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", READ)
def test_states_are_those_of_the_tower(family: str, attention: str) -> None:
    """Of every token of a ragged batch: what left its rows' blocks, and the attention that dense maps say it got."""
    check_states(Setup(family, attention))


@pytest.mark.parametrize("family", READ)
def test_states_of_other_rows_are_noticed(family: str, monkeypatch: Any) -> None:
    setup = Setup(family)
    sources = type(setup.adapter).sources
    monkeypatch.setattr(type(setup.adapter), "sources", lambda self, *given: sources(self, *given).roll(1, 0))
    with pytest.raises(AssertionError):
        check_states(setup)


def bright(setup: Setup, patch: int) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """The batch with one patch of its first picture (or tile) brighter, and the row and column of that patch."""
    given = dict(setup.given)
    pixels = given["pixel_values"] = given["pixel_values"].clone()
    if (grids := given.get("image_grid_thw")) is not None:
        side = int(given["image_merge_sizes"][0]) if "image_merge_sizes" in given else 2
        pixels[patch] += 1
        unit, inner = divmod(patch, side**2)
        row, column = divmod(unit, int(grids[0, 2]) // side)
        return given, (side * row + inner // side, side * column + inner % side)
    if (places := given.get("image_position_ids")) is not None:
        pixels[0, patch] += 0.5
        column, row = places[0, patch].tolist()
        return given, (row, column)
    size = setup.model.config.vision_config.patch_size
    size = size if isinstance(size, int) else size[0]
    width = int(given["image_sizes"][0, 1]) if setup.family == "mistral3" else pixels.shape[-1]
    row, column = divmod(patch, width // size)
    target = pixels[(0,) * (pixels.ndim - 3)]
    target[:, row * size : (row + 1) * size, column * size : (column + 1) * size] += 1
    return given, (row, column)


@pytest.mark.parametrize("family", READ)
def test_a_brighter_patch_is_seen_at_its_token(family: str) -> None:
    """Keys of the first block are made of a token's own patches: they change at that token, and at no other."""
    setup, seen = Setup(family), list[tuple[Tensor, Tensor]]()

    def see(vision: Vision, rows: Tensor) -> None:
        seen.append((vision.keys(0), vision.places))

    recorded(setup, see)
    single = family in ("paligemma", "llava_onevision", "llava_next_video", "video_llama_3")
    for patch in (0, 2, 5, 7, 11):
        given, (row, column) = bright(setup, patch)
        recorded(setup, see, given)
        (before, places), (after, _) = seen[0], seen[-1]
        changed = ((after - before).abs().amax(-1) > 1e-4).nonzero()[:, 0].tolist()
        side = 1 if single else 2
        assert [places[token].tolist() for token in changed] == [[0, row // side, column // side]]


# -- whole prompts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [family for family in PRUNED if family != "qwen3_5"])  # masking says nothing there
def test_answers_are_those_of_masking_in_tower_and_decoder(family: str, attention: str, monkeypatch: Any) -> None:
    """A ragged batch: in the tower, then in the decoder; what is added between its blocks follows the holes."""
    setup = Setup(family, attention)
    decoder = {"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 3}}
    mask = setup.given["attention_mask"]
    with torch.no_grad(), tokens_gone(monkeypatch) as runs:
        with tokenprune.prune(setup.model, {"prune": [RECIPES["stages"], decoder]}) as pruning:
            pruned = setup.model(**setup.given).logits[:, -1]
        assert pruning.state is not None
        views = pruning.state.views
        with setup.own_attention(runs), hidden_by_mask(setup.model, mask, views):
            masked = setup.model(**setup.given).logits[:, -1]
        with hidden_by_mask(setup.model, mask, views):
            leaky = setup.model(**setup.given).logits[:, -1]
    assert close(pruned, masked)
    assert not close(pruned, leaky)


def test_answers_of_a_hybrid_decoder_are_those_of_the_shortened_sequence(monkeypatch: Any) -> None:
    setup = Setup("qwen3_5", prompts=tuple(BATCH[-1:]))
    decoder = {"scorer": "random", "schedule": {"name": "fixed", "layer": 2, "keep": 3}}
    with torch.no_grad(), tokens_gone(monkeypatch) as runs:
        with tokenprune.prune(setup.model, {"prune": [RECIPES["stages"], decoder]}) as pruning:
            pruned = setup.model(**setup.given).logits[:, -1]
        assert pruning.state is not None
        left = kept_columns(pruning.state.views, 0, 0)
        columns = setup.given["input_ids"].shape[1]
        with setup.own_attention(runs), shortened(setup.model, columns, left):
            expected = setup.model(**setup.given).logits[:, -1]
        with shortened(setup.model, columns, left):
            leaky = setup.model(**setup.given).logits[:, -1]
    assert close(pruned, expected)
    assert not close(pruned, leaky)


@pytest.mark.parametrize("family", ["llava_onevision", "llava_next_video"])
def test_pooled_videos_are_refused_inside_the_tower(family: str) -> None:
    given = inputs(family, [(1, (3, "video", 4))])
    with (
        torch.no_grad(),
        tokenprune.prune(model(family), {"prune": [RECIPES["stages"]]}),
        pytest.raises(PromptError, match=r"are interpolated by the model|the model pools the frames"),
    ):
        model(family)(**given)


def test_interpolated_tiles_are_refused() -> None:
    """More tokens than `anyres_max_3` allows: the model makes new rows of what its projector gave."""
    given = inputs("llava_onevision", [(1, (3, "image", 9))])
    reader = {"scorer": Reader(), "schedule": {"name": "fixed", "layer": 0, "keep": 5}}
    for step in (RECIPES["stages"], reader):
        with (
            torch.no_grad(),
            tokenprune.prune(model("llava_onevision"), {"prune": [step]}),
            pytest.raises(PromptError, match="more tokens than vision_aspect_ratio allows, are interpolated"),
        ):
            model("llava_onevision")(**given)


def test_states_of_pooled_frames_are_those_of_their_patches() -> None:
    """LLaVA-NeXT-Video: squares of four patches become one token, of which the states are the mean."""
    setup, found, left = Setup("llava_next_video", prompts=((1, (3, "video", 4)),)), list[Tensor](), list[Tensor]()

    def see(vision: Vision, rows: Tensor) -> None:
        found.extend([vision.features(0), vision.places])

    block = setup.adapter.blocks(setup.adapter.towers(setup.base)[0])[0]
    handle = block.register_forward_hook(lambda module, args, output: left.append(output.flatten(0, 1)))
    recorded(setup, see)
    handle.remove()
    frames = [squares(17 * frame + 1, 4, 4, 2) for frame in range(3)]
    assert close(found[0], torch.stack([left[0][unit].mean(0) for units in frames for unit in units]))
    assert found[1].tolist() == [[frame, row, column] for frame in range(3) for row in (0, 1) for column in (0, 1)]


@pytest.mark.parametrize(("family", "why"), [("llama4", "one table of positions"), ("gemma4_small", "pads pictures")])
def test_towers_that_cannot_lose_rows_say_why(family: str, why: str) -> None:
    with (
        pytest.raises(UnsupportedModelError, match=f"cannot be pruned in its vision tower: .*{why}"),
        Setup(family).pruned(RECIPES["stages"]),
    ):
        pass


def test_pictures_of_two_merge_sizes_are_refused_inside_the_tower() -> None:
    setup = Setup("video_llama_3", prompts=((1, (3, "image", 4, "image", 2)),))
    given, (first, second) = setup.given, setup.given["image_grid_thw"].prod(1).tolist()
    given["image_merge_sizes"] = torch.tensor([1, 2])
    ids = given["input_ids"][0]
    spare = (ids == IMAGE).nonzero()[first + second // 4 :, 0]
    ids[spare] = 11
    with setup.pruned(RECIPES["stages"]), pytest.raises(PromptError, match=r"one merge size, got \[1, 2\]"):
        setup.model(**given)
    seen: list[Tensor] = []
    recorded(setup, lambda vision, rows: seen.extend([vision.keys(0), vision.places]))
    assert len(seen[0]) == first + second // 4
    assert len(seen[1].unique(dim=0)) == len(seen[1])


def test_padded_pictures_are_refused_where_attention_is_read() -> None:
    setup = Setup("smolvlm")
    padded = torch.ones((*setup.given["pixel_values"].shape[:2], 32, 32), dtype=torch.long)
    padded[..., 16:] = 0
    setup.given["pixel_attention_mask"] = padded
    with pytest.raises(UnsupportedModelError, match="padded pictures hide patches"):
        recorded(setup, lambda vision, rows: vision.received(0))
