"""Train the tiny LLaVA of `tokenprune/pico` from scratch on a CPU: first its tower, then all of it.

The tower first learns to name what each patch shows. Then the whole model learns to answer: a picture and all its
questions form one sequence, in which each question sees the picture and itself only, so that one pass over the
picture serves them all. Three small heads help on the way and are thrown away: one names patches at the end of the
tower, one half way up the decoder, and one points, half way up, from a question to the patches it is about.

    python benchmarks/pico/train.py --run runs/pico
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokenprune.lab.pico.scenes import COLORS, KINDS, PLURAL, SHAPES, SIZE, Scene, draw, sprite

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "tokenprune" / "pico" / "tokenprune-pico"
PATCH = 8
SIDE = SIZE // PATCH  # patches a side
PREFIX = 3 + SIDE * SIDE  # <s> user : and the picture
ROOM = 112  # tokens for the questions of one picture
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = "user assistant : ? . , is there a what color the how many are digit digits read yes no"
NAMES = [*SHAPES, *"0123456789"]
HUES = list(COLORS)
CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole lower-case words, punctuation and single digits."""
    words = SPECIAL + WORDS.split() + list("0123456789") + HUES + list(SHAPES) + list(PLURAL.values())
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> LlavaProcessor:
    """The stock processor: pictures become 96x96, <image> becomes 144 tokens."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        images,
        make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A stock LLaVA with random weights: a tower of 5 layers x 128 and a decoder of 8 layers x 192."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
        hidden_act="gelu",
        initializer_range=0.02,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=SIDE * SIDE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=8,
    )
    return model


def split_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The 1797 handwritten digits of scikit-learn in a fixed split: 1437 to train on, 360 held out."""
    source = load_digits()
    pictures = (source.images * 255 / 16).round().astype(np.uint8)
    labels = source.target.astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    out, train = order[:360], order[360:]
    return (pictures[train], labels[train]), (pictures[out], labels[out])


