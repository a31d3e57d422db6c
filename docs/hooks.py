"""For mkdocs: notebooks become pages, and files of the repository that pages link to come along."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./((?!\.\.)[^)#]+)\)")  # a link from docs/ to a file beside it
ANSI = re.compile(r"\x1b\[[0-9;]*m")
SOURCES = "source"  # the folder of the site where such files go


def on_files(files: Files, config: Any) -> Files:
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        for uri, content in pages(json.loads(path.read_text()), path.stem).items():
            files.append(File.generated(config, f"notebooks/{uri}", content=content))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for target in OUTSIDE.findall(page.content_string):
            if files.get_file_from_path(_site(target)) is None:
                files.append(File.generated(config, _site(target), content=(ROOT / target).read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = OUTSIDE.sub(lambda found: f"]({_site(found[1])})", markdown)
    return re.sub(r"\((notebooks/\w+)\.ipynb\)", r"(\1.md)", markdown)


def _site(target: str) -> str:
    """Where a file of the repository lies in the site; Markdown as text, since its links lead elsewhere."""
    return f"{SOURCES}/{target}" + (".txt" if target.endswith(".md") else "")


def pages(notebook: dict[str, Any], name: str) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, by file name."""
    parts: list[str] = []
    made: dict[str, str | bytes] = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{name}-{len(made)}.png"
                made[picture] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({picture})")
            elif said := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{ANSI.sub('', said)}\n```")
    parts.append(f"*[This page as a notebook]({name}.ipynb)*")
    return {**made, f"{name}.md": "\n\n".join(parts) + "\n"}
