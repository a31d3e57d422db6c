"""The site that `make docs` builds needs no network and no server, its search included."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "docs" / "iframe-worker.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAGE = """<!doctype html><html><head>{shim}</head><body><p>silent</p><script>
const worker = new Worker(new URL("echo.js", location));
worker.addEventListener("message", (event) => {{ document.querySelector("p").textContent = event.data.said; }});
worker.postMessage({{ word: "found" }});
</script></body></html>"""
ECHO = 'addEventListener("message", (event) => postMessage({ said: `${event.data.word} 1` }));'


def test_search_is_built_for_pages_in_a_folder() -> None:
    """And with what lies in docs/: the plugin would take its polyfill from the network otherwise."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert {"search", "offline"} <= {plugin for plugin in config["plugins"] if isinstance(plugin, str)}
    assert config["use_directory_urls"] is False
    (polyfill,) = config["extra"]["polyfills"]
    assert "iframe-worker" in polyfill  # by this the plugin knows it
    assert (ROOT / "docs" / polyfill).samefile(SHIM)


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on this machine (apt-get install chromium)")
@pytest.mark.parametrize(("shim", "said"), [(True, "found 1"), (False, "silent")])
def test_a_worker_of_a_page_in_a_folder_answers(shim: bool, said: str, tmp_path: Path) -> None:
    """The same page without the script has none: browsers refuse it."""
    (tmp_path / "echo.js").write_text(ECHO)
    (tmp_path / "page.html").write_text(PAGE.format(shim=f"<script src={SHIM.as_uri()}></script>" if shim else ""))
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/me")
    done = subprocess.run(
        [str(CHROMIUM), *options, "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"<p>{said}</p>" in done.stdout, done.stderr
