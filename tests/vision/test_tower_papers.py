"""The methods that score on tower states, against slow references written from their cards: loops, numpy, float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from families import ONE, RAGGED, answer, inputs, logits, model
from oracle import close
from papers_reference import Pictured, pictured, prumerge_merged
from papers_reference import holov as holov_kept

import tokenprune
from tokenprune import Scorer, Seen
from tokenprune.errors import PromptError, RecipeError, ScorerError
from tokenprune.recipe import load
from tokenprune.seen.vision import Vision

pytest.importorskip("tokenprune_papers")
from tokenprune_papers import cdpruner, clip, hiprune, holov, mergers, pictures, prumerge, visionzip, vispruner, vscan

CASES = 72


class Case:
    """A prompt: one picture, or two with tokens of no picture between; every fourth has ties and duplicates."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sides = [(4, 4), (5, 7), (7, 6)][seed % 3]
        pictures = 1 + (seed // 3) % 2
        nowhere = [[-1, -1, -1]]
        places = nowhere * (seed % 2)
        for i in range(pictures):
            places += [[i, y, x] for y in range(sides[0] - i) for x in range(sides[1])] + nowhere * (pictures - 1)
        self.places = np.array(places)
        self.n = len(self.places)
        self.inside = self.places[:, 0] >= 0
        self.keep = int(rng.integers(1, self.inside.sum() + 1))
        self.ties = seed % 4 == 0

        def rows(d: int) -> np.ndarray:
            if self.ties:  # lengths and products are exact, and many rows are the same
                return rng.choice([-1.0, 1.0], size=(self.n // 2, d))[rng.integers(0, self.n // 2, self.n)]
            return rng.normal(size=(self.n, d))

        def weights() -> np.ndarray:
            return rng.integers(0, 6, self.n) / 8.0 if self.ties else rng.uniform(0.001, 1, self.n)

        self.hidden, self.features, self.keys = rows(16), rows(16), rows(4) if self.ties else rows(8)
        self.middle, self.deep = weights(), weights()
        self.text = rng.choice([-1.0, 1.0], size=(4, 16)) if self.ties else rng.normal(size=(5, 16))
        self.joined = rows(16)
        for states in (self.features, self.keys, self.middle, self.deep, self.joined):
            states[~self.inside] = 0

    def seen(self) -> Seen:
        def read(name: str, block: Any) -> torch.Tensor:
            if name in ("keys", "features"):
                return torch.tensor(getattr(self, name))
            if name == "joined_keys":
                return torch.tensor(self.joined)
            return torch.tensor(self.middle if isinstance(block, str) and "/" in block else self.deep)

        tower = Vision(torch.tensor(self.places), read)
        seen = Seen.of(keep=self.keep, hidden=torch.tensor(self.hidden), vision=tower)
        states = torch.cat([seen.states, torch.tensor(self.text)])
        return replace(seen, states=states, question=len(self.text))

    def pictures(self) -> Iterator[tuple[list[int], int]]:
        """Tokens of each picture, and its share of the budget by largest remainders."""
        parts = [[i for i in range(self.n) if self.places[i, 0] == p] for p in range(self.places[:, 0].max() + 1)]
        total = sum(map(len, parts))
        exact = [Fraction(self.keep * len(part), total) for part in parts]
        counts = [int(share) for share in exact]
        for i in sorted(range(len(parts)), key=lambda i: counts[i] - exact[i])[: self.keep - sum(counts)]:
            counts[i] += 1
        return zip(parts, counts, strict=True)


def top(tokens: list[int], score: Any, k: int) -> list[int]:
    return sorted(tokens, key=lambda t: (-score[t], t))[:k]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = np.sqrt(a @ a) * np.sqrt(b @ b)
    return float(a @ b / size) if size else 0.0


# -- the rules, slowly -------------------------------------------------------------------------------------------------


def slow_visionzip(case: Case) -> tuple[list[int], list[int]]:
    dominant, targets = [], []
    for tokens, keep in case.pictures():
        c = int(Fraction(10, 64) * keep + Fraction(1, 2))
        mine = top(tokens, case.deep, keep - c)
        left = [t for t in tokens if t not in mine]
        step = max(1, len(left) // max(1, c))
        dominant += mine
        targets += left[::step][:c]
    return dominant, targets


def slow_contextual(case: Case) -> np.ndarray:
    dominant, targets = slow_visionzip(case)
    aims = targets or sorted(dominant)  # without contextual tokens, the others take it
    merged = case.hidden.copy()
    groups: dict[int, list[int]] = {t: [] for t in aims}
    for token in range(case.n):
        near = [t for t in aims if case.places[t, 0] == case.places[token, 0]]
        if token in dominant or token in targets or not near:
            continue
        likeness = [cosine(case.keys[token], case.keys[t]) for t in near]
        groups[near[int(np.argmax(likeness))]].append(token)
    for target, group in groups.items():
        if group:
            merged[target] = case.hidden[target] + np.mean([case.hidden[t] for t in group], axis=0)
    return merged


def slow_vispruner(case: Case) -> list[int]:
    kept = []
    for tokens, keep in case.pictures():
        order = top(tokens, case.deep, len(tokens))
        important, left = order[: int(keep * 0.5)], order[int(keep * 0.5) :]
        goal = keep - len(important)
        while len(left) > goal:
            a, b = left[0::2], left[1::2]
            if not b:
                left = left[:goal]
                break
            r = min(8, len(left) - goal, len(a))
            near = {t: max(cosine(case.features[t], case.features[u]) for u in b) for t in a}
            a = sorted(a, key=lambda t: -near[t])[r:]  # stable
            left = a + b
        kept += important + left
    return kept


def slow_prumerge(case: Case, spread: Fraction) -> list[int]:
    kept = []
    for tokens, keep in case.pictures():
        count = int(spread * keep + Fraction(1, 2))
        mine = top(tokens, case.deep, keep - count)
        left = [t for t in tokens if t not in mine]
        kept += mine + [left[i * len(left) // count] for i in range(count)]
    return kept


def slow_neighbours(case: Case, kept: list[int]) -> np.ndarray:
    merged = case.hidden.copy()
    for picture, _ in case.pictures():
        mine = [picture.index(token) for token in kept if token in picture]
        parts = [states[picture] for states in (case.hidden, case.joined, case.deep)]
        if mine:
            merged[[picture[i] for i in mine]] = prumerge_merged(*parts, mine)
    return merged


def slow_cdpruner(case: Case, sign: float) -> list[int]:
    x = case.hidden / np.linalg.norm(case.hidden, axis=1, keepdims=True)
    relevance = np.array([sign * np.mean([cosine(row, text) for text in case.text]) for row in x])
    low, high = relevance.min(), relevance.max()
    relevance = (relevance - low + 1e-6) / (high - low) if high > low else np.ones(case.n)
    kernel = relevance[:, None] * (x @ x.T) * relevance
    slack = 1e-6 * kernel.diagonal().max()
    order: list[int] = []
    basis: list[int] = []
    for _ in range(case.keep):
        gains = {}
        for j in set(range(case.n)) - set(order):
            inner = kernel[np.ix_(basis, basis)]
            known = kernel[basis, j] @ np.linalg.solve(inner, kernel[basis, j]) if basis else 0.0
            gains[j] = kernel[j, j] - known  # how much the determinant grows
        best = max(0.0, *gains.values()) if gains else 0.0
        pick = min(j for j in gains if gains[j] >= best - slack)
        order.append(pick)
        if gains[pick] > slack:
            basis.append(pick)
    return order


def slow_hiprune(case: Case) -> list[int]:
    kept = []
    for tokens, keep in case.pictures():
        anchors = top(tokens, case.middle, min(keep, round(keep * 0.5 / 5)))
        beside = []
        for token in tokens:
            y, x = case.places[token, 1:]
            for anchor in anchors:
                v, u = case.places[anchor, 1:]
                if abs(y - v) + abs(x - u) == 1 and token not in anchors and token not in beside:
                    beside.append(token)
        mine = anchors + top(beside, case.deep, len(beside))
        mine += top([t for t in tokens if t not in mine], case.deep, len(tokens))
        kept += mine[:keep]
    return kept


def slow_holov(case: Case) -> list[int]:
    kept = []
    for tokens, keep in case.pictures():
        crops = [list(part) for part in np.array_split(np.arange(len(tokens)), min(5, len(tokens)))]
        kept += [tokens[i] for i in holov_kept(case.hidden[tokens], case.deep[tokens], crops, keep, give=True)]
    return kept


def slow_vscan(case: Case) -> list[int]:
    kept = []
    for tokens, keep in case.pictures():
        high, wide = case.places[tokens, 1].max() + 1, case.places[tokens, 2].max() + 1
        local = []
        for row in range(2):
            for column in range(2):
                inside = [
                    t for t in tokens
                    if case.places[t, 1] * 2 // high == row and case.places[t, 2] * 2 // wide == column
                ]  # fmt: skip
                local += top(inside, case.middle, int(keep * 0.5) // 4)
        kept += local + top([t for t in tokens if t not in local], case.deep, keep - len(local))
    return kept


# -- ours against them -------------------------------------------------------------------------------------------------


def chosen(score: torch.Tensor, keep: int) -> list[int]:
    """As the engine does."""
    return score.argsort(descending=True, stable=True)[:keep].sort().values.tolist()


def check_visionzip() -> None:
    for case in map(Case, range(CASES)):
        score = visionzip.VisionZip().score(case.seen())
        dominant, targets = slow_visionzip(case)
        assert chosen(score, case.keep) == sorted(dominant + targets)
        assert [t for t in range(case.n) if score[t] == -1] == sorted(targets)


def check_contextual() -> None:
    for case in map(Case, range(CASES)):
        score = visionzip.VisionZip().score(case.seen())
        kept = torch.tensor(chosen(score, case.keep))
        merged = mergers.Contextual().merge(torch.tensor(case.hidden), kept, replace(case.seen(), scores=score))
        np.testing.assert_allclose(merged[kept], slow_contextual(case)[kept.tolist()], atol=1e-5)


def check_vispruner() -> None:
    for case in map(Case, range(CASES)):
        assert chosen(vispruner.VisPruner().score(case.seen()), case.keep) == sorted(slow_vispruner(case))


def check_prumerge() -> None:
    for case in map(Case, range(CASES)):
        for spread in ("0/1", "3/4"):
            score = prumerge.PruMerge(spread=spread).score(case.seen())
            assert chosen(score, case.keep) == sorted(slow_prumerge(case, Fraction(spread)))


def check_neighbours() -> None:
    for case in map(Case, range(CASES)):
        kept = slow_prumerge(case, Fraction(3, 4))
        merged = mergers.Neighbours().merge(torch.tensor(case.hidden), torch.tensor(kept), case.seen())
        np.testing.assert_allclose(merged, slow_neighbours(case, kept), atol=1e-5)


def check_cdpruner() -> None:
    for case in map(Case, range(CASES)):
        for sign, factor in (("negative", -1), ("positive", 1)):
            score = cdpruner.CDPruner(sign=sign).score(case.seen())
            order = slow_cdpruner(case, factor)
            assert score.argsort(descending=True, stable=True)[: case.keep].tolist() == order


def check_hiprune() -> None:
    for case in map(Case, range(CASES)):
        score = hiprune.HiPrune(alpha=0.5).score(case.seen())
        assert chosen(score, case.keep) == sorted(slow_hiprune(case))


def check_holov() -> None:
    for case in map(Case, range(CASES)):
        score = holov.HoloV(crops=5).score(case.seen())
        assert chosen(score, case.keep) == sorted(slow_holov(case))


def check_holov_released() -> None:
    """24 pictures: the very set that the released code keeps, and no other where it does not fill up with zero rows."""
    filled = 0
    for seed in range(24):
        given = pictured(seed)
        keep = len(given) // (3, 5, 9)[seed % 3]
        crops = [list(crop) for crop in np.array_split(np.arange(len(given)), 16)]
        released = holov_kept(given.rows, given.attention, crops, keep)
        ours = chosen(holov.HoloV().score(shown(given, keep)), keep)
        assert set(released) <= set(ours)
        filled += len(released) < keep
    assert filled <= 6


def check_neighbours_released() -> None:
    for seed in range(24):
        given = pictured(seed)
        kept = sorted(np.argsort(-given.attention, kind="stable")[: len(given) // 4].tolist())
        joined = np.concatenate(list(given.heads), axis=1)
        wanted = prumerge_merged(given.rows, joined, given.attention, kept)
        merged = mergers.Neighbours().merge(torch.tensor(given.rows), torch.tensor(kept), shown(given, len(kept)))
        np.testing.assert_allclose(merged[kept], wanted, atol=1e-9)


def shown(given: Pictured, keep: int) -> Seen:
    states = {
        "salience": given.attention,
        "joined_salience": given.attention,
        "keys": given.heads.mean(0),
        "joined_keys": np.concatenate(list(given.heads), axis=1),
    }
    places = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), *map(torch.arange, given.side))
    tower = Vision(places, lambda name, block: torch.tensor(states[name]))
    return Seen.of(keep=keep, hidden=torch.tensor(given.rows), vision=tower)


def check_vscan() -> None:
    for case in map(Case, range(CASES)):
        score = vscan.VScan(windows=2).score(case.seen())
        assert chosen(score, case.keep) == sorted(slow_vscan(case))


CHECKS: dict[str, Callable[[], None]] = {
    "visionzip": check_visionzip,
    "contextual": check_contextual,
    "vispruner": check_vispruner,
    "prumerge": check_prumerge,
    "neighbours": check_neighbours,
    "neighbours, released": check_neighbours_released,
    "cdpruner": check_cdpruner,
    "hiprune": check_hiprune,
    "holov": check_holov,
    "holov, released": check_holov_released,
    "vscan": check_vscan,
}


def over_the_picture(self: holov.HoloV, attention: torch.Tensor, varies: torch.Tensor) -> torch.Tensor:
    """As if the variance was scaled to the attention of the whole picture, not of its crop."""
    return attention.mean(1) + self.alpha * attention.mean() / varies.mean().clamp_min(1e-12) * varies


MUTANTS: list[tuple[str, Any, str, Any]] = [
    # module or class, name and what it becomes
    ("visionzip", visionzip, "rest", lambda m, taken: torch.arange(m)[: m - len(taken)]),
    ("contextual", mergers, "unit", lambda rows: rows),
    ("vispruner", vispruner, "ROUND", 7),
    ("prumerge", prumerge, "rest", lambda m, taken: torch.arange(m)[: m - len(taken)]),
    ("neighbours", mergers.Neighbours.__init__, "__defaults__", (31,)),
    ("neighbours, released", Vision, "keys", lambda self, block, heads="mean": self.read("keys", block)),
    ("cdpruner", cdpruner, "rescaled", lambda relevance: relevance),
    ("hiprune", hiprune, "best", lambda score, keep: score.flip(0).argsort(descending=True)[:keep]),
    ("holov", holov, "variance", lambda rows: rows[:, 0].sum(1) * 0),
    ("holov, released", holov.HoloV, "worth", over_the_picture),
    ("vscan", vscan, "best", lambda score, keep: score.argsort(stable=True)[:keep]),
]


@pytest.mark.parametrize("method", CHECKS)
def test_the_method_is_its_card(method: str) -> None:
    CHECKS[method]()


@pytest.mark.parametrize(("method", "module", "name", "mutant"), MUTANTS, ids=[method for method, *_ in MUTANTS])
def test_a_mutant_is_noticed(method: str, module: Any, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, mutant)
    with pytest.raises(AssertionError):
        CHECKS[method]()


# -- CLIP's own text tower ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_clip(tmp_path: Any) -> Any:
    """The CLIP that the tiny LLaVA's tower could come from, its text no longer than six tokens, and its tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"x": 0, **{f"w{i}": i for i in range(1, 128)}}, unk_token="x"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="x", clean_up_tokenization_spaces=False)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 128, "max_position_embeddings": 6}
    vision = model("llava").config.vision_config.to_dict()
    made = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    made.save_pretrained(tmp_path)
    clip.load.cache_clear()
    yield str(tmp_path), made, tokenizer
    clip.load.cache_clear()


def clip_recipe(path: str) -> dict[str, Any]:
    scorer = {"name": "cdpruner", "relevance": "clip", "clip": path}
    return {"prune": [{"scorer": scorer, "schedule": {"name": "fixed", "layer": 0, "keep": 5}}]}


@torch.no_grad()
def test_relevance_to_the_question_is_clips(tiny_clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projected patches of block -2 against the text after the picture, in pieces of six tokens, zeros behind."""
    path, made, tokenizer = tiny_clip
    found: list[torch.Tensor] = []
    monkeypatch.setattr(cdpruner, "rescaled", lambda r, old=cdpruner.rescaled: found.append(r) or old(r))
    lm, given = model("llava"), inputs("llava", ONE)
    with tokenprune.prune(lm, clip_recipe(path), processor=tokenizer):
        lm(**given)
    states = lm.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states[-2][0, 1:]
    patches = made.visual_projection(made.vision_model.post_layernorm(states))
    question = given["input_ids"][0, -9:].tolist()
    pieces = [question[:6], question[6:] + [0] * 3]
    masks = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    words = made.get_text_features(input_ids=torch.tensor(pieces), attention_mask=masks).pooler_output
    cosines = [[cosine(p, w) for w in words.double().numpy()] for p in patches.double().numpy()]
    np.testing.assert_allclose(found[0], -np.mean(cosines, axis=1), atol=1e-5)


def test_without_a_processor_or_with_another_clip_it_says_so(tiny_clip: Any, tmp_path: Any) -> None:
    path, _, tokenizer = tiny_clip
    with pytest.raises(PromptError, match=r"processor=processor"), torch.no_grad(), tokenprune.prune(
        model("llava"), clip_recipe(path)
    ):  # fmt: skip
        model("llava")(**inputs("llava", ONE))
    with pytest.raises(ScorerError, match=r"cannot be loaded.*relevance: text"), torch.no_grad(), tokenprune.prune(
        model("llava"), clip_recipe(str(tmp_path / "none")), processor=tokenizer
    ):  # fmt: skip
        model("llava")(**inputs("llava", ONE))
    seen = Case(1).seen()
    seen = replace(seen, source=replace(seen.source, words="w1 w2"))
    with pytest.raises(ScorerError, match="patches of width 32, and this vision tower has 16"):
        clip.patch_text_cosines(path, seen)


def test_the_question_is_read_without_padding_and_picture(tiny_clip: Any) -> None:
    """Each prompt of a padded batch has its own text after its last picture."""
    _, _, tokenizer = tiny_clip
    texts: list[str] = []
    given = inputs("llava", RAGGED)

    @dataclass(frozen=True)
    class Reads(Scorer):
        def score(self, seen: Seen) -> torch.Tensor:
            texts.append(seen.text)
            return torch.zeros(len(seen.visual))

    recipe = {"prune": [{"scorer": Reads(), "schedule": {"name": "fixed", "layer": 0, "keep": 5}}]}
    with torch.no_grad(), tokenprune.prune(model("llava"), recipe, processor=tokenizer):
        model("llava")(**given)
    ids = given["input_ids"]
    assert texts == [tokenizer.decode(ids[0, -5:].tolist()), tokenizer.decode(ids[2, -9:].tolist())]


# -- and around them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("visionzip", {"contextual": -1}),
        ("visionzip", {"block": "next"}),
        ("vispruner", {"important": 1.5}),
        ("prumerge", {"spread": 2.0}),
        ("hiprune", {"alpha": 1.5}),
        ("holov", {"crops": 0}),
        ("holov", {"alpha": -1.0}),
        ("vscan", {"local": 2.0}),
        ("vscan", {"windows": 0}),
        ("cdpruner", {"sign": "both"}),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, setting: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"prune\.0\.scorer"):
        load({"prune": [{"scorer": {"name": name, **setting}, "schedule": {"name": "fixed", "layer": 0, "keep": 1}}]})


def test_a_stretch_of_a_single_token_has_its_share() -> None:
    """Four stretches of two tokens, and twelve of one that get twice the attention: these are kept."""
    places = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(4), torch.arange(5))
    tower = Vision.of(places, cls_attention=torch.tensor([0.03] * 8 + [0.06] * 12))
    hidden = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    score = holov.HoloV().score(Seen.of(keep=12, hidden=hidden, vision=tower))
    assert score.tolist() == [0.0] * 8 + [1.0] * 12


@pytest.mark.parametrize(("keep", "dominant"), [(192, 162), (128, 108), (64, 54), (32, 27)])
def test_visionzip_counts_are_the_published_ones(keep: int, dominant: int) -> None:
    places = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(24), torch.arange(24))
    tower = Vision.of(places, cls_attention=torch.rand(576, generator=torch.Generator().manual_seed(0)))
    score = visionzip.VisionZip().score(Seen.of(keep=keep, vision=tower))
    assert [(score == 1).sum(), (score == -1).sum()] == [dominant, keep - dominant]


@pytest.mark.parametrize("sizes", [[576] * 5, [16, 3, 1], [5], [7, 7, 7]])
def test_shares_add_up_and_fit(sizes: list[int]) -> None:
    for keep in range(0, sum(sizes) + 3):
        parts = pictures.shares(keep, sizes)
        assert sum(parts) == min(keep, sum(sizes))
        assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
        assert max(abs(part - keep * size / sum(sizes)) for part, size in zip(parts, sizes, strict=True)) < 1 or (
            keep > sum(sizes)
        )


@pytest.mark.parametrize("recipe", ["visionzip", "prumerge", "prumerge-plus", "vscan"])
def test_merging_changes_the_answer(recipe: str) -> None:
    with tokenprune.prune(model("llava"), recipe):
        merged = logits(answer("llava", "sdpa", ONE))
    with tokenprune.prune(model("llava"), recipe, "prune.0.merge=null"):
        dropped = logits(answer("llava", "sdpa", ONE))
    assert not close(merged, dropped)


def test_merging_has_gradients() -> None:
    lm = copy.deepcopy(model("llava"))
    with tokenprune.prune(lm, "visionzip"):
        lm(**inputs("llava", ONE)).logits[:, -1].sum().backward()
    assert lm.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    lm = copy.deepcopy(model("llava_next")).to(dtype)
    for recipe in ("visionzip", "vispruner", "prumerge", "cdpruner", "hiprune", "holov", "vscan"):
        with torch.no_grad(), tokenprune.prune(lm, recipe) as pruning:
            lm(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs("llava_next", ONE).items()})
        assert pruning.state.views


@pytest.mark.parametrize("recipe", ["visionzip", "vispruner", "prumerge", "cdpruner", "hiprune", "holov", "vscan"])
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_autocast(family: str, recipe: str) -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), tokenprune.prune(model(family), recipe) as pruning:
        model(family)(**inputs(family, RAGGED))
    assert pruning.state.views
