"""The training side of a stack: adapters that begin here, what of them is trained, and their life as a module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.learner import Dropouts, Learner
from diffadapt.inject.locate import Component
from diffadapt.inject.merging import BaseWeight, MergedWeights
from diffadapt.inject.mixed import MixedStack
from diffadapt.inject.module import TrainedModel
from diffadapt.inject.placement import Loaded
from diffadapt.inject.progress import DENOISERS
from diffadapt.inject.scaling import Strength
from diffadapt.report import LoadReport

if TYPE_CHECKING:
    from diffadapt.training.plan import Rank
    from diffadapt.training.targets import Targets


class TrainedStack(MixedStack):
    """What `PipelineAdapters` offers to whoever trains."""

    _owner: Any
    _merged: MergedWeights
    _thawed: list[nn.Parameter]
    components: Callable[[], dict[str, Component]]
    load: Callable[..., LoadReport]
    remove: Callable[[str], None]

    def add(
        self,
        name: str,
        algorithm: str = "lora",
        *,
        rank: Rank | None = None,
        alpha: float | Mapping[str, Any] | None = None,
        targets: Targets | None = None,
        exclude: Targets = (),
        init: str = "default",
        seed: int = 0,
        tokens: Mapping[str, Any] | None = None,
        strength: Strength = 1.0,
        trainable: bool = True,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        scale_rank_dropout: bool = False,
        data: Callable[[], object] | None = None,
        base: Any = None,
        **options: Any,
    ) -> LoadReport:
        """Put an untrained adapter on the pipeline, whose models are frozen for as long as it is in training.

        algorithm: a name of `diffadapt.training.methods`, or "textual_inversion", "p_tuning", "prefix_tuning".
        rank, alpha: numbers, or numbers by component, block or pattern with a "default"; alpha 0 or None: the rank.
        targets: "attn" (the default; "norm" for norms), "ff", "linear", "conv", "all", a pattern, several, or these by
        component; without one, of the denoiser. exclude: the same, left out.
        init: "default", "gaussian", "orthogonal", "pissa", "olora", "eva" (`data`: a call that runs the models on some
        samples), "loftq" (`base`: the folder of the unquantised model; default: the one it was loaded from).
        tokens: placeholders to train beside it, {"<star>": "circle"} (see `training.tokens`).
        dropout, rank_dropout, module_dropout: see `Dropouts`. options: the algorithm's own, such as LoKr's `factor`.

        Raises StackError for a name in use, an unknown algorithm, init or option; TargetError for targets that name
        nothing or that the algorithm cannot act on. The pipeline is then as before.
        """
        from diffadapt.training.fresh import finish, fresh_adapter
        from diffadapt.training.plan import Plan

        plan = Plan(name, algorithm, rank, alpha, targets, exclude, init, seed, tokens or {}, data, base, options)
        parts = self.components()
        learner = Learner(Dropouts(dropout, rank_dropout, module_dropout, scale_rank_dropout)) if trainable else None
        if name in self._loaded:
            raise StackError(f"An adapter named {name!r} is loaded already; remove it first or choose another name.")

        def weight_of(key: TargetKey) -> BaseWeight:
            return BaseWeight(self._merged, key, parts[key.component].modules[key.module])

        adapter: Adapter = fresh_adapter(plan, parts, self._owner, weight_of)
        report = self.load(adapter, name, strength, learner=learner)
        try:
            finish(plan, self._loaded[name])
        except BaseException:
            self.remove(name)
            raise
        return report

    # -- what is trained ---------------------------------------------------------------------------------------

    def trainable_parameters(self) -> tuple[int, int]:
        """How many numbers are trained, and how many there are in all, in the models and the adapters in training."""
        trained = sum(p.numel() for p in self.parameters())
        base = sum(p.numel() for part in self.components().values() for p in part.model.parameters())
        return trained, base + trained

    def print_trainable_parameters(self) -> None:
        """Say how many numbers are trained, as PEFT does."""
        trained, whole = self.trainable_parameters()
        share = 100 * trained / whole if whole else 0.0
        sys.stdout.write(f"trainable params: {trained:,} || all params: {whole:,} || trainable%: {share:.4f}\n")

    def train(self, name: str | None = None, mode: bool = True) -> None:
        """Turn the dropouts of an adapter in training, or of all, on (as they are when it is added)."""
        for module in (module for loaded in self._in_training(name) for module in loaded.trained_modules):
            module.train(mode)

    def eval(self, name: str | None = None) -> None:
        """Turn the dropouts off."""
        self.train(name, mode=False)

    def state_dict(self, name: str) -> dict[str, Tensor]:
        """What an adapter in training has learnt, by name, as it is trained and not as a file has it: for checkpoints
        from which a run goes on to the bit, in an adapter that was added with the same arguments."""
        allocation = self._get(name).allocation
        return {**self.as_module(name).adapter.state_dict(), **({} if allocation is None else allocation.state())}

    def load_state_dict(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave. Raises StackError, with nothing changed, where it is another adapter's."""
        own, allocation = self.as_module(name).adapter, self._get(name).allocation
        now = own.state_dict()
        ranks = {
            key: tensor for key, tensor in state.items() if allocation is not None and key.startswith("allocation/")
        }
        state = {key: tensor for key, tensor in state.items() if key not in ranks}
        odd = [
            key for key in {*state, *now} if key not in now or key not in state or state[key].shape != now[key].shape
        ]
        if odd:
            raise StackError(
                f"The checkpoint is of another adapter than {name!r}: {odd[0]} is not in both, in the same shape. Add "
                "the adapter with the arguments that it was added with."
            )
        own.load_state_dict(dict(state))
        if allocation is not None:
            allocation.load(ranks)

    def penalty(self, name: str | None = None) -> Tensor:
        """What a method wants added to the loss (AdaLoRA: how far its factors are from orthonormal ones), else 0."""
        found = [loaded.allocation.penalty() for loaded in self._in_training(name) if loaded.allocation is not None]
        return sum(found[1:], found[0]) if found else torch.zeros(())

    def allocate(self, step: int, total: int, name: str | None = None) -> None:
        """Share out ranks (AdaLoRA); nothing for other methods. Call it when a step's gradients are there and the
        optimizer has made its step; step: from 0; total: how many there will be."""
        for loaded in self._in_training(name):
            if loaded.allocation is not None:
                loaded.allocation.update(step, total)

    def as_module(
        self, name: str, component: str | None = None, forward: Callable[..., Any] | None = None
    ) -> TrainedModel:
        """One module that runs a model with the adapter's parameters as its own: what accelerate, DDP and FSDP wrap.

        component: whose forward it has (default: the denoiser's). forward: what to call instead, where a step runs
        several models, such as a text encoder in training. Raises StackError for an adapter that is not in training.
        """
        loaded = self._get(name)
        if loaded.learner is None:
            raise StackError(f"Adapter {name!r} is not in training: load or add it with trainable=True.")
        parts = self.components()
        chosen = component or next((part for part in (*DENOISERS, *parts) if part in parts), "")
        if chosen not in parts:
            raise StackError(f"There is no component {component!r}; there are {', '.join(parts)}.")
        return TrainedModel(parts[chosen].model, loaded.trained_modules, forward)

    def _in_training(self, name: str | None) -> list[Loaded]:
        chosen = [self._get(name)] if name else list(self._loaded.values())
        found = [loaded for loaded in chosen if loaded.learner is not None]
        if not found:
            seen = "No adapter is" if name is None else f"Adapter {name!r} is not"
            raise StackError(f"{seen} in training: load or add it with trainable=True.")
        return found

    def _freeze(self) -> None:
        """Have the models' own parameters ask for no gradient while an adapter is in training, and as before after."""
        training = any(loaded.learner is not None for loaded in self._loaded.values())
        if not training:
            for parameter in self._thawed:
                parameter.requires_grad_(True)
            self._thawed = []
            return
        own = getattr(self._owner, "components", None)
        models = [m for m in own.values() if isinstance(m, nn.Module)] if isinstance(own, Mapping) else [self._owner]
        for parameter in (p for model in models for p in model.parameters() if p.requires_grad):
            parameter.requires_grad_(False)
            self._thawed.append(parameter)
