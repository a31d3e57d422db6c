"""One evaluation: lmms-eval's evaluator on a pruned model, and its results as files."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.__main__ import parse_eval_args
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import handle_non_serializable
from loguru import logger

from ...errors import UnknownNameError
from ...outputs import write_all
from . import MODEL
from .lmms import TokenpruneHf
from .tasks import write_pico


def evaluate(
    tasks: Sequence[str],
    output: Path,
    limit: int | None = None,
    include_path: Path | None = None,
    about: Mapping[str, Any] | None = None,
    **model: Any,
) -> dict[str, Any] | None:
    """Run tasks and write `results.json` and `samples_TASK.jsonl` into a folder.

    Args:
        tasks: lmms-eval's ids or groups, or `pico`: the held-out questions of the bundled model.
        output: the folder.
        limit: questions of each task, all by default.
        include_path: a folder with tasks of your own.
        about: what to write beside the results, under `tokenprune`.
        model: arguments of `TokenpruneHf`.

    Returns:
        What is in `results.json`; None in all processes but the first.

    Raises:
        TokenpruneError: no such task, or the model cannot be loaded or pruned. Any error of a task or a pruned pass
            comes out as it is: a run either answers everything or fails.
    """
    first = Accelerator()
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    manager = _tasks(tasks, output, include_path, first)
    check_tasks(tasks, manager.all_tasks)
    results = simple_evaluate(
        model=TokenpruneHf(**model),
        tasks=list(tasks),
        task_manager=manager,
        limit=limit,
        log_samples=True,
        cli_args=_arguments(tasks, output, limit),
    )
    if results is None:
        return None
    samples = {  # processes hand theirs over one after the other
        task: sorted(lines, key=lambda line: int(line["doc_id"])) for task, lines in results.pop("samples").items()
    }
    visual = {task: _visual(lines) for task, lines in samples.items()}
    results["tokenprune"] = {**(about or {}), "tasks": list(tasks), "limit": limit, "visual": visual}
    files = {f"samples_{task}.jsonl": "".join(f"{_json(line)}\n" for line in lines) for task, lines in samples.items()}
    write_all(output, {**files, "results.json": _json(results, indent=2) + "\n"})  # whole results say that all is there
    return results


def _tasks(tasks: Sequence[str], output: Path, include_path: Path | None, first: Accelerator) -> TaskManager:
    """All tasks that there are; pico's are written into the output by the first of several processes."""
    folders = [str(include_path.resolve())] if include_path is not None else []
    if "pico" in tasks:
        if first.is_main_process:
            write_pico(output / "tasks")
        first.wait_for_everyone()
        folders.append(str((output / "tasks").resolve()))
    only_pico = set(tasks) == {"pico"}  # reading two thousand YAML files takes a while
    return TaskManager("ERROR", include_path=folders, include_defaults=not only_pico, model_name=MODEL)


def check_tasks(tasks: Iterable[str], known: Sequence[str]) -> None:
    """Raise UnknownNameError for what is no task of lmms-eval."""
    for task in tasks:
        if task not in known:
            raise UnknownNameError(
                "task", task, known, "`lmms-eval tasks list` shows all; a folder with your own is --include-path"
            )


def _arguments(tasks: Sequence[str], output: Path, limit: int | None) -> Namespace:
    """lmms-eval's own defaults for the rest of its command line: tasks read some of it."""
    given, sys.argv = sys.argv, [MODEL]
    try:
        arguments: Namespace = parse_eval_args()[1]
    finally:
        sys.argv = given
    vars(arguments).update(model=MODEL, tasks=",".join(tasks), output_path=str(output), limit=limit)
    return arguments


def _visual(samples: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the samples of a task: visual tokens, and those that a decoder block sees on average."""
    counts = [count for sample in samples for count in sample["token_counts"] if count]
    return {
        name: sum(count[name] for count in counts) / max(len(counts), 1) for name in ("visual_tokens", "visual_average")
    }


def _json(value: Any, **more: Any) -> str:
    return json.dumps(value, default=handle_non_serializable, ensure_ascii=False, **more)
