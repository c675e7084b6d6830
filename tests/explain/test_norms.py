"""Norms of deltas against those of their dense changes."""

from __future__ import annotations

import pytest
import torch

from diffadapt.algorithms import Context, TensorGroup, parse_group
from diffadapt.explain.norms import norm_of

SHAPE = (12, 8, 3, 3)


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


TENSORS = {
    "lora": {"lora_down": randn(4, 8, 3, 3), "lora_up": randn(12, 4, 1, 1), "alpha": torch.tensor(2.0)},
    "tucker": {"lora_down": randn(4, 8, 1, 1), "lora_up": randn(12, 4, 1, 1), "lora_mid": randn(4, 4, 3, 3)},
    "loha": {"hada_w1_a": randn(12, 2), "hada_w1_b": randn(2, 72), "hada_w2_a": randn(12, 2),
             "hada_w2_b": randn(2, 72)},
    "loha_tucker": {
        "hada_w1_a": randn(2, 12), "hada_w1_b": randn(2, 8), "hada_t1": randn(2, 2, 3, 3),
        "hada_w2_a": randn(2, 12), "hada_w2_b": randn(2, 8), "hada_t2": randn(2, 2, 3, 3),
    },
    "lokr": {"lokr_w1": randn(3, 2), "lokr_w2": randn(4, 4, 3, 3)},
    "lokr_pairs": {
        "lokr_w1_a": randn(3, 2), "lokr_w1_b": randn(2, 2), "lokr_w2_a": randn(4, 2), "lokr_w2_b": randn(2, 36),
        "alpha": torch.tensor(3.0),
    },
    "lokr_tucker": {"lokr_w1": randn(3, 2), "lokr_t2": randn(2, 2, 3, 3), "lokr_w2_a": randn(2, 4),
                    "lokr_w2_b": randn(2, 4)},
    "full": {"diff": randn(*SHAPE)},
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_the_norm_is_that_of_the_dense_change(name):
    delta = parse_group(TensorGroup(name, TENSORS[name]), Context())
    dense = delta.weight_delta(torch.zeros(SHAPE)).double().norm()
    assert norm_of(delta) == pytest.approx(float(dense), rel=1e-5)


def test_what_needs_the_base_weight_has_no_norm():
    tensors = {**TENSORS["lora"], "dora_scale": randn(12, 1, 1, 1)}
    assert norm_of(parse_group(TensorGroup("dora", tensors), Context())) is None
    assert norm_of(parse_group(TensorGroup("bias", {"diff_b": randn(12)}), Context())) is None
