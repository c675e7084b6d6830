"""Prefixes: trained keys and values before those of every attention of a language model.

They go in as a key-value cache, which is what they are to the model: its positions begin behind them, and its hidden
states are those of the prompt alone. A prefix has no strength between off (0) and on (anything else): there is no
scale at which keys and values are half there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffadapt.adapter import Adapter, Prefix
from diffadapt.errors import StackError, TargetError
from diffadapt.inject.locate import Component
from diffadapt.inject.scaling import Strength, Targets, multipliers
from diffadapt.inject.schedule import START, value_at
from diffadapt.inject.token_rows import Values, place_of

_CACHES = ("cache", "past_key_values")
"""What transformers calls the argument: its newer name first."""


@dataclass(frozen=True)
class Attentions:
    """What a prefix has to fit: the decoder of a language model, and the shape of its keys and values."""

    decoder: nn.Module
    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.layers * 2 * self.heads * self.head_dim

    @classmethod
    def of(cls, model: nn.Module, component: str) -> Self:
        """Raises TargetError for a model that keeps no keys and values (CLIP, T5), or of several shapes."""
        decoder = next((module for module in model.modules() if _is_decoder(module)), None)
        if decoder is None:
            raise TargetError(
                f"{component} is a {type(model).__name__}, which keeps no keys and values: a prefix can only stand "
                "before a language model's (Qwen, Llama, Gemma, Mistral). Train tokens instead, or choose another text "
                "encoder: load_adapter(..., into={'text_encoder': 'text_encoder_4'})."
            )
        config: Any = decoder.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys: list[Any] = [getattr(module, "k_proj", None) for module in decoder.modules()]
        found = {layer.out_features for layer in keys if hasattr(layer, "out_features")}
        if found - {heads * dim}:
            raise TargetError(
                f"{component} is a {type(model).__name__}, whose layers have keys of several widths "
                f"({', '.join(map(str, sorted(found)))}): a prefix has one. Train tokens instead."
            )
        return cls(decoder, config.num_hidden_layers, heads, dim)


def _is_decoder(module: nn.Module) -> bool:
    """Whether this is the stack of a language model's layers, which takes a cache and embeds ids itself."""
    stack = isinstance(getattr(module, "layers", None), nn.ModuleList) and hasattr(module, "embed_tokens")
    return stack and _cache_name(module) is not None


def _cache_name(decoder: nn.Module) -> str | None:
    names = inspect.signature(decoder.forward).parameters
    return next((name for name in _CACHES if name in names), None)


class PrefixedDecoder:
    """The prefixes of one decoder, and the hook that puts those that are on before its attentions."""

    def __init__(self, attentions: Attentions) -> None:
        self.attentions = attentions
        self.sources: list[nn.Module] = []
        self.on: list[bool] = []
        self._names = list(inspect.signature(attentions.decoder.forward).parameters)
        self._cache = _cache_name(attentions.decoder) or _CACHES[0]
        self._handle: RemovableHandle | None = None

    @classmethod
    def of(cls, attentions: Attentions) -> Self:
        """The prefixes of a decoder; there is one each."""
        for hook in attentions.decoder._forward_pre_hooks.values():
            if isinstance(hook, cls):
                return hook
        return cls(attentions)

    def add(self, source: nn.Module) -> None:
        """Put a prefix there, switched off. source: the module whose forward gives its values."""
        self.sources.append(source)
        self.on.append(False)
        if self._handle is None:
            self._handle = self.attentions.decoder.register_forward_pre_hook(self, with_kwargs=True)

    def remove(self, source: nn.Module) -> None:
        """Take a prefix away; with the last one, the decoder has no hook left."""
        place = self.sources.index(source)
        del self.sources[place], self.on[place]
        if not self.sources and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def switch(self, source: nn.Module, on: bool) -> None:
        """Put a prefix in force, or out of it."""
        self.on[self.sources.index(source)] = on

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(self._names, args, strict=False)) | kwargs
        # A caller with a cache of its own writes text, and counts what is in it: that goes without.
        if not any(self.on) or any(given.get(name) is not None for name in _CACHES):
            return None
        if module.training and getattr(module, "gradient_checkpointing", False) and torch.is_grad_enabled():
            raise StackError(
                f"{type(module).__name__} drops all keys and values before its own under gradient checkpointing, and "
                "with them a prefix: switch one of them off (gradient_checkpointing_disable() of this text encoder)."
            )
        seen = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        values = torch.cat([source() for source, on in zip(self.sources, self.on, strict=True) if on])
        values = values.to(seen.device, _dtype(module))
        given[self._cache] = self._filled(values, seen.shape[0])
        if given.get("attention_mask") is not None:
            given["attention_mask"] = _longer(given["attention_mask"], values.shape[0])
        if given.get("position_ids") is not None:
            given["position_ids"] = given["position_ids"] + values.shape[0]
        return (), given

    def _filled(self, values: Tensor, batch: int) -> Any:
        """A cache with these values, for a batch."""
        from transformers import DynamicCache

        shape = self.attentions
        by_layer = values.view(values.shape[0], shape.layers, 2, shape.heads, shape.head_dim).permute(1, 2, 3, 0, 4)
        pairs = by_layer.unsqueeze(2).expand(-1, -1, batch, -1, -1, -1)
        # A window that slides is a kind of cache in Gemma, and a mask in all others.
        config: Any = self.attentions.decoder.config
        cache = DynamicCache(config=config) if "gemma" in config.model_type else DynamicCache()
        for layer, (keys, rest) in enumerate(pairs):
            cache.update(keys, rest, layer)
        return cache


