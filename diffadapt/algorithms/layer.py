"""What an algorithm may know of the module it acts on: kind, shape, and how its weight meets its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["linear", "conv", "embedding", "layer_norm", "group_norm", "rms_norm", "table"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Layer:
    """A frozen description of a module: enough to apply any weight of its shape to its input.

    `shape` is the weight's shape: Linear (out, in), Conv (out, in/groups, *kernel), Embedding (num, dim), norm (dim,).
    """

    kind: Kind
    shape: tuple[int, ...]
    has_bias: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    reversed_padding: tuple[int, ...] = ()
    eps: float = 1e-5
    options: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, module: nn.Module) -> Layer | None:
        """The layer a module is, or None where adapters have nothing to act on (a container, an activation)."""
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            return None
        shape, has_bias = tuple(weight.shape), isinstance(getattr(module, "bias", None), Tensor)
        if isinstance(module, nn.Linear):
            # Quantised Linears pack their weight: the module's own numbers are the true shape.
            return cls("linear", (module.out_features, module.in_features), has_bias)
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return cls(
                "conv", shape, has_bias, tuple(module.stride),
                module.padding if isinstance(module.padding, str) else tuple(module.padding),
                tuple(module.dilation), module.groups, module.padding_mode,
                tuple(module._reversed_padding_repeated_twice),
            )  # fmt: skip
        if isinstance(module, nn.Embedding):
            return cls("embedding", shape, options={"padding_idx": module.padding_idx})
        if isinstance(module, nn.LayerNorm):
            return cls("layer_norm", shape, has_bias, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return cls("group_norm", shape, has_bias, groups=module.num_groups, eps=module.eps)
        if weight.ndim == 1 and "RMSNorm" in type(module).__name__:
            eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None) or 1e-6
            return cls("rms_norm", shape, has_bias, eps=float(eps))
        return cls("table", shape) if getattr(module, "is_table", False) else None

    @property
    def channel_dim(self) -> int:
        """Where the channels of an activation are: 1 for convolutions and group norms, last elsewhere."""
        return 1 if self.kind in ("conv", "group_norm") else -1

    @property
    def out_features(self) -> int:
        return self.shape[-1] if self.kind == "embedding" else self.shape[0]

    @property
    def in_features(self) -> int:
        """Channels of the input (all groups together)."""
        if self.kind == "embedding":
            return self.shape[0]
        return self.shape[1] * (self.groups if self.kind == "conv" else 1) if len(self.shape) > 1 else self.shape[0]

    def channels(self, values: Tensor, like: Tensor) -> Tensor:
        """Numbers per channel, (channels,) or for every sample (samples, channels), as they meet the activation
        `like`."""
        inner = (1,) * (like.ndim - 2)
        if values.ndim == 1:
            return values.view(-1, *inner) if self.channel_dim == 1 else values
        return values.view(len(values), *((-1, *inner) if self.channel_dim == 1 else (*inner, -1)))

    def apply(self, x: Tensor, weight: Tensor, groups: int | None = None) -> Tensor:
        """The module's own operation with another weight and no bias.

        `weight`: any weight that could stand in for the module's; a convolution's may have other output channels
        (the down half of a low-rank pair), then `groups` says how many groups it has.
        """
        if self.kind == "linear":
            return F.linear(x, weight)
        if self.kind == "conv":
            padding = self.padding
            if self.padding_mode != "zeros":
                x, padding = F.pad(x, self.reversed_padding, mode=self.padding_mode), (0,) * len(self.stride)
            convolve = _CONVOLUTIONS[len(self.stride)]
            return convolve(x, weight, None, self.stride, padding, self.dilation, groups or self.groups)
        if self.kind == "embedding":
            return F.embedding(x, weight)
        if self.kind == "layer_norm":
            return F.layer_norm(x, self.shape, weight, None, self.eps)
        if self.kind == "group_norm":
            return F.group_norm(x, self.groups, weight, None, self.eps)
        rms = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (x.float() * rms).to(x.dtype) * weight

    def pointwise(self, h: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
        """Mix channels only: `weight` (out, in[/groups]) on the activation `h`, at every position alike."""
        if self.kind != "conv":
            return F.linear(h, weight)
        dims = len(self.stride)
        return _CONVOLUTIONS[dims](h, weight.reshape(*weight.shape[:2], *(1,) * dims), None, 1, 0, 1, groups)
