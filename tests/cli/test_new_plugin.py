"""A plugin as `tokenprune new-plugin` writes it, installed and tested as its author would; the contract by options."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tokenprune.cli import create, main
from tokenprune.contract.cases import parameters
from tokenprune.errors import TokenpruneError
from tokenprune.families.llava import LlavaAdapter
from tokenprune.registry import Broken, Entry, registry

pytestmark = pytest.mark.slow

# the tests of a plugin for a family of its own: its adapter comes from the docs
FAMILY = '''
from functools import partial

import transformers
from tokenprune import hookimpl
from tokenprune import Adapter
from tokenprune.contract import families


class VipLlavaAdapter(Adapter):
    """VipLLaVA."""

    model_types = ("vipllava",)
    placeholders = ("image_token_id",)


def build():
    text = transformers.LlamaConfig(**families.text_config())
    config = transformers.VipLlavaConfig(
        vision_config=families.vision_config(), text_config=text, image_token_index=families.IMAGE,
        vision_feature_layers=[-2, -1],
    )
    return transformers.VipLlavaForConditionalGeneration(config)


tiny = families.Family("vipllava", build, partial(families.inputs, "llava"))


@hookimpl
def tokenprune_adapters():
    return {"vipllava": VipLlavaAdapter}
'''


KINDS = {"scorer": "loud", "scheduler": "steps", "merger": "fold", "adapter": "tiny-vip"}
OPTIONAL = {  # of an adapter: answered by None
    "states of this family's vision tower cannot be read",
    "this family's vision tower cannot be pruned",
}


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenprune, a plugin of each kind and one with a family, installed into a folder."""
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for kind, name in KINDS.items():
            assert run_main("new-plugin", name, "--kind", kind) == 0
    family = folder / "tokenprune-vipllava"
    create.write(family, {
        "vip.py": FAMILY,
        "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "tokenprune-vipllava"\nversion = "1"\n[project.entry-points.tokenprune]\nvip = "vip"\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["vip.py"]\n',
    })  # fmt: skip
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    made = [wheel, *(folder / f"tokenprune-{name}" for name in KINDS.values()), family]
    subprocess.run([*pip, "--no-build-isolation", "--target", folder / "site", *made], check=True, timeout=300)
    return folder


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    return int(done.value.code or 0)


def run(site: Path, *command: str, plugins: str = "loud,vip") -> subprocess.CompletedProcess[str]:
    """A command in the folder of the first plugin, away from the checkout; other installed plugins stay out."""
    env = {**os.environ, "PYTHONPATH": str(site / "site"), "TOKENPRUNE_PLUGINS": plugins, "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    return subprocess.run(
        [*code, *command],
        cwd=site / f"tokenprune-{plugins.split(',')[0]}",
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def contract(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(site, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "tokenprune.contract", *options)


def test_templates_are_installed(site: Path) -> None:
    here, there = create.TEMPLATES, site / "site" / "tokenprune" / "cli" / "templates"
    files = {path.relative_to(here) for path in here.rglob("*.txt")}
    assert {path.parts[0] for path in files} == {*create.KINDS, "pyproject.toml.txt"}
    assert files == {path.relative_to(there) for path in there.rglob("*.txt")}


def test_a_new_plugin_is_whole(site: Path) -> None:
    files = {str(path.relative_to(site / "tokenprune-loud")) for path in (site / "tokenprune-loud").rglob("*.*")}
    named = {"tokenprune_loud.py", "tokenprune_loud.yaml", "tests/test_tokenprune_loud.py"}
    assert {"pyproject.toml", "README.md", *named} <= files
    for name in named:
        assert "$" not in (site / "tokenprune-loud" / name).read_text()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "scorer"])
