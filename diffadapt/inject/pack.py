"""A pack: the live forms of all adapters of one module, moved to where it computes, low-rank pairs concatenated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffadapt.algorithms.forms import (
    BiasChange,
    Branch,
    ChannelForm,
    Form,
    InputChange,
    LowRank,
    OutputChange,
    TwoSided,
)
from diffadapt.algorithms.layer import Layer


@dataclass(frozen=True)
class Part:
    """A form with its place in the pack's vector of scales and the entry (adapter) it belongs to."""

    form: Form
    entry: int
    index: int


@dataclass
class Pack:
    """What a module's hook runs. One vector of scales: a change of strength writes it and nothing else.

    down: (R, in/groups, *kernel) of all adapters, rows in entry order; up: (out, R). `spans[e]`: the rank rows of
    entry e. scales: float32 (R + parts + biases,); the first R hold multiplier * scale of their pair. `owners` and
    `factors` say how to fill it: scales[i] = multiplier[owners[i]] * factors[i].
    """

    device: torch.device
    dtype: torch.dtype
    scales: Tensor
    owners: list[int]
    factors: list[float]
    down: Tensor | None = None
    up: Tensor | None = None
    spans: list[tuple[int, int]] = field(default_factory=list)
    masks: list[tuple[int, int, Callable[[float], Tensor]]] = field(default_factory=list)
    """Runs of rank rows whose scales follow the progress through denoising."""
    inputs: tuple[Part, ...] = ()
    outputs: tuple[Part, ...] = ()
    branches: tuple[Part, ...] = ()
    two_sided: tuple[Part, ...] = ()
    biases: Tensor | None = None
    bias_start: int = 0
    base_bias: Tensor | None = None

    @property
    def rank(self) -> int:
        return 0 if self.down is None else self.down.shape[0]

    @property
    def folds(self) -> bool:
        """Whether the module can see changed inputs: nothing here needs its product of the plain ones."""
        if self.outputs or self.two_sided:  # a compiler traces this: it knows branches on tuples, and no bool() of them
            return False
        return len(self.inputs) > 0

    def fits(self, device: torch.device, dtype: torch.dtype) -> bool:
        return self.device == device and self.dtype == dtype


def down_of(pair: LowRank, layer: Layer) -> Tensor:
    """The pair's down half in the layer's own shape: files may hold 1x1 factors flat, or Linear ones as 1x1."""
    shape = (pair.rank, *layer.shape[1:]) if layer.kind != "embedding" else (pair.rank, layer.shape[0])
    return pair.down.reshape(shape)


def build_pack(
    forms: Sequence[Sequence[Form]], layer: Layer, bias: Tensor | None, device: torch.device, dtype: torch.dtype
) -> Pack:
    """The pack of a module from the forms of each of its entries.

    bias: the module's own, kept beside the pack because output forms act on the product without it.
    """
    pairs = [[f for f in own if isinstance(f, LowRank)] for own in forms]
    owners: list[int] = []
    factors: list[float] = []
    spans: list[tuple[int, int]] = []
    masks: list[tuple[int, int, Callable[[float], Tensor]]] = []
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    for entry, own in enumerate(pairs):
        start = len(owners)
        for pair in own:
            downs.append(down_of(pair, layer).to(device, dtype))
            ups.append(pair.up.to(device, dtype))
            if pair.mask is not None:
                masks.append((len(owners), len(owners) + pair.rank, pair.mask))
            owners += [entry] * pair.rank
            factors += [pair.scale] * pair.rank
        spans.append((start, len(owners)))
    others = [(entry, f) for entry, own in enumerate(forms) for f in own if not isinstance(f, (LowRank, BiasChange))]
    parts = [Part(f.to(device, dtype), entry, len(owners) + i) for i, (entry, f) in enumerate(others)]
    biases = [
        (entry, f.vector.to(device, torch.float32))
        for entry, own in enumerate(forms)
        for f in own
        if isinstance(f, BiasChange)
    ]
    bias_start = len(owners) + len(parts)
    owners += [entry for entry, _ in (*others, *biases)]
    factors += [1.0] * (len(parts) + len(biases))
    needs_bias = any(isinstance(p.form, (OutputChange, TwoSided, InputChange)) for p in parts)
    return Pack(
        device, dtype, torch.ones(len(owners), dtype=torch.float32, device=device), owners, factors,
        down=(downs[0] if len(downs) == 1 else torch.cat(downs)) if downs else None,
        up=(ups[0] if len(ups) == 1 else torch.cat(ups, dim=1)) if ups else None,
        spans=spans,
        masks=masks,
        inputs=tuple(p for p in parts if isinstance(p.form, InputChange)),
        outputs=tuple(p for p in parts if isinstance(p.form, OutputChange)),
        branches=tuple(p for p in parts if isinstance(p.form, Branch)),
        two_sided=tuple(p for p in parts if isinstance(p.form, TwoSided)),
        biases=torch.stack([vector for _, vector in biases]) if biases else None,
        bias_start=bias_start,
        base_bias=bias.to(device, dtype) if bias is not None and needs_bias else None,
    )  # fmt: skip


def low_rank_change(pack: Pack, layer: Layer, x: Tensor, y: Tensor, span: tuple[int, int] | None) -> Tensor:
    """y + up (scales * (down x)), over all rank rows or the rows of `span` only."""
    down, up, scales = pack.down, pack.up, pack.scales[: pack.rank]
    if down is None or up is None:
        return y
    if span is not None and span[0] == span[1]:
        return y
    if span is not None and span != (0, pack.rank):
        down, up, scales = down[span[0] : span[1]], up[:, span[0] : span[1]], scales[span[0] : span[1]]
    if layer.kind == "embedding":
        h = torch.nn.functional.embedding(x, down.T) * scales
        return y + torch.nn.functional.linear(h.to(y.dtype), up)
    if layer.kind == "linear":
        h = (torch.nn.functional.linear(x, down) * scales).to(x.dtype)
        if y.ndim == 2:
            return torch.addmm(y, h, up.T)
        return torch.addmm(y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1]), up.T).view(y.shape)
    groups = layer.groups
    if groups > 1:
        down, scales = down.repeat(groups, *(1,) * (down.ndim - 1)), scales.repeat(groups)
    h = layer.apply(x, down, groups) * layer.channels(scales, x)
    return y + layer.pointwise(h.to(x.dtype), up, groups)


def low_rank_rows(pack: Pack, layer: Layer, x: Tensor, y: Tensor, scales: Tensor) -> Tensor:
    """`low_rank_change` with scales (rows, R) of their own for every row of the batch, over all ranks."""
    down, up = pack.down, pack.up
    if down is None or up is None:
        return y
    groups = layer.groups if layer.kind == "conv" else 1
    if groups > 1:
        down, scales = down.repeat(groups, *(1,) * (down.ndim - 1)), scales.repeat(1, groups)
    h = layer.apply(x, down.T if layer.kind == "embedding" else down, groups)
    h = h * layer.channels(scales, h)
    return y + layer.pointwise(h.to(y.dtype), up, groups)


def channel_forms(parts: Sequence[Part]) -> list[tuple[ChannelForm, Part]]:
    """The channel maps of input or output parts."""
    return [(p.form.inner, p) for p in parts if isinstance(p.form, (InputChange, OutputChange))]
