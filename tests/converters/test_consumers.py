"""What is written is loaded by those it is for, and does there what the source does here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import diffadapt
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, convert
from tests import tiny
from tests.converters import files

TOLERANCE = 2e-5
"""Of the outputs of a tiny UNet in float32: other orders of sums."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return files.plain(tmp_path / "ink.safetensors", rank=3)


def ours(source: Path, component: str = "unet") -> tuple[torch.Tensor, torch.Tensor]:
    """The output without and with the adapter, as diffadapt loads it."""
    pipe = diffadapt.enable(tiny.sd())
    base = output(pipe, component)
    pipe.load_adapter(source, strict=True)
    return base, output(pipe, component)


def output(pipe: object, component: str = "unet") -> torch.Tensor:
    if component == "unet":
        return tiny.run(pipe.unet)  # type: ignore[attr-defined]
    with torch.no_grad():
        return pipe.text_encoder(torch.arange(7)[None]).last_hidden_state  # type: ignore[attr-defined]


def written(source: Path, dialect: str, **options: object) -> Path:
    name = "out" if dialect == "peft" else "out.safetensors"
    record = convert(Job(str(source), str(source.with_name(name))), Plan(dialect, **options))  # type: ignore[arg-type]
    assert record.status == DONE, record.message
    return record.file


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_diffusers_loads_it(source: Path, component: str) -> None:
    base, wanted = ours(source, component)
    for dialect in ("diffusers", "kohya"):
        pipe = tiny.sd()
        pipe.load_lora_weights(written(source, dialect))
        seen = output(pipe, component)
        assert (seen - wanted).abs().max() <= TOLERANCE < (base - wanted).abs().max(), dialect
        source.with_name("out.safetensors").unlink()


def test_peft_loads_it(source: Path) -> None:
    from peft import PeftModel

    _, wanted = ours(source)
    folder = written(source, "peft", only="unet").parent
    model = PeftModel.from_pretrained(tiny.sd().unet, str(folder))
    assert (tiny.run(model) - ours(written_unet(source))[1]).abs().max() <= TOLERANCE
    assert not torch.allclose(wanted, tiny.run(tiny.unet()))


def written_unet(source: Path) -> Path:
    record = convert(Job(str(source), str(source.with_name("unet.safetensors"))), Plan("kohya", only="unet"))
    return record.file


@pytest.mark.parametrize("name", ["lora", "loha", "lokr", "oft", "boft", "dora", "glora", "full"])
def test_lycoris_loads_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    source = tmp_path / f"{name}.safetensors"
    model = tiny.unet()
    wanted = tiny.write_lycoris(model, name, source)
    file = written(source, "lycoris")
    monkeypatch.setattr(LycorisNetwork, "LORA_PREFIX", "lycoris")  # tests.tiny has set another
    fresh = tiny.unet()
    base = tiny.run(fresh)
    network, _ = create_lycoris_from_weights(1.0, str(file), fresh)
    network.apply_to()
    network.eval()
    seen = tiny.run(fresh)
    assert (seen - wanted).abs().max() <= TOLERANCE < (base - wanted).abs().max()
