"""Benchmarks through lmms-eval: its scores are ours, on one process and on two, and a failed pass fails the run.

What needs lmms-eval runs with `make test-eval`; `make test` checks the rest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, PAD, RAGGED, has_video, inputs, model
from PIL import Image

import tokenprune
from tokenprune.builtin.scorers.entropy import Entropy
from tokenprune.cli import main
from tokenprune.errors import MediaError, RecipeError, ScorerError, TokenpruneError
from tokenprune.lab import evaluation
from tokenprune.lab.evaluation import manifest
from tokenprune.lab.evaluation.tasks import SEED, write_pico
from tokenprune.lab.loading import Loaded, load_model
from tokenprune.lab.pico import scenes
from tokenprune.lab.pico.task import Task

ROOT = Path(__file__).parents[2]
SCENES = 8
needs_lmms = pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="needs lmms-eval: make test-eval")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["eval", *arguments])
    out = capsys.readouterr()
    return int(done.value.code or 0), out.out, out.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pico(tmp_path_factory.mktemp("tasks"), SCENES)


@pytest.fixture(scope="module")
def ours() -> Any:
    """Our own measure of pico, by recipe, on the questions of the task."""
    task, found = Task(load_model("pico"), SCENES, SEED), {}
    for recipe in (None, "entropyprune"):
        answers = task.answer(recipe)
        wrong = [
            (question.text, answers.said[question.kind][number].strip())
            for number, scene in enumerate(task.scenes)
            for question in scene.questions
            if not answers.right[question.kind][number]
        ]
        found[recipe] = {"accuracy": {k: round(share, 4) for k, share in answers.accuracy.items()}, "wrong": wrong}
    return found


def ran(folder: Path, lm: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores and samples of the task `pico` in a folder."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(folder), include_defaults=False)
    results = simple_evaluate(model=lm, tasks=["pico"], task_manager=manager)
    return results["results"]["pico"], results["samples"]["pico"]


def made(*args: Any, **more: Any) -> Any:
    from tokenprune.lab.evaluation.lmms import TokenpruneHf

    return TokenpruneHf(*args, **more)


def broken(self: Any, seen: Any) -> torch.Tensor:
    raise RuntimeError("out of ideas")


# Without lmms-eval


def test_without_lmms_eval_one_sentence_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(("lmms_eval", "tokenprune.lab.evaluation."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.delattr(evaluation, "run", raising=False)
    code, _, err = run(capsys, "pico", "--tasks", "pope", "--output", str(tmp_path))
    assert code == 1
    assert len(err.strip().splitlines()) == 1
    assert 'in a checkout of tokenprune, pip install -e ".[eval]"' in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune.0.schedule.keep=3",), "need a recipe"),
        (("--budget", "1/3"), "needs a recipe"),
        (("-r", "entropyprun"), "did you mean 'entropyprune'"),
        (("-r", "entropyprune", "prune.0.schedule.kep=3"), "kep"),
        (("-r", "entropyprune", "--budget", "many"), "a budget is"),
        (("--batch-size", "0"), "--batch-size"),
        (("--include-path", "nowhere"), "does not exist"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = run(capsys, "pico", "--tasks", "pico", *arguments)
    assert code == 2
    assert message in err


def test_results_are_not_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    code, _, err = run(capsys, "pico", "--tasks", "pico", "--output", str(tmp_path))
    assert code == 2
    assert "holds results already" in err
    assert (tmp_path / "results.json").read_text() == "{}"


def test_the_task_holds_the_held_out_questions(folder: Path) -> None:
    docs = [json.loads(line) for line in (folder / "pico" / "questions.jsonl").read_text().splitlines()]
    drawn = list(islice(scenes.held_out(SEED), SCENES))
    assert [(doc["kind"], doc["question"], doc["answer"]) for doc in docs] == [
        (asked.kind, asked.text, asked.answer) for scene in drawn for asked in scene.questions
    ]
    with Image.open(folder / "pico" / docs[-1]["picture"]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(drawn[-1].picture))


def test_batches_of_pico_are_left_padded() -> None:
    pico = load_model("pico")
    scene = next(scenes.held_out(0))
    talks = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
        for question in scene.questions
    ]
    mask = pico.batch(talks, [scene.picture] * len(talks))["attention_mask"]
    assert mask[:, -1].all()
    assert not mask[:, 0].all()


# With lmms-eval


@needs_lmms
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("recipe", [None, "entropyprune"])
def test_lmms_eval_and_we_agree_on_every_answer(folder: Path, ours: Any, recipe: str | None, batch_size: int) -> None:
    scores, samples = ran(folder, made("pico", recipe, batch_size=batch_size))
    for kind, share in ours[recipe]["accuracy"].items():
        assert round(scores[f"{'exact' if kind == 'all' else kind},none"], 4) == share
    wrong = [(s["doc"]["question"], s["filtered_resps"][0]) for s in samples if not s["exact"]]
    assert wrong == ours[recipe]["wrong"]
    assert len(samples) == 5 * SCENES


@needs_lmms
def test_pruning_changes_what_is_compared(ours: Any) -> None:
    assert ours[None]["wrong"] != ours["entropyprune"]["wrong"]


@needs_lmms
@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, ({}, 144.0)),
        ({"recipe": "entropyprune"}, ({2: 48}, 72.0)),
        ({"recipe": "entropyprune", "overrides": "prune.0.schedule.keep=36"}, ({2: 36}, 63.0)),
        ({"recipe": "entropyprune", "budget": 100}, ({2: 85}, 99.75)),
    ],
)
def test_every_sample_says_what_was_kept(folder: Path, settings: Any, kept: Any) -> None:
    _, samples = ran(folder, made("pico", batch_size=8, **settings))
    for sample in samples:
        (count,) = sample["token_counts"]
        assert count["visual_tokens"] == 144
        assert (count["visual_kept"], count["visual_average"]) == kept
        assert 144 < count["input_tokens"] < 170
        assert 0 < count["output_tokens"] <= 16


@needs_lmms
def test_a_scorer_that_fails_fails_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entropy, "score", broken)
    with pytest.raises(ScorerError, match="out of ideas"):
        ran(folder, made("pico", "entropyprune"))


@needs_lmms
def test_inside_lmms_evals_command_a_failure_ends_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That command prints exceptions and exits with 0."""
    from tokenprune.lab.evaluation.lmms import TokenpruneHf

    made_there = TokenpruneHf.create_from_arg_string("pretrained=pico,recipe=entropyprune", {"batch_size": 4})
    monkeypatch.setattr(Entropy, "score", broken)
    with pytest.raises(SystemExit) as done:
        ran(folder, made_there)
    assert "out of ideas" in str(done.value.code)
    with pytest.raises(SystemExit, match="compares likelihoods"):
        made_there.loglikelihood([])
    with pytest.raises(SystemExit, match="no recipe 'entropyprun'"):
        TokenpruneHf.create_from_arg_string("pretrained=pico,recipe=entropyprun")


