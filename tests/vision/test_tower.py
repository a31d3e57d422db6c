"""Tower states: those of an eager run, at exactly their tokens, of their pictures, and only as long as needed."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, IMAGE, MIXED, ONE, PADDED, RAGGED, VIDEO, Prompt, has_video, inputs, model
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_window_index

import tokenprune
from tokenprune import Scorer, ops
from tokenprune.errors import LayerError, PromptError, ScorerError, UnsupportedModelError
from tokenprune.families.llava import LlavaAdapter
from tokenprune.seen.vision import Vision, check_block, resolve_block
from tokenprune.vision.match import Encodings, Landed
from tokenprune.vision.recorder import Recorder

CLIPS = ("llava", "llava_next", "video_llava")
SPLIT: list[Prompt] = [(7, (2, "image", 3, "image", 5)), (9, (4, "image", 9)), (6, (2, "image", 1, "image", 2))]
Reference = dict[str, list[torch.Tensor]]


@dataclass(frozen=True)
class Probe(Scorer):
    """Notes what it sees, and keeps the first tokens."""

    blocks: tuple[int, ...] = (-2, -1)
    seen: list[dict[str, torch.Tensor]] = field(default_factory=list)
    asked: tuple[str, ...] = ("salience", "received", "keys", "features")

    @property
    def reads_blocks(self):
        return self.blocks

    def score(self, seen):
        found = {f"{name}{block}": getattr(seen.vision, name)(block) for name in self.asked for block in self.blocks}
        if "keys" in self.asked:
            found |= {f"joined keys{block}": seen.vision.keys(block, heads="joined") for block in self.blocks}
        self.seen.append({**found, "places": seen.vision.places})
        return -torch.arange(len(seen.visual)).float()


def recipe(scorer: Scorer, layer: int = 0) -> dict[str, Any]:
    return {"prune": [{"scorer": scorer, "schedule": {"name": "fixed", "layer": layer, "keep": 3}}]}


@cache
def double(family: str) -> Any:
    return copy.deepcopy(model(family)).double()


def prepared(family: str, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs(family, prompts).items()}


def clip_run(tower: Any, pixels: torch.Tensor, blocks: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Pictures x rows x ..., by an eager run that gives all maps."""
    tower = copy.deepcopy(tower)
    tower.set_attn_implementation("eager")
    layers = tower.encoder.layers if hasattr(tower, "encoder") else tower.vision_model.encoder.layers
    keys: dict[int, torch.Tensor] = {}
    for i, layer in enumerate(layers):
        layer.self_attn.k_proj.register_forward_hook(lambda m, a, out, i=i: keys.__setitem__(i, out))
    with torch.no_grad():
        out = tower(pixels, output_attentions=True, output_hidden_states=True)
    found = {}
    for block in blocks:
        attention = out.attentions[block]
        found[f"salience{block}"] = attention[:, :, 0].mean(1)
        found[f"received{block}"] = attention.sum(2).mean(1)
        found[f"keys{block}"] = keys[block % len(layers)].unflatten(-1, (2, -1)).mean(2)
        found[f"joined keys{block}"] = keys[block % len(layers)]
        found[f"features{block}"] = out.hidden_states[block]
    return found


