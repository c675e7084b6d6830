"""The trained tensors of one adapter, as the parameters of a module, of which optimizers and FSDP take hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.errors import StackError


@dataclass(frozen=True)
class Dropouts:
    """What the trainers leave out at random while training, each a probability.

    dropout: LoRA: of the numbers between its halves (sd-scripts); the others: of the change of the output (LyCORIS).
    rank_dropout: LoRA: of the ranks, for every sample by itself, the others scaled up (sd-scripts); the others: of the
    rows of the change (LyCORIS), scaled up if `scale_rank_dropout`. module_dropout: of the whole module's change.
    Source: sd-scripts `networks/lora.py`; LyCORIS `modules/base.py`.
    """

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    scale_rank_dropout: bool = False

    def __post_init__(self) -> None:
        for name in ("dropout", "rank_dropout", "module_dropout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
                raise StackError(f"{name} is {value!r}; expected a probability from 0 to below 1.")

    @property
    def within(self) -> bool:
        """Whether anything is left out of a module's change."""
        return bool(self.dropout or self.rank_dropout)


class Learner(nn.Module):
    """One adapter in training. Its parameters are float32, whatever the model is in; each is there once, also those
    that all modules of the adapter share.

    FSDP puts other tensors in the place of a module's parameters: deltas ask for them at every forward.
    """

    def __init__(self, dropouts: Dropouts | None = None) -> None:
        super().__init__()
        self.dropouts = dropouts or Dropouts()
        self._held: list[tuple[str, nn.Parameter]] = []
        self._own: dict[int, nn.Parameter] = {}
        self._sources: list[Tensor] = []  # kept, so that no other tensor gets the id of one

    def __deepcopy__(self, memo: dict[int, Any]) -> Learner:
        copy = Learner(self.dropouts)
        memo[id(self)] = copy
        copy.training = self.training
        for name, parameter in self._held:
            twin = memo.get(id(parameter))
            twin = nn.Parameter(parameter.detach().clone()) if twin is None else twin
            memo[id(parameter)] = twin
            copy.register_parameter(name, twin)
            copy._held.append((name, twin))
        return copy

    def hold(self, key: TargetKey, delta: Delta) -> Delta:
        """The delta with parameters of this module in the place of the tensors that it learns."""
        names = [name for name, _ in delta.learnt()]
        place = iter(names)

        def own(tensor: Tensor) -> Tensor:
            name = next(place)
            if not tensor.is_floating_point():
                return tensor
            known = self._own.get(id(tensor))
            if known is None:
                known = self.take(f"{'.'.join(key)}.{name}", tensor)
                self._own[id(tensor)] = known
                self._sources.append(tensor)
            return known

        return delta.map_learnt(own)

    def take(self, name: str, tensor: Tensor) -> nn.Parameter:
        """A float32 parameter that begins as the tensor is."""
        parameter = nn.Parameter(tensor.detach().to(torch.float32, copy=True))
        name = name.replace(".", "/")
        self.register_parameter(name, parameter)
        self._held.append((name, parameter))
        return parameter

    def done(self) -> None:
        """Forget what only `hold` needs."""
        self._own, self._sources = {}, []

    @property
    def moved(self) -> bool:
        """Whether the parameters are others than those that the deltas hold (FSDP)."""
        return bool(self._held) and self._parameters[self._held[0][0]] is not self._held[0][1]

    def now(self, delta: Delta) -> Delta:
        """The delta with the parameters as this module has them now."""
        if not self.moved:
            return delta
        return delta.map_learnt(_Lookup({id(old): self._parameters[name] for name, old in self._held}))

    def plain(self, delta: Delta, change: Callable[[Tensor], Tensor] | None = None) -> Delta:
        """What has been learnt, as tensors of its own, gathered where FSDP has spread it. A collective call then."""

        def detached(tensor: Tensor) -> Tensor:
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            return whole.detach().clone() if change is None else change(whole.detach())

        return self.now(delta).map_learnt(detached).settled()


class _Lookup:
    """Old parameter -> the one in its place."""

    def __init__(self, places: dict[int, nn.Parameter | None]) -> None:
        self.places = places

    def __call__(self, tensor: Tensor) -> Tensor:
        found = self.places.get(id(tensor))
        return tensor if found is None else found
