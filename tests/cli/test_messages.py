"""What users get told: what was expected, what came, what to do; never the words of a library below."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tokenprune.cli import main
from tokenprune.errors import RecipeError, TokenpruneError
from tokenprune.lab.loading import PICO, load_model
from tokenprune.lab.pico import scenes
from tokenprune.recipe import load, registered


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr; boxes and line ends taken out."""
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    said = capsys.readouterr()
    out, err = (" ".join(text.replace("│", " ").split()) for text in (said.out, said.err))
    return int(done.value.code or 0), out, err


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("fastv", "prune.1.schedule.keep=3", "there is no prune.1, only prune.0"),
        ("fastv", "prune[1].merge=nearest", "there is no prune.1, only prune.0"),
        ("fastv", "prune.first.merge=nearest", "there is no prune.first, only prune.0"),
        ("divprune-random", "prune.2.schedule.keep=3", "there is no prune.2, only prune.0 to prune.1"),
        (
            "pyramiddrop", "prune.0.schedule.layers.7=2",
            "there is no prune.0.schedule.layers.7, only prune.0.schedule.layers.0 to prune.0.schedule.layers.2",
        ),
    ],
)  # fmt: skip
def test_overrides_of_passes_that_are_not_there(name: str, line: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(name, line)
    assert error.value.problems == [f"override {line!r}: {said}"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("keep", "a budget is a number of tokens such as 192, or a share of them from 0 to 1 such as 0.25, 1/3 or 30%"),
        ("layer", "a layer is a number of blocks such as 2, or a share of them such as 16/32"),
    ],
)
def test_words_for_numbers(setting: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("fastv", f"prune.0.schedule.{setting}=abc")
    assert error.value.problems == [f"prune.0.schedule: {said}, got 'abc'"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nprune:\n  - {scorer: random\n", "line 4, column 1, is not readable YAML: did not find expected"),
        ("name: x\nprune: ]\n", "line 2, column 8, is not readable YAML: "),
        ("name: x\nname: y\n", "line 2, column 1, is not readable YAML: found duplicate key name"),
        ("name: \0\n", "is not readable YAML: "),
    ],
)
def test_where_a_recipe_is_no_yaml(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        load(tmp_path / "mine.yaml")
    (problem,) = error.value.problems
    assert problem.startswith("mine.yaml")
    assert said in problem
    assert "\n" not in problem


def test_a_folder_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "deep/er", "odd.yaml", "fastv"):
        Path(name).mkdir(parents=True)
    for name in ("mine", "deep/er", "odd.yaml", str(tmp_path)):
        with pytest.raises(RecipeError) as error:
            load(name)
        assert error.value.problems == [f"{name} is a folder: give a recipe name or the path of a YAML file"]
    assert load("fastv").name == "fastv"  # a name comes first


# -- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "the folder has no config.json. Give"),
        (("model.safetensors",), "the folder has no config.json. Give"),
        (("config.json",), "the folder has no safetensors weights. Give"),
        (("config.json", "model.bin"), "the folder has no safetensors weights, but model.bin, which is not read. Give"),
        (
            ("config.json", "model.safetensors"),
            "the folder has no processor_config.json, which processor.save_pretrained writes. Give",
        ),
        (("config.json", "processor_config.json", "broken.safetensors"), "Error no file named model.safetensors found"),
    ],
)
def test_what_a_folder_lacks_to_be_a_model(files: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for name in files:
        if (PICO / name).is_file():
            shutil.copy(PICO / name, tmp_path)
        else:
            (tmp_path / name).write_text("nothing")
    with pytest.raises(TokenpruneError) as error:
        load_model(str(tmp_path))
    assert str(error.value).startswith(f"cannot load the model {str(tmp_path)!r}: {said}")
    assert str(error.value).endswith(
        "Give a hub id, a folder with config.json, safetensors weights and a processor, or pico."
    )


def test_weights_that_are_none(tmp_path: Path) -> None:
    """The reader's own errors are not among Python's."""
    shutil.copy(PICO / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_text("nothing")
    with pytest.raises(TokenpruneError, match=r"cannot load the model .*: Error while deserializing header"):
        load_model(str(tmp_path))


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, said in (
        (str(tmp_path / "file"), "it is a file, and a model is a folder"),
        (str(tmp_path / "nowhere"), "there is no such folder"),
        ("./nowhere", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
    ):
        with pytest.raises(TokenpruneError, match=f"cannot load the model {name!r}: {said}. Give a hub id, "):
            load_model(name)


# -- nothing to drop, nothing dropped --------------------------------------------------------------------------------


def test_generate_without_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    """With a recipe it was forgotten; without one a question alone is fine, and said."""
    code, out, err = run(capsys, "generate", "pico", "--prompt", "read the digits", "-r", "fastv")
    assert (code, out) == (2, "")
    assert "a recipe drops tokens of pictures and videos, and none is given: add --image FILE or --video FILE" in err
    code, out, err = run(capsys, "generate", "pico", "--prompt", "read the digits", "--max-new-tokens", "2")
    assert code == 0
    assert err == "no --image and no --video was given: the model gets the question alone"


IDLE = ["keep=1.0", "keep=1000", "average=576"]


@pytest.mark.parametrize("setting", IDLE)
def test_a_recipe_that_drops_nothing(setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No error, and not silent either."""
    code, out, err = run(capsys, "explain", "fastv", f"prune.0.schedule.{setting}")
    assert (code, err) == (0, "")
    assert "nothing is dropped: fastv keeps all 576 visual tokens average 576.0 of 576" in out
    line = f"schedule: {{name: fixed, layer: 2, {setting.replace('=', ': ')}}}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nprune:\n  - scorer: random\n    {line}\n")
    code, out, err = run(capsys, "check", str(tmp_path / "mine.yaml"))
    assert (code, out) == (0, f"{tmp_path}/mine.yaml: fine")
    assert err == f"{tmp_path}/mine.yaml: drops nothing: it keeps all 576 visual tokens of llava-1.5-7b"


def test_a_prompt_of_which_nothing_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.png"
    next(scenes.held_out(0)).picture.save(picture)
    asked = ("generate", "pico", "--image", str(picture), "--prompt", "read the digits", "--max-new-tokens", "1")
    code, _, err = run(capsys, *asked, "-r", "fastv", "prune.0.schedule.keep=1.0")
    assert code == 0
    assert err.endswith("nothing was dropped: fastv keeps all 144 visual tokens of this prompt")
    code, _, err = run(capsys, *asked, "-r", "fastv", "prune.0.schedule.keep=9")
    assert code == 0
    assert "nothing was dropped" not in err


def test_shipped_recipes_drop_something(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "check", *registered())
    assert code == 0
    assert "drops nothing" not in err