def test_a_new_plugin_of_any_kind_passes_its_tests_and_is_listed(kind: str, site: Path) -> None:
    name = KINDS[kind]
    done = run(site, "-m", "pytest", "-p", "no:cacheprovider", "-ra", plugins=name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    skipped = set(re.findall(r"^SKIPPED \[\d+\] \S+: (.*)$", done.stdout, flags=re.M))
    assert skipped == (OPTIONAL if kind == "adapter" else set())
    asked = f"from tokenprune.cli import main; main(['ls', '{kind}s', '--json'])"
    listed = run(site, "-c", asked, plugins=name)
    (row,) = [one for one in json.loads(listed.stdout)[f"{kind}s"] if one["name"] == name]
    assert row["distribution"] == f"tokenprune-{name}"
    if kind != "adapter":  # the others bring a recipe
        checked = run(site, "-c", f"from tokenprune.cli import main; main(['check', '{name}'])", plugins=name)
        assert (checked.stdout, checked.stderr) == (f"{name}: fine\n", "")


def test_an_adapter_that_is_not_right_yet_is_told_what_is_wrong(site: Path) -> None:
    module = site / "site" / "tokenprune_tiny_vip.py"
    right = module.read_text()
    wrong = "    def attention(self, block):\n        return replace(super().attention(block), scaling=1.0)\n\n\n"
    spoiled = right.replace("@hookimpl", wrong + "@hookimpl")
    spoiled = spoiled.replace("import torch\n", "from dataclasses import replace\n\nimport torch\n")
    module.write_text(spoiled)
    try:
        done = run(site, "-m", "pytest", "-p", "no:cacheprovider", "-k", "own or blocks", plugins="tiny-vip")
    finally:
        module.write_text(right)
    assert done.returncode == 1, done.stdout
    failed = set(re.findall(r"^FAILED \S+::(test_\w+)", done.stdout, flags=re.M))
    assert failed == {"test_attention_is_the_models_own"}


def test_a_new_plugin_passes_its_tests_and_is_listed(site: Path) -> None:
    done = run(site, "-m", "pytest", "-p", "no:cacheprovider", "-ra")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    where = "import pathlib, tokenprune; print(pathlib.Path(tokenprune.__file__).parents[1]); "
    listed = run(site, "-c", where + "from tokenprune.cli import main; main(['ls', 'scorers', '--json'])")
    assert listed.stdout.splitlines()[0] == str(site / "site")
    assert '{"name": "loud", "about": "Keep the tokens with the largest hidden states.", ' in listed.stdout
    assert '"distribution": "tokenprune-loud"' in listed.stdout
    asked = run(site, "-c", "from tokenprune.cli import main; main(['sweep', '-r', 'loud', '--limit', '2'])")
    assert asked.returncode == 0, asked.stderr
    assert "loud" in asked.stdout


def test_a_broken_plugin_fails_its_tests(site: Path) -> None:
    """The same tests, when the method draws its scores."""
    module = site / "site" / "tokenprune_loud.py"
    right = module.read_text()
    module.write_text(right.replace("return seen.hidden.float()", "return torch.rand(1) * seen.hidden.float()"))
    try:
        done = run(site, "-m", "pytest", "-p", "no:cacheprovider", "-k", "llava_next")
    finally:
        module.write_text(right)
    assert done.returncode == 1
    assert "test_it_gives_the_same_twice[loud-llava_next]" in done.stdout


def test_any_installed_part_is_tested_by_name(site: Path) -> None:
    """Also with settings as in a recipe, and an adapter in a family of its own."""
    schedule = ["--tokenprune-scheduler", "{name: fixed, layer: 3, keep: 0.25}"]
    family = ["--tokenprune-adapter", "vipllava", "--tokenprune-family", "vip:tiny"]
    done = contract(site, "--tokenprune-scorer", "loud", *schedule, *family, "-v", "-k", "not qwen and not video")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_it_takes_bfloat16[loud-llava]" in done.stdout
    assert "test_it_takes_bfloat16[loud-vipllava]" in done.stdout
    assert "test_plans_go_down[fixed(layer=3,keep=0.25)]" in done.stdout
    assert "test_pruning_equals_masking[vipllava-vipllava-0-random]" in done.stdout
    assert "TestMerger" not in done.stdout  # not asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "ERROR: the contract needs a part to test: give one of --tokenprune-scorer NAME"),
        (["--tokenprune-scorer", "luod"], "ERROR: there is no scorer 'luod': did you mean 'loud'?"),
    ],
)
def test_bad_usage_is_said_before_anything_runs(site: Path, options: list[str], message: str) -> None:
    done = contract(site, *options)
    assert done.returncode == 4, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("kind", "part", "families", "message"),
    [
        ("scorer", "knrom", [], "there is no scorer 'knrom': did you mean 'knorm'"),
        ("merger", "{", [], "there is no merger '{': known: "),
        ("scorer", "{name: knorm, ordr: 1}", [], "ordr: unknown key; Knorm has order"),
        ("scorer", "{name: entropy, alpha: -1}", [], "alpha must be > 0, got -1.0"),
        ("scheduler", "{name: fixed, keep: 3}", [], "layer: required, not given"),
        ("adapter", "stranger", [], "there is no tiny model for the adapter 'stranger'"),
        ("scorer", "knorm", ["nowhere:tiny"], "there is no family 'nowhere:tiny'"),
        ("scorer", "knorm", ["json"], "there is no family 'json'"),
        ("scorer", "knorm", ["json:loads"], "json:loads must be a tokenprune.contract.families.Family, got function"),
    ],
)
def test_what_cannot_be_tested_is_said(
    kind: str, part: str, families: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = type("Stranger", (LlavaAdapter,), {"model_types": ("stranger",)})
    monkeypatch.setitem(registry().entries["adapter"], "stranger", Entry("adapter", "stranger", stranger, "stranger"))
    with pytest.raises(TokenpruneError, match=re.escape(message)):
        parameters(kind, [part], families)


@pytest.mark.parametrize(
    "name", ["Loud", "2d", "a b", "a--b", "-", "tokenprune-", "l" * 41, "../up", "entropy", "mllm"]
)
def test_bad_names_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main("new-plugin", "--", name) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "lowercase letters" in said or "choose another name" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("fastv", "scorer", "tokenprune-mllm brings the recipe 'fastv' already: choose another name"),
        ("fastv", "merger", "tokenprune-mllm brings the recipe 'fastv' already: choose another name"),
        ("entropy", "scorer", "tokenprune-mllm brings the scorer 'entropy' already: choose another name"),
        ("fixed", "scheduler", "tokenprune-mllm brings the scheduler 'fixed' already: choose another name"),
        ("nearest", "merger", "tokenprune-mllm brings the merger 'nearest' already: choose another name"),
        ("llava", "adapter", "tokenprune-mllm brings the adapter 'llava' already: choose another name"),
        ("wanted", "scorer", "one brings the scorer 'wanted' already: choose another name"),
        ("sad", "merger", "tokenprune-sad is installed already, and broken: choose another name, or uninstall it"),
        (
            "mine",
            "adapter",
            "adapter 'vip' of vip answers for the model type 'vipllava' already, and so would the example",
        ),
        ("fastv", "adapter", ""),
        ("entropy", "merger", ""),
        ("wanted", "merger", ""),
        ("mine", "scorer", ""),
    ],
)
def test_a_name_that_is_taken_is_refused(
    name: str, kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every name that the plugin would register, and no other."""
    found = registry()
    rivals = tuple(Entry("scorer", "wanted", object, distribution) for distribution in ("one", "two"))
    vip = Entry("adapter", "vip", type("Vip", (LlavaAdapter,), {"model_types": ("vipllava",)}), "vip")
    if name in ("wanted", "sad", "mine"):
        monkeypatch.setitem(found.contested["scorer"], "wanted", rivals)
        monkeypatch.setitem(found.entries["adapter"], "vip", vip)
        broken = replace(found, broken=(Broken("tokenprune-sad", "boom"),))
        monkeypatch.setattr("tokenprune.registry.registry", lambda: broken)
    made = tmp_path / "made"
    code = run_main("new-plugin", name, "--kind", kind, "--output", str(made))
    assert made.exists() == (not said)
    assert code == (2 if said else 0)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_kind_that_there_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main("new-plugin", "mine", "--kind", "recipe", "--output", str(tmp_path / "made")) == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "expected one of scorer, scheduler, merger, adapter, got recipe" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["none", "seen", "scorer", "class", "a-b-2", "tokenprune-quiet"])
def test_names_that_mean_something_in_python_work(name: str, kind: str, tmp_path: Path) -> None:
    new = tmp_path / "deep" / "new"
    assert run_main("new-plugin", name, "--kind", kind, "--output", str(new)) == 0
    (module,) = new.glob("*.py")
    for path in (module, *new.glob("tests/*.py")):
        compile(path.read_text(), str(path), "exec")
    files = [path for path in new.rglob("*") if path.is_file()]
    assert len(files) == (4 if kind == "adapter" else 5)
    for path in files:
        assert not re.search(r"\$(?! )", path.read_text()), "a word was not filled in"
        assert max(map(len, path.read_text().splitlines())) <= 130
    assert not re.search(r'"tokenprune-mllm', (new / "pyproject.toml").read_text())  # not on an index yet
    assert list((tmp_path / "deep").iterdir()) == [new]


def test_what_is_there_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert run_main("new-plugin", "loud-2", "--output", str(tmp_path / "mine")) == 1
    assert "exists already: remove it, or give another place with --output" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> int:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        return write(path, text)

    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    assert run_main("new-plugin", "loud-2", "--output", str(tmp_path / "mine")) == 1
    assert "No space left on device. Give a place that can be" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
