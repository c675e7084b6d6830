"""Every action of the mixer over HTTP, by name, on the page's server and without a page."""

from __future__ import annotations

import json
import math
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import load_file, save_file

from diffadapt.apps.mixer.serving import Served
from diffadapt.recipe import Recipe, read_png
from tests.apps import files
from tests.apps.conftest import HTTP, Drawing, client_of, row

MIX = "a red star on a blue background <lora:glow:0.5> <lora:outline:0.25:0.75>"
QUICK = {"seed": 3, "steps": 2}
Ask = Callable[..., Any]


@pytest.fixture
def ask(either: Served) -> Any:
    """Calls an endpoint by its name, in a session of its own."""
    client = client_of(either)
    yield lambda name, **given: client.predict(**given, api_name=f"/{name}")
    client.close()


@pytest.fixture(scope="module")
def picture(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that a client has downloaded."""
    client = client_of(served, download_files=str(tmp_path_factory.mktemp("downloads")))
    found = client.predict(mix_text=MIX, negative="blue", guidance=4.0, **QUICK, api_name="/generate")
    client.close()
    return Path(found)


def test_all_endpoints_are_there_with_types_and_words(either: Served) -> None:
    client = client_of(either)
    found = client.view_api(return_format="dict")
    client.close()
    names = {f"/{one.name}" for one in either.endpoints.all()}
    assert found["named_endpoints"].keys() == names
    assert found["unnamed_endpoints"] == {}
    told = HTTP.get(f"{either.url}gradio_api/info").json()["named_endpoints"]
    for name, one in found["named_endpoints"].items():
        said = told[name]["description"]
        assert said.endswith(".")
        assert len(said) > 20
        assert "Args" not in said
        for parameter in one["parameters"]:
            assert parameter["parameter_name"] not in ("request", "self")
            assert parameter["python_type"]["type"] in ("str", "int", "float", "bool", "list[str]", "filepath"), name


def calls(folder: Path, picture: Path) -> dict[str, tuple[dict[str, Any], Callable[[Any], Any]]]:
    """For every endpoint: arguments, and what holds of the answer."""
    style = folder / "style.safetensors"
    save_file({key: value * 2 for key, value in load_file(files.adapters("unet")["frame"]).items()}, style)
    mix = {"mix_text": MIX}
    return {
        "list_adapters": ({"search": "glow"}, lambda r: [one["id"] for one in r] == ["glow"]),
        "inspect_adapter": ({"adapter": "outline"}, lambda r: r["algorithms"] == {"lora": 116} and r["norm"] > 0),
        "upload_adapter": ({"file": handle_file(style)}, lambda r: r["fit"]["text"] == "116 of 116"),
        "mix_to_recipe": ({**mix, "seed": 7}, lambda r: Recipe.from_json(r).to_prompt() == MIX.replace(" <", "<")),
        "read_recipe": ({"file": handle_file(picture)}, lambda r: r["mix"] == MIX and r["missing"] == []),
        "convert": ({"adapters": ["glow", "frame"], "to": "kohya"}, lambda r: len(zipfile.ZipFile(r).namelist()) == 3),
        "list_pictures": ({}, lambda r: r == []),
        "stop": ({}, lambda r: r == "asked to stop"),
        "list_choices": ({}, lambda r: "ties" in r["methods"] and "FIRST" in r["block_presets"]),
        "generate": ({**mix, **QUICK, "width": 32, "height": 48}, lambda r: Image.open(r).size == (32, 48)),
        "draw_grid": (
            {**mix, **QUICK, "x": "weight", "x_values": "0,1", "x_of": "glow"}, lambda r: Image.open(r).width > 256,
        ),
        "why": ({**mix, "adapter": "glow"}, lambda r: math.isclose(r["realised"], r["intended"] / 2, rel_tol=1e-6)),
        "compare": (mix, lambda r: r["similarity"]["names"] == ["glow", "outline"]),
        "spectrum": ({"adapter": "outline"}, lambda r: len(r) == 12 and r[0]["values"][0] > 0),
        "balance": ({**mix, "rule": "constant_total"}, lambda r: r.endswith("<lora:glow:0.625> <lora:outline:0.625>")),
        "save_mix": ({**mix, "dialect": "diffusers", "rank": 4}, lambda r: next(iter(load_file(r))).startswith("unet")),
    }  # fmt: skip


def test_every_endpoint_answers(either: Served, ask: Ask, tmp_path: Path, picture: Path) -> None:
    found = calls(tmp_path, picture)
    assert found.keys() == {one.name for one in either.endpoints.all()}
    for name, (given, holds) in found.items():
        assert holds(ask(name, **given)), name


def test_a_downloaded_picture_knows_its_mix(draw: Drawing, picture: Path) -> None:
    recipe = read_png(picture)
    assert recipe is not None
    assert [(part.name, part.file, part.source) for part in recipe.adapters] == [
        ("glow", "glow.safetensors", None), ("outline", "outline.safetensors", None),
    ]  # fmt: skip
    wanted = draw(row("glow", 0.5), row("outline", 0.75, te=0.25), negative="blue", guidance=4.0)
    with Image.open(picture) as image:
        assert image.tobytes() == wanted.picture.tobytes()
        said = image.info["parameters"]
    for word in ("<lora:glow:0.5>", "<lora:outline:0.25:0.75>", "Negative prompt: blue", "Seed: 3", "CFG scale: 4"):
        assert word in said


def test_a_recipe_makes_its_picture_again(ask: Ask, picture: Path) -> None:
    back = ask("read_recipe", file=handle_file(picture))
    again = ask("generate", mix_text=back["recipe"])
    with Image.open(picture) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()
    assert json.loads(back["recipe"])["seed"] == 3


NONE = "does not have"
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("generate", {"mix_text": "a <lora:nope:1>"}, f"{NONE} 'nope'"),
    ("generate", {"mix_text": "a <lora:glow:x>"}, "expected a number"),
    ("generate", {"mix_text": 5}, "mix_text is 5; expected text"),
    ("generate", {"mix_text": None}, "expected text"),
    ("generate", {"mix_text": "a", "steps": "x"}, "steps is 'x'; expected a whole number"),
    ("generate", {"mix_text": "a", "steps": 2.5}, "expected a whole number"),
    ("generate", {"mix_text": "a", "steps": -4}, "steps is -4"),
    ("generate", {"mix_text": "a", "guidance": "high"}, "expected a number"),
    ("generate", {"mix_text": "a", "merged": "yes"}, "expected true or false"),
    ("generate", {"mix_text": "a", "width": 7}, "multiple of 8"),
    ("generate", {"mix_text": "a", "seed": 10**30}, "seed"),
    ("generate", {"mix_text": "a", "method": "nonsense"}, "no method"),
    ("generate", {"mix_text": "a", "normalise": "both"}, "No normalisation"),
    ("generate", {"mix_text": '{"format": 1'}, "not JSON"),
    ("generate", {"mix_text": '{"format": "diffadapt-recipe", "version": 9}'}, "version"),
    ("generate", {"mix_text": "a <lora:glow> <lora:glow>"}, "Expected every name once"),
    ("generate", {"mix_text": "a <lora:glow:1:stop=0.5>", "merged": True}, "follows the denoising"),
    ("mix_to_recipe", {"mix_text": "a <lora:mist>"}, f"{NONE} 'mist'"),
    ("list_adapters", {"search": 5}, "search is 5; expected text"),
    ("list_adapters", {"limit": "all"}, "expected a whole number"),
    ("inspect_adapter", {"adapter": "/etc/passwd"}, f"{NONE} '/etc/passwd'"),
    ("inspect_adapter", {"adapter": ["glow"]}, "expected text"),
    ("convert", {"adapters": "glow"}, "expected a list of texts"),
    ("convert", {"adapters": [3]}, "expected a list of texts"),
    ("convert", {"adapters": []}, "expected 1 to 200"),
    ("convert", {"adapters": ["glow"], "to": "nonsense"}, "no dialect"),
    ("draw_grid", {"mix_text": "a", "x": "nonsense", "x_values": "1"}, "No axis"),
    ("draw_grid", {"mix_text": "a", "x": "seed", "x_values": ",".join(map(str, range(65)))}, "at most 64"),
    ("draw_grid", {"mix_text": "a", "x": "weight", "x_values": "1", "x_of": "glow"}, "not switched on"),
    ("why", {"mix_text": "a <lora:glow>", "adapter": "outline"}, "not switched on"),
    ("compare", {"mix_text": "a"}, "No adapter is switched on"),
    ("spectrum", {"adapter": ""}, NONE),
    ("balance", {"mix_text": "a <lora:glow>", "rule": "nonsense"}, "no rule"),
    ("save_mix", {"mix_text": "a"}, "nothing to save"),
    ("save_mix", {"mix_text": "a <lora:glow>", "dialect": "nonsense"}, "no dialect"),
    ("save_mix", {"mix_text": "a <lora:glow:1:start=0.5>"}, "follows the denoising"),
    ("upload_adapter", {"file": None}, "No file was given"),
    ("upload_adapter", {"file": "/etc/passwd"}, "No file was given"),
    ("read_recipe", {"file": {"path": 5}}, "No file was given"),
]


def test_errors_are_sentences(either: Served) -> None:
    places = (str(Path(__file__).parents[2]), str(Path.home()), "/tmp", "site-packages")
    for name, given, word in WRONG:
        url = f"{either.url}gradio_api/call"
        event = HTTP.post(f"{url}/v2/{name}", json=given).json()["event_id"]
        kind, data = HTTP.get(f"{url}/{name}/{event}").text.strip().split("\n")
        assert kind == "event: error", (name, given, data)
        said = json.loads(data.removeprefix("data: "))["error"]
        assert word in said, (name, given, said)
        assert "Traceback" not in said
        assert "error of the program" not in said
        assert not [place for place in places if place in said], said
        assert said.endswith((".", ")")), said


def test_clients_are_told_the_sentences(ask: Ask) -> None:
    for name, given, word in WRONG[::12]:
        with pytest.raises(AppError) as caught:
            ask(name, **given)
        assert word in str(caught.value)


def test_files_that_are_no_adapters_or_recipes_are_refused(ask: Ask, tmp_path: Path) -> None:
    files.troubles(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    for endpoint, name, word in (
        ("upload_adapter", "notes.txt", "is no adapter file"), ("upload_adapter", "page.safetensors", "HTML"),
        ("upload_adapter", "pointer.safetensors", "LFS"), ("upload_adapter", "code.pt", "code.pt"),
        ("upload_adapter", "cut.safetensors", "bytes"), ("read_recipe", "notes.txt", "notes.txt"),
        ("read_recipe", "cut.safetensors", "cut.safetensors"),
    ):  # fmt: skip
        with pytest.raises(AppError, match=word) as caught:
            ask(endpoint, file=handle_file(tmp_path / name))
        assert "/" not in str(caught.value).replace("adapter/", "").replace("://", ""), str(caught.value)
    assert not (tmp_path / "CANARY").exists()
    assert ask("list_adapters", search="upload") == []


def test_sessions_do_not_see_one_another(either: Served, tmp_path: Path) -> None:
    one, other = (client_of(either) for _ in range(2))
    style = tmp_path / "style.safetensors"
    style.write_bytes(files.adapters("unet")["outline"].read_bytes())
    card = one.predict(file=handle_file(style), api_name="/upload_adapter")
    mine = one.predict(mix_text=f"a star <lora:{card['id']}:0.5>", **QUICK, api_name="/generate")
    assert len(one.predict(api_name="/list_pictures")) == 1
    assert [found["id"] for found in one.predict(search="style", api_name="/list_adapters")] == [card["id"]]
    assert other.predict(api_name="/list_pictures") == []
    assert other.predict(search="style", api_name="/list_adapters") == []
    for name in (card["id"], "style"):
        with pytest.raises(AppError, match="does not have"):
            other.predict(mix_text=f"a star <lora:{name}:0.5>", **QUICK, api_name="/generate")
    with pytest.raises(AppError, match="does not have"):
        other.predict(adapter=card["id"], api_name="/inspect_adapter")
    same = other.predict(mix_text="a star <lora:outline:0.5>", **QUICK, api_name="/generate")
    with Image.open(mine) as a, Image.open(same) as b:
        assert a.tobytes() == b.tobytes()
    one.close()
    other.close()


def test_a_run_can_be_stopped(either: Served) -> None:
    client = client_of(either)
    job = client.submit(mix_text=MIX, steps=400, api_name="/generate")
    while not (job.communicator and job.communicator.job.latest_status.progress_data):
        assert not job.done()
        time.sleep(0.05)
    assert client.predict(api_name="/stop") == "asked to stop"
    with pytest.raises(AppError, match="Stopped"):
        job.result()
    assert client.predict(api_name="/list_pictures") == []
    assert Path(client.predict(mix_text=MIX, **QUICK, api_name="/generate")).is_file()
    client.close()
