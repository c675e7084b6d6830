"""The Hub: a cache layout made by hand, read offline; and a small server that speaks enough of the Hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch as library
import torch

from diffadapt.errors import SourceError
from diffadapt.io.source import read_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]
ONE_AND_TWO = """
print(len(read_checkpoint('owner/one').tensors))
try: read_checkpoint('owner/two')
except SourceError as e: print(e)
"""


def cached(cache, repo, names, tensors):
    """Make a repository in the Hub's cache layout: blobs, links in a snapshot, and a branch."""
    storage = cache / ("models--" + repo.replace("/", "--"))
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    (storage / "blobs").mkdir()
    for name in names:
        link = storage / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = storage / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        if name.endswith(".json"):
            blob.write_text(json.dumps({"r": 4}))
        else:
            library.save_file(tensors, blob)
        link.symlink_to(blob)


def offline(cache, repo, **options):
    return read_checkpoint(repo, cache_dir=cache, local_files_only=True, **options)


def test_cached_peft_repository(tmp_path, tensors, same):
    cached(tmp_path, "owner/peft", ["adapter_model.safetensors", "adapter_config.json", "README.json"], tensors)
    raw = offline(tmp_path, "owner/peft")
    same(raw.tensors, tensors)
    assert raw.config == {"r": 4}
    assert raw.name == "owner/peft"
    same(offline(tmp_path, "owner/peft", revision=COMMIT).tensors, tensors)


def test_cached_choice(tmp_path, tensors):
    cached(tmp_path, "owner/many", ["one.safetensors", "two.safetensors", "sub/x.safetensors"], tensors)
    with pytest.raises(SourceError, match=r"owner/many.*'one\.safetensors', 'sub/x\.safetensors', 'two\.safetensors'"):
        offline(tmp_path, "owner/many")
    assert offline(tmp_path, "owner/many", weight_name="two.safetensors").path.name == "two.safetensors"
    assert offline(tmp_path, "owner/many", subfolder="sub").path.name == "x.safetensors"
    with pytest.raises(SourceError, match=r"has no file 'three\.safetensors'"):
        offline(tmp_path, "owner/many", weight_name="three.safetensors")


def test_not_cached(tmp_path, tensors):
    with pytest.raises(SourceError, match=r"owner/none.*not in the local cache"):
        offline(tmp_path, "owner/none")
    cached(tmp_path, "owner/one", ["x.safetensors"], tensors)
    for revision in ("v2", "../../x", "/etc"):
        with pytest.raises(SourceError, match="owner/one"):
            offline(tmp_path, "owner/one", revision=revision)


def child(code, **environment):
    """Run code in a fresh interpreter: the Hub's client reads its environment when it is imported."""
    result = subprocess.run(
        [sys.executable, "-c", "from diffadapt.io.source import *\n" + code],
        capture_output=True, text=True, cwd=ROOT, timeout=120, env=os.environ | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_offline_variable(tmp_path, tensors):
    cached(tmp_path / "hub", "owner/one", ["x.safetensors"], tensors)
    out = child(ONE_AND_TWO, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "hub"))
    assert out.startswith(str(len(tensors)))
    assert "HF_HUB_OFFLINE" in out


class FakeHub(BaseHTTPRequestHandler):
    """Answers the listing and the file requests of the Hub's client from `files`."""

    files: dict = {}  # noqa: RUF012

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/repo"):
            siblings = [{"rfilename": name} for name in self.files]
            if "/tree/" in path:
                siblings = [
                    {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
                    for name, body in self.files.items()
                ]
                return self.answer(200, json.dumps(siblings).encode())
            return self.answer(200, json.dumps({"id": "owner/repo", "sha": COMMIT, "siblings": siblings}).encode())
        name = (
            path.partition(f"/owner/repo/resolve/{'main'}/")[2] or path.partition(f"/owner/repo/resolve/{COMMIT}/")[2]
        )
        if name in self.files:
            return self.answer(200, self.files[name])
        error = "EntryNotFound" if "/owner/repo/" in path else "RepoNotFound"
        return self.answer(404, b"{}", {"X-Error-Code": error, "X-Error-Message": error})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        tag = hashlib.sha256(body).hexdigest()
        for name, value in {
            "Content-Length": str(len(body)), "Content-Type": "application/json", "ETag": f'"{tag}"',
            "X-Repo-Commit": COMMIT, **(headers or {}),
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secretsecret", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    server.shutdown()
    server.server_close()


def test_online(hub, tensors):
    body = library.save({key: tensor.contiguous() for key, tensor in tensors.items()})
    FakeHub.files = {"adapter_model.safetensors": body, "adapter_config.json": b'{"r": 4}', "sub/x.safetensors": body}
    code = (
        "raw = read_checkpoint('owner/repo'); print(raw.config, raw.name, len(raw.tensors))\n"
        "raw = read_checkpoint('owner/repo', weight_name='adapter_model.safetensors'); print(raw.config)\n"
        "print(read_checkpoint('owner/repo', subfolder='sub').path.name)\n"
        "print(read_checkpoint('owner/repo', weight_name='sub/x.safetensors', force_download=True).config)\n"
        "for repo, name in (('owner/repo', 'no.safetensors'), ('owner/absent', None), ('owner/absent', 'x.bin')):\n"
        "    try: read_checkpoint(repo, weight_name=name, token='hf_othersecret')\n"
        "    except SourceError as e: print(e)\n"
    )
    out = child(code, **hub).splitlines()
    assert out[0] == f"{{'r': 4}} owner/repo {len(tensors)}"
    assert out[1:4] == ["{'r': 4}", "x.safetensors", "None"]
    assert "'no.safetensors' does not exist in the repository" in out[4]
    assert "owner/absent: does not exist on the Hub" in out[5]
    assert "owner/absent" in out[6]
    assert "secret" not in "".join(out)


def test_unreachable_hub_falls_back_to_the_cache(tmp_path, tensors, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("refused by hf_secret")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", unreachable)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    cached(tmp_path, "owner/one", ["x.safetensors"], tensors)
    assert len(read_checkpoint("owner/one", cache_dir=tmp_path).tensors) == len(tensors)
    for repo, options in (
        ("owner/two", {}),
        ("owner/one", {"force_download": True}),
        ("owner/one", {"weight_name": "y"}),
    ):
        with pytest.raises(SourceError, match=f"{repo}.*ConnectionError.*network") as caught:
            read_checkpoint(repo, cache_dir=tmp_path, **options)
        assert "secret" not in str(caught.value)


def test_options_do_not_print_the_token():
    from diffadapt.io.hub import HubOptions

    assert "secret" not in repr(HubOptions(token="hf_secret"))


def test_names_of_torch_stay_right(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "owner")
    assert read_checkpoint(tmp_path / "owner").name == "owner"
