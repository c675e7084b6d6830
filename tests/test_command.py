"""`diffadapt inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffadapt.command import main


def lora(path: Path) -> Path:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{key}.lora_down.weight": torch.ones(4, 640), f"{key}.lora_up.weight": torch.ones(640, 4)}
    save_file({**pair, f"{key}.alpha": torch.tensor(2.0)}, path)
    return path


def test_inspect_says_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(lora(tmp_path / "a.safetensors"))]) == 0
    printed = capsys.readouterr().out
    for line in ("dialect: kohya", "algorithms: lora: 1", "ranks: 4", "alphas: 2"):
        assert line in printed


def test_inspect_prints_json_and_goes_on_after_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"<html>")
    assert main(["inspect", "--json", str(bad), str(lora(tmp_path / "a.safetensors"))]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["algorithms"] == {"lora": 1}
    assert "bad.safetensors" in err
