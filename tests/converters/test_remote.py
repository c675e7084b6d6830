"""Sources that lie elsewhere: a server, a bucket, the Hub's cache. Each is read once, and again when it changes."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from safetensors.torch import load_file

from diffadapt.converters.batch import Batch
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, FAILED, KEPT, Record
from diffadapt.explain.files import explain_files
from tests.converters import files


class Server(BaseHTTPRequestHandler):
    """Serves `content` by path; notes what is asked."""

    content: dict[str, bytes]
    asked: list[tuple[str, str | None]]
    cut = 0

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        wanted = self.headers.get("Range")
        self.asked.append((path, wanted))
        data = self.content.get(path)
        if data is None:
            self.send_error(404)
            return
        part = data[:1] if wanted else data
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", str(hash(data)))
        self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes 0-0/{len(data)}")
        self.end_headers()
        self.wfile.write(part[: len(part) - self.cut])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    handler = type("Handler", (Server,), {"content": {}, "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{running.server_port}"  # type: ignore[attr-defined]
    yield handler
    running.shutdown()
    running.server_close()


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return files.plain(tmp_path / "plain.safetensors")


@pytest.fixture
def bucket(plain: Path) -> Iterator[str]:
    """A store in memory with three adapters in two folders, one of them PEFT's, and a text."""
    store = fsspec.filesystem("memory")
    data = plain.read_bytes()
    for name in ("loras/ink.safetensors", "loras/more/clay.safetensors"):
        store.pipe(f"/bucket/{name}", data)
    store.pipe("/bucket/loras/readme.txt", b"hello")
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def run(source: str, out: Path, **options: Any) -> list[Record]:
    return list(Batch([source], out, Plan("diffusers", **options)).run())


def keys_of(record: Record) -> set[str]:
    return set(load_file(record.file))


def test_a_web_address_is_read_once(server, plain, tmp_path) -> None:
    server.content["/files/ink.safetensors"] = plain.read_bytes()
    (record,) = run(f"{server.url}/files/ink.safetensors?token=secret", tmp_path / "out")
    assert record.status == DONE, record.message
    assert record.file == tmp_path / "out" / "ink.safetensors"
    (local,) = run(str(plain), tmp_path / "local")
    assert record.file.read_bytes() == local.file.read_bytes()
    assert [wanted for _, wanted in server.asked].count(None) == 1
    assert "secret" not in (tmp_path / "out" / "diffadapt-convert.jsonl").read_text()


def test_what_has_not_changed_is_not_read_again(server, plain, tmp_path) -> None:
    url = f"{server.url}/ink.safetensors"
    server.content["/ink.safetensors"] = plain.read_bytes()
    assert [record.status for _ in range(2) for record in run(url, tmp_path / "out")] == [DONE, KEPT]
    assert [wanted for _, wanted in server.asked].count(None) == 1
    server.content["/ink.safetensors"] = files.plain(tmp_path / "other.safetensors", seed=1).read_bytes()
    (record,) = run(url, tmp_path / "out")
    assert record.status == DONE, record.message
    (direct,) = run(str(tmp_path / "other.safetensors"), tmp_path / "direct")
    assert record.blake3 == direct.blake3


def test_servers_that_fail_are_said(server, plain, tmp_path) -> None:
    server.content["/cut.safetensors"] = plain.read_bytes()
    server.content["/page.safetensors"] = b"<!DOCTYPE html><html></html>" * 10
    (record,) = run(f"{server.url}/none.safetensors", tmp_path / "out")
    assert (record.status, record.kind) == (FAILED, "SourceError")
    assert "no such file" in record.message
    (record,) = run(f"{server.url}/page.safetensors", tmp_path / "out")
    assert record.kind == "NotAnAdapterError"
    server.cut = 100
    (record,) = run(f"{server.url}/cut.safetensors", tmp_path / "out")
    assert (record.status, record.kind) == (FAILED, "SourceError")
    assert list((tmp_path / "out").glob("*.safetensors")) == []


@pytest.mark.parametrize("pattern", ["", "/loras", "/loras/**/*.safetensors"])
def test_a_bucket_is_mirrored(pattern, bucket, plain, tmp_path) -> None:
    records = run(bucket + pattern, tmp_path / "out")
    assert [record.status for record in records] == [DONE, DONE], records
    below = {"": "loras/"}.get(pattern, "")
    made = {record.file.relative_to(tmp_path / "out").as_posix() for record in records}
    assert made == {f"{below}ink.safetensors", f"{below}more/clay.safetensors"}
    (local,) = run(str(plain), tmp_path / "local")
    assert all(keys_of(record) == keys_of(local) for record in records)
    assert {record.status for record in run(bucket + pattern, tmp_path / "out")} == {KEPT}


def test_a_peft_folder_in_a_bucket_has_its_config(plain, bucket, tmp_path) -> None:
    (peft,) = list(Batch([str(plain)], tmp_path / "peft", Plan("peft", only="unet")).run())
    store = fsspec.filesystem("memory")
    for path in Path(peft.out).iterdir():
        store.pipe(f"/bucket/peft/style/{path.name}", path.read_bytes())
    (record,) = run(f"{bucket}/peft/style/adapter_model.safetensors", tmp_path / "out")
    assert record.status == DONE, record.message
    assert record.file.name == "style.safetensors"
    (local,) = run(peft.out, tmp_path / "local")
    assert load_file(record.file).keys() == load_file(local.file).keys()


def test_headers_of_a_bucket_are_explained_in_two_requests(bucket, monkeypatch) -> None:
    store, read = fsspec.filesystem("memory"), []
    real = type(store).cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        data: bytes = real(self, path, start=start, end=end, **kwargs)
        read.append(len(data))
        return data

    monkeypatch.setattr(type(store), "cat_file", counted)
    (found,) = explain_files([f"{bucket}/loras/ink.safetensors"])
    assert found.dialect == "kohya"
    assert len(read) <= 2
    assert sum(read) < 1 << 20


def test_what_no_store_has_is_said(bucket, tmp_path) -> None:
    (record,) = run(f"{bucket}/nothing", tmp_path / "out")
    assert (record.status, record.kind) == (FAILED, "SourceError")
    (record,) = run("nostore://bucket/a.safetensors", tmp_path / "out")
    assert record.status == FAILED
    assert "a.safetensors" in record.message


@pytest.mark.parametrize("source", ["someone/ink.v2", "hf://someone/ink.v2", "hf://someone/ink.v2/style.safetensors"])
def test_a_hub_repository_in_the_cache(source, plain, tmp_path, monkeypatch) -> None:
    """The cache as the Hub's client lays it out; the Hub itself may not be asked."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    storage = tmp_path / "hub" / "models--someone--ink.v2"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text("c0ffee")
    (storage / "snapshots" / "c0ffee").mkdir(parents=True)
    shutil.copy(plain, storage / "snapshots" / "c0ffee" / "style.safetensors")
    (record,) = run(source, tmp_path / "out")
    assert record.status == DONE, record.message
    assert record.file.name == ("style.safetensors" if source.endswith("style.safetensors") else "ink.v2.safetensors")
    assert [one.status for one in run(source, tmp_path / "out")] == [KEPT]
