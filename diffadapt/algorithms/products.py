"""Structured products with backwards of their own: what autograd would keep or copy in full is worked out again.

Both act on activations with channels last, (..., channels), and keep for the backward nothing that a LoRA would not:
the input, or the output, each of which the model's own layers keep as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class KroneckerProduct(torch.autograd.Function):
    """y + (w1 kron w2) x for x (..., m n), y (..., l k), w1 (l, m), w2 (k, n) or, low-rank, outer (k, r), inner (r, n).

    Channels lie m-major. Low-rank: what lies between the factors is held as (tokens, r, m), so that w1 acts on all of
    it in one product; that is narrow, and kept beside x. A whole w2 meets w1 token by token, and x alone is kept.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, w1: Tensor, inner: Tensor, outer: Tensor | None) -> Tensor:
        rows, columns = w1.shape
        flat = x.reshape(-1, inner.shape[1]) @ inner.T
        narrow = flat.view(-1, columns, len(inner))
        grid = y.reshape(len(narrow), rows, -1)
        if outer is None:
            ctx.save_for_backward(x, w1, inner)
            out = torch.baddbmm(grid, w1.expand(len(narrow), -1, -1), narrow)
        else:
            narrow = narrow.transpose(1, 2).contiguous()
            ctx.save_for_backward(x, w1, inner, outer, narrow)
            mixed = (narrow.view(-1, columns) @ w1.T).view(len(narrow), -1, rows)
            out = torch.baddbmm(grid, mixed.transpose(1, 2), outer.T.expand(len(narrow), -1, -1))
        return out.view(y.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, inner, *low = ctx.saved_tensors
        slices = grads[0].reshape(-1, len(w1), grads[0].shape[-1] // len(w1))
        given = x.reshape(-1, inner.shape[1])
        d_outer = None
        if low:
            outer, narrow = low
            d_w1, d_narrow, d_outer = _low_rank_grads(slices, w1, outer, narrow)
        else:
            narrow = (given @ inner.T).view(len(slices), w1.shape[1], -1)
            # The sum over tokens of small products, as one product of long ones.
            long = [t.transpose(1, 2).reshape(-1, t.shape[1]) for t in (slices, narrow)]
            d_w1 = long[0].T @ long[1]
            d_narrow = torch.bmm(w1.T.expand(len(slices), -1, -1), slices).view(-1, len(inner))
        d_x = (d_narrow @ inner).view(x.shape) if ctx.needs_input_grad[1] else None
        return grads[0], d_x, d_w1, d_narrow.T @ given, d_outer


def _low_rank_grads(slices: Tensor, w1: Tensor, outer: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of w1, of what inner made (tokens m, r), and of outer.

    slices: the gradient as (tokens, l, k). narrow: (tokens, r, m).
    """
    rows, columns = w1.shape
    rank = outer.shape[1]
    flat = slices.reshape(-1, len(outer))
    d_mixed = (flat @ outer).view(-1, rows, rank).transpose(1, 2).reshape(-1, rows)  # (tokens r, l)
    mixed = (narrow.view(-1, columns) @ w1.T).view(-1, rank, rows).transpose(1, 2).reshape(-1, rank)
    d_narrow = (d_mixed @ w1).view(-1, rank, columns).transpose(1, 2).reshape(-1, rank)
    return d_mixed.T @ narrow.view(-1, columns), d_narrow, flat.T @ mixed


Order = tuple[Tensor, Tensor] | None
"""(order, inverse), int64: the channels as the blocks see them, gathered[a] = v[order[a]]; None: as they come."""


class Turning(torch.autograd.Function):
    """Orthogonal block turns R = I + E of all channels, one after the other, of y less a bias: R (y - b) + b.

    excess E (k, n, n), of an orthogonal R. orders: how each one's blocks see the channels. Keeps the output alone: what
    went into a turn is its transpose of what came out, so that dE = (sum_t grad out^T) R without that ever being made,
    but for turns after the first.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias: Tensor | None, orders: tuple[Order, ...], *excess: Tensor) -> Tensor:
        turns = list(zip(excess, orders, strict=True))
        shift = None if bias is None else bias - _all(bias[None], turns)[0]
        flat = y.reshape(-1, y.shape[-1])
        out = torch.empty_like(flat)
        for run, into in _runs(flat, out):
            turned = _all(run, turns)
            into.copy_(turned) if shift is None else torch.add(turned, shift, out=into)
        out = out.view(y.shape)
        ctx.save_for_backward(out, bias, *excess)
        ctx.orders = orders
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, bias, *excess = ctx.saved_tensors
        turns = list(zip(excess, ctx.orders, strict=True))
        outer = [torch.zeros_like(block) for block in excess]
        flat, after = grads[0].reshape(-1, out.shape[-1]), out.reshape(-1, out.shape[-1])
        d_y = torch.empty_like(flat)
        for grad, made, into in _runs(flat, after, d_y):
            given = made if bias is None else made - bias
            for place in reversed(range(len(turns))):
                block, order = turns[place]
                grad, given = _gathered(grad, order), _gathered(given, order)
                outer[place].baddbmm_(_blocks(grad, block).transpose(1, 2), _blocks(given, block))
                back = block.transpose(1, 2)
                grad = _scattered(_turned(grad, back), order)
                given = _scattered(_turned(given, back), order) if place else given
            into.copy_(grad)
        found = [sums + torch.bmm(sums, block) for sums, block in zip(outer, excess, strict=True)]
        # The bias is taken off and put on again, so the turn is all that a gradient passes.
        return d_y.view(grads[0].shape), None, None, *found


_CACHED = 1 << 18
"""Numbers that a processor works on at a time, so that what lies between two turns stays in its cache."""


def _runs(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Runs of the tokens of all tensors (tokens, channels): on a processor short ones, elsewhere one."""
    tokens, channels = tensors[0].shape
    length = max(1, _CACHED // channels) if tensors[0].device.type == "cpu" else max(1, tokens)
    yield from zip(*(torch.split(tensor, length) for tensor in tensors), strict=True)


def _all(v: Tensor, turns: Sequence[tuple[Tensor, Order]]) -> Tensor:
    """v after all turns."""
    for block, order in turns:
        v = _scattered(_turned(_gathered(v, order), block), order)
    return v


def _gathered(v: Tensor, order: Order) -> Tensor:
    return v if order is None else v.index_select(-1, order[0])


def _scattered(v: Tensor, order: Order) -> Tensor:
    return v if order is None else v.index_select(-1, order[1])


def _blocks(v: Tensor, block: Tensor) -> Tensor:
    """v (..., channels) as (k, tokens, n): a view."""
    return v.reshape(-1, *block.shape[:2]).transpose(0, 1)


def _turned(v: Tensor, block: Tensor) -> Tensor:
    """R v of channels in the order of the blocks; through R itself where the dtype holds a small E beside a one."""
    exact = v.dtype in (torch.float32, torch.float64)
    matrix = block + torch.eye(block.shape[1], dtype=block.dtype, device=block.device) if exact else block
    product = torch.bmm(_blocks(v, block), matrix.transpose(1, 2)).transpose(0, 1)
    flat = torch.empty(product.shape, dtype=v.dtype, device=v.device)
    if exact:
        flat.copy_(product)
    else:
        torch.add(v.reshape(product.shape), product, out=flat)
    return flat.view(v.shape)
