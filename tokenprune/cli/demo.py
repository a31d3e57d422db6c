"""The command that shows what pruning does: a picture, questions, and the answers of several recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..outputs import check_output
from . import tables
from .options import BudgetOption, load_model, read_budget

if TYPE_CHECKING:
    from ..lab.demo import Side


def demo(
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your own picture.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", "-r", help="Repeatable; without it four, at an average of 1/3.")
    ] = None,
    budget: BudgetOption = None,
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for the picture, the overlay and the report; not with --web.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Which scene is drawn.")] = 0,
    model: Annotated[str, typer.Option(help="As in generate.")] = "pico",
    web: Annotated[bool, typer.Option("--web", help="A page to play with, instead (extra demo).")] = False,
    host: Annotated[str, typer.Option(help="Where the page listens; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="As above.")] = 7860,
) -> None:
    """One picture, a question of each kind: how recipes answer at one budget, what they cost, and what survived."""
    from ..lab import demo as demos
    from ..lab.media import save
    from ..recipe import load

    if web:
        _page(model, recipe or list(demos.RECIPES[:1]), budget, image, seed, host, port)
        return
    if recipe is None and budget is None:
        budget = demos.BUDGET
    wanted, recipes = read_budget(budget), recipe or list(demos.RECIPES)
    for one in recipes:
        load(one)
    check_output(output, folder=True)
    loaded = load_model(model)
    shown = demos.Shown.drawn(seed) if image is None else demos.Shown.of(image)
    if image is None:
        save(shown.picture, output / "picture.png")
    with tables.bar(transient=True) as progress:
        bar = progress.add_task("answers and times", total=demos.steps(shown.questions, recipes))
        sides, pruning, inputs = demos.compare(
            loaded, shown.picture, shown.questions, recipes, wanted, done=lambda: progress.advance(bar)
        )
    for kind, question in shown.questions.items():
        _print_answers(sides, kind, question, shown.truths.get(kind))
    _print_costs(sides, "visual tokens as an average over the layers, and the prefill")
    tables.say(demos.tell(demos.entropies(loaded, inputs)))
    tables.say(
        "Which layer, which normalisation and which end of the scores is the model's to decide. One command finds out:"
        "\n  tokenprune sweep -r entropyprune prune.0.scorer.normalize=rows,none \\"
        "\n    prune.0.scorer.prefer=high,low prune.0.schedule.layer=1,2 --budget 1/3"
    )
    *_, (kind, question) = shown.questions.items()
    report, overlay = output / "report.html", output / "overlay.png"
    pruning.report(report, [shown.picture], inputs, question=question, answer=sides[1].answers[kind])
    tables.say(f"stages and scores of {sides[1].name}, the last question: {report}")
    if any(side.measured.plan for side in sides):
        save(demos.sheet([side.panel for side in sides]), overlay)
        tables.say(f"what survived of the picture: {overlay}")


def _print_answers(sides: Sequence[Side], kind: str, question: str, truth: str | None) -> None:
    """What every side says to a question, and whether that is right where the truth is known."""
    from ..lab.costs import spell

    rows = []
    for side in sides:
        answer, kept = side.answers[kind], spell({str(layer): left for layer, left in side.measured.plan.items()})
        rows.append([side.name, kept, answer, "" if truth is None else "yes" if answer == truth else "NO"])
    told = "" if truth is None else f" ({truth})"
    header = ["recipe", "tokens kept from layer L on", "answer", "right"]
    tables.show(f"{kind}: {question}{told}", header, rows, words=header[1:3])


def _print_costs(sides: Sequence[Side], title: str) -> None:
    """What the prefill of the last question costs on every side."""
    rows = [
        [
            side.name,
            f"{side.measured.average:.1f}",
            f"{side.kv_mib:.2f}",
            f"{side.flops_share:.0%}",
            f"{side.measured.median('prefill_ms'):.1f}",
            f"{side.measured.speed_up:.2f}x",
        ]
        for side in sides
    ]
    tables.show(title, ["recipe", "tokens", "KV MiB", "FLOPs", "prefill ms", "speed-up"], rows)


def _page(
    model: str, recipes: Sequence[str], budget: str | None, image: Path | None, seed: int, host: str, port: int
) -> None:
    """Show the demo as a page until interrupted."""
    from ..lab import web as pages
    from ..recipe import load

    if budget is not None:
        raise typer.BadParameter("choose it on the page", param_hint="--budget")
    if len(recipes) > 1:
        raise typer.BadParameter("the page compares one recipe at a time: give one", param_hint="--recipe")
    (recipe,) = recipes
    pages.need()
    load(recipe)
    page = pages.build(load_model(model), recipe, image, seed)
    print(f"{pages.serve(page, host, port)} (Ctrl-C ends it)", flush=True)
    page.block_thread()
