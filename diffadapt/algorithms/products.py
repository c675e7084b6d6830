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
        turns = _Turns(excess, orders)
        flat = y.reshape(-1, y.shape[-1])
        out = torch.empty_like(flat)
        for run, into in _runs(flat, out):
            turns.forward(run, into)
        if bias is not None:
            out.add_(bias - turns.forward(bias[None], torch.empty_like(bias)[None])[0])
        out = out.view(y.shape)
        ctx.save_for_backward(out, bias, *excess)
        ctx.orders = orders
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, bias, *excess = ctx.saved_tensors
        turns = _Turns(excess, ctx.orders)
        flat, after = grads[0].reshape(-1, out.shape[-1]), out.reshape(-1, out.shape[-1])
        d_y = torch.empty_like(flat)
        for grad, made, into in _runs(flat, after, d_y):
            turns.backward(grad, made if bias is None else made - bias, into)
        found = [sums + torch.bmm(sums, block) for sums, block in zip(turns.outer, excess, strict=True)]
        # The bias is taken off and put on again, so the turn is all that a gradient passes.
        return d_y.view(grads[0].shape), None, None, *found


_CACHED = 1 << 22
"""Numbers that a processor works on at a time: what lies between two turns stays in its last cache (16 MiB)."""


def _runs(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Runs of the tokens of all tensors (tokens, channels): on a processor short ones, elsewhere one."""
    tokens, channels = tensors[0].shape
    length = max(1, _CACHED // channels) if tensors[0].device.type == "cpu" else max(1, tokens)
    yield from zip(*(torch.split(tensor, length) for tensor in tensors), strict=True)


class _Turns:
    """The turns of a `Turning` on a run of tokens.

    Between two turns activations lie (channels, tokens): another order of the channels is one of whole rows there, and
    the products themselves turn the layout at both ends.
    """

    def __init__(self, excess: Sequence[Tensor], orders: Sequence[Order]) -> None:
        self.excess, self.orders = list(excess), list(orders)
        # A float32 holds a small E beside a one; narrower dtypes keep them apart.
        self.exact = self.excess[0].dtype in (torch.float32, torch.float64)
        eye = [torch.eye(block.shape[1], dtype=block.dtype, device=block.device) for block in self.excess]
        self.matrices = [e + i for e, i in zip(self.excess, eye, strict=True)] if self.exact else self.excess
        self.outer = [torch.zeros_like(block) for block in self.excess]
        """The sums of grad out^T by block."""
        self._steps = list(zip(self.orders[:-1], self.orders[1:], strict=True))
        self._down = [_between(before, after) for before, after in self._steps]
        self._up = [_between(after, before) for before, after in self._steps]

    def forward(self, v: Tensor, into: Tensor) -> Tensor:
        """All turns of v (tokens, channels), written into another."""
        gathered = v if self.orders[0] is None else v.index_select(1, self.orders[0][0])
        if len(self.excess) == 1:
            return self._last(self._blocks(gathered, 0), 0, into, turned_back=False)
        rows = self._rows(self._blocks(gathered, 0).transpose(1, 2), 0, turned_back=False)
        for place in range(1, len(self.excess)):
            rows = self._ordered(rows, self._down[place - 1], place)
            if place < len(self.excess) - 1:
                rows = self._rows(rows, place, turned_back=False)
        return self._last(rows.transpose(1, 2), len(self.excess) - 1, into, turned_back=False)

    def backward(self, grad: Tensor, after: Tensor, into: Tensor) -> Tensor:
        """The gradient before all turns, from that after them and what came out (tokens, channels), written into
        another; fills `outer`."""
        last = len(self.excess) - 1
        order = self.orders[last]
        pair = [v if order is None else v.index_select(1, order[0]) for v in (grad, after)]
        seen, given = (self._blocks(v, last).transpose(1, 2) for v in pair)
        for place in range(last, -1, -1):
            self.outer[place].baddbmm_(seen, given.transpose(1, 2))
            if place:
                seen, given = (
                    self._ordered(self._rows(rows, place, turned_back=True), self._up[place - 1], place - 1)
                    for rows in (seen, given)
                )
        return self._last(seen.transpose(1, 2), 0, into, turned_back=True)

    def _blocks(self, v: Tensor, place: int) -> Tensor:
        """v (tokens, channels) as (k, tokens, n): a view."""
        return v.reshape(-1, *self.excess[place].shape[:2]).transpose(0, 1)

    def _rows(self, rows: Tensor, place: int, *, turned_back: bool) -> Tensor:
        """One turn, or its transpose, of rows (k, n, tokens)."""
        matrix = self.matrices[place].transpose(1, 2) if turned_back else self.matrices[place]
        product = torch.bmm(matrix, rows)
        return product if self.exact else product + rows

    def _last(self, blocks: Tensor, place: int, into: Tensor, *, turned_back: bool) -> Tensor:
        """One turn of blocks (k, tokens, n) into (tokens, channels), the channels in their own order."""
        matrix = self.matrices[place] if turned_back else self.matrices[place].transpose(1, 2)
        product = torch.bmm(blocks, matrix)
        product = product if self.exact else product + blocks
        order = self.orders[place]
        flat = into if order is None else torch.empty_like(into)
        flat.view(product.shape[1], len(product), -1).copy_(product.transpose(0, 1))
        return into if order is None else torch.index_select(flat, 1, order[1], out=into)

    def _ordered(self, rows: Tensor, order: Tensor, place: int) -> Tensor:
        """Rows (k, n, tokens) of one turn in the order of another."""
        return rows.flatten(0, 1).index_select(0, order).view(*self.excess[place].shape[:2], -1)


def _between(before: Order, after: Order) -> Tensor:
    """Where each channel of one order is in another."""
    if before is None:
        if after is None:
            raise ValueError("two turns in one order are one turn")
        return after[0]
    return before[1] if after is None else before[1].index_select(0, after[0])
