"""An adapter acts where its mask is: on a UNet's grid of latents and on a transformer's tokens."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import diffadapt
from diffadapt import StackError
from diffadapt.inject.regional import _fitted, as_mask, grid
from tests.tiny import alone

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def left_of(output: torch.Tensor) -> torch.Tensor:
    """1 in the left half, 0 in the right half, in a shape that multiplies an output: latents, or 2 x 2 tokens."""
    if output.dim() == 3:
        return torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]
    width = output.shape[-1]
    return (torch.arange(width) < width / 2).float()


def test_each_half_is_predicted_by_its_own_adapter(case):
    owner, model, run = case
    a, b = (alone(owner, run, {name: 0.7, "c": 0.3}) for name in ("a", "b"))
    owner.adapters.set({"a": 0.7, "b": 0.7, "c": 0.3})
    together = run()
    with diffadapt.regional(owner, {"a": LEFT, "b": RIGHT}) as same:
        assert same is owner
        seen = run()
    left = left_of(seen)
    assert torch.allclose(seen, a * left + b * (1 - left), atol=1e-6)
    assert not torch.allclose(seen, together, atol=1e-3)
    assert torch.equal(run(), together)
    assert "forward" not in vars(model)


def test_what_no_mask_covers_is_left_as_it_was(case):
    owner, _, run = case
    a, rest = alone(owner, run, {"a": 1.0, "c": 1.0}), alone(owner, run, {"c": 1.0})
    owner.adapters.set({"a": 1.0, "c": 1.0})
    with diffadapt.regional(owner, {"a": LEFT}):
        seen = run()
    left = left_of(seen)
    assert torch.allclose(seen, a * left + rest * (1 - left), atol=1e-6)


def test_masks_blend_and_share(case):
    owner, _, run = case
    base, a, b = (alone(owner, run, strengths) for strengths in ({"a": 0.0}, {"a": 1.0}, {"b": 1.0}))
    half, whole = torch.full((6, 6), 0.5), torch.ones(6, 6)
    owner.adapters.set({"a": 1.0, "b": 1.0})
    with diffadapt.regional(owner, {"a": half, "b": whole}):  # one part to two
        assert torch.allclose(run(), (a + 2 * b) / 3, atol=1e-6)
    owner.adapters.set({"a": 1.0})
    with diffadapt.regional(owner, {"a": half}):
        assert torch.allclose(run(), (base + a) / 2, atol=1e-6)
    with diffadapt.regional(owner, {"a": whole}):
        assert torch.allclose(run(), a, atol=1e-6)


def test_what_is_no_region_is_refused(case):
    owner, model, run = case
    for regions, message in (
        ({}, "adapter -> mask"), ({"x": LEFT}, "No adapter is named 'x'"),
        ({"a": (0.5, 0, 0.5, 1)}, "'a' is the box"), ({"a": torch.ones(3)}, "'a' is .3,"),
        ({"a": torch.full((2, 2), 2.0)}, "from 2 to 2"), ({"a": torch.full((2, 2), torch.nan)}, "expected .height"),
    ):  # fmt: skip
        with pytest.raises(StackError, match=message), diffadapt.regional(owner, regions):
            pass
    together = run()
    owner.adapters.merge(["a"])
    with pytest.raises(StackError, match="'a' is merged"), diffadapt.regional(owner, {"a": LEFT}):
        pass
    owner.adapters.unmerge()
    assert torch.equal(run(), together)
    assert "forward" not in vars(model)


def test_a_picture_is_a_mask():
    picture = Image.new("RGB", (4, 2), "black")
    picture.paste((255, 255, 255), (0, 0, 2, 2))
    assert as_mask("a", picture).tolist() == [[1, 1, 0, 0]] * 2
    assert as_mask("a", [[0.0, 1.0]]).tolist() == [[0, 1]]
    box = as_mask("a", (0.25, 0.5, 1, 1))
    assert box[:512].sum() == 0
    assert torch.equal(box[512:].mean(0), (torch.arange(1024) >= 256).float())


def ids(*pictures: tuple[int, int]) -> torch.Tensor:
    """Flux's places: the number of the picture, row, column."""
    places = [(n, row, column) for n, (h, w) in enumerate(pictures) for row in range(h) for column in range(w)]
    return torch.tensor(places)


@pytest.mark.parametrize(
    ("tokens", "call", "aspect", "expected"),
    [
        (12, {}, 0.75, (1, 4, 3)),
        (12, {"img_ids": ids((2, 6))}, 1.0, (1, 2, 6)),
        (16, {"img_ids": ids((2, 6), (2, 2))}, 1.0, (1, 2, 6)),
        (12, {"img_ids": ids((2, 6))[None]}, 1.0, (1, 2, 6)),
        (16, {"img_shapes": [[(1, 2, 6), (1, 2, 2)]]}, 1.0, (1, 2, 6)),
        (24, {"num_frames": 2, "height": 2, "width": 6}, 1.0, (2, 2, 6)),
    ],
)  # fmt: skip
def test_tokens_lie_on_a_grid(tokens, call, aspect, expected):
    assert grid(tokens, call, aspect) == expected


@pytest.mark.parametrize(("tokens", "call"), [(13, {}), (4, {"num_frames": 2, "height": 2, "width": 6})])
def test_tokens_without_a_grid_are_refused(tokens, call):
    with pytest.raises(StackError, match="tokens"):
        grid(tokens, call, 1.0)


def test_every_frame_of_a_video_has_the_mask():
    output = torch.zeros(1, 9, 3)  # two frames of two by two, and a token to look at
    there = _fitted(as_mask("a", LEFT), output, {"num_frames": 2, "height": 2, "width": 2})
    assert there.flatten().tolist() == [1, 0, 1, 0] * 2 + [0]
    assert _fitted(as_mask("a", LEFT), torch.zeros(1, 4, 2, 4, 4), {}).tolist() == [[1, 1, 0, 0]] * 4
