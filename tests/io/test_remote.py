"""Headers over HTTP: servers that know ranges, that do not, that lie; and one that speaks the Hub's protocol."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from diffadapt.errors import DiffAdaptError, NotAnAdapterError, SourceError, UnsafeFileError
from diffadapt.explain.files import explain_files
from diffadapt.io import limits
from diffadapt.io.remote import read_url

KEY = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
BODY = 8 << 20
"""More than a socket's buffers hold: a body that nobody reads does not arrive by itself."""


def adapter(metadata=None) -> bytes:
    rank = BODY // 4 // 2048
    pair = {f"{KEY}.lora_down.weight": torch.zeros(rank, 2048), f"{KEY}.lora_up.weight": torch.zeros(640, rank)}
    return save({**pair, f"{KEY}.alpha": torch.tensor(2.0)}, metadata)


class Server(BaseHTTPRequestHandler):
    """Serves `files`; notes what is asked and how many bytes could be sent."""

    files: dict[str, bytes]
    ranges = True
    asked: list[tuple[str, str | None, str | None]]
    sent: list[int]

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.asked.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.files.get(path)
        if data is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if self.ranges else None
        start, stop = (int(wanted[1]), min(int(wanted[2]) + 1, len(data))) if wanted else (0, len(data))
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.sent.append(0)
        try:
            for place in range(start, stop, 1 << 14):
                self.sent[-1] += self.wfile.write(data[place : min(place + (1 << 14), stop)])
        except OSError:
            pass  # the reader has gone, as it should

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"files": {}, "asked": [], "sent": [], "ranges": True})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{running.server_port}"
    yield handler
    running.shutdown()
    running.server_close()


def one(source):
    (found,) = explain_files([source])
    return found


def test_only_the_header_is_asked_for(server):
    data = adapter({"ss_network_module": "networks.lora", "notes": "x" * 100_000})
    (length,) = struct.unpack("<Q", data[:8])
    server.files["/a.safetensors"] = data
    found = one(f"{server.url}/a.safetensors?token=secret")
    assert (found.dialect, found.family, found.trainer) == ("kohya", "sdxl", "sd-scripts")
    assert (found.header_only, found.file_bytes) == (True, len(data))
    assert [asked[1] for asked in server.asked] == ["bytes=0-7", f"bytes=8-{7 + length}"]
    end = time.monotonic() + 10
    while sum(server.sent) < 8 + length and time.monotonic() < end:
        time.sleep(0.01)  # the server counts a piece when it has been sent, which the reader may have read by then
    assert sum(server.sent) == 8 + length
    # The scalars are not worth another request.
    assert found.table[0].alpha is None
    assert any("were not read" in problem.message for problem in found.problems)


def test_a_server_without_ranges_is_left_at_the_end_of_the_header(server):
    server.ranges = False
    server.files["/a.safetensors"] = data = adapter()
    found = one(f"{server.url}/a.safetensors")
    assert (found.family, found.file_bytes) == ("sdxl", len(data))
    assert len(server.asked) == 1
    assert server.sent[0] < len(data) // 2


def test_redirects_are_followed(server):
    server.files["/a.safetensors"] = adapter()
    assert one(f"{server.url}/moved/a.safetensors").family == "sdxl"


def test_no_token_goes_to_other_servers(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.files["/a.safetensors"] = adapter()
    one(f"{server.url}/a.safetensors")
    assert {asked[2] for asked in server.asked} == {None}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"<!DOCTYPE html><html>", NotAnAdapterError, "web page"),
        (b"PK\3\4" + bytes(100), SourceError, "pickle"),
        (b"12", SourceError, "ends after 2 bytes"),
        (struct.pack("<Q", limits.HEADER_BYTES + 1) + b"{" + bytes(100), UnsafeFileError, "header claims"),
        (struct.pack("<Q", 1000) + b"{}", SourceError, "truncated"),
        (struct.pack("<Q", 2) + b"[]", SourceError, "starts with"),
        (struct.pack("<Q", 2) + b"{}", NotAnAdapterError, "no tensors"),
        (adapter()[:-5], SourceError, "truncated"),
    ],
)
def test_what_is_no_adapter_is_named(server, ranges, data, kind, says):
    server.ranges = ranges
    server.files["/a.safetensors"] = data
    failure = one(f"{server.url}/a.safetensors?key=secret")
    assert failure.kind == kind.__name__
    assert says in failure.message
    assert "a.safetensors" in failure.message
    assert "secret" not in failure.message


