"""Every kind of source: files by content, folders by their layout, state dicts, and what is refused."""

import json
import subprocess
import sys

import pytest
import safetensors.torch as library
import torch

from diffadapt.errors import NotAnAdapterError, SourceError, UnsafeFileError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.source import read_checkpoint


@pytest.fixture
def save(tensors):
    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        library.save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
        return path

    return write


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin", "x.ckpt", "x.pth"])
def test_file(tmp_path, save, tensors, same, name):
    raw = read_checkpoint(save(tmp_path / name))
    same(raw.tensors, tensors)
    assert (raw.name, raw.path, raw.config) == (name, tmp_path / name, None)
    same(read_checkpoint(str(tmp_path / name)).tensors, tensors)


@pytest.mark.parametrize(("written", "named"), [("x.safetensors", "x.pt"), ("x.pt", "x.safetensors"), ("x.pt", "x")])
def test_the_content_decides_not_the_name(tmp_path, save, tensors, same, written, named):
    save(tmp_path / written).rename(tmp_path / named)
    same(read_checkpoint(tmp_path / named).tensors, tensors)


def test_peft_folder(tmp_path, save, tensors, same):
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["to_q"]}
    for suffix in (".bin", ".safetensors"):
        save(tmp_path / "peft" / f"adapter_model{suffix}")
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
        raw = read_checkpoint(tmp_path / "peft")
        same(raw.tensors, tensors)
        assert raw.config == config
        assert raw.path.name == f"adapter_model{suffix}"
    assert read_checkpoint(tmp_path / "peft" / "adapter_model.safetensors").config == config


def test_diffusers_folder_with_other_files(tmp_path, save):
    for name in ("pytorch_lora_weights.safetensors", "my_emb.safetensors", "optimizer.bin"):
        save(tmp_path / name)
    assert read_checkpoint(tmp_path).path.name == "pytorch_lora_weights.safetensors"
    assert read_checkpoint(tmp_path, weight_name="my_emb.safetensors").path.name == "my_emb.safetensors"
    assert read_checkpoint(tmp_path.parent, subfolder=tmp_path.name).path.parent == tmp_path


def test_lycoris_folder(tmp_path, save):
    save(tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "lycoris_config.json").write_text('{"algo": "lokr", "factor": 16}')
    expected = {"lycoris_config": {"algo": "lokr", "factor": 16}}
    assert read_checkpoint(tmp_path).config == expected
    assert read_checkpoint(tmp_path / "pytorch_lora_weights.safetensors").config == expected


def test_single_file_folder_and_training_state(tmp_path, save):
    for name in ("style.safetensors", "style.bin", "optimizer.bin", "scheduler.pt", "random_states_0.pkl"):
        save(tmp_path / name)
    assert read_checkpoint(tmp_path).path.name == "style.safetensors"


def test_several_files_are_listed(tmp_path, save):
    save(tmp_path / "one.safetensors"), save(tmp_path / "two.pt"), save(tmp_path / "sub" / "three.safetensors")
    with pytest.raises(SourceError, match=r"weight_name.*'one\.safetensors', 'sub/three\.safetensors', 'two\.pt'"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path, weight_name="two.pt").path.name == "two.pt"
    assert read_checkpoint(tmp_path, weight_name="sub/three.safetensors").path.name == "three.safetensors"
    assert read_checkpoint(tmp_path, subfolder="sub").path.name == "three.safetensors"


