"""Runs notebooks in kernels of their own and stores what they say: `python docs/notebooks/make.py [NAME.ipynb ...]`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

HERE = Path(__file__).parent


def execute(notebooks: list[Any], folder: Path) -> None:
    """Run them side by side in this folder, in place. Raises nbclient's CellExecutionError."""

    async def every() -> None:
        where = {"metadata": {"path": folder}}
        clients = [nbclient.NotebookClient(one, timeout=1800, resources=where) for one in notebooks]
        await asyncio.gather(*(client.async_execute() for client in clients))

    asyncio.run(every())
    for notebook in notebooks:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran
            if cell.cell_type == "code":
                cell.outputs = joined(cell.outputs)


def joined(outputs: list[Any]) -> list[Any]:
    """Without warnings, which name local folders, and with what was printed in one piece."""
    kept: list[Any] = []
    for one in outputs:
        if one.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1].text += one.text
        elif one.get("name") != "stderr":
            kept.append(one)
    return kept


if __name__ == "__main__":
    paths = [HERE / name for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    read = [nbformat.read(path, 4) for path in paths]
    execute(read, HERE)
    for path, notebook in zip(paths, read, strict=True):
        nbformat.write(notebook, path)
        print(path.name, path.stat().st_size, "bytes")
