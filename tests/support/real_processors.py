"""Processors of transformers as users have them: saved in a folder with a model, with a tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from families import IMAGE, PAD, VIDEO
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenprune.lab.loading import Loaded, load_model

QUESTION = "what is it ?"
WORDS = [*QUESTION.split(), *"0123456789", *"<>.:,s", "Time", "seconds"]  # the rest is about the time of a frame
IDS = {"<pad>": PAD, "<s>": 1, "</s>": 2, "<unk>": 9, **{word: number for number, word in enumerate(WORDS, 10)}}


RECIPE = {
    "prune": [
        {"scorer": "diversity", "schedule": {"name": "fixed", "layer": 0, "keep": 0.5}},
        {"scorer": "entropy", "schedule": {"name": "fixed", "layer": 2, "keep": 5}},
    ]
}
"""Two stages, which leave no more than five tokens of each prompt."""


def tokenizer(image: str, video: str, **more: int) -> PreTrainedTokenizerFast:
    """A few words, and the ids that the tiny models know for a picture, a video, and what else is named."""
    special = {image: IMAGE, video: VIDEO, **more}
    words = Tokenizer(models.WordLevel({**IDS, **special}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=words, **named)
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def template(image: str, video: str) -> str:
    """A chat template: everything in its order."""
    kinds = "".join(
        f"{{% {'el' if kind == 'video' else ''}if part['type'] == '{kind}' %}}{text}"
        for kind, text in (("image", image), ("video", video))
    )
    parts = (
        f"{{% for part in message['content'] %}}{kinds}{{% else %}} {{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
    )
    return f"{{% for message in messages %}}{parts}{{% endfor %}}"


def loaded(folder: Path, model: Any, processor: Any) -> Loaded:
    """Both from the folder, as the commands load them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_model(str(folder))
