"""`tokenprune sweep`: combinations, rows that survive an interruption, and pico's questions as a task."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run as cli
from PIL import Image

import tokenprune
from tokenprune.builtin.schedules import Fixed
from tokenprune.errors import BudgetError, RecipeError
from tokenprune.lab import sweep
from tokenprune.lab.loading import load_model
from tokenprune.lab.pico.scenes import KINDS
from tokenprune.lab.pico.task import Answers, Task
from tokenprune.lab.sweep import Combination, combinations, split
from tokenprune.recipe import load


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1", ["1"]),
        ("1,2,16/32", ["1", "2", "16/32"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{name: random, seed: 1},entropy", ["{name: random, seed: 1}", "entropy"]),
        ("'8/32,16/32'", ["8/32,16/32"]),
        ('"a,b",c', ["a,b", "c"]),
        ("", [""]),
    ],
)
def test_commas_in_brackets_and_quotes_belong_to_a_value(text: str, values: list[str]) -> None:
    assert split(text) == values


def test_all_combinations_in_the_order_given() -> None:
    found = combinations(
        ["entropyprune", "fastv"], ["prune.0.schedule.layer=1,2", "prune.0.schedule.average=64,36"], "1/2,1/3"
    )
    assert len(found) == 1 + 2 * 2 * 2 * 2
    assert [one.name for one in found[:4]] == [
        "unpruned",
        "entropyprune layer=1 average=64 budget=1/2",
        "entropyprune layer=1 average=64 budget=1/3",
        "entropyprune layer=1 average=36 budget=1/2",
    ]
    assert found[-1] == Combination("fastv", ("prune.0.schedule.layer=2", "prune.0.schedule.average=36"), "1/3")


def test_scorers_layers_and_budgets_mix() -> None:
    found = combinations(["fastv"], ["prune.0.scorer=entropy,random", "prune.0.schedule.layer=1,2"])[1:]
    built = [load(str(one.recipe), *one.settings).passes[0] for one in found]
    assert [(type(step.scorer).__name__, step.schedule.layer) for step in built] == [  # type: ignore[attr-defined]
        ("Entropy", 1), ("Entropy", 2), ("Random", 1), ("Random", 2),
    ]  # fmt: skip
    assert [one.name for one in found][:2] == ["fastv scorer=entropy layer=1", "fastv scorer=entropy layer=2"]


def test_names_say_the_pass_where_there_are_several() -> None:
    (one,) = combinations(["divprune-random"], ["prune.1.schedule.layer=5", "prune.1.scorer.seed=3"])[1:]
    assert one.name == "divprune-random 1.layer=5 1.scorer.seed=3"
    assert one.spell("layer") == "divprune-random 1.scorer.seed=3"


def test_faults_of_all_combinations_are_said_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        combinations(["fastv", "entropyprune"], ["prune.0.schedule.average=64", "prune.0.scorer.queries=last,firs"])
    text = str(caught.value)
    assert "fastv: prune.0.scorer.queries" in text
    assert "entropyprune: prune.0.scorer.queries: unknown key" in text
    assert len(caught.value.problems) == 2
    with pytest.raises(BudgetError, match="lots"):
        combinations(["fastv"], [], "1/2,lots")


def test_a_layer_said_takes_the_place_of_the_collapse_layer() -> None:
    step = load("entropyprune", "prune.0.schedule.layer=5").passes[0]
    assert step.schedule == Fixed(layer=5, keep=load("entropyprune").passes[0].schedule.keep)  # type: ignore[attr-defined]


# -- rows ------------------------------------------------------------------------------------------------------------

SETTINGS = {"model": "none", "task": "pico", "limit": 2, "seed": 0}


def made_up(one: Combination) -> Answers:
    """Answers without a model: some layers cannot reach their average."""
    if "prune.0.schedule.layer=3" in one.settings:
        raise BudgetError("average 36 cannot be reached")
    size = len(one.name)
    right = {kind: [True, size % 2 == 0] for kind in KINDS}
    return Answers({kind: ["yes", "no"] for kind in KINDS}, right, float(size), size / 100, [size % 5])


WANTED = combinations(["entropyprune", "fastv"], ["prune.0.schedule.layer=1,3", "prune.0.schedule.average=64,36"])


def finish(folder: Path, answer: Any = made_up) -> dict[str, bytes]:
    rows = list(sweep.run(WANTED, answer, folder, SETTINGS))
    sweep.save(rows, folder, SETTINGS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_interrupted_sweep_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, asked = finish(tmp_path / "whole"), []

    def until_killed(one: Combination) -> Answers:
        asked.append(one)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return made_up(one)

    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "parts", until_killed)
    assert len(list((tmp_path / "parts" / "rows").iterdir())) == 4
    (tmp_path / "parts" / "rows" / "half.json.1.tmp").write_text('{"half')  # what a killed write may leave
    asked.clear()
    asked += [WANTED[0]] * 5
    resumed = finish(tmp_path / "parts", until_killed)
    assert len(asked) == 5 + len(WANTED) - 4  # the others were there
    assert {name: content for name, content in resumed.items() if "half" not in name} == whole
    assert finish(tmp_path / "parts", until_killed) == resumed
    assert len(asked) == 5 + len(WANTED) - 4


def test_other_settings_or_another_recipe_are_other_rows(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    names = set()
    for keep, settings in ((5, SETTINGS), (6, SETTINGS), (5, {**SETTINGS, "seed": 1})):
        recipe.write_text(f"prune: [{{scorer: random, schedule: {{name: fixed, layer: 2, keep: {keep}}}}}]\n")
        list(sweep.run([Combination(str(recipe))], made_up, tmp_path / "s", settings))
        names = {path.name for path in (tmp_path / "s" / "rows").iterdir()}
    assert len(names) == 3


def test_a_row_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    whole = finish(tmp_path)
    victim = next((tmp_path / "rows").iterdir())
    victim.write_text("{")
    assert finish(tmp_path) == whole


def test_combinations_that_build_the_same_are_one_row(tmp_path: Path) -> None:
    """Under the name that came first; a count is no share, and another recipe no other name of this one."""
    step = "{scorer: random, schedule: {name: fixed, layer: 2, keep: 1}}"
    (tmp_path / "mine.yaml").write_text(f"prune: [{step}]\n")
    mine = str(tmp_path / "mine.yaml")
    keeps = "prune.0.schedule.keep=0.5,0.50,5.0e-1,1,1.0"
    found = combinations([mine, mine, "fastv", "fastv"], [keeps], "1/2,0.5,2/4,1,1.0,1/1")
    assert [(one.recipe, one.settings[0].partition("=")[2], one.budget) for one in found[1:]] == [
        (recipe, keep, budget) for recipe in (mine, "fastv") for keep in ("0.5", "1", "1.0")
        for budget in ("1/2", "1", "1.0")
    ]  # fmt: skip
    default = load("fastv").passes[0].schedule.layer  # type: ignore[attr-defined]
    assert len(combinations(["fastv"], [f"prune.0.schedule.layer={default},{default}"])) == 2


def test_numbers_do_not_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finish(tmp_path / "whole")
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert finish(tmp_path / "few") == {name: content for name, content in whole.items() if not name.endswith(".png")}
    assert len([name for name in whole if name.endswith(".png")]) == 2


def test_impossible_combinations_are_rows(tmp_path: Path) -> None:
    finish(tmp_path)
    rows = json.loads((tmp_path / "sweep.json").read_text())["rows"]
    assert sum("impossible" in row for row in rows) == 4
    with (tmp_path / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["recipe"] for line in lines] == ["unpruned"] + ["entropyprune"] * 4 + ["fastv"] * 4
    assert lines[3]["impossible"] == "average 36 cannot be reached"
    assert lines[3]["all"] == ""
    assert lines[1]["prune.0.schedule.layer"] == "1"
    assert 0 <= float(lines[1]["all"]) <= 1
    assert "cannot be reached" in (tmp_path / "sweep.md").read_text()


def test_nothing_possible_needs_no_plot() -> None:
    rows = [{"name": "a", "recipe": "a", "settings": [], "budget": None, "impossible": "no"}]
    assert sweep.plot(rows, "title") == {}
    assert sweep.as_csv(rows).count("\n") == 2


# -- the task and the command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [None, "fastv", "cdpruner"])
def test_the_task_says_what_generate_says(recipe: str | None) -> None:
    """Question by question with its own picture: no batch, and no encoding shared between questions."""
    pico = load_model("pico")
    task = Task(pico, limit=3, seed=11, batch=2)
    answers = task.answer(recipe)
    for i, scene in enumerate(task.scenes):
        for question in scene.questions:
            given = pico.inputs(question.text, [scene.picture])
            if recipe is None:
                said = pico.answer(given, 8)
            else:
                with tokenprune.prune(pico.model, recipe, processor=pico.processor):
                    said = pico.answer(given, 8)
            assert answers.said[question.kind][i].strip() == said
            assert answers.right[question.kind][i] == (said == question.answer)
    assert len(task) == 2
    assert set(answers.accuracy) == {*KINDS, "all"}
    assert (answers.average == 144) == (answers.flops_share == 1) == (recipe is None)


def test_a_case_or_a_final_stop_is_no_fault() -> None:
    task = Task(load_model("pico"), limit=1, seed=0)
    truth = {question.kind: question.answer for question in task.scenes[0].questions}
    said = {kind: [f" {answer.upper()}."] for kind, answer in truth.items()}
    assert all(right == [True] for right in task.right(said).values())
    assert not any(right[0] for right in task.right({kind: ["neither"] for kind in KINDS}).values())


def test_sweep_from_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = (
        "sweep", "-r", "entropyprune", "-r", "fastv", "prune.0.schedule.layer=1,5", "prune.0.schedule.average=64",
        "--model", "pico", "--task", "pico", "--limit", "2", "--seed", "0", "--output", str(tmp_path),
    )  # fmt: skip
    code, out, _ = cli(capsys, *arguments)
    assert code == 0
    assert "entropyprune layer=1 average=64" in out
    assert "cannot be reached" in out
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before} >= {
        "sweep.json", "sweep.csv", "sweep.md", "accuracy-layer.png", "accuracy-flops.png",
    }  # fmt: skip
    with Image.open(tmp_path / "accuracy-layer.png") as picture:
        assert picture.size[0] > 1000
    assert cli(capsys, *arguments)[0] == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-r", "fastv", "--task", "picco"), "did you mean 'pico'"),
        (("-r", "fasttv"), "did you mean 'fastv'"),
        (("-r", "fastv", "prune.0.schedule.layr=1,2"), "layr"),
        (("-r", "fastv", "--budget", "1/2,3/2"), "3/2"),
        ((), "--recipe"),
    ],
)
def test_bad_usage(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    code, _, err = cli(capsys, "sweep", *arguments, "--output", str(tmp_path))
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())
