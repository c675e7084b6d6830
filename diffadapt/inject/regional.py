"""Regions: every adapter acts where its mask is.

The denoiser runs once with each adapter that has a region and, where the regions leave something free, once without
them; every place of the prediction is taken from the run that belongs there. So an adapter of any algorithm, for any
denoiser, does not show through elsewhere, what no mask inside the network can promise: attention carries everything
everywhere. At the price of as many runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isqrt
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from diffadapt.errors import StackError
from diffadapt.inject.one_by_one import leaves, one_by_one, stack_of

Owner = TypeVar("Owner")

Box: TypeAlias = "tuple[float, float, float, float]"
"""(left, top, right, bottom), shares of the picture's width and height."""

FINE = 1024
"""A box is drawn on a grid of so many squares a side, before it is brought to the latents'."""


@contextmanager
def regional(pipeline: Owner, regions: Mapping[str, Tensor | Box | Any]) -> Iterator[Owner]:
    """For a while, let adapters act in regions of the picture, at the strengths they have.

        with diffadapt.regional(pipe, {"ink": (0, 0, 0.5, 1), "clay": mask}):
            image = pipe("two cats").images[0]

    regions: adapter -> a mask (height, width) of numbers in [0, 1], of any size, as a tensor or a grey PIL image; or a
    box. Masks are brought to the latents' grid by averaging; soft edges blend. Where several meet, they share by their
    masks. Other adapters that are active act everywhere. Text encoders run once, with all of them.

    Raises StackError for names that are not loaded, not in force or merged, for what is no mask, and, from the first
    step, for a denoiser whose outputs have no grid that can be told.
    """
    stack = stack_of(pipeline)
    if not regions:
        raise StackError("regional() takes adapter -> mask.")
    for name in regions:
        stack.report(name)  # says which names there are
    masks = {name: as_mask(name, region) for name, region in regions.items()}
    runs = tuple(masks) if _cover(list(masks.values())) else (*masks, None)

    def blend(outputs: list[Any], call: Mapping[str, Any]) -> Any:
        return leaves(outputs, lambda tensors: _pieced(tensors, list(masks.values()), call))

    with one_by_one(pipeline, stack, tuple(masks), runs, blend):
        yield pipeline


def as_mask(name: str, region: Any) -> Tensor:
    """A mask (height, width), float32. Raises StackError, which names the adapter, for what is none."""
    if isinstance(region, (tuple, list)) and len(region) == 4 and all(isinstance(x, (int, float)) for x in region):
        return _box(name, *region)
    if hasattr(region, "convert") and hasattr(region, "tobytes"):  # a PIL image
        grey = region.convert("L")
        region = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width) / 255
    if not isinstance(region, Tensor):
        region = torch.as_tensor(region)
    mask: Tensor = region.detach().float()
    if mask.dim() != 2 or not mask.numel() or not ((mask >= 0) & (mask <= 1)).all():
        seen = f"{tuple(mask.shape)} from {mask.min().item():g} to {mask.max().item():g}" if mask.numel() else "nothing"
        raise StackError(f"The region of {name!r} is {seen}; expected (height, width) of numbers in [0, 1], or a box.")
    return mask


def _box(name: str, left: float, top: float, right: float, bottom: float) -> Tensor:
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise StackError(
            f"The region of {name!r} is the box {(left, top, right, bottom)}; expected (left, top, right, bottom), "
            f"shares of the picture from 0 to 1."
        )
    edges = torch.arange(FINE + 1) / FINE
    rows, columns = (  # the share of each square that is inside
        ((edges[1:].clamp(max=stop) - edges[:-1].clamp(min=start)) * FINE).clamp(0, 1)
        for start, stop in ((top, bottom), (left, right))
    )
    return torch.outer(rows, columns)


def _cover(masks: Sequence[Tensor]) -> bool:
    """Whether masks leave nothing free."""
    if len({mask.shape for mask in masks}) > 1:
        return False
    return bool((torch.stack(list(masks)).sum(0) >= 1 - 1e-6).all())


