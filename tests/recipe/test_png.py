"""A recipe in a PNG, exact and as A1111's text; what other programs wrote; hostile text."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffadapt.errors import RecipeError
from diffadapt.inject import schedule
from diffadapt.recipe import Part, Recipe, read_png, save_png
from diffadapt.recipe.parameters import read_parameters, write_parameters
from diffadapt.recipe.png import KEYWORD, PARAMETERS

RECIPE = Recipe(
    adapters=(
        Part(name="ink", source="hf://owner/name/ink.safetensors", sha256="ab" * 32, autov3="0123456789ab", weight=0.8),
        Part(name="b: c", file="b.pt", sha256="cd" * 32, strength={"unet": 0.7, "text_encoder": 0.3}),
        Part(name="late", schedule=schedule.window(0.5, 1.0), weight=0.5),
    ),
    prompt="a cät, 猫\n(on a mat:1.2)", negative="blurry,\nugly", seed=7, steps=20, guidance=6.5,
    sampler="EulerAncestralDiscreteScheduler", base="owner/base",
)  # fmt: skip
IMAGE = Image.new("RGB", (24, 16), "red")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, *chunks: bytes) -> Path:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b""))
    return path


def test_a_recipe_comes_back_from_a_png(tmp_path: Path) -> None:
    path = save_png(IMAGE, tmp_path / "cat.png", RECIPE)
    assert read_png(path) == RECIPE
    with Image.open(path) as image:
        assert image.size == IMAGE.size
        assert image.tobytes() == IMAGE.tobytes()
        assert set(image.text) == {PARAMETERS, KEYWORD}


def test_the_text_beside_it_is_the_web_uis(tmp_path: Path) -> None:
    with Image.open(save_png(IMAGE, tmp_path / "cat.png", RECIPE)) as image:
        text = image.text[PARAMETERS]
    assert text.split("\n")[:4] == [
        "a cät, 猫",
        '(on a mat:1.2)<lora:ink:0.8><lora:"b: c":0.3:0.7><lora:late:0.5:start=0.5:stop=1.0>',
        "Negative prompt: blurry,",
        "ugly",
    ]
    last = text.split("\n")[-1]
    assert last.startswith(
        "Steps: 20, Sampler: Euler a, CFG scale: 6.5, Seed: 7, Size: 24x16, Model: owner/base, "
        'Lora hashes: "ink: 0123456789ab, b c: cdcdcdcdcdcd", Version: diffadapt'
    )


def test_without_our_chunk_the_web_uis_text_is_read(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text(
        PARAMETERS,
        "1girl, <lora:ink:0.8> <lyco:pix el:0.5:1>\nmore\nNegative prompt: bad, worse\nSteps: 20, Sampler: DPM++ 2M, "
        "CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b, Model: base, Clip skip: 2, "
        'Lora hashes: "ink: 0123456789AB, pix el: e3b0c44298fc, other: 12345678", Version: v1.10.1',
    )
    IMAGE.save(tmp_path / "a.png", pnginfo=info)
    recipe = read_png(tmp_path / "a.png")
    assert recipe is not None
    assert recipe.prompt == "1girl,  \nmore"
    assert recipe.negative == "bad, worse"
    assert (recipe.steps, recipe.guidance, recipe.seed) == (20, 7, 965400086)
    assert (recipe.sampler, recipe.base) == ("DPMSolverMultistepScheduler", "base")
    assert [(p.name, p.autov3, str(p.mention)) for p in recipe.adapters] == [
        ("ink", "0123456789ab", "<lora:ink:0.8>"),
        ("pix el", None, "<lyco:pix el:0.5:1>"),  # the hash of nothing
    ]
    assert recipe.to_prompt() == "1girl, <lora:ink:0.8> <lyco:pix el:0.5:1>\nmore"


def test_what_a_tag_can_say_comes_back_from_the_text() -> None:
    again = read_parameters(write_parameters(RECIPE, (24, 16)))
    assert again.prompt == RECIPE.prompt
    assert again.negative == RECIPE.negative
    assert (again.steps, again.seed, again.guidance, again.sampler, again.base) == (
        RECIPE.steps, RECIPE.seed, RECIPE.guidance, RECIPE.sampler, RECIPE.base,
    )  # fmt: skip
    assert [part.mention for part in again.adapters] == [part.mention for part in RECIPE.adapters]
    assert [part.autov3 for part in again.adapters] == ["0123456789ab", "cd" * 6, None]


def test_a_text_without_settings_is_a_prompt() -> None:
    assert read_parameters("a cat: red, dog: blue\nSteps").prompt == "a cat: red, dog: blue\nSteps"
    assert read_parameters("").prompt == ""
    with pytest.raises(RecipeError, match="hypernetwork"):
        read_parameters("a <hypernet:x:1>")


def test_an_image_without_both_has_no_recipe(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a.png")
    assert read_png(tmp_path / "a.png") is None


def test_no_place_of_this_machine_is_written(tmp_path: Path) -> None:
    recipe = Recipe(adapters=(Part(name="ink", source="/home/somebody/ink.safetensors"),))
    path = save_png(IMAGE, tmp_path / "a.png", recipe)
    assert b"somebody" not in path.read_bytes()
    assert read_png(path) == recipe.without_paths()


def test_compressed_texts_are_read_within_bounds(tmp_path: Path) -> None:
    data = RECIPE.to_json().encode()
    head = KEYWORD.encode() + b"\0\1\0\0\0"
    assert read_png(png(tmp_path / "a.png", chunk(b"iTXt", head + zlib.compress(data)))) == RECIPE
    text = b"a <lora:x:1>"
    packed = chunk(b"zTXt", PARAMETERS.encode() + b"\0\0" + zlib.compress(text))
    found = read_png(png(tmp_path / "b.png", packed))
    assert found is not None
    assert [part.name for part in found.adapters] == ["x"]
    bomb = zlib.compress(b" " * (64 << 20))
    for kind, start in ((b"iTXt", head), (b"zTXt", KEYWORD.encode() + b"\0\0")):
        with pytest.raises(RecipeError, match="unpacks to more"):
            read_png(png(tmp_path / "c.png", chunk(kind, start + bomb)))


def test_hostile_files_are_refused_or_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(RecipeError, match=r"a\.png: cannot be read"):
        read_png(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(RecipeError, match="no PNG"):
        read_png(path)
    ours = KEYWORD.encode() + b"\0"
    for bad, word in {
        chunk(b"tEXt", ours + b"{"): "not JSON",
        chunk(b"tEXt", ours + b"[" * 100_000): "nested",
        chunk(b"iTXt", ours + b"\0\0\0\0\xff"): "UTF-8",
        chunk(b"iTXt", ours + b"\1\0\0\0junk"): "unpacked",
        chunk(b"tEXt", ours + b"{}")[:-1] + b"x": "damaged",
        chunk(b"tEXt", PARAMETERS.encode() + b"\0" + b"a" * 70_000): "characters",
        chunk(b"tEXt", ours + b"{}") * 100: "more than",
    }.items():
        with pytest.raises(RecipeError, match=word):
            read_png(png(path, bad))
    # A length beyond the file or the bound: passed over, not read into memory.
    huge = struct.pack(">I", (1 << 31) - 1) + b"tEXt" + ours
    assert read_png(png(path, huge)) is None
    assert read_png(png(path, chunk(b"tEXt", ours + b" " * (2 << 20)))) is None


@given(st.binary(max_size=200), st.sampled_from([b"tEXt", b"zTXt", b"iTXt"]), st.sampled_from([KEYWORD, PARAMETERS]))
def test_any_text_chunk_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: bytes, word: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    with contextlib.suppress(RecipeError):
        read_png(png(path, chunk(kind, word.encode() + b"\0" + data)))


@given(st.text(max_size=300))
def test_any_parameters_are_read_or_refused(text: str) -> None:
    try:
        recipe = read_parameters(text)
    except RecipeError:
        return
    assert Recipe.from_json(recipe.to_json()) == recipe
