"""Published sizes: what a config class of transformers makes of them, what their names promise, what commands say."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from tokenprune.cli import main
from tokenprune.errors import LayerError, UnknownNameError
from tokenprune.lab import random_models
from tokenprune.lab.costs import cost
from tokenprune.plan.cost import DecoderSize
from tokenprune.plan.shapes import PUBLISHED, VISUAL, Shape, geometry, published, shapes, visual_tokens
from tokenprune.recipe import load
from tokenprune.shipped import configs

CONTENT = yaml.safe_load((configs() / "shapes.yaml").read_text())
ENTRIES = {
    name: (family, entry) for family in CONTENT if family != "decoders" for name, entry in CONTENT[family].items()
}
OURS = ("visual", "vision_depth", "pictures", "source")
DECODERS = {
    "pixtral": "mistral",
    "internvl3.5": "qwen3",
    "internvl3.5-30b": "qwen3_moe",
    "internvl3.5-241b": "qwen3_moe",
}
DECODERS |= {"paligemma2": "gemma2", "ministral": "ministral3"}
"""Model types of language models, by how names begin, where they are not what the family has by default."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(exit.value.code or 0), out, err


def text_config(family: str, name: str, entry: dict[str, Any]) -> Any:
    """The config class of an entry's language model, with the entry's fields and its own defaults for all others."""
    chosen = max((start for start in DECODERS if name.startswith(start)), key=len, default="")
    model_type = DECODERS.get(chosen) or AutoConfig.for_model(family).get_text_config().model_type
    fields = {key: value for key, value in entry.items() if key not in OURS}
    if types := fields.get("layer_types"):
        fields["layer_types"] = [types[i % len(types)] for i in range(fields["num_hidden_layers"])]
    return AutoConfig.for_model(model_type, **fields)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_config_of_transformers_says_the_same(name: str) -> None:
    """So no entry lacks a field that counts, and each is read as the model would read it."""
    family, entry = ENTRIES[name]
    size = replace(geometry(name), family="", vision_depth=0, pictures=1)
    assert DecoderSize.of_text(text_config(family, name, entry)) == size
    assert geometry(name).family == family


def test_a_field_that_lacks_would_be_seen() -> None:
    family, entry = ENTRIES["gemma-4-e2b"]
    for field in ("layer_types", "num_kv_shared_layers", "use_double_wide_mlp", "num_key_value_heads"):
        fields = {key: value for key, value in entry.items() if key != field}
        assert DecoderSize.of_text(text_config(family, "", fields)) != replace(geometry("gemma-4-e2b"), family="")


@pytest.mark.parametrize("name", [name for name in ENTRIES if re.search(r"\d[bm]$", name)])
def test_weights_that_a_token_passes_are_what_the_name_promises(name: str) -> None:
    """The language model without embeddings is 35 % of it where it is small and at most all of it."""
    (number, unit) = re.findall(r"a?([\d.]+)([bm])", name)[-1]
    promised = float(number) * (1e9 if unit == "b" else 1e6)
    if name == "glm-4.5v-106b":
        promised = 12e9  # active
    assert 0.35 < sum(block.weights for block in geometry(name).each) / promised < 1.02


def test_every_entry_says_where_its_numbers_stand() -> None:
    assert len(ENTRIES) >= 70
    assert not ENTRIES.keys() & PUBLISHED.keys()
    for shape in list(shapes().values())[len(published()) :]:
        assert re.fullmatch(
            r"(config\.json|transformers|model card|MaxText|Megatron Bridge|mlx-vlm|arXiv [\d.]+) \(.+\)", shape.source
        )


def test_shapes_are_those_that_can_be_built_and_the_shipped_ones() -> None:
    found = shapes()
    assert list(found) == [*published(), *ENTRIES]
    assert found["llava-1.5-7b"] == Shape("llava-1.5-7b", PUBLISHED["llava-1.5-7b"], 576)
    assert found["llava-1.5-13b"].size.vision_depth == 24
    assert geometry("qwen3-vl-8b") == DecoderSize(36, 4096, 12288, 32, 8, 128, family="qwen3_vl")
    assert [visual_tokens(name) for name in ("gemma-3-4b", "llava-next-34b", "qwen3-vl-8b")] == [256, 2880, VISUAL]


# -- commands --------------------------------------------------------------------------------------------------------


def test_ls_shapes_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, "ls", "shapes")
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0] in shapes()}
    assert rows.keys() == shapes().keys()  # one block: no name stands twice
    assert rows["qwen3.5-9b"] == ["32", "8", "4096", "16/4", "transformers"]
    assert rows["gemma-3-4b"] == ["34", "5", "2560", "8/4", "256", "MaxText"]
    assert rows["llava-1.5-7b"] == ["32", "4096", "32/32", "576", "built", "in"]


def test_ls_shapes_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "ls", "shapes", "--json")
    found = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert found.keys() == shapes().keys()
    assert found["qwen3.5-9b"]["kv_blocks"] == {"whole": 8, "window": 0, "none": 24, "windows": []}
    assert found["llava-1.5-13b"] == {
        "name": "llava-1.5-13b",
        "family": "llava",
        "depth": 40,
        "width": 5120,
        "ffn": 13824,
        "heads": 40,
        "kv_heads": 40,
        "head_size": 128,
        "kv_blocks": None,
        "visual": 576,
        "source": "config.json (huggyllama/llama-13b, of Vicuna)",
    }


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("qwen3.5-9b", "KV of visual tokens 9.0 of 18.0 MiB (in 8 of 32 blocks)"),
        ("gemma-3-4b", "KV of visual tokens 18.0 of 34.0 MiB (all in 5 of 34 blocks, a window of 1024 in 29)"),
        ("gemma-4-e2b", "MiB (all in 3 of 35 blocks, a window of 512 in 12)"),
        ("qwen3-vl-8b", "KV of visual tokens 42.8 of 81.0 MiB\n"),
    ],
)
def test_explain_says_which_blocks_keep_kv(capsys: pytest.CaptureFixture[str], shape: str, words: str) -> None:
    code, out, _ = run(capsys, "explain", "fastv", "--shape", shape)
    assert code == 0
    assert words in out
    result = json.loads(run(capsys, "explain", "fastv", "--shape", shape, "--json")[1])
    assert ("kv_blocks" in result) == ("blocks" in words)
    kv = result["kv_mib"]
    assert f"{kv['pruned']:.1f} of {kv['full']:.1f} MiB" in out


def test_explain_with_a_pass_in_a_tower_whose_blocks_nobody_says() -> None:
    recipe = load(
        {"prune": [{"scorer": "random", "schedule": {"name": "fixed", "layer": 3, "keep": 0.5}, "tower": "vision"}]}
    )
    with pytest.raises(
        LayerError, match="the blocks of the vision tower of qwen3-vl-8b are not known: give another shape"
    ):
        cost(recipe, "qwen3-vl-8b", 576)
    assert cost(recipe, "llava-1.5-13b", 576)["plan"] == {"-21": 288}


def test_what_cannot_be_built_says_so_and_what_can() -> None:
    message = r"no shape with random weights 'qwen3-vl-8b'.*its sizes alone are known.*llava-1\.5-7b, .*can be built"
    with pytest.raises(UnknownNameError, match=message):
        random_models.check("qwen3-vl-8b", "1")


def test_unknown_shapes_name_the_nearest_of_all() -> None:
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'qwen3-vl-8b'\?.*`tokenprune ls shapes` lists them"
    ) as raised:
        geometry("qwen3-vl-9b")
    assert len(str(raised.value)) < 240