def test_folder_refusals(tmp_path, save):
    with pytest.raises(SourceError, match="no adapter file"):
        read_checkpoint(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(NotAnAdapterError, match="whole pipeline"):
        read_checkpoint(tmp_path)
    save(tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match="has no file 'y'"):
        read_checkpoint(tmp_path, weight_name="y")
    for name in ("../x.safetensors", str(tmp_path / "x.safetensors")):
        with pytest.raises(SourceError, match="leaves the folder"):
            read_checkpoint(tmp_path, weight_name=name)
    with pytest.raises(SourceError, match="no subfolder"):
        read_checkpoint(tmp_path, subfolder="z")


@pytest.mark.parametrize("text", ["[]", "{", '{"r": 1, "r": 2}', "\udcff", '{"a":' * 50_000, "x" * 17_000_000])
def test_broken_config(tmp_path, save, text):
    save(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(SourceError, match=r"adapter_config\.json"):
        read_checkpoint(tmp_path)


def test_state_dict_and_raw_checkpoint(tensors, same):
    raw = read_checkpoint(tensors)
    same(raw.tensors, tensors)
    assert (raw.name, raw.path, dict(raw.metadata)) == ("state dict", None, {})
    assert read_checkpoint(raw) is raw
    assert isinstance(raw, RawCheckpoint)
    for bad in ({}, {"a": 1.0}, {1: torch.ones(1)}, {"a": torch.ones(1, device="meta")}):
        with pytest.raises(SourceError, match="state dict"):
            read_checkpoint(bad)


FOREIGN = {
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "HTML ": b"\n <html lang='en'>",
    "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 171000000\n",
    "171000000": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 171000000\n",
    "JSON": b'{"error": "Repository not found"}',
    "text": b"Entry not found",
    "GGUF": b"GGUF\3\0\0\0" + b"\0" * 64,
    "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    "JPEG": b"\xff\xd8\xff\xe0" + b"\0" * 64,
    "gzip": b"\x1f\x8b\x08" + b"\0" * 64,
    "7z": b"7z\xbc\xaf\x27\x1c" + b"\0" * 64,
    "RAR": b"Rar!\x1a\x07" + b"\0" * 64,
    "tar": b"name".ljust(257, b"\0") + b"ustar" + b"\0" * 250,
    "ONNX": b"\x08\x07\x12\x07pytorch\x1a\x051.8.1" + b"\0" * 64,
    "0 bytes": b"",
    "neither": bytes(range(3, 90)),
}


@pytest.mark.parametrize("word", FOREIGN)
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pt"])
def test_foreign_files_are_named(tmp_path, word, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(FOREIGN[word])
    if word == "neither" and suffix:
        word = "file"
    with pytest.raises(SourceError, match=word.strip()) as caught:
        read_checkpoint(path)
    assert str(tmp_path) not in str(caught.value)


def test_truncated_download_says_both_sizes(tmp_path, save):
    content = save(tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-10])
    with pytest.raises(SourceError, match=r"truncated.* \d+ bytes.* has \d+"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_no_tensors(tmp_path):
    library.save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(NotAnAdapterError, match="no tensors"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_use_safetensors_refuses_pickles(tmp_path, save):
    with pytest.raises(UnsafeFileError, match="pickle"):
        read_checkpoint(save(tmp_path / "x.pt"), use_safetensors=True)
    read_checkpoint(save(tmp_path / "x.safetensors"), use_safetensors=True)


@pytest.mark.parametrize(
    "source", ["https://user:hf_secret@host/x.safetensors?token=hf_secret", "file:///x", "s3://b/x"]
)
def test_addresses_are_refused_and_not_repeated(source):
    with pytest.raises(SourceError, match="Download") as caught:
        read_checkpoint(source)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["/no/such/file.safetensors", "no/such.safetensors", "./no/such", "name", "..", "a/b/c"]
)
def test_missing_path(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"no such file|no adapter file|several") as caught:
        read_checkpoint(source)
    assert "/no/such" not in str(caught.value)


@pytest.mark.parametrize("source", ["", "a\0b", "x\n", 7, None, ["a"], b"/no/such/file.pt", "x" * 5000])
def test_no_source_at_all(source):
    with pytest.raises(SourceError):
        read_checkpoint(source)


def test_special_files(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", "/dev/zero"):
        with pytest.raises(SourceError, match="regular file"):
            read_checkpoint(path)


def test_import_stays_light():
    code = "import sys, diffadapt.io.source as s; print([m for m in sys.modules if m in " + repr(
        ["diffusers", "transformers", "huggingface_hub", "peft"]
    )
    result = subprocess.run([sys.executable, "-c", code + "])"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
