"""From a source to an `Adapter`: keys -> dialect -> modules -> deltas -> targets. No key is lost on the way."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from diffadapt.adapter import Adapter, Foreign, Origin, TargetKey
from diffadapt.algorithms import Delta, TensorGroup, parse_group
from diffadapt.algorithms.rows import Exchanged
from diffadapt.algorithms.total import Sum, same_change
from diffadapt.dialects import Dialect, Facts
from diffadapt.dialects.base import ContextOf
from diffadapt.dialects.dotted import COMPONENTS
from diffadapt.dialects.embeddings import NOTE, is_left_over, take_embeddings
from diffadapt.dialects.peft_methods import refuse_method
from diffadapt.dialects.peft_prefix import KEY, take_prefix
from diffadapt.dialects.refusals import refuse
from diffadapt.errors import AlgorithmError, DialectError, NotAnAdapterError
from diffadapt.families import Family
from diffadapt.families.choose import Module, certain, choose, component_of
from diffadapt.families.route import exchanged, exchanged_by_onetrainer, parts
from diffadapt.garbage import uncollected
from diffadapt.grouping import Group, group_tensors
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.headers import stand_in
from diffadapt.io.source import Source, read_checkpoint
from diffadapt.metadata import base_model, read_metadata

_SHOWN = 5


def read_adapter(
    source: Source | Adapter,
    *,
    name: str | None = None,
    alpha: float | None = None,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    use_safetensors: bool | None = None,
    check_finite: bool = True,
    pipeline: object | None = None,
) -> Adapter:
    """Read any adapter: a path, a folder, a Hub id, a state dict; an `Adapter` is given back as it is.

    name: the adapter's name (default: the file's). alpha: overrides every alpha, for files that lost theirs.
    check_finite: refuse NaN and infinity, which reads every tensor once. pipeline: the pipeline or model it is for:
    where keys and shapes fit several families, its own is taken. The rest is as in `io.read_checkpoint`.

    Raises SourceError (and its kinds) for what cannot be read, NotAnAdapterError for what is something else,
    DialectError for names that nothing explains, AlgorithmError for tensors that do not fit together, NonFiniteError.
    """
    if isinstance(source, Adapter):
        return source
    raw = read_checkpoint(
        source, weight_name=weight_name, subfolder=subfolder, revision=revision, token=token, cache_dir=cache_dir,
        local_files_only=local_files_only, force_download=force_download, use_safetensors=use_safetensors,
    )  # fmt: skip
    refuse_method(raw.config, raw.name)
    refuse(raw.tensors.keys(), raw.name, raw.config)
    if check_finite:
        raw.check_finite()
    return interpret(raw, name=name or _short_name(raw), alpha=alpha, classes=classes_of(pipeline))


def interpret(
    raw: RawCheckpoint,
    *,
    name: str,
    alpha: float | None = None,
    classes: frozenset[str] = frozenset(),
    family: str | None = None,
) -> Adapter:
    """The adapter that raw tensors make; see `read_adapter`. family: where it is known, among several possible ones."""
    try:
        with uncollected():
            return _Reading(raw, name, alpha, classes, family).adapter()
    except (AlgorithmError, DialectError) as error:
        message = str(error)
        if message.startswith(f"{raw.name}:"):
            raise
        raise type(error)(f"{raw.name}: {message}") from error


class _Reading:
    """One pass over a file: collects what the adapter is made of."""

    def __init__(
        self, raw: RawCheckpoint, name: str, alpha: float | None, classes: frozenset[str], known: str | None
    ) -> None:
        self.raw, self.name, self.alpha, self.classes, self.known = raw, name, alpha, classes, known
        self.tensors: dict[str, Tensor] = dict(raw.tensors.items())
        self.unmatched: list[str] = []
        self.targets: dict[TargetKey, Delta] = {}
        self.keys: dict[TargetKey, tuple[str, ...]] = {}
        self.foreign: dict[Foreign, Delta] = {}
        self.foreign_keys: dict[Foreign, tuple[str, ...]] = {}

    def adapter(self) -> Adapter:
        file = group_tensors(self.tensors)
        self.ignored, self.rest, self.bank = dict(file.ignored), file.rest, file.bank
        groups, dialects, evidence = file.groups, file.dialects, file.evidence
        modules = [Module(group.slot, group.name, group.tensors) for group in groups]
        told = base_model(self.raw.metadata, self.raw.config)
        families = choose(modules, told.lower() if told else None, classes=self.classes, known=self.known)
        slots = families[0].slots if families else {}
        prefixes = take_prefix(self.rest, self.raw.config)
        own = {key: tensor for key, tensor in self.rest.items() if not (prefixes and key == KEY)}
        embeddings, taken = take_embeddings(own, self.name, not groups, slots, self.raw.metadata.get(NOTE))
        taken |= self.rest.keys() - own.keys()
        self.unmatched += [key for key in self.rest if key not in taken and not self.left_over(key)]
        if not groups and not embeddings and not prefixes:
            self.refuse_unknown()
        self.place(groups, modules, families[0] if families else None)
        deltas = (*self.targets.values(), *self.foreign.values())
        return Adapter(
            name=self.name,
            dialect="peft" if prefixes else dialects[0].name if dialects else "embedding",
            targets=self.targets, keys=self.keys, foreign=self.foreign, foreign_keys=self.foreign_keys,
            embeddings=embeddings, prefixes=prefixes, unmatched=tuple(self.unmatched), ignored=self.ignored,
            candidates=tuple(family.name for family in families),
            metadata=read_metadata(self.raw.metadata, deltas, self.raw.config),
            path=self.raw.path, evidence=evidence, origin=self.origin(groups),
        )  # fmt: skip

    def origin(self, groups: list[Group]) -> Origin:
        """The file without its data."""
        shapes = {key: stand_in(tensor.dtype, tuple(tensor.shape)) for key, tensor in self.tensors.items()}
        modules = [Module(g.slot, g.name, {role: shapes[key] for role, key in g.keys.items()}) for g in groups]
        return Origin(shapes, tuple(modules), self.raw.config, self.alpha)

    def place(self, groups: list[Group], modules: list[Module], family: Family | None) -> None:
        """Make each group's delta and put it where it acts."""
        roles = frozenset(role for group in groups for role in group.tensors)
        facts = Facts(roles, self.raw.metadata, self.raw.config, self.alpha, self.bank)
        contexts: dict[Dialect, ContextOf] = {}
        self.certain = certain(family, modules) if family else frozenset()
        for group, module in zip(groups, modules, strict=True):
            if "on_input" not in group.tensors and not group.tensors.keys() - _ATTRIBUTES:
                # A bare weight or bias of a module: nothing says what it is meant to do.
                self.unmatched += group.keys.values()
                continue
            context_of = contexts.get(group.dialect)
            if context_of is None:
                context_of = contexts[group.dialect] = group.dialect.contexts(facts)
            self.route(group, module, family, context_of)

    def route(self, group: Group, module: Module, family: Family | None, context_of: ContextOf) -> None:
        """Find the targets of one group and give them its delta, or its rows."""
        place = component_of(family, module, self.certain) if family else None
        route = place[1].resolve(group.name) if place else None
        context = context_of(group.slot, group.name)
        exchange = exchanged_by_onetrainer if context.writer == "onetrainer" else exchanged
        swapped = exchange(group.tensors) if route and route.exchange else None
        tensors = group.tensors if swapped is None else swapped
        for role, tensor in group.tensors.items():
            if not tensor.is_floating_point() and role not in _INTEGERS and not role.endswith(_INDICES):
                raise AlgorithmError(
                    f"{group.keys[role]}: is {tensor.dtype}; expected floating-point numbers. Quantised factors cannot "
                    "be read without their scales: use the file they were made from."
                )
        delta = parse_group(TensorGroup(group.name, tensors, group.keys), context)
        if route and route.exchange and swapped is None:
            delta = Exchanged(delta)
        keys = tuple(group.keys.values())
        if place is None or route is None:
            foreign = Foreign(_component(group.slot, family), group.name, group.flat)
            self.foreign[foreign], self.foreign_keys[foreign] = delta, keys
            return
        for target, part in parts(route, place[0], delta, tensors, group.name):
            known = self.targets.get(target)
            if known is not None and same_change(known, part):
                # Some Z-Image files hold q, k and v fused and apart.
                self.ignored |= dict.fromkeys(keys, f"the same change of {target.module} as {self.keys[target][0]}")
                continue
            # Two spellings of one module (merged files): both act.
            self.targets[target] = part if known is None else Sum((known, part))
            self.keys[target] = self.keys.get(target, ()) + keys

    def left_over(self, key: str) -> bool:
        """Note a key that belongs to a textual-inversion file and has no effect."""
        if is_left_over(key):
            self.ignored[key] = "a textual-inversion file's note"
        return key in self.ignored

    def refuse_unknown(self) -> None:
        """Raise the error for a file that holds nothing known."""
        shown = ", ".join(repr(key) for key in list(self.tensors)[:_SHOWN])
        if len(self.ignored) == len(self.tensors):
            raise NotAnAdapterError(f"{self.raw.name}: holds only keys without effect ({shown}); expected an adapter.")
        raise DialectError(
            f"{self.raw.name}: no dialect knows the names of its {len(self.tensors)} keys: {shown}"
            f"{', ...' if len(self.tensors) > _SHOWN else ''}. Expected names as 'lora_unet_....lora_down.weight', "
            "'unet....lora_A.weight' or 'base_model.model....'; if it is an adapter, please report these keys."
        )


