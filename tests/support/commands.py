"""The command line, called as from a shell."""

from __future__ import annotations

from typing import Any

import pytest
from families import model
from PIL import Image
from processed import PROCESSORS, inputs

from tokenprune.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    out = capsys.readouterr()
    return int(done.value.code or 0), out.out, out.err


class Stub:
    """A loaded model of another family, whose processor needs packages that tests do without."""

    def __init__(self, case: str) -> None:
        self.case, self.model, self.processor = case, model(case), PROCESSORS[case]

    def inputs(self, question: str, images: Any, videos: Any = ()) -> dict[str, Any]:
        return inputs(self.case, [[*images, *([Image.fromarray(frame) for frame in video] for video in videos)]])

    def answer(self, given: dict[str, Any], max_new_tokens: int = 64) -> str:
        return str(self.model.generate(**given, max_new_tokens=2, do_sample=False))
