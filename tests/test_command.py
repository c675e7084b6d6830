"""`diffadapt inspect`: what is printed, as text and as JSON, and what it returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffadapt.command import main

FIELDS = {
    "schema", "source", "error", "dialect", "family", "base_model", "trainer", "algorithms", "modules", "parameters",
    "dtypes", "table", "norm", "embeddings", "prefixes", "trigger_words", "tags", "hashes", "file", "unmatched",
    "ignored", "problems",
}  # fmt: skip


def lora(path: Path, metadata: dict[str, str] | None = None, alpha: float | None = 2.0) -> Path:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{key}.lora_down.weight": torch.ones(4, 640), f"{key}.lora_up.weight": torch.ones(640, 4)}
    save_file(pair if alpha is None else {**pair, f"{key}.alpha": torch.tensor(alpha)}, path, metadata)
    return path


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[dict]:
    assert main(["inspect", "--json", *map(str, arguments)]) == code
    return json.loads(capsys.readouterr().out)


def test_inspect_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(lora(tmp_path / "a.safetensors"))]) == 0
    printed = capsys.readouterr().out
    assert "kohya: 3 of 3 keys begin with lora_unet_" in printed
    assert "algorithms    1 lora" in printed
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] == ["unet"]]
    assert rows == [["unet", "down_blocks.1", "lora", "1", "4", "0.5", "5.12", "k"]]


def test_inspect_prints_one_json_list_and_goes_on_after_a_bad_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"<html>")
    failed, good = inspected(capsys, bad, lora(tmp_path / "a.safetensors"), code=1)
    assert failed["source"] == str(bad)
    assert failed["error"]["type"] == "NotAnAdapterError"
    assert "web page" in failed["error"]["message"]
    assert good.keys() == FIELDS
    assert good["error"] is None
    assert good["algorithms"] == {"lora": 1}
    assert good["table"][0]["alpha"] == [2.0, 2.0]
    assert good["file"]["header_only"] is True


def test_errors_go_to_stderr_without_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "none"), str(lora(tmp_path / "a.safetensors"))]) == 1
    out, err = capsys.readouterr()
    assert "no such file" in err
    assert "kohya" in out


def test_folders_and_patterns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    first, second = lora(tmp_path / "deep" / "a.safetensors"), lora(tmp_path / "deep" / "er" / "b.safetensors")
    torch.save({"lora_unet_conv_in.diff": torch.ones(4, 4)}, tmp_path / "deep" / "a.pt")  # the same weights twice
    (tmp_path / "deep" / "optimizer.bin").write_bytes(b"x")
    (tmp_path / "deep" / "notes.txt").write_text("x")
    assert [one["source"] for one in inspected(capsys, tmp_path)] == [str(first), str(second)]
    assert [one["source"] for one in inspected(capsys, tmp_path / "**" / "b*")] == [str(second)]
    (tmp_path / "empty").mkdir()
    nothing = inspected(capsys, tmp_path / "empty", tmp_path / "*.nothing", code=1)
    assert [one["error"]["type"] for one in nothing] == ["SourceError"] * 2
    assert [one["source"] for one in nothing] == [str(tmp_path / "empty"), str(tmp_path / "*.nothing")]


def test_hashes_norms_and_check_read_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = inspected(capsys, "--hashes", "--norms", "--check", lora(tmp_path / "a.safetensors"))
    # ones (640, 4) @ ones (4, 640) at scale 0.5: 640 x 640 numbers of 2.
    assert found["norm"] == pytest.approx(2 * 640)
    assert found["table"][0]["norm"] == pytest.approx([1280, 1280])
    assert len(found["hashes"]["sha256"]) == 64
    assert found["hashes"]["sha256"][:10] == found["hashes"]["autov2"]
    assert found["hashes"]["tensors"][:12] == found["hashes"]["autov3"]
    assert found["file"]["header_only"] is False


def test_many_files_in_worker_processes_are_told_as_one_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        lora(tmp_path / f"{number}.safetensors", {"ss_network_dim": str(4 + number % 2)}, 1.0 + number % 3)
    (tmp_path / "7.safetensors").write_bytes(b"{}")
    alone = inspected(capsys, tmp_path, code=1)
    assert inspected(capsys, "--workers", "2", tmp_path, code=1) == alone
    assert [one["source"] for one in alone] == sorted(one["source"] for one in alone)
    assert [one["table"][0]["alpha"][0] for one in alone[:-1]] == [1, 2, 3, 1, 2, 3]
    assert [len(one["problems"]) for one in alone[:-1]] == [0, 1, 0, 1, 0, 1]
