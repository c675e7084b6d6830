"""`diffadapt app`: what it says, when it cannot serve, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from diffadapt.apps.mixer import serving
from diffadapt.apps.mixer.serving import Options, Served, serve
from diffadapt.command import main
from diffadapt.errors import SourceError
from tests.apps import files
from tests.apps.conftest import HTTP


@pytest.fixture
def taken() -> Iterator[int]:
    """A port at which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where folders of sessions go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["app", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for option in ("--model", "--adapters", "--port", "--host", "--headless", "--no-mcp"):
        assert option in said
    assert "unet (default) or dit" in " ".join(said.split())


@pytest.mark.parametrize("model", ["nowhere/at/all", "/nowhere", "{tmp}", "{tmp}/pipeline", "somebody/nothing"])
def test_a_model_that_there_is_not(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "NoPipeline"}')
    name = model.format(tmp=tmp_path)
    assert main(["app", "--model", name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    *_, said = err.strip().splitlines()  # before it, libraries may have warned of what they lack
    assert said.startswith(f"diffadapt app: {name}: no pipeline of Diffusers can be loaded from it (")
    assert said.endswith(").")
    assert len(said) < 400 + len(name)


def test_a_port_that_is_taken(taken: int, capsys: pytest.CaptureFixture[str], temporary: Path) -> None:
    assert main(["app", "--headless", "--port", str(taken)]) == 1
    assert capsys.readouterr().err == (
        f"diffadapt app: The port {taken} is taken. Choose another with --port, or none for the first free one.\n"
    )
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("headless", [False, True])
def test_a_port_that_somebody_takes_meanwhile(
    headless: bool, taken: int, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "_check_place", lambda options: None)
    with pytest.raises(SourceError, match=f"The port {taken} is taken"):
        serve(Options(port=taken, headless=headless, previews=False, mcp=False))
    assert not list(temporary.glob("diffadapt-mixer-*"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--port", "0"], "expected 1 to 65535"), (["--port", "70000"], "expected 1 to 65535"),
        (["--host", "::1"], "IPv4"), (["--host", "198.51.100.7"], "nobody can listen there"),
    ],
)  # fmt: skip
def test_places_at_which_nobody_can_listen(options: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", *options]) == 1
    err = capsys.readouterr().err
    assert word in err
    assert len(err.splitlines()) == 1


def test_the_command_asks_for_what_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Options] = []
    ends: list[str] = []

    class App:
        def block_thread(self) -> None:
            raise KeyboardInterrupt

    def fake(options: Options) -> Served:
        asked.append(options)
        served = Served("http://127.0.0.1:1/", None, App())
        served.last.callback(lambda: ends.append("closed"))
        return served

    monkeypatch.setattr(serving, "serve", fake)
    assert main(["app"]) == 0
    told = [
        "app",
        "--model",
        "dit",
        "--adapters",
        "a",
        "b",
        "--port",
        "8000",
        "--host",
        "0.0.0.0",
        "--headless",
        "--no-mcp",
    ]
    assert main(told) == 0
    assert asked == [Options(), Options("dit", (Path("a"), Path("b")), 8000, "0.0.0.0", True, False)]
    assert ends == ["closed", "closed"]
    assert "The mixer is at http://127.0.0.1:1/" in capsys.readouterr().out


def test_what_is_closed_serves_no_more_and_leaves_nothing(temporary: Path) -> None:
    with serve(Options(headless=True, mcp=False, adapters=(files.adapters("dit")["glow"].parent,))) as served:
        assert HTTP.get(served.url).json()["endpoints"]
        assert HTTP.get(f"{served.url}gradio_api/mcp/").status_code == 404
        assert served.endpoints.sessions.get("a").folder.is_relative_to(temporary)
    assert not list(temporary.glob("diffadapt-mixer-*"))
    with pytest.raises(httpx.ConnectError):
        HTTP.get(served.url)


def test_an_interrupt_ends_it_cleanly(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C, while it serves: a signal to this process, whose main thread waits as it does in a terminal."""
    seen: list[object] = []
    real = serving.serve

    def waits(thread: int) -> bool:
        return any(frame.name == "block_thread" for frame in traceback.extract_stack(sys._current_frames()[thread]))

    def serve(options: Options) -> Served:
        served = real(options)
        threading.Thread(target=interrupt, args=(served.url,)).start()
        return served

    def interrupt(url: str) -> None:
        seen.extend([len(HTTP.get(url).json()["endpoints"]), len(list(temporary.glob("diffadapt-mixer-*")))])
        main_thread = threading.main_thread().ident or 0
        while "block_thread" not in {
            name for *_, name, _ in traceback.extract_stack(sys._current_frames()[main_thread])
        }:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(serving, "serve", serve)
    assert main(["app", "--headless", "--no-mcp"]) == 0
    assert seen == [16, 1]
    assert not list(temporary.glob("diffadapt-mixer-*"))
    assert "Traceback" not in capsys.readouterr().err