def _pieced(outputs: Sequence[Tensor], masks: Sequence[Tensor], call: Mapping[str, Any]) -> Tensor:
    """What each place's own run predicts there. outputs: of each mask's run, and of that without them, if any."""
    shares = [_fitted(mask.to(outputs[0].device), outputs[0], call) for mask in masks]
    total = torch.stack(shares).sum(0)
    if len(outputs) > len(masks):
        shares.append((1 - total).clamp_min(0.0))
        total = total.clamp_min(1.0)  # where masks meet, they share
    pieced = sum(output.float() * (share / total) for output, share in zip(outputs, shares, strict=True))
    assert isinstance(pieced, Tensor)
    return pieced.to(outputs[0].dtype)


def _fitted(mask: Tensor, output: Tensor, call: Mapping[str, Any]) -> Tensor:
    """The mask on the grid of an output, in a shape that multiplies it."""
    if output.dim() > 3:  # (..., height, width)
        return _resized(mask, output.shape[-2], output.shape[-1])
    if output.dim() < 3:
        raise StackError(f"The denoiser's output {tuple(output.shape)} has no grid, so no adapter can have a region.")
    tokens = output.shape[1]
    frames, height, width = grid(tokens, call, mask.shape[1] / mask.shape[0])
    there = _resized(mask, height, width).flatten().repeat(frames)
    return functional.pad(there, (0, tokens - len(there)))[:, None]  # what follows are pictures to look at


def _resized(mask: Tensor, height: int, width: int) -> Tensor:
    if height > mask.shape[0] or width > mask.shape[1]:  # averaging over less than one number is none
        whole = [-(-size // have) * have for size, have in zip((height, width), mask.shape, strict=True)]
        mask = functional.interpolate(mask[None, None], whole, mode="nearest")[0, 0]
    return functional.adaptive_avg_pool2d(mask[None], (height, width))[0]


def grid(tokens: int, call: Mapping[str, Any], aspect: float) -> tuple[int, int, int]:
    """(frames, height, width) of the tokens of a picture, which may be fewer than there are.

    Read off what the denoiser is called with: the places of the tokens (`img_ids`: frame, row, column), the shapes of
    the pictures (`img_shapes`), or their sizes (`num_frames`, `height`, `width`). Without any, the two factors of the
    number of tokens whose ratio is next to that of the mask. aspect: width / height of the mask.

    Raises StackError if the numbers do not fit.
    """
    places, shapes = call.get("img_ids"), call.get("img_shapes")
    sizes = [call.get(key) for key in ("num_frames", "height", "width")]
    if isinstance(places, Tensor) and places.shape[-2] == tokens and bool(places.any()):
        first = places.reshape(-1, tokens, places.shape[-1])[0]
        own = first[first[:, 0] == first[0, 0]]  # pictures to look at have another number in front
        found = (1, int(own[:, 1].max() - own[:, 1].min()) + 1, int(own[:, 2].max() - own[:, 2].min()) + 1)
    elif shapes:
        frames, height, width = shapes[0][0] if isinstance(shapes[0], list) else shapes[0]
        found = (int(frames), int(height), int(width))
    elif all(isinstance(size, int) for size in sizes):
        found = (int(sizes[0] or 0), int(sizes[1] or 0), int(sizes[2] or 0))
    else:
        pairs = [(h, tokens // h) for h in range(1, isqrt(tokens) + 1) if tokens % h == 0]
        both = pairs + [(w, h) for h, w in pairs]
        found = (1, *min(both, key=lambda pair: abs(pair[1] / pair[0] / aspect - 1)))
        ratio = found[2] / found[1] / aspect
        if not 0.8 < ratio < 1.25:
            raise StackError(
                f"The denoiser's {tokens} tokens cannot be laid out like the masks, whose width is {aspect:.2f} of "
                f"their height; give masks with the picture's proportions."
            )
    if found[0] * found[1] * found[2] > tokens:
        raise StackError(f"The denoiser's {tokens} tokens are said to be {found}, frames, rows and columns.")
    return found
