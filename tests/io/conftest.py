"""A small state dict and what a source should give for it."""

import pytest
import torch


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.lora_down.weight": torch.randn(4, 8, generator=generator),
        "a.lora_up.weight": torch.randn(8, 4, generator=generator).half(),
        "a.alpha": torch.tensor(4.0),
        "b.counts": torch.arange(3),
        "b.empty": torch.empty(0, 5),
        "b.brain": torch.randn(3, 2, generator=generator).bfloat16(),
    }


@pytest.fixture
def same():
    def check(read, expected):
        assert set(read) == set(expected)
        for key, tensor in expected.items():
            assert read[key].dtype == tensor.dtype, key
            assert read[key].shape == tensor.shape, key
            assert torch.equal(read[key], tensor), key

    return check
