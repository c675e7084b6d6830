"""What a slot runs where the samples of a batch carry different adapters.

Measured on a Linear of 1280 with 8 adapters of rank 16 for 8 samples (processor, 77 and 1024 tokens): the concatenated
pair with a strength for every sample takes 2 to 6.5 times what one adapter takes, as every sample pays for all ranks;
a stack with the pair of each sample's own adapter, multiplied in batches, takes what one adapter takes. So

- low-rank pairs on a Linear are run from such stacks, gathered once for an assignment, not once a call;
- all else runs, adapter by adapter, on the runs of rows that carry it;
- while a compiler traces, when an assignment must not shape the graph, all else runs on all rows, with a strength for
  every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffadapt.errors import StackError
from diffadapt.inject.entry import Entry
from diffadapt.inject.pack import Pack, Part, low_rank_rows
from diffadapt.inject.slot import Slot


@dataclass(eq=False)
class BatchLayout:
    """How the rows of one model's activations follow from the prompts.

    Pipelines repeat the prompts: each for its images, one after the other, and all of that for guidance ("no prompt"
    beside "prompt"). Some models then fold frames or positions into the batch, within each sample. So the rows are
    (guidance, prompt, image, fold), the last the fastest.

    prompts: how many. images: for each prompt. batch: the samples of the model's present call, None before the first.
    """

    name: str
    prompts: int
    images: int = 1
    batch: int | None = None

    def split(self, rows: int) -> tuple[int, int]:
        """(repeats of all prompts, rows of one prompt in each). Raises StackError where that does not come out even."""
        batch = self.batch or rows
        images = 1 if batch == self.prompts else self.images  # embedders run before the images are repeated
        copies, odd = divmod(batch, self.prompts * images)
        folded, rest = divmod(rows, batch)
        if odd or rest or not copies:
            raise StackError(
                f"The batch of {self.name} has {batch if odd or not copies else rows} rows, which are no multiple of "
                f"the mixed batch's {self.prompts} prompts" + (f" x {images} images each." if images > 1 else ".")
                + " Give one entry for every prompt of the call."
            )  # fmt: skip
        return copies, images * folded

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """(prompts, ...) -> (rows of `like`, ...)."""
        copies, each = self.split(like.shape[0])
        shape = values.shape[1:]
        wide = values.view(1, self.prompts, 1, *shape).expand(copies, self.prompts, each, *shape)
        return wide.reshape(like.shape[0], *shape)

    def whole(self, x: Tensor) -> Tensor:
        """x, with a row for every sample where it has one for all of them (the embedding of positions)."""
        shared = x.shape[0] == 1 and self.batch is not None and self.batch > 1
        return x.expand(self.batch or 1, *x.shape[1:]) if shared else x


@dataclass
class Stack:
    """Every prompt's own pair. down: (prompts, ranks, in); up: (prompts, ranks, out); scales: (prompts, 1, ranks)."""

    down: Tensor
    up: Tensor
    scales: Tensor

    def add(self, x: Tensor, y: Tensor, layout: BatchLayout) -> Tensor:
        """y (rows, ..., out) + what the pairs make of x (rows, ..., in)."""
        copies, each = layout.split(x.shape[0])
        positions = each * (x.numel() // (x.shape[0] * x.shape[-1]))
        xs = x.reshape(copies, layout.prompts, positions, x.shape[-1])
        ys = y.reshape(copies, layout.prompts, positions, y.shape[-1])
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            parts = [torch.baddbmm(ys[i], self._hidden(xs[i]), self.up) for i in range(copies)]
            return parts[0].reshape(y.shape) if copies == 1 else torch.stack(parts).reshape(y.shape)
        out = torch.empty(ys.shape, dtype=y.dtype, device=y.device)
        for i in range(copies):
            torch.baddbmm(ys[i], self._hidden(xs[i]), self.up, out=out[i])
        return out.view(y.shape)

    def _hidden(self, x: Tensor) -> Tensor:
        return (torch.bmm(x, self.down.transpose(1, 2)) * self.scales).to(x.dtype)


class RowsSlot(Slot):
    """A slot's adapters on all rows at once, with a strength for every row: the same steps, other multipliers."""

    layout: BatchLayout
    weights: Tensor
    """(prompts, scales of the pack), float32."""
    stack: Stack | None = None

    def current(self, device: torch.device, dtype: torch.dtype) -> Pack:
        assert self.pack is not None  # `MixedRows.prepare` has put it here
        return self.pack

    def _weight(self, part: Part, pack: Pack, like: Tensor) -> Tensor:
        return self.layout.spread(self.weights[:, part.index], like).view(-1, *(1,) * (like.ndim - 1))

    def _low_rank(self, x: Tensor, y: Tensor, pack: Pack) -> Tensor:
        if self.stack is not None:
            return self.stack.add(x, y, self.layout)
        return low_rank_rows(pack, self.layer, x, y, self.layout.spread(self.weights[:, : pack.rank], x))

    def _biased(self, y: Tensor, biases: Tensor, pack: Pack) -> Tensor:
        weights = self.weights[:, pack.bias_start : pack.bias_start + biases.shape[0]]
        vectors = self.layout.spread(weights @ biases, y).to(y.dtype)
        return y + self.layer.channels(vectors, y)


class MixedRows:
    """The mixed batch at one slot."""

    def __init__(self, slot: Slot, layout: BatchLayout) -> None:
        self.slot, self.layout = slot, layout
        self.strengths: list[dict[Entry, float]] = []
        self.pack: Pack | None = None
        self.stale = True
        self.traced = False
        self.chosen: list[list[int]] = []
        self.uniform = False
        self.all = RowsSlot(slot.module, slot.layer, slot.base_weight)
        self.groups: list[int] = []
        self.twins: list[Slot | None] = []

    def put(self, strengths: list[dict[Entry, float]]) -> None:
        """Take the strengths of the slot's entries, a mapping for each prompt; what is not there is 0."""
        self.strengths, self.stale = strengths, True

    def write(self) -> None:
        """Bring what runs to the strengths and the progress in force, if it is there already."""
        if self.slot.pack is not None and (self.stale or self.pack is not self.slot.pack or self.slot.pack.masks):
            self._fill(self.slot.pack)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have all that a call needs on a device, in a dtype; for a slot in a graph, what serves every assignment."""
        pack = self.slot.ensure(device, dtype)
        if self.stale or pack is not self.pack or self.traced != self.slot.traced:
            self._fill(pack)

    @torch.no_grad()
    def _fill(self, pack: Pack) -> None:
        with torch.inference_mode(False):
            entries = self.slot.entries
            strengths = [tuple(own.get(entry, 0.0) for entry in entries) for own in self.strengths]
            table = torch.tensor(strengths, dtype=torch.float64)[:, torch.tensor(pack.owners, dtype=torch.long)]
            weights = (table * torch.tensor(pack.factors, dtype=torch.float64)).float()
            for start, stop, mask in pack.masks:
                weights[:, start:stop] *= mask(self.slot.progress)
            parts = pack.inputs or pack.outputs or pack.two_sided or pack.branches
            self.uniform = not parts and self.slot.layer.kind == "linear"
            self.all.entries, self.all.layer, self.all.layout = entries, self.slot.layer, self.layout
            self.all.pack, self.all.weights = pack, weights.to(pack.device)
            self.all.stack = self._stack(pack, strengths, weights) if self.uniform or self.slot.traced else None
            self._group(pack, strengths)
        self.pack, self.stale, self.traced = pack, False, self.slot.traced

    def _stack(self, pack: Pack, strengths: list[tuple[float, ...]], weights: Tensor) -> Stack | None:
        """The stack, unless it would have as many ranks as the concatenated pair has.

        It is as wide as the largest adapter, or as the widest of several for one prompt.
        """
        if self.slot.layer.kind != "linear" or pack.down is None or pack.up is None:
            return None
        chosen = [
            [row for span, m in zip(pack.spans, own, strict=True) if m for row in range(*span)] for own in strengths
        ]
        width = max(*(stop - start for start, stop in pack.spans), *map(len, chosen), 1)
        if width >= pack.rank:
            return None
        rows = torch.tensor([own + [0] * (width - len(own)) for own in chosen])
        real = torch.tensor([[True] * len(own) + [False] * (width - len(own)) for own in chosen])
        scales = torch.where(real, weights.gather(1, rows), 0.0)[:, None]
        now = self.all.stack
        if now is not None and pack is self.pack and chosen == self.chosen:  # other strengths, as a schedule gives
            return Stack(now.down, now.up, scales.to(pack.device))
        self.chosen, at = chosen, rows.to(pack.device)
        return Stack(pack.down[at], pack.up.T[at], scales.to(pack.device))

    def _group(self, pack: Pack, strengths: list[tuple[float, ...]]) -> None:
        """One twin of the slot for each set of strengths, which shares its tensors; None for the base."""
        known: dict[tuple[float, ...], int] = {}
        self.groups = [known.setdefault(own, len(known)) for own in strengths]
        runs_by_group = not self.uniform
        self.twins = [self._twin(pack, own) if runs_by_group and any(own) else None for own in known]

    def _twin(self, pack: Pack, strengths: tuple[float, ...]) -> Slot:
        twin = Slot(self.slot.module, self.slot.layer, self.slot.base_weight)
        twin.entries = [Entry(e.owner, e.delta, m) for e, m in zip(self.slot.entries, strengths, strict=True)]
        twin.progress = self.slot.progress

        def active(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            return tuple(part for part in parts if strengths[part.entry])

        scales = torch.tensor(twin.scales(pack), dtype=torch.float32, device=pack.device)
        twin.pack = replace(
            pack, scales=scales, inputs=active(pack.inputs), outputs=active(pack.outputs),
            branches=active(pack.branches), two_sided=active(pack.two_sided),
        )  # fmt: skip
        return twin

    # -- the hooks' work ---------------------------------------------------------------------------------------

    def _runs(self, rows: int) -> list[tuple[Slot | None, int, int]]:
        """(twin, first row, row after the last) for every run of rows with the same strengths."""
        copies, each = self.layout.split(rows)
        runs: list[tuple[int, int, int]] = []
        for number, group in enumerate(self.groups * copies):
            start = number * each
            if runs and runs[-1][0] == group:
                start = runs.pop()[1]
            runs.append((group, start, (number + 1) * each))
        return [(self.twins[group], start, stop) for group, start, stop in runs]

    def fold(self, x: Tensor) -> Tensor | None:
        """What the module is to see in place of x, or None for x itself."""
        if torch.compiler.is_compiling():  # the slot has just prepared everything
            pack = self.slot.pack
            return self.all.fold(self.layout.whole(x), pack) if pack is not None and pack.folds else None
        self.prepare(x.device, x.dtype)
        if not any(twin is not None and twin.pack is not None and twin.pack.folds for twin in self.twins):
            return None
        x = self.layout.whole(x)
        seen = [
            twin.fold(x[start:stop], twin.pack) if twin and twin.pack and twin.pack.folds else x[start:stop]
            for twin, start, stop in self._runs(x.shape[0])
        ]
        return torch.cat(seen)

    def effect(self, x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor], folded: bool) -> Tensor:
        """`Slot.effect`, every row with its own adapters."""
        x, output = self.layout.whole(x), self.layout.whole(output)
        dtype = x.dtype if x.is_floating_point() else output.dtype
        if torch.compiler.is_compiling():
            self.slot.current(x.device, dtype)
            return self.all.plain_effect(x, output, forward, folded)
        self.prepare(x.device, dtype)
        if self.uniform:
            return self.all.plain_effect(x, output, forward, folded)
        runs = self._runs(output.shape[0])
        if torch.is_grad_enabled() or output._base is not None:
            changed = [self._changed(run, x, output, forward, folded) for run in runs]
            return changed[0] if len(changed) == 1 else torch.cat(changed)
        for run in runs:
            if run[0] is not None:
                output[run[1] : run[2]] = self._changed(run, x, output, forward, folded)
        return output

    def _changed(
        self, run: tuple[Slot | None, int, int], x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor],
        folded: bool,
    ) -> Tensor:  # fmt: skip
        """The output of one run of rows."""
        twin, start, stop = run
        rows = output[start:stop]
        if twin is None or twin.pack is None:
            return rows
        return twin.plain_effect(x[start:stop], rows, forward, folded and twin.pack.folds)