def test_missing_files_and_servers(server):
    with pytest.raises(SourceError, match=r"none\.safetensors: the server has no such file"):
        read_url(f"{server.url}/none.safetensors")
    with pytest.raises(SourceError, match="could not be read"):
        read_url("http://127.0.0.1:9/a.safetensors")
    for address in ("http:///a", "https://", "http://[::1/a"):
        with pytest.raises(DiffAdaptError):
            read_url(address)


def test_a_hostile_header_costs_nothing(server):
    # 2^47 numbers in a file of a few bytes: the server says what it likes of the size.
    shape, size = [1 << 24, 1 << 22], (1 << 46) * 2
    entries = {"lora_unet_conv_in.diff": {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(entries).encode()

    def do_get(handler):
        data = struct.pack("<Q", len(text)) + text
        start, stop = map(int, re.findall(r"\d+", handler.headers["Range"]))
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{stop}/{len(data) + size}")
        handler.send_header("Content-Length", str(stop + 1 - start))
        handler.end_headers()
        handler.wfile.write(data[start : stop + 1])

    server.do_GET = do_get
    assert one(f"{server.url}/a.safetensors").parameters == 1 << 46


HUB = """
import json, sys
from diffadapt.explain.files import explain_files
for found in explain_files(sys.argv[1:]):
    print(json.dumps(found.to_dict()))
"""


def test_hub_ids(server, tmp_path):
    config = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}).encode()
    key = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = {f"{key}.lora_A.weight": torch.ones(4, 2048), f"{key}.lora_B.weight": torch.ones(640, 4)}
    names = ["adapter_config.json", "adapter_model.safetensors", "other/x.safetensors"]
    commit = "0123456789abcdef0123456789abcdef01234567"
    about = {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": name} for name in names]}
    tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
    root = "/owner/name/resolve/main/"
    server.files |= {
        "/api/models/owner/name": json.dumps(about).encode(),
        "/api/models/owner/name/revision/main": json.dumps(about).encode(),
        "/api/models/owner/name/tree/main": json.dumps(tree).encode(),
        f"/api/models/owner/name/tree/{commit}": json.dumps(tree).encode(),
        f"{root}adapter_config.json": config, f"{root}adapter_model.safetensors": save(pair),
        f"{root}other/x.safetensors": adapter(),
    }  # fmt: skip

    def do_head(handler):
        data = handler.files.get(handler.path)
        handler.send_response(404 if data is None else 200)
        handler.send_header("Content-Length", str(len(data or b"")))
        handler.send_header("ETag", '"0123456789abcdef"')
        handler.send_header("X-Repo-Commit", commit)
        handler.end_headers()

    server.do_HEAD = do_head
    server.files[f"/owner/name/resolve/{commit}/adapter_config.json"] = config
    environment = {
        "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_s", "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "PATH": "",
    }  # fmt: skip
    sources = ["owner/name", "hf://owner/name/other/x.safetensors", "hf://owner/name/none.safetensors", "hf://x"]
    run = [sys.executable, "-c", HUB, *sources]
    root_folder = Path(__file__).parents[2]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=root_folder, timeout=120)
    assert done.returncode == 0, done.stderr
    peft, kohya, none, bad = map(json.loads, done.stdout.splitlines())
    assert peft["error"] is None, peft
    assert peft["dialect"]["name"] == "peft"
    assert peft["table"][0]["alpha"] == [8.0, 8.0]
    assert kohya["family"]["name"] == "sdxl"
    assert "no such file" in none["error"]["message"]
    assert "no Hub id" in bad["error"]["message"]
    bodies = [asked for asked in server.asked if asked[0].endswith(".safetensors")]
    assert all(asked[1] and asked[2] == "Bearer hf_s" for asked in bodies)