# Roles whose tensors count or index; factors are never integers.
_INTEGERS = frozenset(
    {"alpha", "on_input", "bias_indices", "bias_size", "reshape_weight", "shira_indices", "oft_R_scaled"}
)
_INDICES = ("_indices", "_indices_A", "_indices_B")
_ATTRIBUTES = frozenset({"weight", "bias"})


def classes_of(pipeline: object | None) -> frozenset[str]:
    """The names of the model classes in a pipeline, or of a bare model."""
    parts = getattr(pipeline, "components", None)
    models = [*parts.values(), pipeline] if isinstance(parts, Mapping) else [pipeline]
    return frozenset(type(unwrapped(model)).__name__ for model in models if model is not None)


def unwrapped(model: object) -> object:
    """The model under torch.compile's wrapper."""
    return getattr(model, "_orig_mod", model)


def _component(slot: str | None, family: Family | None) -> str | None:
    """The component of a module that no table knows: the family's, or the slot where it is a component's own name."""
    if family is not None and slot is not None and slot in family.slots:
        return family.slots[slot]
    return slot if slot in COMPONENTS.values() else None


def _short_name(raw: RawCheckpoint) -> str:
    """A name for the adapter: the file's without its ending, the repository's without its owner."""
    if raw.path is None or "/" in raw.name:
        return raw.name.rpartition("/")[2].replace(" ", "_")
    return raw.path.stem
