"""FRoD: the weight anew, from a basis that all modules of a kind share and rotations of its columns.

Per module `frod_lambda_l` l (in,), `frod_lambda_s_values` (m,); for the whole model, by category of module,
`frod_V.<category>` V (in, in), `frod_s_indices.<category>` (2, m), `frod_s_size.<category>` (2,).
U is W V^-T with its columns normalised; W' = U (S + diag l) V^T, S being the values at their places. The category is
the last two words of the module's name, or the last behind a number.
V decomposes the weights of all modules of a category together: where it is not saved (`save_projection=False`) a file
is refused. Source: PEFT `tuners/frod`, which names the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.factored import require_linear
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_NOTHING = 1e-12  # a column of U that PEFT leaves at 0


@dataclass(frozen=True, eq=False)
class FRoD(Delta):
    """diagonal (in,), values (m,); bank and category: the shared V and places. rate: the config's `sparse_rate`."""

    algorithm: ClassVar[str] = "frod"

    diagonal: Tensor
    values: Tensor
    bank: Bank
    category: str
    rate: float | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "frod_lambda_l" not in group and "frod_lambda_s_values" not in group:
            return None
        diagonal, values = group.take("frod_lambda_l"), group.take("frod_lambda_s_values")
        category, shared = _category(group.name), context.bank.tensors
        basis, places = shared.get(f"frod_V.{category}"), shared.get(f"frod_s_indices.{category}")
        if basis is None or places is None:
            raise AlgorithmError(
                f"{group.name}: the file lacks frod_V.{category} and its places (save_projection=False). They come "
                "from a joint decomposition of all trained weights: save the adapter again with save_projection=True."
            )
        size = len(diagonal)
        inside = not places.numel() or (int(places.min()) >= 0 and int(places.max()) < size)
        if tuple(basis.shape) != (size, size) or tuple(places.shape) != (2, len(values)) or not inside:
            raise AlgorithmError(
                f"{group.name}: frod_V {tuple(basis.shape)} and its places {tuple(places.shape)} do not fit "
                f"frod_lambda_l {tuple(diagonal.shape)} and {len(values)} values."
            )
        rate = context.config.get("sparse_rate")
        return cls(diagonal, values, context.bank, category, None if rate is None else float(rate))

    def weight_delta(self, weight: Tensor) -> Tensor:
        shared = self.bank.tensors
        basis = wide(shared[f"frod_V.{self.category}"].to(weight.device))
        rows, columns = shared[f"frod_s_indices.{self.category}"].to(basis.device, torch.int64)
        try:
            coefficients = torch.linalg.solve(basis, wide(weight).T).T
        except RuntimeError:  # a basis of fewer directions, where PEFT takes the pseudo-inverse
            coefficients = wide(weight) @ torch.linalg.pinv(basis, rtol=1e-6).T
        sizes = torch.linalg.vector_norm(coefficients, dim=0)
        outer = torch.where(sizes > _NOTHING, coefficients / sizes.clamp(min=_NOTHING), torch.zeros_like(coefficients))
        middle = torch.diag(wide(self.diagonal).to(basis.device))
        middle = middle.index_put((rows, columns), wide(self.values).to(basis.device), accumulate=True)
        return f32(outer @ middle @ basis.T - wide(weight), weight)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if len(self.diagonal) != layer.shape[1]:
            raise AlgorithmError(
                f"frod: frod_lambda_l {tuple(self.diagonal.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        """The basis and the places of the module's category."""
        names = (f"frod_{part}.{self.category}" for part in ("V", "s_indices", "s_size"))
        return {name: self.bank.tensors[name] for name in names if name in self.bank.tensors}

    def peft_fields(self, module: str) -> Fields | None:
        """The number of values is a part of those off the diagonal's (in, in), cut to a whole number."""
        rate = self.rate if self.rate is not None else min(1.0, (len(self.values) + 0.5) / len(self.diagonal) ** 2)
        return {"peft_type": "FROD", "sparse_rate": rate, "save_projection": True}

    def tensors(self) -> dict[str, Tensor]:
        """The module's own; the basis and the places are the file's."""
        return {"frod_lambda_l": self.diagonal, "frod_lambda_s_values": self.values}


def _category(module: str) -> str:
    """The name under which PEFT groups a module with its like."""
    words = module.split(".")
    if len(words) == 1 or words[-2].isdigit():
        return words[-1]
    category = f"{words[-2]}_{words[-1]}"
    return "attention_output" if category == "output_dense" and words[-3:-2] == ["attention"] else category
