"""The pytest plugin: options that name parts, and the parameters of the contract's tests. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

KINDS = ("scorer", "vision_scorer", "scheduler", "merger", "adapter")
HOME = Path(__file__).parent
MODULES = [f"{__package__}.test_{kind}" for kind in KINDS]

pytest.register_assert_rewrite(*MODULES)


def option(kind: str) -> str:
    return f"--tokenprune-{kind.replace('_', '-')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tokenprune", "the contract of tokenprune's parts: pytest --pyargs tokenprune.contract")
    for kind in KINDS:
        text = "a model family" if kind == "adapter" else "or, as in a recipe, '{name: NAME, setting: value}'"
        group.addoption(
            option(kind),
            action="append",
            default=[],
            metavar="NAME",
            help=f"test this {kind.replace('_', ' ')}: a registered name, {text}; may be repeated",
        )
    group.addoption(
        "--tokenprune-family",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="one more tokenprune.contract.families.Family to test in; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Unknown names, and settings that make no sense, are bad usage: said before anything runs."""
    chosen = {kind: config.getoption(option(kind)) for kind in KINDS}
    if any(chosen.values()):
        from ..errors import TokenpruneError
        from .cases import parameters

        try:
            for kind, parts in chosen.items():
                parameters(kind, parts, config.getoption("--tokenprune-family"))
        except TokenpruneError as error:
            raise pytest.UsageError(str(error)) from error
    elif any(arg.replace("/", ".").rstrip(".").endswith("tokenprune.contract") for arg in config.args):
        options = ", ".join(f"{option(kind)} NAME" for kind in KINDS)
        raise pytest.UsageError(f"the contract needs a part to test: give one of {options}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the contract's own files, only those of the kinds that were asked for."""
    kind = collection_path.stem.removeprefix("test_")
    return not config.getoption(option(kind)) if collection_path.parent == HOME and kind in KINDS else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run of each of the contract's tests for each part and family that it takes."""
    module = metafunc.function.__module__
    if module not in MODULES:
        return
    kind = module.removeprefix(f"{__package__}.test_")
    parts = getattr(metafunc.cls, "parts", ()) or metafunc.config.getoption(option(kind))
    from ..errors import TokenpruneError
    from .cases import parameters

    names = [name for name in (kind, "family") if name in metafunc.fixturenames]
    families = [*metafunc.config.getoption("--tokenprune-family"), *getattr(metafunc.cls, "families", ())]
    try:
        found = parameters(kind, parts, families, alone=len(names) == 1)
    except TokenpruneError as error:
        pytest.fail(str(error), pytrace=False)
    metafunc.parametrize(names, [pytest.param(*values[: len(names)], id=label) for label, values in found.items()])