@needs_lmms
def test_a_failing_run_of_ours_exits_with_1_and_leaves_no_results(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(Entropy, "score", broken)
    where = ("--output", str(tmp_path / "out"), "--limit", "2")
    code, _, err = run(capsys, "pico", "-r", "entropyprune", "--tasks", "pico", *where)
    assert code == 1
    assert "out of ideas" in err
    assert not (tmp_path / "out" / "results.json").exists()


@needs_lmms
def test_the_command_writes_results_and_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("pico", "-r", "entropyprune", "prune.0.schedule.keep=36", "--batch-size", "4", "--limit", "10")
    main_arguments = ["eval", *arguments, "--tasks", "pico", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as done:
        main(main_arguments)
    assert not done.value.code
    results = json.loads((tmp_path / "results.json").read_text())
    samples = [json.loads(line) for line in (tmp_path / "samples_pico.jsonl").read_text().splitlines()]
    assert len(samples) == 10
    assert results["results"]["pico"]["exact,none"] == sum(s["exact"] for s in samples) / 10
    assert results["tokenprune"]["visual"] == {"pico": {"visual_tokens": 144.0, "visual_average": 63.0}}
    assert results["tokenprune"]["overrides"] == ["prune.0.schedule.keep=36"]
    assert not list(tmp_path.glob(".*.part"))
    row = next(line for line in capsys.readouterr().out.splitlines() if "exact" in line)
    assert "63.0" in row
    assert "43.8%" in row


@needs_lmms
def test_two_processes_give_the_scores_of_one(folder: Path, tmp_path: Path) -> None:
    """As `accelerate launch -m lmms_eval` starts them; 39 questions, so that one has a question less."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    accelerate = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    tasks = ["--tasks", "pico", "--include_path", str(folder), "--limit", "39", "--batch_size", "4"]
    pruned = ["--model", "tokenprune_hf", "--model_args", "pretrained=pico,recipe=entropyprune"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *accelerate, "--dynamo_backend", "no"),
            *("--main_process_port", str(port), "-m", "lmms_eval", *pruned, *tasks),
            *("--log_samples", "--output_path", str(tmp_path)),
        ],
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("*/*_results.json")
    scores = json.loads(path.read_text())["results"]["pico"]
    (path,) = tmp_path.glob("*/*_samples_pico.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    _, samples = ran(folder, made("pico", "entropyprune", batch_size=4))
    alone = {sample["doc_id"]: sample["exact"] for sample in samples[:39]}
    assert {line["doc_id"]: line["exact"] for line in lines} == alone
    assert scores["exact,none"] == pytest.approx(sum(alone.values()) / 39)
    assert all(line["token_counts"][0]["visual_kept"] == {"2": 48} for line in lines)
    assert 0 < scores["exact,none"] < 1


class StandIn:
    """A processor of one family: it knows the prompts of `RAGGED` by their numbers, and counts pictures."""

    tokenizer = SimpleNamespace(pad_token_id=PAD)

    def __init__(self, family: str, prompts: Any) -> None:
        self.family, self.prompts = family, prompts

    def apply_chat_template(self, talk: Any, add_generation_prompt: bool, tokenize: bool) -> str:
        content = talk[0]["content"]
        kinds = [part["type"] for part in content if part["type"] != "text"]
        number = int(content[-1]["text"])
        assert kinds == [part for part in self.prompts[number][1] if isinstance(part, str)]
        return str(number)

    def __call__(self, text: Any, images: Any = (), videos: Any = (), **more: Any) -> Any:
        picked = [self.prompts[int(number)] for number in text]
        for kind, given in (("image", images), ("video", videos)):
            counts = [sum(part == kind for part in parts) for _, parts in picked]
            assert [len(own) for own in given] == (counts if any(counts) else [])
        assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for own in images for picture in own)
        assert all(video.shape == (3, 32, 32, 3) for own in videos for video in own)
        return SimpleNamespace(to=lambda device: inputs(self.family, picked))

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row.tolist())) for row in rows]


def requests(prompts: Any, tmp_path: Path, settings: Any) -> tuple[list[Any], dict[str, Any]]:
    """Requests in lmms-eval's form, one per prompt, and the task they belong to."""
    picture, frames = tmp_path / "picture.png", tmp_path / "frames"
    frames.mkdir()
    for path in (picture, frames / "a.png", frames / "b.png"):
        Image.new("L", (32, 32)).save(path)
    shown = {"image": [str(picture), Image.new("RGBA", (8, 8))], "video": [str(frames)]}

    def messages(number: int) -> list[dict[str, Any]]:
        media = [part for part in prompts[number][1] if isinstance(part, str)]
        content = [{"type": kind, "url": shown[kind][i % len(shown[kind])]} for i, kind in enumerate(media)]
        return [{"role": "user", "content": [*content, {"type": "text", "text": str(number)}]}]

    asked = [
        SimpleNamespace(args=("", messages, each, number, "task", "test"))
        for number, each in zip(range(len(prompts)), settings, strict=True)
    ]
    return asked, {"task": {"test": list(range(len(prompts)))}}


@needs_lmms
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_without_lmms_eval(
    family: str, beams: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged batches: two pictures, none, one; videos where the family has them. The second question is asked apart."""
    prompts = [*RAGGED, (6, (2, "video", 4))] if has_video(family) else RAGGED
    loaded = Loaded(model(family), StandIn(family, prompts))
    monkeypatch.setattr("tokenprune.lab.evaluation.lmms.load_model", lambda *_: loaded)
    recipe = {"prune": [{"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 0.5}}]}
    together, apart = ({"max_new_tokens": steps, "num_beams": beams, "until": ["\n\n"]} for steps in (4, 3))
    lm = made("any", recipe, batch_size=8, max_num_frames=3)
    settings = [apart if number == 1 else together for number in range(len(prompts))]
    asked, lm.task_dict = requests(prompts, tmp_path, settings)
    answers = lm.generate_until(asked)
    lm.clean()
    for chosen, steps in (([n for n in range(len(prompts)) if n != 1], 4), ([1], 3)):
        given = inputs(family, [prompts[number] for number in chosen])
        with tokenprune.prune(model(family), recipe) as pruning:
            out = model(family).generate(**given, max_new_tokens=steps, num_beams=beams, do_sample=False)
        rows = out[:, given["input_ids"].shape[1] :].tolist()
        assert [answers[number].text for number in chosen] == [" ".join(map(str, row)) for row in rows]
        report = pruning.report()
        for at, number in enumerate(chosen):
            count = answers[number].token_counts
            pictured = any(isinstance(part, str) for part in prompts[number][1])
            assert count.stages == {stage.layer: stage.kept[at * beams] for stage in report.stages}
            assert count.average == report.average[at * beams]
            assert (count.visual > 0) == pictured
            assert (count.stages.get(2, 0) == count.visual // 2) or not pictured


@needs_lmms
def test_generation_settings_are_lmms_evals() -> None:
    from tokenprune.lab.evaluation.requests import generation, until

    assert generation({})["max_new_tokens"] == 1024
    assert not generation({"temperature": 0.0, "top_p": 1.0, "do_sample": False})["do_sample"]
    assert generation({"temperature": 0.2, "top_p": 0.9}) == {
        "max_new_tokens": 1024, "num_beams": 1, "do_sample": True, "temperature": 0.2, "top_p": 0.9, "top_k": None,
    }  # fmt: skip
    assert until("a\n\nb ASSISTANT: c ", {"until": ["\n\n", "ASSISTANT:"]}) == "a\n\nb"
    assert until("a. b", {"until": "."}) == "a"


@needs_lmms
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"recip": "fastv"}, TokenpruneError, "expected pretrained, recipe, .* got recip"),
        ({"batch_size": "auto"}, TokenpruneError, "batch_size: expected a whole number"),
        ({"budget": 0.5}, TokenpruneError, "need a recipe"),
        ({"recipe": "fastv", "overrides": "prune.0.schedule.kep=3"}, RecipeError, "kep"),
    ],
)
def test_model_args_that_mean_nothing_are_refused(settings: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        made("pico", **settings)


@needs_lmms
def test_media_that_cannot_be_read_are_refused() -> None:
    from tokenprune.lab.evaluation.requests import image, video

    with pytest.raises(MediaError, match="got bytes"):
        image(b"")
    with pytest.raises(MediaError, match="cut the video first"):
        video(SimpleNamespace(url="clip.mp4", start_time=1.0, end_time=None), 8)


@needs_lmms
def test_lmms_eval_finds_the_model_by_its_entry_point() -> None:
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    from tokenprune.lab.evaluation.lmms import TokenpruneHf

    assert MODEL_REGISTRY_V2.get_manifest("tokenprune_hf") == manifest()
    assert get_model("tokenprune_hf") is TokenpruneHf


@needs_lmms
def test_the_benchmarks_in_the_docs_are_lmms_evals() -> None:
    from lmms_eval.tasks import TaskManager

    from tokenprune.lab.evaluation.run import check_tasks

    known = TaskManager("ERROR").all_tasks
    page = (ROOT / "docs" / "evaluate.md").read_text()
    table = page.split("## The papers' benchmarks")[1].split("\n## ")[0]
    ids = [row.split("|")[2].strip(" `") for row in table.splitlines() if row.startswith("| ") and "`" in row]
    assert len(ids) >= 10
    check_tasks(ids, known)
    with pytest.raises(TokenpruneError, match="no task 'popee': did you mean 'pope'"):
        check_tasks(["pope", "popee"], known)
