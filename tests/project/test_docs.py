"""What is registered is documented, and what the documents show is true."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from PIL import Image

import tokenprune.errors as errors
from tokenprune.cli import app, main
from tokenprune.lab import demo
from tokenprune.lab.loading import PICO, load_model
from tokenprune.lab.pico import scenes
from tokenprune.recipe import load, presets, registered, source
from tokenprune.registry import KINDS, hookspecs, registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = (DOCS / "reference.md").read_text()
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
PARTS = [(kind, name) for kind in KINDS for name in registry().entries[kind] if kind != "recipe"]
YOURS = "# model, inputs: your own"  # the first line of a block that starts with a model and a prompt for it
NOT_RUN = "# not run by the tests: "  # the first line of a block, followed by the reason
HUB = re.compile(r"\b(llava-hf|Qwen)/[\w.-]+|\bMODEL\b")  # the bundled model takes their place


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_every_registered_name_has_its_heading(kind: str, name: str) -> None:
    assert f"### {kind} `{name}`" in REFERENCE


@pytest.mark.parametrize(("kind", "name"), PARTS)
def test_everything_registered_says_what_it_does(kind: str, name: str) -> None:
    assert len((registry().entries[kind][name].part.__doc__ or "").strip()) > 20


@pytest.mark.parametrize("name", registered())
def test_every_recipe_is_listed_with_its_presets(name: str) -> None:
    row = next(line for line in (DOCS / "recipes.md").read_text().splitlines() if line.startswith(f"| `{name}`"))
    for preset in presets(name):
        assert f"`@{preset}`" in row
        load(f"{name}@{preset}")


@pytest.mark.parametrize("name", registered())
def test_the_paper_of_every_recipe_can_be_cited(name: str) -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = {
        one["identifiers"][0]["value"]: one["notes"] for one in (cited["preferred-citation"], *cited["references"])
    }
    named = yaml.safe_load(source(name)).get("paper")
    for paper in named.removeprefix("arXiv ").split(", ") if named else ():
        assert re.search(rf"(?<![\w-]){name}(?![\w-])", papers[f"arXiv:{paper}"])


def test_every_hook_is_explained() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("tokenprune_")]
    assert len(hooks) == len(KINDS)
    for name in hooks:
        assert f"### hook `{name}`" in REFERENCE


def test_every_error_is_explained() -> None:
    page = (DOCS / "troubleshooting.md").read_text()
    ours = [name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)]
    assert len(ours) > 5
    for name in ours:
        assert f"### `{name}`" in page


def test_every_command_is_listed() -> None:
    page = (DOCS / "cli.md").read_text()
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert {"ls", "show", "check", "generate", "explain", "calibrate", "eval", "demo"} <= set(names)
    for name in names:
        assert f"`tokenprune {name}" in page
        assert f"## tokenprune {name}\n" in page


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_generated_parts_are_those_of_the_code() -> None:
    """Tables of recipes, what plugins bring, and the help of every command."""
    script = module(DOCS / "generate.py")
    made = script.blocks()
    found = [name for page in script.PAGES for name in made if f"<!-- {name} -->" in (ROOT / page).read_text()]
    assert set(found) == set(made)
    for page in script.PAGES:
        text = (ROOT / page).read_text()
        assert script.write(text, made) == text, f"{page} is not current: run python docs/generate.py"


def test_every_page_is_in_the_navigation() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    places: list[str] = []

    def walk(entry: Any) -> None:
        if isinstance(entry, str):
            places.append(entry)
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            walk(inner)

    walk(config["nav"])
    pages = [page.name for page in DOCS.glob("*.md")] + [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]
    assert sorted(places) == sorted(pages)
    assert config["theme"]["font"] is False  # nothing from the network


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for i, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S)):
            found.append((f"{page.name}-{i}", code))
    return found


@pytest.mark.parametrize(("where", "code"), blocks("yaml"), ids=[where for where, _ in blocks("yaml")])
def test_yaml_in_the_docs_loads(where: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(code)
    assert load(path).passes


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for the pictures that the documents speak of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mytasks").mkdir()
    for name in ("picture.png", "my.png", "demo/picture.png", "pictures/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        next(scenes.held_out(0)).picture.save(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=[where for where, _ in blocks("python")])
def test_python_in_the_docs_runs(where: str, code: str, desk: Path) -> None:
    """On the bundled model."""
    (desk / "block.py").write_text(HUB.sub(str(PICO), code))
    given: dict[str, Any] = {}
    if code.startswith(YOURS):
        pico = load_model("pico")
        given = {"model": pico.model, "inputs": pico.inputs("read the digits", [next(scenes.held_out(0)).picture])}
    if code.startswith(NOT_RUN):
        compile(code, where, "exec")
    else:
        assert "__file__" in runpy.run_path("block.py", given)


SMALLER = {  # the same commands on fewer questions
    "sweep": "--limit 1",
    "bench": "--runs 1 --new-tokens 2",
    "calibrate": "--limit 1",
    "profile": "--limit 2",
    "horizon": "--limit 1 --layers 0,4 --window 12",
}
LMMS = importlib.util.find_spec("lmms_eval") is not None


def run(line: str) -> None:
    """One command of a console block: ours in this process; of others, that what they name is there."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["tokenprune", "eval"] and LMMS:
        return  # tests/lab/test_eval.py runs it; without lmms-eval it gets as far as saying so
    if words[0] == "tokenprune":
        line = shlex.join([*words[1:], *shlex.split(SMALLER.get(words[1], ""))])
        line = re.sub(r"\bRECIPE\b", "fastv", HUB.sub("pico", line))
        line = re.sub(r"(=[^,\s]+|--budget [^,\s]+),\S+", r"\1", line)  # the first of a list of values
        line = re.sub(r"--dtype \w+", "", line)  # that of a GPU
        if words[1] == "bench":  # so few blocks that presets of 32 cannot be met
            line = re.sub(r"@\d+", "", re.sub(r"--scale \S+", "--scale 1/16", line))
        with pytest.raises(SystemExit) as done:
            main(shlex.split(line))
        assert (done.value.code or 0) == (1 if words[1] == "eval" else 0), line
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), line
    elif words == ["source", ".venv/bin/activate"]:
        assert re.search(r"^VENV := \.venv$", (ROOT / "Makefile").read_text(), flags=re.M)
    elif words[:2] == ["pip", "install"]:
        for wanted in words[2:]:
            extra = re.fullmatch(r"\.\[(\w+)\]", wanted)
            if extra:
                assert re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.M), line
            project = Path(wanted.split("[")[0]) / "pyproject.toml"
            assert wanted == "-e" or project.exists() or (ROOT / project).exists(), line
    else:
        assert words[0] == "python", f"{line}: mark the block with {NOT_RUN!r}"
        assert (ROOT / words[1]).exists(), line


