"""`diffadapt demo`: a sheet with every adapter, a table, a proof of merging and unmerging that can fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from diffadapt import shapes
from diffadapt.apps import demo, proof, shots
from diffadapt.apps.sheet import MARGIN, PAD, PICTURE, PITCH, SLOTS, SPACE, WIDTH, Card, Row, font, sheet, wrapped
from diffadapt.apps.shots import Shot, Wishes
from diffadapt.command import main
from diffadapt.shapes import index

QUICK = Wishes(steps=2)


@pytest.fixture(scope="module")
def shown() -> demo.Shown:
    return demo.show("unet", QUICK)


def test_the_command_writes_a_sheet_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "sheet.png"
    assert main(["demo", "--pipeline", "unet", "--steps", "2", "--out", str(file)]) == 0
    with Image.open(file) as image:
        assert image.width == WIDTH
        assert image.height > 4 * (PICTURE + 2 * PAD)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 200
    printed = capsys.readouterr().out
    samples = shapes.adapters("unet")
    rows = {line.split()[0]: line for line in printed.splitlines() if line}
    for sample in samples:
        assert sample.algorithm in rows[sample.name]
        assert f"{sample.score_without:.2f} -> {sample.score_with:.2f}" in rows[sample.name]
    assert "the base's bits are back in every component; its picture is the same." in printed


def test_every_adapter_changes_the_picture(shown: demo.Shown) -> None:
    assert [report.complete for report in shown.reports.values()] == [True] * len(shown.samples)
    for sample in shown.samples:
        base, with_it = (shown.pictures[shot] for shot in shots.alone(sample, QUICK))
        assert proof.difference(base, with_it) > 10, sample.name
    for pair in shots.pairs(shown.samples):
        made = [shown.pictures[shot] for shot in shots.mixed(*pair, QUICK)]
        assert all(proof.difference(made[3], other) > 10 for other in made[:3])


def test_a_strength_of_nought_is_the_base_and_strengths_differ(shown: demo.Shown) -> None:
    one = shots.swept(shown.samples)
    sweep = [shown.pictures[shots.strengths(one, weight, QUICK)] for weight in shots.WEIGHTS]
    assert sweep[0] is shown.pictures[shots.alone(one, QUICK)[0]]
    assert len({picture.tobytes() for picture in sweep}) == len(sweep)


def test_merging_and_unmerging_hold(shown: demo.Shown) -> None:
    assert shown.proof is not None
    assert shown.proof.holds
    assert shown.proof.changed == ()
    assert shown.good
    assert not shown.pipe.adapters.merged


def test_merged_pictures_are_the_live_ones(shown: demo.Shown) -> None:
    merged = demo.show("unet", Wishes(steps=2, merged=True))
    assert merged.pictures.keys() == shown.pictures.keys()
    assert max(proof.difference(merged.pictures[shot], shown.pictures[shot]) for shot in shown.pictures) <= proof.AGREE
    assert merged.good


def test_missing_data_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index, "DATA", tmp_path)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "diffadapt demo: The embedded pipelines are missing" in capsys.readouterr().err


def test_a_proof_that_does_not_hold_is_told() -> None:
    part = nn.Linear(3, 2)
    part.register_buffer("scale", torch.tensor(1.0))
    pipe: Any = SimpleNamespace(components={"unet": part, "tokenizer": object()})
    before = proof.fingerprints(pipe)
    assert before.keys() == {"unet"}
    with torch.no_grad():
        part.weight.view(torch.int32)[0, 0] ^= 1  # the last bit of one number
    assert proof.fingerprints(pipe) != before
    picture = Image.new("RGB", (2, 2))
    assert proof.Proof({"a": 1.0}, picture, picture, 0, (), True).holds
    failed = proof.Proof({"a": 1.0}, picture, picture, 0, ("unet",), False)
    assert not failed.holds
    assert "CHANGED in unet; its picture is NOT the same" in str(failed)
    assert not proof.Proof({"a": 1.0}, picture, picture, proof.AGREE + 1, (), True).holds


def test_the_largest_difference_is_of_any_pixel_and_colour() -> None:
    black, spot = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4))
    spot.putpixel((3, 1), (0, 7, 2))
    assert proof.difference(black, spot) == proof.difference(spot, black) == 7
    assert proof.difference(spot, spot) == 0


def sample(name: str, trigger: str = "") -> shapes.Sample:
    return shapes.Sample(name, Path(name), "LoRA", "t", "l", "c", trigger, f"{trigger} {name}".strip(), 0.0, 1.0)


def test_pairs_are_the_known_ones_or_neighbours() -> None:
    names = [[one.name for one in pair] for pair in shots.pairs([sample(n) for n in ("dusk", "a", "outline", "b")])]
    assert names == [["outline", "dusk"], ["a", "b"]]
    assert shots.pairs([sample("a"), sample("z", "zibo")]) == []


def test_a_prompt_is_for_adapters_whose_trigger_it_has() -> None:
    plain, named = sample("a"), sample("z", "zibo")
    assert [Wishes().text(one) for one in (plain, named)] == ["a", "zibo z"]
    assert [Wishes("a star").text(one) for one in (plain, named)] == ["a star", "zibo z"]
    assert [Wishes("zibo in red").text(one) for one in (plain, named)] == ["zibo in red"] * 2


def test_pictures_of_a_mix_are_made_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    mixes: list[Any] = []
    monkeypatch.setattr(shapes, "title", lambda name: name)
    monkeypatch.setattr(shapes, "picture", lambda pipe, prompts, seed: calls.append((prompts, seed)) or list(prompts))
    pipe: Any = SimpleNamespace(adapters=SimpleNamespace(set=mixes.append))
    on = (("a", 1.0),)
    wanted = [Shot((), "x"), Shot(on, "x"), Shot((), "y"), Shot((), "x")]
    made = demo.take(demo.Shown("unet", pipe, (), {}), wanted, Wishes(seed=4))
    assert calls == [(["x", "y"], 4), (["x"], 4)]
    assert mixes == [{}, {"a": 1.0}]
    assert made == {Shot((), "x"): "x", Shot((), "y"): "y", Shot(on, "x"): "x"}


def test_where_a_sheet_is_written() -> None:
    assert demo.target(Path("out"), "dit", several=True) == Path("out/demo-dit.png")
    assert demo.target(Path("a/b.png"), "dit", several=False) == Path("a/b.png")
    assert demo.target(Path("a/b.png"), "dit", several=True) == Path("a/b-dit.png")


def test_a_sheet_puts_every_picture_in_its_place() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (PICTURE, PICTURE), "blue")
    card = Card("one", ((red, "base"), (blue, "with")), "LoRA", ("a line",))
    rows = [Row("first", (card,) * (SLOTS // 2 + 1)), Row("second", (Card("six", ((red, ""),) * 6), card))]
    assert [len(line) for line in rows[0].lines] == [SLOTS // 2, 1]
    image = sheet("Title", "about it", rows)
    assert image.width == WIDTH == SLOTS * PITCH - SPACE + 2 * MARGIN
    counted = {colour: count for count, colour in image.getcolors(1 << 24) or []}
    pairs, six = SLOTS // 2 + 2, 6
    assert counted[(255, 0, 0)] == (pairs + six) * PICTURE**2
    assert counted[(0, 0, 255)] == pairs * PICTURE**2


def test_text_is_wrapped_between_words() -> None:
    lines = wrapped("only the rim of a shape is drawn", 14, 120)
    assert len(lines) > 1
    assert " ".join(lines) == "only the rim of a shape is drawn"
    assert all(font(14).getlength(line) <= 120 for line in lines)
    assert wrapped("", 14, 120) == []
    assert wrapped("unbreakable", 14, 5) == ["unbreakable"]
