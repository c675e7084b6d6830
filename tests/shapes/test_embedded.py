"""The embedded pipelines and adapters: what the index says is there, loads offline, and draws the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ImageChops
from torch import nn

import diffadapt
from diffadapt import shapes
from diffadapt.shapes import index

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT = "a red star on a blue background"
STEPS = 2


@pytest.fixture(scope="module", params=shapes.PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name: str) -> Any:
    return shapes.load(name)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def test_the_index_tells_of_adapters_that_are_there_and_do_something(name: str) -> None:
    samples = shapes.adapters(name)
    assert len(samples) >= 2
    assert len({sample.name for sample in samples}) == len(samples)
    for sample in samples:
        assert sample.path.exists()
        assert all([sample.algorithm, sample.trainer, sample.layout, sample.concept])
        assert sample.trigger in sample.prompt
        assert 0 <= sample.score_without < sample.score_with <= 1
    files = {
        path.relative_to(index.DATA / "adapters" / name).parts[0] for path in index.DATA.glob(f"adapters/{name}/*")
    }
    assert files == {sample.path.name for sample in samples}


def test_settings_and_accuracy_are_copies(name: str) -> None:
    assert shapes.settings(name)["num_inference_steps"] > 0
    shapes.settings(name)["num_inference_steps"] = 0
    assert shapes.settings(name)["num_inference_steps"] > 0
    rates = shapes.accuracy(name)
    assert rates.pop("prompts") >= 100
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert shapes.title(name)


def test_both_pipelines_have_the_same_adapters() -> None:
    assert len({tuple(sorted(sample.name for sample in shapes.adapters(name))) for name in shapes.PIPELINES}) == 1


def test_a_pipeline_loads_twice_with_the_same_bits(name: str, pipe: Any) -> None:
    assert type(pipe).__name__ == index.entry(name)["class"]
    first, second, half = weights(pipe), weights(shapes.load(name)), weights(shapes.load(name, torch.float16))
    assert first.keys() == second.keys() == half.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key])
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert half[key].dtype == torch.float16
            assert torch.equal(value, half[key].float()), f"{key} is not kept as float16"


def test_loading_changes_no_logging(name: str) -> None:
    from diffusers.utils import logging as diffusers_log
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as transformers_log

    def state() -> list[Any]:
        logs = (diffusers_log, transformers_log)
        levels = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
        return [*levels, are_progress_bars_disabled()]

    before = state()
    shapes.load(name)
    assert state() == before


def test_the_same_seed_gives_the_same_picture(pipe: Any) -> None:
    first, again = (shapes.picture(pipe, PROMPT, 3, num_inference_steps=STEPS) for _ in range(2))
    assert first.size == (64, 64)
    assert first.tobytes() == again.tobytes()
    other = shapes.picture(pipe, PROMPT, 4, num_inference_steps=STEPS)
    assert other.tobytes() != first.tobytes()


def test_a_batch_gives_the_pictures_of_its_prompts_alone(pipe: Any) -> None:
    prompts = [PROMPT, "two green hearts on a white background"]
    batch = shapes.picture(pipe, prompts, [3, 5], num_inference_steps=STEPS)
    assert len(batch) == 2
    for prompt, seed, picture in zip(prompts, (3, 5), batch, strict=True):
        alone = shapes.picture(pipe, prompt, seed, num_inference_steps=STEPS)
        assert max(ImageChops.difference(alone, picture).tobytes()) <= 2
    same, twin = shapes.picture(pipe, [PROMPT, PROMPT], 3, num_inference_steps=STEPS)
    assert max(ImageChops.difference(same, twin).tobytes()) <= 2
    with pytest.raises(ValueError, match="generators"):
        shapes.picture(pipe, prompts, [1, 2, 3], num_inference_steps=STEPS)


def test_every_adapter_loads_completely_and_leaves_no_trace(name: str) -> None:
    pipe = diffadapt.enable(shapes.load(name))
    before = weights(pipe)
    before = {key: value.clone() for key, value in before.items()}
    for sample in shapes.adapters(name):
        report = pipe.load_adapter(sample.path, adapter_name=sample.name, strict=True)
        assert report.complete, str(report)
    pipe.adapters.merge()
    pipe.adapters.clear()
    assert all(torch.equal(value, before[key]) for key, value in weights(pipe).items())


def test_an_unknown_name_is_refused() -> None:
    for ask in (shapes.load, shapes.adapters, shapes.settings, shapes.accuracy, shapes.title):
        with pytest.raises(diffadapt.SourceError, match="'sdxl'; there are unet, dit"):
            ask("sdxl")


def test_another_pipeline_draws_no_picture_here() -> None:
    with pytest.raises(diffadapt.SourceError, match="A Linear is none of the embedded pipelines"):
        shapes.picture(nn.Linear(2, 2), PROMPT)


def test_missing_and_broken_data_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "DATA", tmp_path)
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(diffadapt.SourceError, match=r"no .*index\.json \(the folder holds note\.txt\)"):
        shapes.load("unet")
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(diffadapt.SourceError, match=r"index\.json is broken"):
        shapes.settings("unet")
    sample = {"name": "a", "file": "adapters/a.safetensors", "algorithm": "LoRA", "trainer": "t", "layout": "l"}
    sample |= {"concept": "c", "trigger": "", "prompt": "p", "score": {"without": 0, "with": 1}}
    known = {"class": "StableDiffusionPipeline", "adapters": [sample]}
    (tmp_path / "index.json").write_text(json.dumps({"pipelines": {"unet": known}}))
    with pytest.raises(diffadapt.SourceError, match="tells of unet, not of 'dit'"):
        shapes.load("dit")
    with pytest.raises(diffadapt.SourceError, match=r"unet is missing; beside it there is index\.json, note\.txt"):
        shapes.load("unet")
    with pytest.raises(diffadapt.SourceError, match=r"a\.safetensors is missing"):
        shapes.adapters("unet")


OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import diffadapt
from diffadapt import shapes

for name in sys.argv[1:]:
    pipe = diffadapt.enable(shapes.load(name))
    for sample in shapes.adapters(name):
        pipe.load_adapter(sample.path, adapter_name=sample.name, weight=0.5)
    assert shapes.picture(pipe, "a red star", num_inference_steps=1).size == (64, 64)
print("drawn")
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=known, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("offline", "name"), [("0", "unet"), ("1", "dit")])
def test_nothing_is_fetched_and_nothing_is_said(offline: str, name: str, tmp_path: Path) -> None:
    done = python(OFFLINE, name, HF_HUB_OFFLINE=offline, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "drawn\n"
    # An installed torchao prints while Diffusers imports it; nothing else may be said.
    said = [line for line in done.stderr.splitlines() if "torchao" not in line and "torch/utils/_pytree" not in line]
    assert said == []


def test_import_pulls_in_nothing_heavy() -> None:
    code = (
        "import torch, sys; was = set(sys.modules); from diffadapt import shapes; print(sorted(set(sys.modules) - was))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    brought = {name.strip(" []'\n").split(".")[0] for name in done.stdout.split(",")}
    assert not brought & {"diffusers", "transformers", "huggingface_hub", "PIL", "peft"}