@pytest.mark.parametrize(("where", "code"), blocks("console"), ids=[where for where, _ in blocks("console")])
def test_commands_in_the_docs_run(
    where: str, code: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the bundled model; the YAML of the page is `mine.yaml`."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    assert all(line.startswith(("$ ", "# ")) for line in lines), where
    if code.startswith(NOT_RUN):
        return
    for page, recipe in blocks("yaml"):
        if page.rpartition("-")[0] == where.rpartition("-")[0]:
            (desk / "mine.yaml").write_text(recipe)
    monkeypatch.setitem(demo.compare.__kwdefaults__, "runs", 1)  # no need to measure well
    for line in lines:
        for command in line.removeprefix("$ ").split(" && "):
            run(command)
    said = capsys.readouterr().out
    for shown in re.findall(r"# (average [\d.]+)$|, (average [\d.]+)$", code, flags=re.M):
        assert f"{''.join(shown)} of" in said


def test_what_is_not_run_says_why_and_is_counted() -> None:
    """A block more here needs a reason: a GPU, another program, a network."""
    found = [
        where for language in ("python", "console") for where, code in blocks(language) if code.startswith(NOT_RUN)
    ]
    pages = [where.rpartition("-")[0] for where in found]
    assert {page: pages.count(page) for page in pages} == {
        "add-a-family.md": 2,
        "demo.md": 1,
        "evaluate.md": 2,
        "flash-attention.md": 2,
        "vision-tower.md": 1,
        "write-a-merger.md": 1,
        "write-a-scorer.md": 2,
    }


def test_the_picture_shows_what_the_readme_says() -> None:
    script = module(DOCS / "images" / "make.py")
    drawn = script.panels()
    answers = dict(words.split("\n") for _, words in drawn)
    assert answers.pop("unpruned") == answers.pop("entropyprune-released@layer-1") == "5 8 3"
    assert "5 8 3" not in answers.values()
    assert list(answers) == ["entropyprune", "fastv", "random"]
    assert demo.sheet(drawn).size == Image.open(DOCS / "images" / "overlay.png").size
    assert (DOCS / "images" / "overlay.png").stat().st_size < 300_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_are_small_whole_and_linked(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert path.stat().st_size < 200_000
    assert "site-packages" not in path.read_text()
    assert f"(notebooks/{path.name})" in (DOCS / "index.md").read_text()


@pytest.mark.slow
def test_notebooks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real kernels, side by side, on one scene; each cell gives outputs of the kinds that are stored."""
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    stored = [nbformat.read(path, 4) for path in NOTEBOOKS]
    assert len(stored) == 3
    fresh = [nbformat.from_dict(json.loads(re.sub(r"limit=\d+", "limit=1", json.dumps(one)))) for one in stored]
    module(DOCS / "notebooks" / "make.py").execute(fresh, tmp_path)
    for old, new in zip(stored, fresh, strict=True):
        for before, after in zip(old.cells, new.cells, strict=True):
            assert kinds(before) == kinds(after), before.source


def kinds(cell: Any) -> list[Any]:
    return [sorted(one.get("data", {})) or one.name for one in cell.get("outputs", ())]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere() -> None:
    links = 0
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            links += 1
            found = page.parent / target if target else page
            assert found.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(found), f"{page.name}: {target}#{anchor}"
    assert links > 50


@pytest.mark.parametrize(
    "target", ["demo", "web", "test", "docs", "test-eval", "test-web", "test-floor", "dist", "clean"]
)
def test_the_makefile_has_what_the_readme_says(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_ci_runs_the_readme_command_only() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert shlex.split(lines[-1]) == ["make", "test"]
    assert len(lines) == 3  # strict shell, the right folder, make test
