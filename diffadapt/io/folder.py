"""Which file of a folder is the adapter, and which JSON files beside it are its own: one rule for disk and Hub."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from diffadapt.errors import NotAnAdapterError, SourceError
from diffadapt.io.plain_json import clip

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
PEFT_CONFIG = "adapter_config.json"
LYCORIS_CONFIG = "lycoris_config.json"
CONFIG_OF = {"adapter_model": PEFT_CONFIG, "pytorch_lora_weights": LYCORIS_CONFIG}
"""The names that trainers give every file -> the config that may lie beside it; of several files these are meant."""
_TRAINING_STATE = ("optimizer", "scheduler", "scaler", "random_states", "rng_state", "training_args", "sampler")
_SHOWN = 12


class Choice(NamedTuple):
    """The adapter file of a folder and the config files that go with it, as names relative to the folder."""

    weights: str
    configs: tuple[str, ...]


def choose(names: Collection[str], weight_name: str | None, source: str) -> Choice:
    """Choose the adapter among file names (with `/` between folders) relative to a folder or repository.

    A PEFT pair comes first, then Diffusers' own name, then the only adapter file there is. Raises `SourceError` where
    the choice is open (it lists the files), `NotAnAdapterError` where the folder is a whole pipeline.
    """
    present = set(names)
    if weight_name is not None:
        if weight_name not in present:
            raise SourceError(f"{source}: has no file {clip(weight_name)}. {_listing(present)}")
        return Choice(weight_name, _configs(weight_name, present))
    found = sorted(name for name in present if "/" not in name and is_weights(name))
    for stem in CONFIG_OF:
        for suffix in SUFFIXES:
            if stem + suffix in found:
                return Choice(stem + suffix, _configs(stem + suffix, present))
    if "model_index.json" in present:
        raise NotAnAdapterError(
            f"{source}: is a whole pipeline (model_index.json), expected an adapter. {_listing(present)}"
        )
    stems = {name: name.rpartition(".")[0] for name in found}
    safe = {stem for name, stem in stems.items() if name.endswith(".safetensors")}
    # The same weights are often there twice, as pickle and as safetensors: the safe one is meant.
    found = [name for name in found if name.endswith(".safetensors") or stems[name] not in safe]
    if len(found) != 1:
        raise SourceError(f"{source}: {'several adapter files' if found else 'no adapter file'}. {_listing(present)}")
    return Choice(found[0], _configs(found[0], present, alone=True))


def is_weights(name: str) -> bool:
    """Tell whether a file name is that of weights and not of a trainer's state."""
    return name.endswith(SUFFIXES) and not name.startswith((".", *_TRAINING_STATE))


def _configs(weights: str, present: Collection[str], alone: bool = False) -> tuple[str, ...]:
    """Name the config files that belong to `weights`: a config beside several unrelated files belongs to none."""
    path = PurePosixPath(weights)
    siblings = [name for name in present if PurePosixPath(name).parent == path.parent and is_weights(name)]
    owner = alone or path.stem in CONFIG_OF or len(siblings) == 1
    names = (str(path.with_name(name)) for name in (PEFT_CONFIG, LYCORIS_CONFIG))
    return tuple(name for name in names if owner and name in present)


def _listing(present: Collection[str]) -> str:
    """Say which adapter files there are and how to name one."""
    weights = sorted(name for name in present if is_weights(name.rpartition("/")[2]))
    if not weights:
        return "Expected a .safetensors, .bin, .pt, .pth or .ckpt file there."
    more = f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else ""
    return f"Pass weight_name= (and subfolder=) to name one of: {', '.join(map(clip, weights[:_SHOWN]))}{more}."


def gather_config(configs: Collection[str], read: Callable[[str], dict[str, Any]]) -> dict[str, Any] | None:
    """Join config files into one mapping: PEFT's at the top, LyCORIS' under `lycoris_config`; None without any."""
    result: dict[str, Any] = {}
    for name in configs:
        value = read(name)
        result |= {"lycoris_config": value} if name.endswith(LYCORIS_CONFIG) else value
    return result if configs else None
