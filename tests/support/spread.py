"""Pruned models spread over two processes: the cases, what each gives, and (as a script) one rank that runs them all.

    python -m torch.distributed.run --standalone --nproc_per_node=2 tests/support/spread.py FOLDER

`test_distributed.py` starts it, runs the same cases in one process and compares.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, IMAGE, RAGGED, Prompt, inputs, model, text_config, vision_config
from oracle import RECIPES
from talks import FIRST, SECOND, Talk
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import tokenprune
from tokenprune import Scorer, Seen
from tokenprune.builtin.schedules import Fixed
from tokenprune.recipe import Pass, Recipe
from tokenprune.registry import registry

OTHER: list[Prompt] = [(6, (3, "image", 8)), (7, (2, "image", 4, "image", 2)), (8, (5,))]  # another rank's prompts
UNEQUAL: list[tuple[list[Prompt], int]] = [(RAGGED, 2), ([(8, (5,))], 5)]  # prompts and answer lengths of two ranks
AT_3 = {"name": "fixed", "layer": 3, "keep": 6}
VARIANTS = {
    "entropy of keys": {"name": "entropy", "states": "key", "normalize": "none"},  # rows: the same for any two heads
    "attention of text": {"name": "attention", "queries": "text"},
    "attention in the next block": {"name": "attention", "block": "next"},
}
IN_DECODER = {name: entry for name, entry in registry().entries["scorer"].items() if issubclass(entry.part, Scorer)}
SCORERS = {**{name: {"name": name} for name in IN_DECODER}, **VARIANTS}
"""Every registered scorer as it comes, and the built-in ones that read other states."""
OF_TOWERS = {name for name, entry in IN_DECODER.items() if entry.part.reads_blocks is not Scorer.reads_blocks}
CASES: dict[str, Any] = {
    name: [{"scorer": scorer, "schedule": {**AT_3, "layer": 0 if name in OF_TOWERS else 3}}]
    for name, scorer in SCORERS.items()
}
CASES |= {
    "three stages": RECIPES["mixture"],
    "pyramid, compact": [{**RECIPES["pyramid"][0], "positions": "compact"}],
    "merged": [{**RECIPES["entropy"][0], "merge": "nearest"}],
}
MEASURED = [{"scorer": "entropy", "schedule": {"name": "ecl", "keep": 5}}]
TALKS = {
    "attention": [{"scorer": "attention", "schedule": AT_3}],
    "three stages": RECIPES["mixture"],
    "pyramid": RECIPES["pyramid"],
}
WHOLE_HEADS = {f"model.language_model.layers.*.self_attn.{name}_proj": "colwise_gather_output" for name in "qkv"}
WHOLE_HEADS["model.language_model.layers.*.self_attn.o_proj"] = "rowwise_split_input"
OF_HEADS = ("entropy", "attention", "attention in the next block")
WRAPS = ("ddp, wrapped first", "ddp, pruned first", "fsdp2, wrapped first", "fsdp2, pruned first")
WRAPPED = ("entropy", "attention in the next block", "three stages")


@dataclass(frozen=True)
class Quarrel(Scorer):
    """Every rank wants other tokens."""

    generator: torch.Generator = field(default_factory=torch.Generator)

    def score(self, seen: Seen) -> Tensor:
        return torch.rand(len(seen.visual), generator=self.generator)


def left(state: Any) -> dict[int, list[list[int]]]:
    """Columns of the prompts that are left, by layer."""
    return {
        layer: [index[valid].tolist() for index, valid in zip(view.index, view.valid, strict=True)]
        for layer, view in state.views.items()
    }


@torch.no_grad()
def pruned(
    lm: Any, family: str, recipe: Any, prompts: list[Prompt] = RAGGED, pruning: Any = None, steps: int = 3
) -> dict[str, Any]:
    """Columns left, answers and what the report says; `pruning` is one that is already attached."""
    attached = pruning or tokenprune.attach(lm, recipe if isinstance(recipe, Recipe) else {"prune": recipe})
    try:
        out = lm.generate(
            **inputs(family, prompts),
            max_new_tokens=steps,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return {
            "left": left(attached.state),
            "tokens": out.sequences,
            "logits": torch.stack(out.logits),
            "report": str(attached.report()),
        }
    finally:
        if pruning is None:
            attached.remove()


def talked(lm: Any, family: str, recipe: Any) -> dict[str, Any]:
    """A conversation whose second turn brings pictures of its own."""
    talk = Talk(family)
    talk.lm = lm
    with tokenprune.prune(lm, {"prune": recipe}) as pruning:
        answers = [talk.turn(FIRST), talk.say(torch.full((3, 1), 17))]
        first = left(pruning.state)
        answers += [talk.turn(SECOND), talk.say(torch.full((3, 1), 17))]
        return {"left": [first, left(pruning.state)], "logits": torch.stack(answers)}


def one_kv_head() -> Any:
    """A model whose single key head two ranks cannot share."""
    text = LlamaConfig(**text_config(num_key_value_heads=1))
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision_config(), text_config=text, image_token_index=IMAGE)
    )


# -- one rank --------------------------------------------------------------------------------------------------------


def main(folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=60))  # no rank waits long for one that failed
    rank = dist.get_rank()
    cache = folder / f"cache-{rank}"
    os.environ["TOKENPRUNE_CACHE"] = str(cache)  # as on two machines
    found: dict[str, Any] = {}

    def note(name: str, run: Callable[[], Any]) -> None:
        try:
            found[name] = run()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    tensor_parallel(folder, rank, cache, note)
    for wrap in WRAPS:
        for family in ("llava", "qwen2_5_vl"):
            data_parallel(wrap, family, rank, note)
    out_of_step(rank, note)
    os.environ["TOKENPRUNE_CACHE"] = str(folder / f"cache-{rank}-of-fsdp2")
    wrapped_and_measured(note)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def tensor_parallel(folder: Path, rank: int, cache: Path, note: Callable[..., None]) -> None:
    from transformers.distributed import DistributedConfig

    from tokenprune.model.ranks import Ranks

    def load(name: str, kind: type, plan: Any = "auto") -> Any:
        lm: Any = kind.from_pretrained(folder / name, distributed_config=DistributedConfig(tp_plan=plan)).eval()
        lm.generation_config.eos_token_id = None
        return lm

    for family in FAMILIES:
        lm = load(family, type(model(family)))
        attention = lm.model.language_model.layers[0].self_attn
        note(f"heads: {family}", lambda attention=attention: list(attention.q_proj.weight.to_local().shape))
        for name, recipe in CASES.items():
            note(f"tensor parallel: {family}, {name}", lambda lm=lm, f=family, r=recipe: pruned(lm, f, r))
        if family != "llava":
            continue
        for name, recipe in TALKS.items():
            note(f"talk: {name}", lambda lm=lm, r=recipe: talked(lm, "llava", r))
        note("measured", lambda lm=lm: pruned(lm, "llava", MEASURED))
        remembered = sorted(path.name for path in cache.rglob("*.json"))
        note("remembered", lambda names=remembered: names)
        if rank:
            shutil.rmtree(cache)  # then only the first rank remembers
        note("measured on one rank", lambda lm=lm: pruned(lm, "llava", MEASURED))
        note("not measured again", lambda: not any(cache.rglob("*.json")) if rank else True)
        quarrel = Recipe("quarrel", (Pass(Quarrel(torch.Generator().manual_seed(rank)), Fixed(3, keep=6)),))
        note("quarrel", lambda lm=lm, r=quarrel: pruned(lm, "llava", r))
        gather, Ranks.all_heads = Ranks.all_heads, lambda self, name, mine: mine  # type: ignore[method-assign]
        for name in OF_HEADS:
            note(f"own heads only: {name}", lambda lm=lm, n=name: pruned(lm, "llava", CASES[n]))
        Ranks.all_heads = gather  # type: ignore[method-assign]
    whole = load("llava", LlavaForConditionalGeneration, WHOLE_HEADS)
    for name in OF_HEADS:
        note(f"whole heads: {name}", lambda name=name: pruned(whole, "llava", CASES[name]))
    shared = load("one_kv_head", LlavaForConditionalGeneration)
    note("refused: heads", lambda: bool(tokenprune.attach(shared, {"prune": CASES["entropy"]})))


def accelerator(kind: str, block: str) -> Any:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state()
    if kind == "ddp":
        return Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[block],
        cpu_ram_efficient_loading=False,
    )
    made = Accelerator(cpu=True, fsdp_plugin=plugin)
    made.state.distributed_type = DistributedType.FSDP  # which accelerate chooses by itself on accelerators only
    made.state.fsdp_plugin = plugin
    return made


def prepare(kind: str, lm: Any) -> tuple[Any, Any]:
    """The model as accelerate wraps it, and the one to generate with."""
    made = accelerator(kind, type(lm.model.language_model.layers[0]).__name__)
    if kind == "ddp":
        wrapped = made.prepare(lm)
    else:
        wrapped, _ = made.prepare(lm, torch.optim.SGD(lm.parameters()))  # accelerate wants one with FSDP2
        register_fsdp_forward_method(wrapped, "generate")  # which encodes pictures before the first forward
    return wrapped, made.unwrap_model(wrapped)


def data_parallel(wrap: str, family: str, rank: int, note: Callable[..., None]) -> None:
    """Every rank answers prompts of its own."""
    kind, first = wrap.split(", ")
    prompts = (RAGGED, OTHER)[rank]
    for name in WRAPPED:
        recipe = {"prune": CASES[name]}

        def run(recipe: Any = recipe) -> dict[str, Any]:
            lm = copy.deepcopy(model(family))
            handle = tokenprune.attach(lm, recipe) if first == "pruned first" else None
            wrapped, inner = prepare(kind, lm)
            handle = handle or tokenprune.attach(inner, recipe)
            weight = inner.model.language_model.layers[0].self_attn.q_proj.weight
            kinds = [type(wrapped).__name__, type(weight).__name__]
            found = pruned(inner, family, None, prompts, handle)
            with torch.no_grad():
                forward = wrapped(**inputs(family, prompts)).logits
            return {**found, "forward": forward, "kinds": kinds}

        note(f"{wrap}: {family}, {name}", run)


def out_of_step(rank: int, note: Callable[..., None]) -> None:
    """Ranks that run different things: pictures on the first only, and a longer answer on the second."""
    _, lm = prepare("fsdp2", copy.deepcopy(model("llava")))
    prompts, steps = UNEQUAL[rank]
    for name in WRAPPED:
        note(f"out of step: {name}", lambda name=name: pruned(lm, "llava", CASES[name], prompts, steps=steps))


def wrapped_and_measured(note: Callable[..., None]) -> None:
    """Sharded weights cannot be measured, but they are recognised once somebody did."""
    wrapped, _ = prepare("ddp", copy.deepcopy(model("llava")))
    note("refused: ddp", lambda: bool(tokenprune.attach(wrapped, {"prune": CASES["entropy"]})))
    _, sharded = prepare("fsdp2", copy.deepcopy(model("llava")))
    note("refused: fsdp2 measures", lambda: bool(tokenprune.attach(sharded, {"prune": MEASURED})))
    later = copy.deepcopy(model("llava"))
    handle = tokenprune.attach(later, {"prune": MEASURED})
    _, later = prepare("fsdp2", later)
    note("refused: fsdp2 measures later", lambda: pruned(later, "llava", None, RAGGED, handle))
    note("measured before fsdp2", lambda: [pruned(lm, "llava", MEASURED) for lm in (model("llava"), sharded)])


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
