"""What the modules of one PEFT file share: tensors saved once for the whole model, and what a seed drew for them.

VeRA, RandLoRA, VB-LoRA, UniLoRA, TinyLoRA and FRoD keep such tensors under `base_model.<name>`, beside those of the
modules. Where they were not saved, PEFT draws them again from a seed, in sizes that depend on every module it adapted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from diffadapt.errors import AlgorithmError


class Bank:
    """The shared tensors by role, and the sizes of the file's modules as far as a model has told them."""

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, modules: tuple[str, ...] = ()) -> None:
        """tensors: role -> tensor. modules: the file's names of all modules that the adapter acts on."""
        self.tensors = dict(tensors or {})
        self.modules = modules
        self.drawn: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        """What was drawn from a seed already, by seed and sizes."""
        self.places: dict[tuple[Any, ...], dict[bytes, int]] = {}
        """Which module's draw some bytes are, by seed and sizes."""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._copy: tuple[object, Bank] | None = None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Bank:
        """The bank with every tensor replaced by `change(tensor)`: one and the same for all modules that ask with one
        and the same `change`."""
        if self._copy is None or self._copy[0] is not change:
            bank = Bank({role: change(tensor) for role, tensor in self.tensors.items()}, self.modules)
            bank.drawn, bank.places, bank._shapes = self.drawn, self.places, self._shapes
            self._copy = (change, bank)
        return self._copy[1]

    def note(self, module: str, shape: tuple[int, ...]) -> None:
        """Take down the shape of a module's weight, when an adapter is checked against a model."""
        self._shapes[module] = shape

    def largest(self, algorithm: str) -> tuple[int, int]:
        """The largest output and input size of all modules, which PEFT's shared matrices have.

        Raises AlgorithmError where a module of the file has not been found in a model: nobody knows its size then.
        """
        missing = [module for module in self.modules if module not in self._shapes]
        if missing or not self.modules:
            raise AlgorithmError(
                f"{algorithm}: the file lacks the shared matrices (save_projection=False), and to draw them again from "
                "the seed takes the sizes of all modules that the adapter was trained on; the model does not have "
                f"{missing[0] if missing else 'any of them'}. Save the adapter again with save_projection=True."
            )
        shapes = [self._shapes[module] for module in self.modules]
        return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
