"""The modules of a file: its keys taken apart by the dialects that claim them, and collected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.dialects import Dialect, recognise
from diffadapt.dialects.peft import Peft
from diffadapt.errors import DialectError

# Buffers and leftovers: key endings without any effect on the weights, and why.
_IGNORED = {
    "position_ids": "a buffer of positions", "logit_scale": "of the whole CLIP, unused in a pipeline",
    "num_batches_tracked": "a training counter", "initial_lora_reg": "of training only",
    **dict.fromkeys(("lora_velora_embed", "std_prior", "expert_weights", "expert_weights_prior", "gaussian_var_prior"),
                    "of PEFT's training only (VeLoRA, MonteCLoRA)"),
}  # fmt: skip
_OPTIMIZER = ("optimizer.", "optimizer_state", "ema_decay", "ema_step", "global_step", "lr_scheduler", "train_state")


@dataclass
class Group:
    """A module of a file: its tensors and the file's keys by canonical role, and the dialect that named it."""

    slot: str | None
    name: str
    flat: bool
    dialect: Dialect
    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grouping:
    """A whole file. dialects: in the order in which they took keys, and the evidence for each in words. bank: what
    belongs to all modules. ignored: keys without effect -> why. rest: what no dialect knows."""

    groups: list[Group]
    dialects: list[Dialect]
    evidence: str
    bank: Bank
    ignored: Mapping[str, str]
    rest: dict[str, Tensor]


def group_tensors(tensors: Mapping[str, Tensor]) -> Grouping:
    """The modules of a file. One that was merged from several dialects is read in all of them, one after the other.

    Raises DialectError for a tensor that two keys name, and for a file that holds nothing but shared tensors.
    """
    ignored = {key: why for key in tensors if (why := _without_effect(key)) is not None}
    groups: dict[tuple[str | None, str], Group] = {}
    dialects: list[Dialect] = []
    evidence: list[str] = []
    rest = [key for key in tensors if key not in ignored]
    while rest and (found := recognise(rest)) is not None:
        dialect, recognition = found
        left = [key for key in rest if not _collect(key, tensors[key], dialect, groups)]
        if len(left) == len(rest):
            break
        rest = left
        dialects.append(dialect)
        evidence.append(f"{dialect.name}: {recognition.evidence}")
    modules, bank = _shared(list(groups.values()))
    return Grouping(modules, dialects, "; ".join(evidence), bank, ignored, {key: tensors[key] for key in rest})


def _without_effect(key: str) -> str | None:
    """Why a key has no effect on the weights, or None."""
    return _IGNORED.get(key.rpartition(".")[2]) or ("of the optimizer" if key.startswith(_OPTIMIZER) else None)


def _collect(key: str, tensor: Tensor, dialect: Dialect, groups: dict[tuple[str | None, str], Group]) -> bool:
    """Put the key's tensor into its module's group; False where the dialect does not know the key."""
    parts_of_key = dialect.split(key)
    if parts_of_key is None:
        return False
    slot, module, role, flat = parts_of_key
    group = groups.get((slot, module))
    if group is None:
        group = groups[slot, module] = Group(slot, module, flat, dialect)
    if role in group.tensors:
        raise DialectError(
            f"{key!r} and {group.keys[role]!r} are the same tensor of one module. Expected one: "
            "the file holds several adapters; save them apart."
        )
    group.tensors[role] = tensor
    group.keys[role] = key
    return True


def _shared(groups: list[Group]) -> tuple[list[Group], Bank]:
    """The groups of modules, and what belongs to the whole model (PEFT's shared tensors).

    Raises DialectError where there is nothing else: what the tensors act on cannot be told then.
    """
    common = [group for group in groups if not group.name and isinstance(group.dialect, Peft)]
    modules = [group for group in groups if group.name or not isinstance(group.dialect, Peft)]
    tensors = {role: tensor for group in common for role, tensor in group.tensors.items()}
    if common and not modules:
        raise DialectError(
            f"the file holds only tensors that all modules share ({', '.join(sorted(tensors))}), and not which "
            "part of them each module takes: PEFT works that out from the order of the trained model's modules. "
            "Save the adapter again with save_indices=True."
        )
    return modules, Bank(tensors, tuple(group.name for group in modules))
