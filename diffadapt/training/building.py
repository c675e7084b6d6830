"""A whole untrained adapter for a pipeline: the modules that are named, each with what its method begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter, Foreign, Metadata, TargetKey
from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError, StackError, TargetError
from diffadapt.families import Family
from diffadapt.families.choose import Module, choose
from diffadapt.inject.locate import LEVELS, Component
from diffadapt.inject.scaling import Targets as Rules
from diffadapt.inject.scaling import multipliers
from diffadapt.io.headers import stand_in
from diffadapt.reading import classes_of
from diffadapt.training import initial
from diffadapt.training.plan import Plan
from diffadapt.training.targets import Chosen
from diffadapt.training.targets import choose as choose_targets


def untrained(
    plan: Plan, parts: Mapping[str, Component], owner: object, weight_of: Callable[[TargetKey], Callable[[], Tensor]]
) -> Adapter:
    """The adapter before its first step. weight_of: a module -> what gives its base weight.

    Raises TargetError for targets that are not there or that the method cannot act on, StackError for options.
    """
    method = plan.method
    chosen = choose_targets(plan.chosen, plan.exclude, parts, kinds_of(plan))
    usual = method.rank or 1
    ranks = _numbers(usual if plan.rank is None else plan.rank, chosen, parts, "rank", usual)
    alphas = [None] * len(chosen) if plan.alpha is None else _numbers(plan.alpha, chosen, parts, "alpha", 0)
    generator = torch.Generator().manual_seed(plan.seed)
    options, bank = {**plan.options, **method.fixed}, Bank()
    linear = [layer.shape for layer in chosen.values() if len(layer.shape) == 2]
    largest = (max((s[0] for s in linear), default=0), max((s[1] for s in linear), default=0))
    deltas: dict[TargetKey, Delta] = {}
    for (key, layer), rank, alpha in zip(chosen.items(), ranks, alphas, strict=True):
        start = Start(layer, weight_of(key), int(rank or 0), alpha, generator, options, key.module, bank, largest)
        try:
            begun = plan.init if plan.init not in ("eva", "loftq") else "default"
            deltas[key] = initial.begin(begun, method.delta.fresh(start), start)
        except AlgorithmError as error:
            raise TargetError(f"{plan.name}: {'.'.join(key)}: {error}") from error
    bank.modules = tuple(key.module for key in deltas)
    return adapter_of(plan.name, method.home, deltas, owner)


def kinds_of(plan: Plan) -> tuple[str, ...]:
    """The kinds of layers that patterns find."""
    if plan.algorithm == "norm":
        return ("layer_norm", "group_norm", "rms_norm")
    if plan.algorithm == "full":
        return ("linear", "conv", "embedding", "layer_norm", "group_norm", "rms_norm")
    return ("linear", "conv", "embedding") if plan.algorithm in ("lora", "rslora") else ("linear", "conv")


def _numbers(value: Any, chosen: Chosen, parts: Mapping[str, Component], what: str, usual: int) -> list[float]:
    """A number for every module, by the grammar of strengths; what no rule names has "default"'s, else `usual`."""
    if isinstance(value, Mapping) and "default" not in value:
        value = {**value, "default": usual}
    known = {name: list(part.modules) for name, part in parts.items()}
    found = multipliers(value, Rules(list(chosen)), tuple(parts), lambda: known)
    if not all(isinstance(number, (int, float)) for number in found):
        raise StackError(f"{what} is {value!r}; expected numbers.")
    return [float(number) for number in found]  # type: ignore[arg-type]


def adapter_of(name: str, dialect: str, deltas: Mapping[TargetKey, Delta], owner: object, **rest: Any) -> Adapter:
    """The adapter of deltas by the pipeline's own module paths, with the names that files of its family have."""
    named = {key: TargetKey(key.component, _levelled(*key)) for key in deltas}
    shapes = {key: stand_in(torch.float32, _shape(delta)) for key, delta in deltas.items()}
    modules = [Module(key.component, named[key].module, {"diff": shapes[key]}) for key in deltas]
    found = choose(modules, None, classes=classes_of(owner)) if modules else ()
    families = sorted(found, key=lambda family: _strange_encoders(family, owner))
    about = {
        "name": name,
        "dialect": dialect,
        "candidates": tuple(f.name for f in families),
        "metadata": Metadata(),
        **rest,
    }
    known = families[0].components if families else {}
    targets = {
        named[key]: delta for key, delta in deltas.items()
        if key.component in known and known[key.component].resolve(named[key].module) is not None
    }  # fmt: skip
    foreign = {
        Foreign(key.component, key.module, flat=False): delta
        for key, delta in deltas.items() if named[key] not in targets
    }  # fmt: skip
    return Adapter(targets=targets, foreign=foreign, **about)


def _strange_encoders(family: Family, owner: object) -> int:
    """How many text encoders a pipeline and a family's do not share: SD 1 and SDXL have one class of UNet."""
    parts = getattr(owner, "components", None)
    if not isinstance(parts, Mapping):
        return 0
    ours, theirs = ({name for name in names if "text_encoder" in name} for names in (parts, family.components))
    return len(ours ^ theirs)


def _shape(delta: Delta) -> tuple[int, ...]:
    return delta.shape_alone or (1, 1)


def _levelled(component: str, path: str) -> str:
    """The path as adapters have it: CLIP's text encoders always with their `text_model.` level."""
    if not component.startswith(("text_encoder", "prior_text_encoder")):
        return path
    bare = next(path[len(level) :] for level in LEVELS if path.startswith(level))
    return f"text_model.{bare}" if bare.startswith(("encoder.layers", "embeddings.", "final_layer_norm")) else path
