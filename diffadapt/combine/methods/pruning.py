"""Steps that several methods are made of: which numbers are largest, and two ways to join changes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffadapt.errors import CombineError


def expect_density(method: str, density: Any) -> None:
    """Raise CombineError unless the density is a share of the numbers that can be kept."""
    if not _is_number(density) or not 0 < density <= 1:
        raise CombineError(
            f"{method}: density is {density!r}; expected the share of the numbers to keep, above 0 and at most 1."
        )


def expect_share(method: str, option: str, value: Any) -> None:
    """Raise CombineError unless the option is at least 0 and below 1."""
    if not _is_number(value) or not 0 <= value < 1:
        raise CombineError(f"{method}: {option} is {value!r}; expected a number of at least 0 and below 1.")


def expect_seed(method: str, seed: Any) -> None:
    """Raise CombineError unless the seed is a whole number."""
    if not isinstance(seed, int):
        raise CombineError(f"{method}: seed is {seed!r}; expected a whole number.")


def expect_majority(method: str, majority_sign: Any) -> None:
    """Raise CombineError unless the way of electing signs is one that there is."""
    if majority_sign not in ("total", "frequency"):
        raise CombineError(f"{method}: majority_sign is {majority_sign!r}; expected 'total' or 'frequency'.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def largest(change: Tensor, count: int) -> Tensor:
    """A mask of the `count` numbers of the largest magnitude, of equal ones the first. change: contiguous."""
    size = change.numel()
    if count <= 0 or count >= size:
        return torch.full_like(change, count > 0, dtype=torch.bool)
    least = _order_statistic(change.abs().view(-1), size - count)
    mask = (change >= least).logical_or_(change <= -least)
    over = int(mask.sum()) - count
    if over:
        equal = (change.abs() == least).view(-1).nonzero().view(-1)
        mask.view(-1)[equal[equal.numel() - over :]] = False
    return mask


def _order_statistic(values: Tensor, index: int) -> float:
    """The value at an index of the ascending order. values: a vector, may be overwritten.

    `torch.quantile` takes no more than 16 M numbers and sorts; on the CPU `kthvalue` and `topk` carry an int64 index
    with every number, and NumPy's selection in place is several times faster.
    """
    if values.device.type != "cpu":
        return float(torch.kthvalue(values, index + 1).values)
    numbers = values.numpy()
    numbers.partition(index)
    return float(numbers[index])


def summed(changes: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """sum(w_i D_i), with no more than two of the changes in memory."""
    total: Tensor | None = None
    for change, weight in zip(changes, weights, strict=True):
        total = change.mul_(weight) if total is None else total.add_(change, alpha=weight)
    if total is None:
        raise CombineError("there is nothing to join.")
    return total


def elected(changes: Iterable[Tensor], weights: Sequence[float], majority_sign: str) -> Tensor:
    """The weighted mean of those numbers that have the elected sign, as PEFT and the paper's code have it.

    The sign is that of the sum of the numbers ("total") or of their signs ("frequency"), before the weights; + where
    the sum is 0. The mean is over how many agree, whatever they weigh.
    """
    known = list(changes)
    votes = torch.zeros_like(known[0])
    for change in known:
        votes.add_(change if majority_sign == "total" else change.sign())
    positive, total = votes >= 0, votes.zero_()
    count = torch.zeros_like(positive, dtype=torch.int16)
    for change, weight in zip(known, weights, strict=True):
        agrees = torch.where(positive, change > 0, change < 0)
        total.add_(change.mul_(agrees), alpha=weight)
        count.add_(agrees)
    return total.div_(count.clamp_(min=1))
