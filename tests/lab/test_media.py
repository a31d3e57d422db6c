"""Pictures and videos from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenprune.errors import MediaError
from tokenprune.lab.media import read_image, read_video

COLORS = [(i * 20, 255 - i * 20, 7) for i in range(10)]


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (16, 12), color) for color in COLORS]


def test_pictures_are_rgb_and_turned(tmp_path: Path) -> None:
    tall = Image.new("L", (4, 8), 9)
    exif = tall.getexif()
    exif[274] = 6  # turned by a quarter
    tall.save(tmp_path / "a.jpg", exif=exif)
    read = read_image(tmp_path / "a.jpg")
    assert (read.mode, read.size) == ("RGB", (8, 4))


@pytest.mark.parametrize("junk", [b"", b"not a picture", b"GIF89a" + bytes(3)])
def test_junk_is_one_clear_error(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "junk.png").write_bytes(junk)
    with pytest.raises(MediaError, match=r"junk\.png"):
        read_image(tmp_path / "junk.png")


def test_frames_of_an_animation_are_spread_evenly(tmp_path: Path) -> None:
    first, *rest = frames()
    first.save(tmp_path / "a.webp", save_all=True, append_images=rest, lossless=True)
    video = read_video(tmp_path / "a.webp", frames=4)
    assert video.shape == (4, 12, 16, 3)
    assert [tuple(frame[0, 0]) for frame in video] == [COLORS[i] for i in (0, 3, 6, 9)]


def test_a_folder_of_frames_in_order(tmp_path: Path) -> None:
    for i, frame in enumerate(frames()):
        frame.save(tmp_path / f"{i:02}.png")
    video = read_video(tmp_path, frames=10)
    assert [tuple(frame[0, 0]) for frame in video] == COLORS


def test_a_short_video_repeats_frames(tmp_path: Path) -> None:
    frames()[3].save(tmp_path / "a.png")
    assert np.ptp(read_video(tmp_path, frames=8), axis=0).max() == 0


def test_other_videos_need_a_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"junk")
    with pytest.raises(MediaError, match=r"a\.mp4"):
        read_video(tmp_path / "a.mp4")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no pictures"):
        read_video(tmp_path)
