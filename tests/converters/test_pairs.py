"""Every algorithm of the registry, from every dialect to every other and back: the same tensors, bit for bit, or a
DialectError that names the dialect."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms import ALGORITHMS, TensorGroup, parse_group
from diffadapt.dialects import DIALECTS
from diffadapt.errors import DialectError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.metadata import read_metadata
from diffadapt.reading import interpret
from diffadapt.writing import Composed, compose
from tests.algorithms.samples import SAMPLES, Sample

READ_ONLY = {"kohya_oft", "xlabs", "attention_processors"}
"""Dialects of one trainer for one algorithm, or of old versions: nobody wants more of their files."""
WRITTEN = sorted({dialect.name for dialect in DIALECTS} - READ_ONLY)
BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
PLACES = {
    "linear": ("unet", f"{BLOCK}.attn1.to_q"), "conv": ("unet", "down_blocks.0.resnets.0.conv1"),
    "conv1x1": ("unet", "down_blocks.0.attentions.0.proj_in"), "conv1d": ("unet", "down_blocks.0.resnets.0.conv2"),
    "grouped": ("unet", "down_blocks.0.downsamplers.0.conv"), "layer_norm": ("unet", f"{BLOCK}.norm1"),
    "group_norm": ("unet", "down_blocks.0.resnets.0.norm1"),
    "embedding": ("text_encoder", "text_model.embeddings.token_embedding"),
}  # fmt: skip


def adapter_of(sample: Sample) -> Adapter:
    """The sample on a module of Stable Diffusion, as if PEFT or LyCORIS had written it."""
    target = TargetKey(*PLACES[sample.module])
    delta = parse_group(TensorGroup(target.module, sample.tensors()), sample.context)
    return Adapter(
        name="sample", dialect="peft" if sample.writer == "peft" else "kohya", targets={target: delta},
        keys={target: ()}, candidates=("sd1",), metadata=read_metadata({}, (delta,), None),
    )  # fmt: skip


def written(adapter: Adapter, dialect: str) -> tuple[Composed, Adapter] | None:
    """The file, and what it is read as; None where the dialect cannot hold it, and says so."""
    try:
        made = compose(adapter, dialect)
    except DialectError as error:
        assert str(error).startswith(f"{dialect}: ")  # noqa: PT017
        return None
    return made, interpret(RawCheckpoint(made.tensors, made.metadata, made.beside), name="sample")


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Bit for bit; axes of length one are not part of what a tensor says."""
    return one.keys() == other.keys() and all(
        other[key].dtype == tensor.dtype and torch.equal(other[key].squeeze(), tensor.squeeze())
        for key, tensor in one.items()
    )


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_between_any_two_dialects_and_back(sample: Sample) -> None:
    files = {dialect: written(adapter_of(sample), dialect) for dialect in WRITTEN}
    held = {dialect: found for dialect, found in files.items() if found is not None}
    for first, second in itertools.permutations(held, 2):
        there = written(held[first][1], second)
        assert there is not None, f"{first} -> {second}"
        back = written(there[1], first)
        assert back is not None, f"{first} -> {second} -> {first}"
        assert same(held[first][0].tensors, back[0].tensors), f"{first} -> {second} -> {first}"


ONLY_READ = {"SplitOFT"}
"""What has one layout, that of an old version of sd-scripts, whose files are kept as they are. A LoRA of them can be
written."""


def test_every_other_algorithm_is_held_by_a_dialect() -> None:
    held = {
        type(sample.delta())
        for sample in SAMPLES
        if any(written(adapter_of(sample), dialect) is not None for dialect in WRITTEN)
    }
    assert {algorithm.__name__ for algorithm in set(ALGORITHMS) - held} == ONLY_READ


@pytest.mark.parametrize("sample", [s for s in SAMPLES if type(s.delta()).__name__ in ONLY_READ], ids=lambda s: s.name)
def test_what_no_dialect_holds_is_offered_a_way(sample: Sample) -> None:
    for dialect in WRITTEN:
        with pytest.raises(DialectError, match=rf"^{dialect}: .*(write|Write|keep|Keep|--algorithm lora)"):
            compose(adapter_of(sample), dialect)
