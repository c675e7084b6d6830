"""Learned gates: strengths by adapter, block and progress of the denoising, found by training on pictures.

    gates = diffadapt.Gates(pipe, ["ink", "clay"], parts=4)
    optimizer = torch.optim.Adam(gates.parameters(), lr=1e-2)
    with pipe.adapters.gated(gates):
        loss(pipe.unet(noisy, timesteps, text).sample).backward()  # and so on
    pipe.adapters.set(gates.strengths())  # schedules by block, which a Recipe stores

It is a mixture of adapters whose router looks at the time and the place in the network instead of at the tokens: what
an adapter is needed for differs between early and late steps, and between blocks, and little else has to be known. The
table is small (4 parts x 2 adapters x 7 blocks of a UNet: 56 numbers), so that a few pictures are enough.

Sources of the idea: MoLE, "Mixture of LoRA Experts" (arXiv:2404.13628), which learns gates per layer, by its input;
and the schedules by step and block that people set by hand. The table is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.gating import Block, block_of
from diffadapt.inject.one_by_one import stack_of
from diffadapt.inject.scaling import Strength
from diffadapt.inject.schedule import points


class Gates(nn.Module):
    """A trainable table of strengths. Its one parameter is `table`, (parts, adapters, blocks), float32.

    Between the parts, which are spread evenly over the run, strengths lie on straight lines. Only models that run at
    every step have gates; text encoders keep the strength in force.
    """

    def __init__(self, pipeline: Any, adapters: Sequence[str], *, parts: int = 4) -> None:
        """The table starts with the strengths in force. parts: 1 for strengths that do not follow the denoising.

        Raises StackError for adapters that are not loaded, none at all, or none that acts on such a model.
        """
        super().__init__()
        if isinstance(adapters, str) or not adapters or len(set(adapters)) != len(adapters) or parts < 1:
            raise StackError(
                f"Gates take different adapters, by name, and one part or more, not {adapters!r}, {parts}."
            )
        values = {name: _by_block(stack_of(pipeline).values(name)) for name in adapters}
        self.adapters = tuple(adapters)
        self.blocks: tuple[Block, ...] = tuple(dict.fromkeys(block for own in values.values() for block in own))
        if not self.blocks:
            raise StackError(f"{', '.join(adapters)}: none acts on a model that runs at every step.")
        start = torch.tensor([[values[name].get(block, 0.0) for block in self.blocks] for name in adapters])
        self.table = nn.Parameter(start.repeat(parts, 1, 1))

    def at(self, progress: Tensor) -> Tensor:
        """The strengths (n, adapters, blocks) at the progress, (n,), of n samples."""
        last = len(self.table) - 1
        place = progress.to(self.table).clamp(0, 1) * last
        below = place.floor().long().clamp(max=max(last - 1, 0))
        above = (below + 1).clamp(max=last)
        return torch.lerp(self.table[below], self.table[above], (place - below)[:, None, None])

    def strengths(self) -> dict[str, Strength]:
        """adapter -> strength by block, as a schedule, for `pipe.adapters.set` and recipes."""
        rows = self.table.detach().double().cpu()
        last = max(len(rows) - 1, 1)
        found: dict[str, Strength] = {}
        for a, name in enumerate(self.adapters):
            parts: dict[str, dict[str, Strength]] = {}
            for b, (component, block) in enumerate(self.blocks):
                values = rows[:, a, b].tolist()
                pairs = [(i / last, value) for i, value in enumerate(values)]
                parts.setdefault(component, {})[block] = points(pairs) if len(values) > 1 else values[0]
            found[name] = dict(parts)
        return found


def _by_block(values: Mapping[TargetKey, float]) -> dict[Block, float]:
    """The mean strength of each block."""
    held: dict[Block, list[float]] = {}
    for key, value in values.items():
        if "encoder" not in key.component:
            held.setdefault(block_of(key), []).append(value)
    return {block: sum(own) / len(own) for block, own in held.items()}
