"""Finding the module that a target names, in models that others have wrapped, renamed or compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from typing import Any

from torch import Tensor, nn

from diffadapt.algorithms.layer import Layer
from diffadapt.errors import MergeError
from diffadapt.families import FAMILIES
from diffadapt.inject.quantised import dequantised
from diffadapt.inject.table import tables

LEVELS = ("text_model.", "model.language_model.", "language_model.model.", "language_model.", "model.", "")
"""The levels above a text encoder's layers, which differ between transformers' versions and between a model and the
same with a head: CLIPTextModel lost `text_model.` in 5.6, Qwen2.5-VL and Mistral3 gained `model.`."""


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself, under torch.compile's and PEFT's wrappers."""
    while True:
        inner = getattr(module, "_orig_mod", None) or getattr(module, "base_layer", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


class Component:
    """One model of a pipeline and its modules by path."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name, self.model = name, unwrap(model)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by its path, without the levels that PEFT adds."""
        found: dict[str, nn.Module] = {}
        for path, module in self.model.named_modules():
            plain = path.removeprefix("base_model.model.").replace(".base_layer", "")
            if ".lora_" not in plain:
                found[plain] = unwrap(module)
        return {**tables(self.model), **found}

    @cached_property
    def flattened(self) -> dict[str, str]:
        """Flattened name -> path, for files whose modules no family table knows."""
        return {path.replace(".", "_"): path for path in self.modules}

    def resolve(self, path: str) -> str | None:
        """The path under which this model has a target, or None. A norm of an unknown class is the table it holds."""
        if path in self.modules and Layer.of(self.modules[path]) is not None:
            return path
        if f"{path}.weight" in self.modules:
            return f"{path}.weight"
        bare = next(path[len(level) :] for level in LEVELS if path.startswith(level))
        return next((level + bare for level in LEVELS if level + bare in self.modules), None)

    def resolve_foreign(self, name: str, flat: bool) -> str | None:
        """The path of a module that only this model's own names can tell apart."""
        if not flat:
            return self.resolve(name)
        levels = (level.replace(".", "_") for level in reversed(LEVELS))
        return next((path for level in levels if (path := self.flattened.get(level + name))), None)


def component_name(model: nn.Module) -> str:
    """The component a bare model would be in a pipeline, by its class."""
    name = type(unwrap(model)).__name__
    if (known := _denoisers().get(name)) is not None:
        return known
    for word, component in (("ControlNet", "controlnet"), ("UNet", "unet"), ("Transformer", "transformer")):
        if word in name:
            return component
    return "text_encoder" if "Text" in name or "Encoder" in name or "CLIP" in name else "model"


@cache
def _denoisers() -> dict[str, str]:
    """What the families' pipelines call their models, by class: a HunyuanDiT2DModel is a "transformer" too."""
    found: dict[str, str] = {}
    for family in FAMILIES:
        for component, names in family.components.items():
            if names.model is not None and "text_encoder" not in component:
                found.setdefault(names.model.cls.rpartition(".")[2], component)
    return found


def components(owner: Any) -> dict[str, Component]:
    """The models of a pipeline (or the bare model) by component name; nothing is imported to tell them apart."""
    if isinstance(owner, nn.Module):
        name = component_name(owner)
        return {name: Component(name, owner)}
    parts: Mapping[str, Any] = owner.components
    found = {name: Component(name, part) for name, part in parts.items() if isinstance(part, nn.Module)}
    return {name: c for name, c in found.items() if name not in ("safety_checker", "vae", "image_encoder")}


def layers(component: Component) -> Iterator[tuple[str, nn.Module, Layer]]:
    """Every module of a component that an adapter could act on."""
    for path, module in component.modules.items():
        if (layer := Layer.of(module)) is not None:
            yield path, module, layer


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A module's real weight as plain numbers, also where it is packed and while accelerate keeps it elsewhere.

    Raises MergeError for weights that are packed in an unknown way or nowhere to be found.
    """
    value = getattr(module, name)
    if value.device.type == "meta":
        hook = getattr(module, "_hf_hook", None)
        stored = getattr(hook, "weights_map", None)
        if stored is None:
            raise MergeError(f"The {name} of {type(module).__name__} is on the meta device and no offload hook has it.")
        value = stored[name]
    return dequantised(module, value, name)


def describe(owner: Any) -> str:
    """The pipeline's or model's class, with what tells its family."""
    model = getattr(owner, "unet", None) or getattr(owner, "transformer", None) or owner
    width = getattr(getattr(model, "config", None), "cross_attention_dim", None)
    return f"a {type(owner).__name__}" + (f" (cross-attention width {width})" if width else "")