def _dtype(module: nn.Module) -> torch.dtype:
    """What a decoder computes in."""
    return next((p.dtype for p in module.parameters() if p.dtype.itemsize > 1 and p.is_floating_point()), torch.float32)


def _longer(mask: Any, count: int) -> Any:
    """A mask, of any rank, that lets the prefix be seen: ones for tokens, True or 0 for what is added to scores."""
    if isinstance(mask, Mapping):
        return {kind: None if one is None else _longer(one, count) for kind, one in mask.items()}
    seen = 1 if mask.ndim == 2 or mask.dtype == torch.bool else 0
    return torch.cat([mask.new_full((*mask.shape[:-1], count), seen), mask], dim=-1)


def _check(source: str, prefix: Prefix, component: str, shape: Attentions) -> None:
    """Raise TargetError for a prefix of another shape than the model's."""
    if (prefix.layers, prefix.heads, prefix.values.shape[-1]) != (shape.layers, shape.heads, shape.width):
        raise TargetError(
            f"{source}: its prefix is for {prefix.layers} layers with {prefix.heads} key-value heads of "
            f"{prefix.head_dim}, and {component} has {shape.layers} layers with {shape.heads} of {shape.head_dim}: it "
            "is for another model."
        )


@dataclass(eq=False)
class InstalledPrefixes:
    """The prefixes of one adapter on one pipeline.

    steps: (component, the model's shape, the source of the values). prefixes: the adapter's, by component.
    """

    steps: list[tuple[str, Attentions, nn.Module]] = field(default_factory=list)
    installed: list[tuple[str, PrefixedDecoder, nn.Module]] = field(default_factory=list)
    prefixes: Mapping[str, Prefix] = field(default_factory=dict)
    trainable: bool = False

    @property
    def names(self) -> list[str]:
        """What reports call them."""
        return [f"{part} ({self.prefixes[part].virtual_tokens} virtual tokens)" for part, _, _ in self.steps]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in float32; nothing where the adapter is not trainable."""
        return [parameter for _, _, source in self.steps for parameter in source.parameters()]

    @classmethod
    def plan(cls, adapter: Adapter, parts: Mapping[str, Component], trainable: bool = False) -> InstalledPrefixes:
        """What can be installed on a pipeline's components. Changes nothing.

        A bare model is the component of any prefix. Raises TargetError where there is no such text encoder, or a prefix
        does not fit it.
        """
        steps: list[tuple[str, Attentions, nn.Module]] = []
        for name, prefix in adapter.prefixes.items():
            part = parts.get(name) or (next(iter(parts.values())) if len(parts) == 1 else None)
            if part is None:
                raise TargetError(
                    f"{adapter.source}: its prefix is for {name}, and the pipeline has {', '.join(parts)}. Choose with "
                    f"load_adapter(..., into={{{name!r}: ...}})."
                )
            try:
                shape = Attentions.of(part.model, part.name)
            except TargetError as error:
                raise TargetError(f"{adapter.source}: {error}") from error
            _check(adapter.source, prefix, part.name, shape)
            steps.append((name, shape, Values(prefix.values, trainable)))
        return cls(steps, prefixes=adapter.prefixes, trainable=trainable)

    def install(self) -> None:
        """Hook the decoders; `refresh` switches on."""
        for name, shape, source in self.steps:
            decoder = PrefixedDecoder.of(shape)
            source.to(place_of(next(shape.decoder.parameters())))
            decoder.add(source)
            self.installed.append((name, decoder, source))

    def uninstall(self) -> None:
        """Take the prefixes away: the models are as before."""
        for _, decoder, source in reversed(self.installed):
            decoder.remove(source)
        self.installed = []

    def refresh(self, strength: Strength, components: Callable[[], Iterable[str]], in_force: bool) -> None:
        """Switch on what has a strength other than 0, where the adapter is in force."""
        if not self.installed:
            return
        targets = Targets([(name, "prefix") for name, *_ in self.installed])
        numbers = multipliers(strength, targets, tuple(components()), None)
        for (_, decoder, source), number in zip(self.installed, numbers, strict=True):
            decoder.switch(source, in_force and value_at(number, START) != 0.0)

    def to(self, device: torch.device | str | int) -> None:
        """Keep the values on a device; they are copied to where their model computes. Parameters stay themselves."""
        for _, _, source in self.steps:
            source.to(device)

    @torch.no_grad()
    def current(self) -> dict[str, Prefix]:
        """The adapter's prefixes by component, with copies of what has been learnt."""
        found = dict(self.prefixes)
        for name, _, source in self.steps if self.trainable else ():
            found[name] = Prefix(source().detach().clone(), found[name].layers, found[name].heads)
        return found
