"""pico's held-out questions as a local lmms-eval task: JSON lines, pictures, and a YAML file that names them."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import yaml

from ..pico.scenes import KINDS, held_out

SCENES, SEED = 100, 21

UTILS = '''"""What lmms-eval asks about a question of this task."""

from pathlib import Path


def doc_to_visual(doc):
    return [str(Path(__file__).parent / doc["picture"])]


def process_results(doc, results):
    """One for an exact answer, zero otherwise; also under the question's kind."""
    exact = float(results[0] == doc["answer"])
    return {"exact": exact, doc["kind"]: exact}
'''


def write_pico(folder: Path, scenes: int = SCENES, seed: int = SEED) -> Path:
    """Write the task `pico` into `folder/pico`, one question of each kind about every scene; returns `folder`.

    Give the folder to lmms-eval as `--include_path`. Metrics: `exact`, and the same for each kind of question.
    """
    folder = folder.resolve()
    home = folder / "pico"
    (home / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, scene in enumerate(islice(held_out(seed), scenes)):
        picture = f"pictures/{number:04}.png"
        scene.picture.save(home / picture)
        for asked in scene.questions:
            doc = {"picture": picture, "kind": asked.kind, "question": asked.text, "answer": asked.answer}
            lines.append(json.dumps(doc))
    questions = home / "questions.jsonl"
    questions.write_text("\n".join(lines) + "\n")
    (home / "utils.py").write_text(UTILS)
    task = {
        "task": "pico",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}, "cache_dir": str(home / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": "FUNCTION utils.doc_to_visual",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "process_results": "FUNCTION utils.process_results",
        "generation_kwargs": {"max_new_tokens": 16, "temperature": 0, "do_sample": False},
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("exact", *KINDS)
        ],
    }
    text = yaml.safe_dump(task, sort_keys=False).replace("FUNCTION ", "!function ")
    (home / "pico.yaml").write_text(text)
    return folder
