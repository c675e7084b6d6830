"""PEFT OFT since 0.16 and OneTrainer's OFT_2: a block rotation M of the inputs, flat(W)' = flat(W) M^T.

Tensors: `oft_R` (k, b (b - 1) / 2), upper triangles of Q, row-major; one row: shared by all blocks (`block_share`).
k * b = in * kernel. `oft_embedding_R`: the same on an Embedding's vectors, E' = E M. `oft_R_scaled` (OneTrainer, key
`oft_R.scaled_oft`): Q is divided by 2 sqrt(b - 1).
PEFT's config decides the formula: `use_cayley_neumann` with `num_cayley_neumann_terms` (a series near (I+Q)(I-Q)^-1;
its last term changed in PEFT 0.18, which is told by the presence of `peft_version`) or the exact solve, which is the
*opposite* rotation (I-Q)(I+Q)^-1; `coft` with `eps`. OneTrainer always uses the 5-term series of PEFT 0.18, and
rotates convolutions the other way: flat(W)' = flat(W) M.

Convolutions with a kernel: PEFT's training forward is broken there (even the identity changes the output) and no
kernel reproduces it, so the truth here is PEFT's merged weight. OneTrainer's forward is sound.
Sources: OFT, arXiv 2306.07280, 2506.19847; PEFT `tuners/oft`; OneTrainer `oft_utils.py`, `LoRAModule.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.cayley import cayley, neumann, pack, packed_size, project, unpack
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields, Otherwise
from diffadapt.algorithms.rotation import InputRotation, Stage, Stages
from diffadapt.algorithms.start import Start, factorised
from diffadapt.errors import AlgorithmError

_DEFAULT_TERMS, _DEFAULT_EPS = 5, 6e-5


@dataclass(frozen=True, eq=False)
class PackedOFT(InputRotation):
    """A block rotation of the inputs from packed generators.

    terms: length of the Neumann series, None for the exact Cayley transform; halved_tail: PEFT >= 0.18's series.
    eps: the radius of `coft`, None without. scaled, onetrainer: OneTrainer's conventions. embedding: on an Embedding.
    asked: the config's `r` and `oft_block_size`, one of them 0, of which PEFT makes each module's own.
    """

    algorithm: ClassVar[str] = "oft_peft"
    options: ClassVar[Mapping[str, Any]] = {"share": False, "terms": _DEFAULT_TERMS, "coft": 0.0}

    packed: Tensor
    terms: int | None
    halved_tail: bool
    eps: float | None = None
    scaled: bool = False
    onetrainer: bool = False
    embedding: bool = False
    asked: tuple[int, int] = field(default=(0, 0), compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        role = next((r for r in ("oft_R", "oft_embedding_R") if r in group), None)
        if role is None:
            return None
        packed, flag = group.take(role), group.take_optional("oft_R_scaled")
        if packed.ndim != 2 or packed_size(packed.shape[1]) is None:
            raise AlgorithmError(
                f"{group.name}: {role} {tuple(packed.shape)} holds no packed blocks; expected (k, b (b - 1) / 2)."
            )
        scaled = flag is not None and bool(flag.all())
        embedding = role == "oft_embedding_R"
        if context.writer == "onetrainer" or flag is not None:
            group.take_optional("alpha")
            return cls(packed, _DEFAULT_TERMS, True, None, scaled, True, embedding)
        config = context.config
        if "use_cayley_neumann" not in config:
            raise AlgorithmError(
                f"{group.name}: PEFT's OFT needs its adapter_config.json: without `use_cayley_neumann` the direction "
                "of the rotation is unknown. Load the folder that holds both files."
            )
        terms = int(config.get("num_cayley_neumann_terms") or _DEFAULT_TERMS) if config["use_cayley_neumann"] else None
        eps = float(config.get("eps", _DEFAULT_EPS)) if config.get("coft") else None
        asked = (int(config.get("r") or 0), int(config.get("oft_block_size") or 0))
        version = config.get("peft_version") is not None
        return cls(packed, terms, version, eps, embedding=embedding, asked=asked if 0 in asked else (0, 0))

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Zero generators: no rotation. rank: the size of a block, which must divide the inputs. share: one block for
        all (PEFT's `block_share`); terms: of the series, 0 for the exact transform; coft: its radius, 0 for none."""
        start.require("oft_peft", ungrouped=True)
        if any(size != 1 for size in start.layer.shape[2:]):
            raise AlgorithmError("oft_peft: PEFT's forward on a kernel is no change of the weight; leave it out.")
        size = start.rank
        if size < 2 or start.columns % size:
            raise AlgorithmError(
                f"oft_peft: blocks of {size} do not divide {start.columns} inputs; give a rank that does, such as "
                f"{factorised(start.columns, max(2, size))[0]}."
            )
        count = 1 if start.option("share", False) else start.columns // size
        terms, eps = start.option("terms", _DEFAULT_TERMS) or None, start.option("coft", 0.0) or None
        return cls(torch.zeros(count, size * (size - 1) // 2), terms, True, eps, asked=(0, size))

    @property
    def size(self) -> int:
        """b, the channels of a block."""
        return packed_size(self.packed.shape[1]) or 0

    def generator(self) -> Tensor:
        """Q (k, b, b), clipped by `coft` and divided by OneTrainer's scale. float64."""
        q = unpack(self.packed, self.size)
        if self.eps is not None:
            q = project(q, self.eps)
        return q / (2 * math.sqrt(self.size - 1)) if self.scaled else q

    def stages(self, channels: int, conv: bool) -> Stages:
        q = self.generator()
        excess = cayley(-q) if self.terms is None else neumann(q, self.terms, self.halved_tail)
        stage = Stage((excess.expand(channels // self.size, -1, -1),)).times(self.stage)
        # G is M for Linear and PEFT's convolutions, M^T for embeddings and OneTrainer's convolutions.
        return (stage.transposed() if self.embedding or (self.onetrainer and conv) else stage,)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("embedding",) if self.embedding else ("linear", "conv"))
        self.ungrouped(layer)
        channels = math.prod(layer.shape[1:])
        if channels % self.size or len(self.packed) not in (1, channels // self.size):
            raise self.misfit(layer, channels, "inputs")

    def peft_fields(self, module: str) -> Fields | None:
        """None for OneTrainer's conventions, which PEFT has no option for, and for a rotation scaled by its stage."""
        if self.scaled or self.onetrainer or self.stage != 1.0:
            return None
        blocks, size = self.asked if any(self.asked) else (0, self.size)
        series = {"num_cayley_neumann_terms": self.terms} if self.terms is not None else {}
        # PEFT reads no older series any more; it tells them by the absence of its version.
        version = {"peft_version": "0.18.0"} if self.halved_tail else {}
        return {
            "peft_type": "OFT", "r": blocks, "oft_block_size": size, "coft": self.eps is not None,
            "eps": _DEFAULT_EPS if self.eps is None else self.eps,
            # One row may be the only block there is.
            "block_share": Otherwise(True) if len(self.packed) == 1 else False,
            "use_cayley_neumann": self.terms is not None, **series, **version,
        }  # fmt: skip

    def named(self) -> dict[str, Tensor]:
        flag = {"oft_R_scaled": torch.tensor(True)} if self.scaled else {}
        return {"oft_embedding_R" if self.embedding else "oft_R": self.packed} | flag

    def turned(self, multiplier: float) -> Self:
        packed = self.packed if self.eps is None else pack(project(unpack(self.packed, self.size), self.eps)).float()
        return dataclasses.replace(self, packed=packed * multiplier, eps=None)

    def rows(self, start: int, stop: int) -> Delta:
        if self.embedding:
            raise AlgorithmError("oft_peft: the vectors of an Embedding cannot be separated.")
        return self