def warped(digits: np.ndarray, labels: np.ndarray, copies: int, seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Enlarged training digits: one plain copy of each, the others turned, widened, moved, thickened or thinned."""
    rng = np.random.default_rng(seed)
    masks = []
    for digit in digits:
        masks.append(sprite(digit, 20))
        for _ in range(copies - 1):
            mask = sprite(
                digit,
                int(rng.integers(18, 23)),
                rng.uniform(-14, 14),
                rng.uniform(0.8, 1.2),
                tuple(rng.uniform(-0.6, 0.6, 2)),
            )
            stroke = (mask / 255.0) ** np.exp(rng.normal(0, 0.3)) * rng.uniform(0.85, 1.15)
            masks.append((stroke.clip(0, 1) * 255).astype(np.uint8))
    bank = np.empty(len(masks), object)
    bank[:] = masks
    return bank, np.repeat(labels, copies)


class Pictures(IterableDataset):
    """Endless batches: pictures, what each patch shows, and packed questions with their answers as labels."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, bank, batch: int, seed: int, grow: int, drawn: int = 0):
        self.bank, self.batch, self.seed, self.grow, self.drawn = bank, batch, seed, grow, drawn
        words = tokenizer.get_vocab()
        self.words = words
        self.end = words["</s>"]

    def ids(self, text: str) -> list[int]:
        """The tokens of a question or an answer."""
        return [self.words[word] for word in text.replace("?", " ?").split()]

    def patches(self, scene: Scene) -> np.ndarray:
        """For each patch: what it shows (0: nothing), its colour (-100: none), and if an object's middle is in it."""
        grid = np.zeros((3, SIDE, SIDE), np.int64)
        grid[1] = -100
        for thing in scene.things:
            left, top, side = thing.box
            x, y = (range((at + 3) // PATCH, (at + side - 5) // PATCH + 1) for at in (left, top))
            spot = np.s_[y.start : y.stop, x.start : x.stop]
            grid[0][spot] = 1 + NAMES.index(thing.name)
            grid[1][spot] = HUES.index(thing.color)
            grid[2, (top + side // 2) // PATCH, (left + side // 2) // PATCH] = 1
        return grid.reshape(3, -1)

    def pack(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """All questions in one row: tokens, labels, positions, the question's number, its kind and what it is about.

        The last two hold, where the answer starts, the sought name (0: any digit) and the sought colour (-1: any).
        """
        row = np.zeros((7, ROOM), np.int64)
        row[1], row[3], row[5], row[6], at = -100, -1, -1, -1, 0
        for number in rng.permutation(len(scene.questions)):
            question = scene.questions[number]
            if question.kind == "count" and question.answer == "1" and rng.random() < 0.6:
                continue  # or most counts were one
            text = question.text
            if question.kind == "digit" and rng.random() < 0.5:  # another wording, which is learnt sooner
                text = f"what is the {text.split()[-1][:-1]} digit?"
            prompt, answer = self.ids(text + " assistant :"), self.ids(question.answer)
            size = len(prompt) + len(answer)
            if at + size > ROOM:
                continue
            spot = np.s_[at : at + size]
            row[0, spot] = prompt + answer
            row[1, at + len(prompt) - 1 : at + size] = [*answer, self.end]
            row[2, spot] = np.arange(size)
            row[3, spot] = number
            row[4, spot] = KINDS.index(question.kind)
            asked = set(question.text.rstrip("?").split())
            row[5, at + len(prompt) - 1] = next((1 + i for i, n in enumerate(SHAPES) if asked & {n, PLURAL[n]}), 0)
            row[6, at + len(prompt) - 1] = next((i for i, hue in enumerate(HUES) if hue in asked), -1)
            at += size
        row[2] += PREFIX
        return row

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rng, drawn = np.random.default_rng(self.seed), self.drawn
        while True:
            pictures, patches, rows = [], [], []
            for _ in range(self.batch):
                share = min(1.0, 0.25 + 0.75 * drawn / self.grow) if self.grow else 1.0
                easy = rng.random() > share  # few objects at first
                scene = draw(rng, *self.bank, **({"same": 2, "others": 1, "written": 2} if easy else {}), every=True)
                pictures.append(np.asarray(scene.picture))
                patches.append(self.patches(scene))
                rows.append(self.pack(scene, rng))
                drawn += 1
            yield tuple(torch.from_numpy(np.stack(each)) for each in (pictures, patches, rows))


class Learner(nn.Module):
    """The model with its throw-away heads; gives the losses and the numbers of right answers."""

    def __init__(self, model: LlavaForConditionalGeneration, start: list[int]):
        super().__init__()
        self.llava = model
        self.head = nn.Linear(model.config.vision_config.hidden_size, 1 + len(NAMES) + len(HUES) + 2)
        width = model.config.text_config.hidden_size
        self.seek, self.offer = nn.Linear(width, 64), nn.Linear(width, 64)
        self.keep = nn.Linear(width, 1 + len(NAMES) + len(HUES))
        self.register_buffer("start", torch.tensor(start), persistent=False)
        before = torch.ones(PREFIX, PREFIX, dtype=torch.bool).tril()
        self.register_buffer("before", before, persistent=False)
        self.register_buffer("order", torch.ones(ROOM, ROOM, dtype=torch.bool).tril(), persistent=False)

    def see(self, pictures: Tensor) -> Tensor:
        """The tower's picture features, without its class token."""
        pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.llava.model.vision_tower(pixels).last_hidden_state[:, 1:]

    def name(self, seen: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the patch head; the share of objects whose middle patch has the right name and colour."""
        what, color, middle = self.head(seen).float().split([1 + len(NAMES), len(HUES), 2], -1)
        weight = torch.ones(1 + len(NAMES), device=seen.device)
        weight[0] = 0.3
        loss = F.cross_entropy(what.flatten(0, 1), patches[:, 0].flatten(), weight)
        loss = loss + 0.5 * F.cross_entropy(color.flatten(0, 1), patches[:, 1].flatten())
        loss = loss + 0.5 * F.cross_entropy(middle.flatten(0, 1), patches[:, 2].flatten())
        with torch.no_grad():
            at = patches[:, 2] == 1
            digit = at & (patches[:, 0] > len(SHAPES))
            good, hue = what.argmax(-1) == patches[:, 0], color.argmax(-1) == patches[:, 1]
            spot = (middle.argmax(-1) == patches[:, 2]).all(1)
            rates = [good[at], good[digit], hue[at], spot]
        return loss, torch.stack([rate.float().mean() for rate in rates])

    def decode(self, states: Tensor, mask: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's hidden states half way and at the end."""
        decoder = self.llava.model.language_model
        turns, middle = decoder.rotary_emb(states, position_ids=places), states
        for i, layer in enumerate(decoder.layers):
            middle = states if i == len(decoder.layers) // 2 else middle
            states = layer(states, attention_mask=mask, position_embeddings=turns, position_ids=places, use_cache=False)
        return middle, decoder.norm(states)

    def answer(self, seen: Tensor, rows: Tensor, patches: Tensor) -> tuple:
        """Loss, rightness, kind and wanted word of each answer token; then the losses of two throw-away heads.

        One head points, half way up, at what each question is about (a loss and a kind each); the other names patches.
        """
        words, labels, positions, number, kind, name, color = rows.unbind(1)
        embed, size = self.llava.get_input_embeddings(), len(rows)
        picture = self.llava.model.multi_modal_projector(seen)
        states = torch.cat([embed(self.start).expand(size, -1, -1), picture, embed(words)], 1)
        same = (number[:, :, None] == number[:, None, :]) & self.order
        mask = torch.zeros(size, 1, PREFIX + ROOM, PREFIX + ROOM, dtype=torch.bool, device=rows.device)
        mask[:, 0, :PREFIX, :PREFIX] = self.before
        mask[:, 0, PREFIX:, :PREFIX] = True
        mask[:, 0, PREFIX:, PREFIX:] = same
        places = torch.cat([torch.arange(PREFIX, device=rows.device).expand(size, -1), positions], 1)
        middle, hidden = self.decode(states, mask, places)
        middle = F.layer_norm(middle.float(), middle.shape[-1:])
        shown, hue = patches[:, None, 0], patches[:, None, 1]
        name, color = name[:, :, None], color[:, :, None]
        about = ((shown == name) | ((name == 0) & (shown > len(SHAPES)))) & ((color < 0) | (hue == color))
        points = (self.seek(middle[:, PREFIX:]) @ self.offer(middle[:, 3:PREFIX]).transpose(1, 2)).float() / 8 - 3
        asked, more = name[:, :, 0] >= 0, torch.full((), 4.0, device=rows.device)
        point = F.binary_cross_entropy_with_logits(
            points[asked], about[asked].float(), pos_weight=more, reduction="none"
        )
        at = labels != -100
        logits, wanted = self.llava.lm_head(hidden[:, PREFIX:][at]).float(), labels[at]
        each = F.cross_entropy(logits, wanted, reduction="none")
        kept = self.keep(middle[:, 3:PREFIX]).float().flatten(0, 1).split([1 + len(NAMES), len(HUES)], -1)
        keep = F.cross_entropy(kept[0], patches[:, 0].flatten()) + F.cross_entropy(kept[1], patches[:, 1].flatten())
        return each, logits.argmax(-1) == wanted, kind[at], wanted, (point.mean(1), kind[asked]), keep


def float_attention(module, query, key, value, attention_mask, scaling=None, is_causal=None, dropout=0.0, **_):
    """Stock attention in float32: on a CPU its backward pass is faster than in bfloat16."""
    with torch.autocast(query.device.type, enabled=False):
        is_causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        causal = attention_mask is None and bool(is_causal)
        out = F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=attention_mask, is_causal=causal, scale=scaling
        )
    return out.transpose(1, 2).to(query.dtype), None


def make_optimizers(learner: Learner, rate: float, tower: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest; the tower's rate is multiplied by `tower`."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in learner.named_parameters():
        matrix = weight.ndim == 2 and ("layers." in name or "projector" in name)
        groups.setdefault((matrix, "vision_tower" in name), []).append(weight)

    def chosen(matrix: bool) -> list[dict]:
        kept = [(key, value) for key, value in groups.items() if key[0] == matrix]
        return [{"params": value, "lr": rate * (tower if key[1] else 1.0)} for key, value in kept]

    return [
        torch.optim.Muon(chosen(True), weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(chosen(False), weight_decay=0.01, betas=(0.9, 0.98)),
    ]


def export(learner: Learner, processor: LlavaProcessor, folder: Path) -> None:
    """Write the folder `from_pretrained` reads: weights in half precision, which load in float32."""
    model = make_model(processor.tokenizer)
    model.load_state_dict(learner.llava.state_dict())
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    (folder / "model.safetensors").chmod(0o644)


class Run:
    """The state of a training run: what is learnt, how long it took, and how far the phase is."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.processor = make_processor()
        torch.manual_seed(args.seed)
        self.learner = Learner(make_model(self.processor.tokenizer), self.processor.tokenizer("USER:").input_ids)
        self.learner.to(self.device)
        if self.device.type == "cpu":
            AttentionInterface.register("float_sdpa", float_attention)
            AttentionMaskInterface.register("float_sdpa", sdpa_mask)
            self.learner.llava.set_attn_implementation("float_sdpa")
        self.mean = copy.deepcopy(self.learner).eval()  # a running mean of the weights is what gets exported
        self.phase, self.seconds, self.step, self.pictures = "tower", 0.0, 0, 0
        self.totals = {"tower": (0.0, 0), "joint": (0.0, 0)}
        self.file = args.run / "state.pt"
        self.optimizers: list[torch.optim.Optimizer] = []
        self.state: dict = {}
        if self.file.exists():
            self.state = torch.load(self.file, map_location=self.device, weights_only=False)
            self.learner.load_state_dict(self.state["learner"])
            self.mean.load_state_dict(self.state["mean"])
            for key in ("phase", "seconds", "step", "pictures", "totals"):
                setattr(self, key, self.state[key])
        (self.train_digits, self.out_digits) = split_digits()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        keys = ("phase", "seconds", "step", "pictures", "totals")
        state = {key: getattr(self, key) for key in keys} | {
            "learner": self.learner.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
        }
        torch.save(state, self.file.with_suffix(".new"))
        os.replace(self.file.with_suffix(".new"), self.file)

    def losses(self, learner: Learner, batch: list[Tensor], joint: bool) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The loss of a batch, the patch head's rates, and the share of right answer words per kind."""
        pictures, patches, rows = (each.to(self.device) for each in batch)
        with torch.autocast(self.device.type, torch.bfloat16):
            seen = learner.see(pictures)
            loss, rates = learner.name(seen, patches)
            if not joint:
                return loss, rates, {}
            each, right, kind, wanted, (points, about), keep = learner.answer(seen, rows, patches)
        args, weights = self.args, torch.tensor(self.args.weights, device=self.device)
        point = (points * weights[about]).sum() / weights[about].sum()
        word = wanted != 2  # ends are easy
        weight = weights[kind] * torch.where(word, 1.0, 0.1)
        loss = args.patch_weight * (loss + keep) + (each * weight).sum() / weight.sum() + args.point_weight * point
        shares = {name: right[(kind == i) & word].float().mean().item() for i, name in enumerate(KINDS)}
        shares |= {"point": point.item(), "keep": keep.item()}
        return loss, rates, shares

    def check(self, batches: list[list[Tensor]], joint: bool) -> str:
        """The running mean's rates on held-out pictures, in words."""
        with torch.no_grad():
            found = [self.losses(self.mean, batch, joint) for batch in batches]
        rates = torch.stack([rates for _, rates, _ in found]).mean(0).tolist()
        named = zip(("name", "numeral", "hue", "spots"), rates, strict=True)
        words = [f"{name} {100 * rate:.1f}" for name, rate in named]
        if joint:
            words += [f"{name} {100 * np.mean([shares[name] for *_, shares in found]):.1f}" for name in found[0][2]]
        return f"loss {np.mean([loss.item() for loss, *_ in found]):.4f} " + " ".join(words)

    def learn(self, phase: str, minutes: float, rate: float, tower: float) -> None:
        """One phase: steady rate after a short rise, falling to nearly nothing over its last part."""
        args, joint = self.args, phase == "joint"
        if joint and self.device.type == "cpu":
            self.learner.decode = torch.compile(self.learner.decode)
        if self.phase != phase:
            self.phase, self.seconds, self.step, self.pictures, self.state = phase, 0.0, 0, 0, {}
        self.optimizers = make_optimizers(self.learner, rate, tower)
        if self.state.get("optimizers"):
            for optimizer, state in zip(self.optimizers, self.state["optimizers"], strict=True):
                rates = [group["lr"] for group in optimizer.param_groups]
                optimizer.load_state_dict(state)
                for group, value in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = value
        bases = [[group["lr"] for group in each.param_groups] for each in self.optimizers]
        tokenizer, seed = self.processor.tokenizer, args.seed + 1000 * joint + self.step
        size, grow = (args.joint_batch, args.joint_grow) if joint else (args.batch, args.grow)
        data = Pictures(tokenizer, warped(*self.train_digits, 16, seed), size, seed, grow, self.pictures)
        batches = iter(DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4))
        fixed = iter(Pictures(tokenizer, self.out_digits, 128, 99, 0))
        held = [next(fixed)]
        begin, saved, before = time.monotonic(), time.monotonic(), self.seconds
        for batch in batches:
            self.seconds = before + time.monotonic() - begin
            progress = self.seconds / (60 * minutes)
            if progress >= 1:
                break
            scale = min(1.0, (self.step + 1) / 100) * min(1.0, max(0.02, (1 - progress) / args.fall))
            for optimizer, base in zip(self.optimizers, bases, strict=True):
                for group, value in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = value * scale
            loss, rates, shares = self.losses(self.learner, batch, joint)
            loss.backward()
            nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step, self.pictures = self.step + 1, self.pictures + len(batch[0])
            keep = min(0.998, 1 - 1 / (1 + self.step / 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.mean.parameters()), list(self.learner.parameters()), 1 - keep)
            if self.step % 20 == 0:
                words = " ".join(f"{name} {100 * share:.0f}" for name, share in shares.items())
                marks = " ".join(f"{100 * value:.0f}" for value in rates.tolist())
                print(f"{phase} {self.step} {self.seconds:.0f}s loss {loss.item():.4f} [{marks}] {words}", flush=True)
            if time.monotonic() - saved > args.every:
                saved = time.monotonic()
                self.save()
                if joint:
                    export(self.mean, self.processor, args.out)
                print(f"== {phase} {self.step} {self.pictures} pictures: {self.check(held, joint)}", flush=True)
        self.totals[phase] = (self.seconds, self.pictures)
        print(f"== {phase} done, {self.pictures} pictures: {self.check(held, joint)}", flush=True)


def main() -> None:
    """Train, or carry on where the run's folder says it stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "pico", help="where checkpoints go")
    parser.add_argument("--tower-minutes", type=float, default=10.5)
    parser.add_argument("--joint-minutes", type=float, default=67)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of the first phase")
    parser.add_argument("--joint-rate", type=float, default=2.5e-3, help="learning rate of the second phase")
    parser.add_argument("--tower", type=float, default=0.1, help="the tower's share of it in the second phase")
    parser.add_argument("--fall", type=float, default=0.4, help="the last part of a phase, with a falling rate")
    parser.add_argument("--patch-weight", type=float, default=0.3, help="weight of naming patches in the second phase")
    parser.add_argument("--point-weight", type=float, default=1.0, help="weight of pointing in the second phase")
    parser.add_argument("--weights", type=float, nargs=5, default=[0.7, 0.7, 1, 4, 0.7], help="of the kinds")
    parser.add_argument("--batch", type=int, default=64, help="pictures a step, first phase")
    parser.add_argument("--joint-batch", type=int, default=16, help="pictures a step, second phase")
    parser.add_argument("--grow", type=int, default=30000, help="pictures until all are full, first phase")
    parser.add_argument("--joint-grow", type=int, default=20000, help="the same, second phase")
    parser.add_argument("--every", type=float, default=240, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write-digits", action="store_true", help="only write the held-out digits of the package")
    args = parser.parse_args()
    if args.write_digits:
        digits, labels = split_digits()[1]
        np.savez_compressed(WEIGHTS.with_name("digits.npz"), digits=digits, labels=labels)
        return
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    if run.phase == "tower":
        run.learn("tower", args.tower_minutes, args.rate, 1.0)
    run.learn("joint", args.joint_minutes, args.joint_rate, args.tower)
    run.save()
    export(run.mean, run.processor, args.out)


if __name__ == "__main__":
    main()
