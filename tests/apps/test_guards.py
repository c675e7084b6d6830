"""What a stranger who reaches the mixer's port does not get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from diffadapt.apps.mixer.serving import UPLOAD, Served
from diffadapt.apps.mixer.session import Session
from diffadapt.apps.mixer.studio import Cancelled
from diffadapt.apps.mixer.telling import telling
from diffadapt.errors import RecipeError
from tests.apps import files
from tests.apps.conftest import HTTP, Drawing, row

META = {"meta": {"_type": "gradio.FileData"}}
GLOW = str(files.adapters("unet")["glow"])


def ask(url: str, name: str, *given: Any, way: str = "call") -> tuple[int, str]:
    """Call an endpoint as anybody can, in the two ways in which Gradio answers."""
    found = HTTP.post(f"{url}gradio_api/{way}/{name}", json={"data": list(given)})
    if way == "run" or found.status_code != 200:
        return found.status_code, found.text
    answer = HTTP.get(f"{url}gradio_api/call/{name}/{found.json()['event_id']}").text
    return 500 if "event: error" in answer else 200, answer


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
@pytest.mark.parametrize("path", ["", "config", "gradio_api/info", "gradio_api/mcp/", "gradio_api/file=/etc/passwd"])
def test_only_this_machines_names_are_answered(either: Served, host: str, path: str) -> None:
    """A page elsewhere whose name was pointed at this machine gets nothing of it."""
    assert HTTP.get(f"{either.url}{path}", headers={"Host": host}).status_code == 400
    post = HTTP.post(f"{either.url}gradio_api/call/list_pictures", headers={"Host": host}, json={"data": []})
    assert (post.status_code, "event_id" in post.text) == (400, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:7860"])
def test_this_machines_own_names_are_answered(either: Served, host: str) -> None:
    assert HTTP.get(f"{either.url}gradio_api/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", GLOW, "diffadapt/shapes/data/adapters/unet/glow.safetensors", "pyproject.toml", "/",
        "..%2f..%2fetc%2fpasswd", str(Path(__file__)),
    ],
)  # fmt: skip
def test_files_of_this_machine_are_not_served(either: Served, path: str) -> None:
    found = HTTP.get(f"{either.url}gradio_api/file={path}")
    assert found.status_code in (403, 404)
    assert b"root:" not in found.content
    assert HTTP.get(f"{either.url}gradio_api/file={GLOW}").status_code == 403
    assert HTTP.get(f"{either.url}gradio_api/file=/etc/passwd").status_code == 403


def test_the_folder_of_a_session_is_not_served(either: Served, draw: Drawing) -> None:
    mine: Session = either.endpoints.sessions.get("a session")
    shot = mine.keep(draw(row("glow")))
    assert HTTP.get(f"{either.url}gradio_api/file={shot.path}").status_code == 403
    either.endpoints.sessions.close("a session")


@pytest.mark.parametrize("path", ["monitoring", "monitoring/", "monitoring/x", "gradio_api/monitoring"])
def test_nobody_can_watch_who_asks_what(either: Served, path: str) -> None:
    assert HTTP.get(f"{either.url}{path}", follow_redirects=True).status_code in (403, 404)


def test_only_uploads_are_files(either: Served, tmp_path: Path, draw: Drawing) -> None:
    """Neither a file of this machine that calls itself an upload, nor one that does not say what it is."""
    picture = Session(tmp_path).keep(draw(row("glow"))).path
    around = f"{tmp_path}/../{tmp_path.name}/{picture.name}"
    asked: list[tuple[str, Any]] = [
        ("upload_adapter", {"path": GLOW, **META}), ("upload_adapter", {"path": GLOW}), ("upload_adapter", GLOW),
        ("upload_adapter", {"path": GLOW, "meta": {}}), ("upload_adapter", {"path": "", "url": GLOW}),
        ("upload_adapter", {"path": f"file://{GLOW}"}), ("upload_adapter", [{"path": GLOW}]),
        ("upload_adapter", {"path": "http://127.0.0.1:1/x.safetensors", **META}),
        ("read_recipe", {"path": str(picture), **META}), ("read_recipe", {"path": str(picture)}),
        ("read_recipe", {"path": around}), ("read_recipe", {"path": "/etc/passwd"}),
        ("read_recipe", {"path": "pyproject.toml"}), ("read_recipe", {"path": "https://127.0.0.1:1/x.png"}),
    ]  # fmt: skip
    for number, (name, given) in enumerate(asked):
        code, answer = ask(either.url, name, given, way="call" if number % 3 else "run")
        assert code >= 400, (given, answer)
        for secret in ("Traceback", "root:", "prompt", "algorithms", str(tmp_path)):
            assert secret not in answer, given


def test_an_upload_is_taken_by_its_place(either: Served) -> None:
    """What a client of plain HTTP does: upload, then name the place that it was told."""
    with open(GLOW, "rb") as file:
        (place,) = HTTP.post(f"{either.url}gradio_api/upload", files={"files": ("mine.safetensors", file)}).json()
    code, answer = ask(either.url, "upload_adapter", {"path": place, **META})
    assert code == 200
    assert '"name": "mine"' in answer


def test_uploads_have_a_limit(either: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert UPLOAD == "2gb"
    assert either.app.max_file_size == 2 << 30
    monkeypatch.setattr(either.app, "max_file_size", 1000)
    upload = f"{either.url}gradio_api/upload"
    assert HTTP.post(upload, files={"files": ("a.safetensors", b"x" * 999)}).status_code == 200
    assert HTTP.post(upload, files={"files": ("a.safetensors", b"x" * 5000)}).status_code == 413


def test_calls_without_a_session_see_nobodys(either: Served) -> None:
    given = HTTP.get(f"{either.url}gradio_api/info").json()["named_endpoints"]["/generate"]["parameters"]
    values = {one["parameter_name"]: one["parameter_default"] for one in given} | {"mix_text": "a star", "steps": 2}
    for way in ("run", "call"):
        code, _ = ask(either.url, "generate", *values.values(), way=way)
        assert code == 200
        code, answer = ask(either.url, "list_pictures", way=way)
        assert code == 200
        assert "recipe" not in answer


def test_the_pages_own_handlers_have_no_names(served: Served) -> None:
    names = {one.name for one in served.endpoints.all()}
    config = HTTP.get(f"{served.url}config").json()
    public = {one["api_name"] for one in config["dependencies"] if one["api_visibility"] != "private"}
    assert public == names
    assert len(config["dependencies"]) > len(names) + 10


def test_errors_of_the_program_tell_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    """Not where files lie on this machine; the log has it."""

    @telling
    def breaks(error: Exception) -> None:
        raise error

    for error in (OSError(28, "No space left", "/home/somebody/x"), ValueError("/home/somebody/x"), KeyError("x")):
        with pytest.raises(gr.Error) as caught:
            breaks(error)
        assert "/home" not in str(caught.value)
        assert "error of the program" in str(caught.value)
        assert caught.value.print_exception is False
    assert "/home/somebody/x" in caplog.text
    for good, word in (
        (RecipeError("A sentence."), "A sentence."),
        (Cancelled(), "Stopped."),
        (gr.Error("Mine."), "Mine."),
    ):
        with pytest.raises(gr.Error, match=word):
            breaks(good)
