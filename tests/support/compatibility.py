"""docs/compatibility.md, written from what the tests did: their marks, their parameters, the sentences they met.

`@pytest.mark.works(area, what)` and `@pytest.mark.refused(area, what)` make a test a row of the table. A full run
compares the page with what happened; `pytest --write-compatibility` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from tokenprune.errors import TokenpruneError

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEAD = """# What works, and what is refused

Written by `make compatibility` from the tests' own marks, parameters and error messages; `make test` fails when the
page and the tests say different things. "Works" means: the answer equals the same tokens hidden by a mask, or the
answer of the plain way to do it, as the named test says.
"""


@dataclass
class Row:
    """One use: the tests that try it, with which parameters, and what they were told."""

    tests: dict[str, int] = field(default_factory=dict)
    values: dict[str, dict[str, None]] = field(default_factory=dict)
    sentences: dict[str, None] = field(default_factory=dict)


class Compatibility:
    """The pytest plugin that collects the rows."""

    def __init__(self, config: pytest.Config) -> None:
        self.write = config.getoption("--write-compatibility")
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.whole = False
        self.fine = True

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        chosen = config.getoption("-k") or config.getoption("-m") or config.getoption("--lf")
        files = {item.path for item in items}
        self.whole = not chosen and files >= set(Path(__file__).parents[1].rglob("test_*.py"))
        if self.write:
            items[:] = [item for item in items if _mark(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        mark = _mark(item)
        if mark is None:
            return (yield)
        made: list[TokenpruneError] = []
        plain = TokenpruneError.__init__

        def heard(error: TokenpruneError, *args: Any) -> None:
            plain(error, *args)
            made.append(error)

        TokenpruneError.__init__ = heard  # type: ignore[method-assign]
        try:
            given = yield
        finally:
            TokenpruneError.__init__ = plain  # type: ignore[method-assign]
        row = self.rows.setdefault((mark.name, *mark.args), Row())
        name = f"{item.path.name}::{item.originalname}"
        row.tests[name] = row.tests.get(name, 0) + 1
        for key, value in item.callspec.params.items() if hasattr(item, "callspec") else ():
            if isinstance(value, str | bool | int):
                row.values.setdefault(key, {})[str(value)] = None
        if mark.name == "refused":
            raised = (str(error) for error in made if error.__traceback__ is not None)  # some are kept for later
            sentence = mark.kwargs.get("sentence") or next(raised, "")
            row.sentences.setdefault(re.sub(r"\s+", " ", sentence).replace("|", "\\|"))
        return given

    def pytest_runtest_logreport(self, report: Any) -> None:
        ours = {"works", "refused"} & set(report.keywords)
        self.fine &= report.passed or (report.skipped and not ours)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not self.fine or not (self.whole or self.write) or not session.testscollected:
            return
        text = self.page()
        if self.write:
            PAGE.write_text(text)
        elif PAGE.read_text() != text:
            print("\ndocs/compatibility.md is not what the tests say: run `make compatibility`")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def page(self) -> str:
        lines = [HEAD]
        for area in sorted({area for _, area, _ in self.rows}):
            lines.append(f"## {area}\n")
            for kind, second in (("works", "with"), ("refused", "the message")):
                rows = sorted(
                    ((w, row) for (k, a, w), row in self.rows.items() if (k, a) == (kind, area)), key=itemgetter(0)
                )
                if rows:
                    lines += [f"| {kind} | {second} | tests |", "|---|---|---|"]
                    lines += [f"| {what} | {_with(row)} | {_tests(row)} |" for what, row in rows]
                    lines.append("")
        return "\n".join(lines).rstrip() + "\n"


def _mark(item: Any) -> pytest.Mark | None:
    if item.get_closest_marker("slow"):  # the page is the same with and without slow corners
        return None
    return item.get_closest_marker("works") or item.get_closest_marker("refused")


def _with(row: Row) -> str:
    if row.sentences:
        return "<br>".join(f"“{sentence}”" for sentence in sorted(row.sentences))
    return "; ".join(f"{key}: {' · '.join(sorted(values))}" for key, values in sorted(row.values.items()))


def _tests(row: Row) -> str:
    return "<br>".join(f"`{name}` ({count})" for name, count in sorted(row.tests.items()))
