"""Folders of pictures, how pictures are cut, and the order in which they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diffadapt.apps.trainer.material import Material, Place
from diffadapt.apps.trainer.pictures import buckets, cropped, fingerprint, fitting, opened, pixels, read_folder
from diffadapt.apps.trainer.settings import Data
from diffadapt.errors import SourceError, TrainingError


def picture(path: Path, size: tuple[int, int] = (8, 8), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_captions_come_from_files_then_metadata_then_the_prompt(tmp_path: Path) -> None:
    picture(tmp_path / "b.png").with_suffix(".txt").write_text(" beside \n")
    picture(tmp_path / "deep" / "c.jpg", (16, 8))
    picture(tmp_path / "a.webp")
    lines = [{"file_name": "deep/c.jpg", "text": "listed"}, {"file_name": "b.png", "caption": "hidden"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    found = read_folder(tmp_path, "for all")
    assert [(e.path.name, e.caption, e.size) for e in found] == [
        ("a.webp", "for all", (8, 8)), ("b.png", "beside", (8, 8)), ("c.jpg", "listed", (16, 8)),
    ]  # fmt: skip


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        read_folder(tmp_path / "nothing")
    with pytest.raises(SourceError, match=r"no picture in it. Expected files that end in .png"):
        read_folder(tmp_path)
    path = picture(tmp_path / "a.png")
    with pytest.raises(TrainingError, match=r"a.png has no caption. Write it into a.txt"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(SourceError, match=r"metadata\.jsonl, line 1: expected an object with file_name and text"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SourceError, match=r"a\.png: a broken picture"):
        read_folder(tmp_path, "for all")


def test_a_changed_picture_or_caption_changes_the_fingerprint(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    first = fingerprint(read_folder(tmp_path, "x"))
    assert fingerprint(read_folder(tmp_path, "x")) == first
    assert fingerprint(read_folder(tmp_path, "y")) != first
    picture(path, colour="blue")
    assert fingerprint(read_folder(tmp_path, "x")) != first


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert torch.equal(pixels(opened(tmp_path / "a.png")), torch.ones(1, 3, 4, 4))


def test_the_middle_is_kept_and_scaled() -> None:
    wide = Image.new("RGB", (40, 10), "black")
    wide.paste("white", (15, 0, 25, 10))
    assert pixels(cropped(wide, (20, 20))).mean() > 0.8
    assert pixels(cropped(wide, (20, 20))).shape == (1, 3, 20, 20)


def test_buckets_have_about_the_area_and_fit_by_ratio() -> None:
    sizes = buckets(512, 64)
    assert (512, 512) in sizes
    assert all(width % 64 == 0 and height % 64 == 0 for width, height in sizes)
    assert all(0.6 * 512**2 <= width * height <= 512**2 for width, height in sizes)
    assert all(max(size) <= 2 * min(size) for size in sizes)
    assert fitting((1000, 1000), sizes) == (512, 512)
    wide, tall = fitting((1600, 900), sizes), fitting((900, 1600), sizes)
    assert wide[0] / wide[1] == pytest.approx(16 / 9, rel=0.15)
    assert tall == wide[::-1]


class Plain:
    """Instead of a pipeline: a picture is its own latents."""

    multiple = 8

    def encode(self, seen: torch.Tensor) -> torch.Tensor:
        return seen


def material(tmp_path: Path, **data: object) -> Material:
    for number in range(7):
        picture(tmp_path / f"{number}.png", (32, 16) if number < 3 else (16, 16), f"#{number:02}0000")
    settings = Data(resolution=16, **{"prompt_dropout": 0.0, **data})
    return Material(Plain(), read_folder(tmp_path, "x"), settings, quiet=True)


def test_every_picture_is_shown_in_an_epoch_and_batches_have_one_size(tmp_path: Path) -> None:
    some = material(tmp_path, buckets=True)
    batches = [some.rows(Place(1, position), 2) for position in range(8)]  # 2 of the wide ones, 2 of the others
    for epoch in (batches[:4], batches[4:]):
        assert sorted({row for batch in epoch for row in batch}) == list(range(7))
        assert all(len({some.sizes[row] for row in batch}) == 1 for batch in epoch)
    assert batches[:4] != batches[4:]
    assert [some.rows(Place(1, position), 2) for position in range(8)] == batches
    assert [some.rows(Place(2, position), 2) for position in range(8)] != batches
    assert some.batch(Place(1, 0), 2).clean.shape[0] == 2


def test_processes_share_a_batch(tmp_path: Path) -> None:
    some = material(tmp_path)
    whole = some.rows(Place(1, 3), 4)
    assert sorted(row for process in (0, 1) for row in some.rows(Place(1, 3, process, 2), 2)) == sorted(whole)


def test_pictures_are_mirrored_at_random(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 8, 16))
    image.save(tmp_path / "a.png")
    some = Material(Plain(), read_folder(tmp_path, "x"), Data(resolution=16, flip=True), quiet=True)
    left = [bool(some.batch(Place(0, position), 1).clean[0, 0, 0, 0] > 0) for position in range(12)]
    assert {True, False} == set(left)
    assert left == [bool(some.batch(Place(0, position), 1).clean[0, 0, 0, 0] > 0) for position in range(12)]


def test_a_resolution_that_the_model_cannot_have_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(TrainingError, match=r"data\.resolution is 20; the model needs a multiple of 8, such as"):
        Material(SimpleNamespace(multiple=8), read_folder(tmp_path, "x"), Data(resolution=20), quiet=True)