def window_run(tower: Any, pixels: torch.Tensor, grids: torch.Tensor, blocks: tuple[int, ...]) -> dict[str, Any]:
    """One row per merge unit in raster order, from dense attention with a mask of who shares a window."""
    order, _ = get_vision_window_index(grids, 2, tower.window_size, tower.patch_size)
    back = (order.argsort()[:, None] * 4 + torch.arange(4)).flatten()
    seen: dict[str, Any] = {}
    handles = []
    for block in blocks:
        part = tower.blocks[block]
        handles += [
            part.attn.qkv.register_forward_hook(lambda m, a, out, b=block: seen.__setitem__(f"qkv{b}", out)),
            part.register_forward_hook(lambda m, a, out, b=block: seen.__setitem__(f"out{b}", out)),
            part.register_forward_pre_hook(
                lambda m, a, k: seen.update(rope=k["position_embeddings"]), with_kwargs=True
            ),
        ]
    with torch.no_grad():
        tower(pixels, grid_thw=grids)
    for handle in handles:
        handle.remove()
    where = []
    for picture, (t, h, w) in enumerate(grids.tolist()):
        for frame in range(t):
            for row in range(h // 2):
                for column in range(w // 2):
                    for inner in range(4):
                        y, x = 2 * row + inner // 2, 2 * column + inner % 2
                        where.append((picture, frame, y // 4, x // 4))  # windows of 16 pixels: 4 patches
    table = torch.tensor(where)
    found = {}
    for block in blocks:
        q, k, _ = seen[f"qkv{block}"].unflatten(-1, (3, 2, -1)).unbind(1)
        keys, joined = k[back].mean(1), k[back].flatten(1)
        q, k = apply_rotary_pos_emb_vision(q, k, *seen["rope"])
        logits = torch.einsum("ihd,jhd->hij", q[back], k[back]) * q.shape[-1] ** -0.5
        level = 2 if block % 3 == 1 else 4  # block 1 sees whole frames
        together = (table[:, None, :level] == table[None, :, :level]).all(-1)
        got = logits.masked_fill(~together, float("-inf")).softmax(-1).sum(1).mean(0)
        units = {"received": got, "salience": got, "keys": keys, "features": seen[f"out{block}"][back]}
        units["joined keys"] = joined
        found |= {f"{name}{block}": states.unflatten(0, (-1, 4)).mean(1) for name, states in units.items()}
    return found


def reference(family: str, given: dict[str, torch.Tensor], blocks: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Per state, rows of all visual tokens: pictures in order, then videos in order. 0 for newlines."""
    base = double(family).model
    if family == "qwen2_5_vl":
        parts = [
            window_run(base.visual, given[values], given[grids], blocks)
            for values, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw"))
            if values in given
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if family == "llava":
        run = clip_run(base.vision_tower, given["pixel_values"], blocks)
        return {name: states[:, 1:].flatten(0, 1) for name, states in run.items()}
    if family == "video_llava":
        parts = []
        pictures = given.get("pixel_values", given.get("pixel_values_images"))
        if pictures is not None:
            run = clip_run(base.image_tower, pictures, blocks)
            parts.append({name: states[:, 1:].flatten(0, 1) for name, states in run.items()})
        if "pixel_values_videos" in given:
            run = clip_run(base.video_tower, given["pixel_values_videos"].flatten(0, 1), blocks)
            parts.append({name: states.flatten(0, 1) for name, states in run.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # an index grid through the model's own packing
    pins = base.config.image_grid_pinpoints
    tiles = [image_size_to_num_patches(size, pins, 32) for size in given["image_sizes"].tolist()]
    pixels = torch.cat([part[:n] for part, n in zip(given["pixel_values"], tiles, strict=True)])
    run = clip_run(base.vision_tower, pixels, blocks)
    grid = torch.arange(len(pixels) * 16).double().view(len(pixels), 16, 1).split(tiles)
    packed, _ = base.pack_image_features(grid, given["image_sizes"], "default", torch.tensor([-1.0]).double())
    at = torch.cat(list(packed))[:, 0].long()
    assert (at < 0).any()
    rows = {name: states[:, 1:].flatten(0, 1) for name, states in run.items()}
    return {name: torch.where((at < 0).view(-1, *[1] * (r.ndim - 1)), 0, r[at]) for name, r in rows.items()}


def by_prompt(given: dict[str, torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    """Rows in scatter order (pictures, then videos) -> the visual tokens of each prompt that has some."""
    ids = given["input_ids"]
    at = torch.full(ids.shape, -1)
    at[ids == IMAGE] = torch.arange(int((ids == IMAGE).sum()))
    at[ids == VIDEO] = torch.arange(int((ids == VIDEO).sum())) + int((ids == IMAGE).sum())
    return [rows[row[row >= 0]] for row in at if (row >= 0).any()]


CASES = [(f, name) for f in FAMILIES for name in ("one", "padded", "ragged", "split", "mixed")]
CASES = [(f, name) for f, name in CASES if name != "mixed" or has_video(f)]
PROMPTS = {"one": ONE, "padded": PADDED, "ragged": RAGGED, "split": SPLIT, "mixed": MIXED}


@pytest.mark.parametrize("way", ["generate", "forward"])
@pytest.mark.parametrize(("family", "batch"), CASES)
def test_states_are_those_of_an_eager_run(family: str, batch: str, way: str) -> None:
    """Several pictures of different sizes, padded prompts, pictures and videos: each token has its own rows."""
    lm, given, probe = double(family), prepared(family, PROMPTS[batch]), Probe()
    with torch.no_grad(), tokenprune.prune(lm, recipe(probe)):
        lm(**given) if way == "forward" else lm.generate(**given, max_new_tokens=2, do_sample=False)
    check(family, given, probe)
    assert lm.model.config.vision_config._attn_implementation == "sdpa"


def check(family: str, given: dict[str, torch.Tensor], probe: Probe) -> None:
    for name, rows in reference(family, given, probe.blocks).items():
        expected = by_prompt(given, rows)
        assert len(expected) == len(probe.seen)
        for found, wanted in zip(probe.seen, expected, strict=True):
            assert found[name].shape == wanted.shape
            torch.testing.assert_close(
                found[name], wanted, atol=2e-5, rtol=1e-4, check_dtype=False
            )  # eager rounds to float32


@pytest.mark.parametrize(
    ("family", "mutant"),
    [
        *((family, mutant) for family in FAMILIES for mutant in ("order", "received")),
        *((family, "packing") for family in ("llava_next", "qwen2_5_vl")),  # elsewhere rows are packed in order
    ],
)
def test_a_wrong_mapping_is_noticed(family: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant == "order":
        find = ops.find_equal
        monkeypatch.setattr(ops, "find_equal", lambda wanted, among: find(wanted, among).roll(1))
    elif mutant == "packing":  # as if the rows came in the order they left the projector
        find = ops.find_equal
        monkeypatch.setattr(ops, "find_equal", lambda wanted, among: find(wanted, among).sort().values)
    else:
        attend = ops.stretch_attention
        monkeypatch.setattr(ops, "stretch_attention", lambda q, k, *rest, **more: attend(k, q, *rest, **more))
    given, probe = prepared(family, SPLIT), Probe()

    def run() -> None:
        with torch.no_grad(), tokenprune.prune(double(family), recipe(probe)):
            double(family)(**given)
        check(family, given, probe)

    with pytest.raises((AssertionError, PromptError)):
        run()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bright_patch_is_found_at_its_token(family: str) -> None:
    """One patch (merge unit) of a dark picture is bright: its row of the first block stands out at one token only."""
    lm, given, probe = model(family), inputs(family, [(1, (3, "image", 9))]), Probe(blocks=(0,), asked=("features",))
    dark = {k: torch.zeros_like(v) if v.is_floating_point() else v for k, v in given.items()}
    name = next(k for k in given if k.startswith("pixel_values"))
    lit = {**dark, name: dark[name].clone()}
    if family == "qwen2_5_vl":  # unit 5 of the picture, in the processor's order of patches
        lit[name][20:24] = 30.0
        w = int(given["image_grid_thw"][0, 2])
        row, column = divmod(5, w // 2)
    else:
        row, column = 2, 1
        target = lit[name][0, 0] if family == "llava_next" else lit[name][0]  # NeXT: the base tile
        target[:, 16:24, 8:16] = 30.0
    with torch.no_grad(), tokenprune.prune(lm, recipe(probe)):
        lm(**dark)
        lm(**lit)
    before, after = probe.seen
    change = (after["features0"] - before["features0"]).norm(dim=-1)
    token = int(change.argmax())
    assert change[token] > 2 * change.sort().values[-2]
    assert after["places"][token].tolist()[1:] == [row, column]
    assert token == (5 if family == "qwen2_5_vl" else 4 * row + column)


@pytest.mark.parametrize("family", FAMILIES)
def test_places_number_pictures_rows_and_columns(family: str) -> None:
    given, probe = inputs(family, SPLIT), Probe(asked=())
    with torch.no_grad(), tokenprune.prune(model(family), recipe(probe)):
        model(family)(**given)
    two, one, _ = (found["places"] for found in probe.seen)
    inside = two[two[:, 0] >= 0]
    assert len(inside.unique(dim=0)) == len(inside)  # no place twice
    if family in ("llava", "video_llava"):
        grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        assert torch.equal(one[:, 1:], grid)
        assert torch.equal(two[:16, 1:], grid)
        assert [len(found["places"][:, 0].unique()) for found in probe.seen] == [2, 1, 2]
    if family == "qwen2_5_vl":
        _, h, w = given["image_grid_thw"][2].tolist()
        assert torch.equal(one[:, 1:], torch.cartesian_prod(torch.arange(h // 2), torch.arange(w // 2)))
    if family == "llava_next":
        assert torch.equal(one[:16, 1:], torch.cartesian_prod(torch.arange(4), torch.arange(4)))
        assert (one == -1).all(1).any()


def test_frames_of_a_windowed_video_are_pictures() -> None:
    given, probe = inputs("qwen2_5_vl", MIXED), Probe(asked=())
    with torch.no_grad(), tokenprune.prune(model("qwen2_5_vl"), recipe(probe)):
        model("qwen2_5_vl")(**given)
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(4))
    places = probe.seen[2]["places"]
    first = int(places[0, 0])
    assert torch.equal(places - torch.tensor([first, 0, 0]), grid)
    _, h, w = (given["image_grid_thw"][0] // 2).tolist()
    mixed = probe.seen[0]["places"]
    assert torch.equal(mixed[: h * w, 1:], torch.cartesian_prod(torch.arange(h), torch.arange(w)))
    assert torch.equal(mixed[h * w :, 1:], grid[:, 1:])
    assert len(mixed[:, 0].unique()) == 3


def test_frames_have_a_cls_token_without_a_place() -> None:
    given, probe = inputs("video_llava", [(5, (2, "video", 3))]), Probe(asked=())
    with torch.no_grad(), tokenprune.prune(model("video_llava"), recipe(probe)):
        model("video_llava")(**given)
    places = probe.seen[0]["places"]
    assert places[[0, 17]].tolist() == [[0, -1, -1], [1, -1, -1]]
    assert (places[:, 1] >= 0).sum() == 32


# -- whose pictures, and for how long ----------------------------------------------------------------------------------


def alive(pruning: Any) -> int:
    gc.collect()
    return len(pruning._pruner.pipeline.recorder.encodings)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_kept_after_the_prompt(family: str) -> None:
    """No recordings, no hooks on tower blocks, nothing of a picture that never got its prompt."""
    lm, given = model(family), inputs(family, ONE)
    hooks = {id(m): (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.modules()}
    with torch.no_grad(), tokenprune.prune(lm, recipe(Probe())) as pruning:
        lm(**given)
        assert alive(pruning) == 0
        lm.generate(**given, max_new_tokens=3)
        assert alive(pruning) == 0
        pictures = {k: v for k, v in given.items() if "pixel" in k or "grid" in k or "sizes" in k}
        held = lm.model.get_image_features(**pictures)
        assert alive(pruning) == 1
        lm(**given)
        del held
        assert alive(pruning) == 0
    assert hooks == {id(m): (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.modules()}


def test_states_are_freed_without_a_garbage_collection() -> None:
    lm, given = model("llava"), inputs("llava", ONE)
    gc.disable()
    try:
        with torch.no_grad(), tokenprune.prune(lm, recipe(Probe())) as pruning:
            held = lm.model.get_image_features(given["pixel_values"])
            (recording,) = pruning._pruner.pipeline.recorder.encodings
            lm(**{k: v for k, v in given.items() if k != "pixel_values"}, mm_encoder_outputs={"image": held})
            watch = weakref.ref(recording)
            del recording, held
            assert watch() is None
    finally:
        gc.enable()


def test_a_tower_that_runs_without_its_projector_keeps_nothing() -> None:
    lm, given = model("llava"), inputs("llava", ONE)
    with torch.no_grad(), tokenprune.prune(lm, recipe(Probe())) as pruning:
        held = lm.model.vision_tower(given["pixel_values"])
        (recording,) = pruning._pruner.pipeline.recorder.encodings
        watch = weakref.ref(recording)
        del recording, held
        gc.collect()
        assert watch() is None


def test_an_encoding_may_be_a_tuple() -> None:
    """Which takes no weak references: its rows are known as long as its first tensor lives."""
    tower, lm = LlavaAdapter().vision_adapter(), model("llava")
    assert tower is not None
    encodings: Encodings[Landed] = Encodings(tower, lm.model)
    rows, landed = torch.randn(5, 70), Landed()
    landed.land(rows)
    given = (torch.zeros(1), rows)
    encodings.keep(given, landed)
    known, found, ends, strange = encodings.find(torch.cat([rows[3:], rows[:1] + 1]))
    assert (known, found.tolist(), ends, strange.tolist()) == ([landed], [3, 4, -1], [0, 5], [False, False, True])
    del given
    gc.collect()
    assert len(encodings) == 0


def test_recipes_without_tower_scorers_hook_no_tower() -> None:
    lm = model("llava")
    with tokenprune.prune(lm, "divprune"):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.vision_tower.children())
        assert not lm.model.multi_modal_projector._forward_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_encoded_ahead_serve_every_prompt_that_shows_them(family: str) -> None:
    """Two encodings made first and used crosswise, one of them twice."""
    lm, probe = double(family), Probe()
    first, second = prepared(family, ONE), prepared(family, [(8, (4, "image", 2))])

    def split(given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        pictures = {k: v for k, v in given.items() if "pixel" in k or "sizes" in k or "grid" in k}
        return pictures, {k: v for k, v in given.items() if "pixel" not in k}

    with torch.no_grad(), tokenprune.prune(lm, recipe(probe)):
        encoded = [lm.model.get_image_features(**split(given)[0]) for given in (first, second)]
        for i in (1, 0, 1):
            lm(**split((first, second)[i])[1], mm_encoder_outputs={"image": encoded[i]})
    for i, found in zip((1, 0, 1), probe.seen, strict=True):
        check(family, (first, second)[i], Probe(seen=[found]))


def test_features_from_elsewhere_are_refused() -> None:
    lm, given = model("llava"), inputs("llava", ONE)
    text = {k: v for k, v in given.items() if k != "pixel_values"}
    with torch.no_grad():
        outside = lm.model.get_image_features(given["pixel_values"])
        with (
            tokenprune.prune(lm, recipe(Probe())),
            pytest.raises(PromptError, match=r"16 of 16 visual tokens did not come from.*get_image_features"),
        ):
            lm(**text, mm_encoder_outputs={"image": outside})
        with tokenprune.prune(lm, recipe(Probe())):  # and a recording never reaches a prompt that shows another picture
            held = lm.model.get_image_features(given["pixel_values"] + 1)
            with pytest.raises(PromptError, match="16 of 16"):
                lm(**text, mm_encoder_outputs={"image": outside})
            del held


def test_one_picture_of_two_from_elsewhere_is_counted() -> None:
    lm, given = model("llava"), inputs("llava", [(1, (3, "image", 2, "image", 9))])
    with torch.no_grad(), tokenprune.prune(lm, recipe(Probe())):
        encoded = lm.model.get_image_features(given["pixel_values"])
        encoded.pooler_output = [encoded.pooler_output[0], encoded.pooler_output[1] + 1]
        with pytest.raises(PromptError, match="16 of 32"):
            lm(input_ids=given["input_ids"], mm_encoder_outputs={"image": encoded})


def test_a_tower_that_fails_leaves_nothing() -> None:
    lm, given = model("llava"), inputs("llava", ONE)
    with torch.no_grad(), tokenprune.prune(lm, recipe(Probe())) as pruning:
        with pytest.raises(ValueError, match="size"):
            lm.model.vision_tower(torch.zeros(1, 3, 16, 16))
        assert alive(pruning) == 0
        assert not any(m._forward_hooks for m in lm.model.vision_tower.modules() if m is not lm.model.vision_tower
                       and "k_proj" in str(type(m)))  # fmt: skip
        lm(**given)


def test_an_interrupt_in_the_tower_leaves_nothing() -> None:
    """Ctrl-C in another thread's encoding, after which torch runs no hook: leaving the block takes all out."""
    lm, given = model("llava"), inputs("llava", ONE)
    hooks = {id(m): (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.modules()}

    def interrupt(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    def step() -> None:
        with torch.no_grad(), pytest.raises(KeyboardInterrupt):
            lm.model.get_image_features(given["pixel_values"])

    with tokenprune.prune(lm, recipe(Probe())):
        last = next(m for m in lm.model.vision_tower.modules() if isinstance(m, torch.nn.ModuleList))[-1]
        handle = last.mlp.register_forward_pre_hook(interrupt)
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        handle.remove()
    assert hooks == {id(m): (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.modules()}


def test_threads_see_their_own_pictures() -> None:
    lm, probes = double("llava_next"), [prepared("llava_next", [(seed, (3, "image", 4))]) for seed in range(6)]
    failures = []
    probe = Probe(asked=("features",), blocks=(-2,))
    with tokenprune.prune(lm, recipe(probe)):

        def step(given: Any) -> None:
            with torch.no_grad():
                try:
                    lm(**given)
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=step, args=(given,)) for given in probes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    wanted = [by_prompt(given, reference("llava_next", given, (-2,))["features-2"])[0] for given in probes]
    for found in probe.seen:
        mine = found["features-2"]
        assert sum(w.shape == mine.shape and torch.allclose(w, mine, atol=2e-5) for w in wanted) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_turn_with_a_picture_of_its_own(family: str) -> None:
    lm, probe = double(family), Probe()
    first, second = prepared(family, ONE), prepared(family, [(8, (4, "image", 2))])
    with torch.no_grad(), tokenprune.prune(lm, recipe(probe)):
        done = lm(**first)
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
        positions = (mask.cumsum(1) - 1)[:, first["input_ids"].shape[1] :]  # else Qwen makes those of both turns
        lm(**{**second, "attention_mask": mask}, position_ids=positions, past_key_values=done.past_key_values)
    for given, found in zip((first, second), probe.seen, strict=True):
        check(family, given, Probe(seen=[found]))


def test_beams_and_samples_find_their_picture() -> None:
    given, probe = prepared("llava_next", SPLIT), Probe()
    with torch.no_grad(), tokenprune.prune(double("llava_next"), recipe(probe)):
        double("llava_next").generate(**given, max_new_tokens=2, num_beams=3, do_sample=False)
    plain = probe.seen[::3] if len(probe.seen) == 9 else probe.seen
    check("llava_next", given, Probe(seen=plain))


def test_a_picture_shown_twice_is_two_pictures() -> None:
    given, probe = inputs("llava", [(1, (3, "image", 2, "image", 9))]), Probe(asked=("features",))
    given["pixel_values"][1] = given["pixel_values"][0]
    with torch.no_grad(), tokenprune.prune(model("llava"), recipe(probe)):
        model("llava")(**given)
    assert probe.seen[0]["places"][:, 0].tolist() == [0] * 16 + [1] * 16


@torch.no_grad()
def test_heads_can_be_joined() -> None:
    """As if the tower had one wide head: queries and keys as the projections give them."""

    @dataclass(frozen=True)
    class Joined(Probe):
        def score(self, seen):
            self.seen.append({"joined": seen.vision.salience(-1, heads="joined")})
            return torch.zeros(len(seen.visual))

    lm, given, probe, flat = double("llava"), prepared("llava", ONE), Joined(), {}
    attn = next(m for m in lm.model.vision_tower.modules() if isinstance(m, torch.nn.ModuleList))[-1].self_attn
    handles = [
        getattr(attn, f"{name}_proj").register_forward_hook(lambda m, a, out, name=name: flat.update({name: out[0]}))
        for name in "qk"
    ]
    with tokenprune.prune(lm, recipe(probe)):
        lm(**given)
    for handle in handles:
        handle.remove()
    wanted = (flat["q"][0] @ flat["k"].T * flat["q"].shape[-1] ** -0.5).softmax(-1)[1:]
    torch.testing.assert_close(probe.seen[0]["joined"], wanted)


# -- what is asked, and of whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scorer", "layer", "error", "message"),
    [
        (Probe(blocks=(7,)), 0, LayerError, "7 does not exist: this tower has 3 blocks"),
        (Probe(), 2, ScorerError, "at layer 2: they are there at layer 0"),
    ],
)
def test_what_cannot_be_read_is_said(scorer: Scorer, layer: int, error: Any, message: str) -> None:
    with torch.no_grad(), pytest.raises(error, match=message), tokenprune.prune(model("llava"), recipe(scorer, layer)):
        model("llava")(**inputs("llava", ONE))


def test_towers_without_cls_say_what_to_use() -> None:
    probe = Probe(asked=("cls_attention",))
    with torch.no_grad(), pytest.raises(ScorerError, match="no CLS row: use"), tokenprune.prune(
        model("qwen2_5_vl"), recipe(probe)
    ):  # fmt: skip
        model("qwen2_5_vl")(**inputs("qwen2_5_vl", ONE))


def test_blocks_must_be_declared() -> None:
    @dataclass(frozen=True)
    class Sneaky(Probe):
        @property
        def reads_blocks(self):
            return (0,)

    with torch.no_grad(), pytest.raises(ScorerError, match="was not recorded"), tokenprune.prune(
        model("llava"), recipe(Sneaky())
    ):  # fmt: skip
        model("llava")(**inputs("llava", ONE))


def test_a_family_without_a_tower_adapter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlavaAdapter, "vision_adapter", lambda self: None)
    with pytest.raises(UnsupportedModelError, match="does not know that tower"):
        tokenprune.prune(model("llava"), recipe(Probe())).__enter__()


def test_blocks_have_numbers() -> None:
    assert [resolve_block(b, 24, 22) for b in (0, -1, -2, "8/24", "features")] == [0, 23, 22, 8, 22]
    assert resolve_block("8/24", 3, 1) == 1
    for wrong in ("24/24", "next", ""):
        with pytest.raises(ValueError, match=r"tower block|fraction"):
            check_block(wrong)


@pytest.mark.parametrize("room", [1, 100, 1 << 24])
def test_chunks_do_not_matter(room: int) -> None:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 24, 4, generator=g).double() for _ in range(2))
    lengths = (5, 8, 5, 6)
    got = ops.stretch_attention(q, k, lengths, 0.5, room=room)
    first = ops.stretch_attention(q, k, lengths, 0.5, first_only=True, room=room)
    start = 0
    for length in lengths:
        some = slice(start, start + length)
        weights = (q[:, some] @ k[:, some].mT * 0.5).softmax(-1)
        torch.testing.assert_close(got[some], weights.sum(1).mean(0))
        torch.testing.assert_close(first[some], weights[:, 0].mean(0))
        start += length


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_found_by_their_bits(dtype: torch.dtype) -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[7] = rows[3]  # twice among
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    found = ops.find_equal(ops.row_hashes(rows[order]), ops.row_hashes(rows))
    twins = (order == 3) | (order == 7)
    assert torch.equal(found[~twins], order[~twins])
    assert found[twins].tolist() == [3, 7]  # one each, in order
    other = ops.row_hashes(torch.nextafter(rows.float(), torch.tensor(9.0)).to(dtype) + 1)
    assert (ops.find_equal(other, ops.row_hashes(rows)) == -1).all()
    assert ops.find_equal(other, other[:0]).tolist() == [-1] * 40


def test_a_tower_of_plain_tensors() -> None:
    places = torch.tensor([[0, 0, 0], [1, 0, 0], [-1, -1, -1], [0, 0, 1]])
    tower = Vision.of(places, cls_attention=torch.arange(4.0))
    assert tower.salience(-2).tolist() == [0, 1, 2, 3]
    assert [p.tolist() for p in tower.pictures] == [[0, 3], [1]]
    assert Recorder.__doc__
