"""A plugin as `tokenprune new-plugin` writes it, installed and tested as its author would; the contract by options."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.cli import create, main
from tokenprune.contract.cases import parameters
from tokenprune.errors import TokenpruneError
from tokenprune.registry import Entry, registry

# the tests of a plugin for a family of its own: its adapter comes from the docs
FAMILY = '''
from functools import partial

import transformers
from tokenprune import hookimpl
from tokenprune.adapters.decoder import LlamaStyleAdapter
from tokenprune.contract import families


class VipLlavaAdapter(LlamaStyleAdapter):
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


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenprune, a plugin with the scorer loud and one with a family, installed into a folder."""
    folder = tmp_path_factory.mktemp("plugins")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_main("new-plugin", "loud")
    family = folder / "tokenprune-vipllava"
    create._write(family, {
        "vip.py": FAMILY,
        "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "tokenprune-vipllava"\nversion = "1"\n[project.entry-points.tokenprune]\nvip = "vip"\n'
        '[tool.hatch.build.targets.wheel]\ninclude = ["vip.py"]\n',
    })  # fmt: skip
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-index"]
    made = [wheel, folder / "tokenprune-loud", family]
    subprocess.run([*pip, "--no-build-isolation", "--target", folder / "site", *made], check=True, timeout=300)
    return folder


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    return int(done.value.code or 0)


def run(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command away from the checkout; installed plugins that are not in the folder stay out."""
    env = {**os.environ, "PYTHONPATH": str(site / "site"), "TOKENPRUNE_PLUGINS": "loud,vip", "OMP_NUM_THREADS": "1"}
    code = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    return subprocess.run(
        [*code, *command], cwd=site / "tokenprune-loud", env=env, capture_output=True, text=True, timeout=300
    )


def contract(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(site, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "tokenprune.contract", *options)


def test_a_new_plugin_is_whole(site: Path) -> None:
    files = {str(path.relative_to(site / "tokenprune-loud")) for path in (site / "tokenprune-loud").rglob("*.*")}
    named = {"tokenprune_loud.py", "tokenprune_loud.yaml", "tests/test_tokenprune_loud.py"}
    assert {"pyproject.toml", "README.md", *named} <= files
    for name in named:
        assert "$" not in (site / "tokenprune-loud" / name).read_text()


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


@pytest.mark.parametrize("name", ["none", "seen", "scorer", "class", "a-b-2", "tokenprune-quiet"])
def test_names_that_mean_something_in_python_work(name: str, tmp_path: Path) -> None:
    assert run_main("new-plugin", name, "--output", str(tmp_path / "deep" / "new")) == 0
    (module,) = (tmp_path / "deep" / "new").glob("*.py")
    compile(module.read_text(), str(module), "exec")
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "new"]


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
