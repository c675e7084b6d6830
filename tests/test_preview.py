"""Rough pictures of unfinished latents, against those that the pipelines themselves make of finished ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    QwenImagePipeline,
    WanPipeline,
)
from PIL import Image
from torch import Tensor

from diffadapt import shapes
from diffadapt.preview import SIDE, preview
from tests.take_over import pipelines
from tests.zoo import ZOO
from tests.zoo.pipelines import clip, prompt, t5

STEP = 1
"""Pictures may differ by one of 256 values: where a number is rounded that lies between two."""


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[8, 8], down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=channels, **options,
    ).eval()  # fmt: skip


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures of one size."""
    assert one.size == other.size
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", shapes.PIPELINES)
def test_small_latents_are_the_pipelines_own_picture(name: str) -> None:
    pipe = shapes.load(name)
    seen: dict[str, Any] = {}

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen["bits"] = {key: value.clone() for key, value in pipe.vae.state_dict().items()}
        seen[f"picture {step}"], seen["latents"] = preview(pipe, tensors["latents"]), tensors["latents"]
        return tensors

    made = shapes.picture(
        pipe, ["a red star on a blue background", "a white heart"], [3, 4], num_inference_steps=3,
        callback_on_step_end=after,
    )  # fmt: skip
    assert max(seen["latents"].shape[-2:]) <= SIDE
    assert len(np.unique(np.asarray(made[0]))) > 100
    assert apart(seen["picture 2"], made[0]) <= STEP
    assert apart(seen["picture 2"], made[1]) > 50
    assert apart(seen["picture 0"], made[0]) > 20  # unfinished
    assert all(torch.equal(value, seen["bits"][key]) for key, value in pipe.vae.state_dict().items())
    large = preview(pipe, torch.nn.functional.interpolate(seen["latents"], scale_factor=12))
    factor = made[0].size[0] // seen["latents"].shape[-1]
    assert large is not None
    assert max(large.size) == factor * SIDE < 12 * made[0].size[0]


def test_large_latents_are_made_smaller_in_proportion() -> None:
    pipe = pipelines.sd()
    noise = random(1, 4, 16, 24)
    small = preview(pipe, noise)
    large = preview(pipe, noise.repeat_interleave(4, -1).repeat_interleave(4, -2))
    assert small is not None
    assert large is not None
    assert small.size == (48, 32)
    assert large.size == (2 * SIDE, 2 * SIDE * 16 // 24)
    narrow = preview(pipe, random(1, 4, 2, 500))
    assert narrow is not None
    assert narrow.size == (2 * SIDE, 2)


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(**{**ZOO["flux1"].config, "in_channels": 16}).eval()
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae(scaling_factor=0.36, shift_factor=0.11), clip(1, 24), None, t5(2, 32),
        None, transformer,
    )  # fmt: skip


def test_packed_latents_as_flux_has_them() -> None:
    pipe = flux()
    pipe.set_progress_bar_config(disable=True)
    given = {**prompt("flux", pipe), "height": 32, "width": 48, "num_inference_steps": 1}
    seen: list[Tensor] = []

    def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    made = pipe(**given, generator=torch.Generator().manual_seed(0), callback_on_step_end=after).images[0]
    (latents,) = seen
    assert latents.ndim == 3
    found = preview(pipe, latents, (48, 32))
    assert found is not None
    assert len(np.unique(np.asarray(made))) > 20
    assert apart(found, made) <= STEP
    assert preview(pipe, latents) is None  # nobody says how wide they are
    assert preview(pipe, latents, (64, 64)) is None  # as many tokens make no such picture
    turned = preview(pipe, latents, (32, 48))
    assert turned is not None
    assert turned.size == (32, 48)


def test_means_and_deviations_of_the_latents() -> None:
    """Playground's and others' are in the VAE's config; the pipeline is SDXL's."""
    pipe = pipelines.sdxl()
    mean, std = [-1.6, 1.1, 0.8, 0.3], [8.4, 5.9, 7.0, 5.3]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    latents = pipelines.run(pipe, num_inference_steps=1)
    made = pipelines_picture(pipe, num_inference_steps=1)
    found = preview(pipe, latents)
    assert found is not None
    assert apart(found, made) <= STEP
    pipe.vae.register_to_config(latents_mean=None, latents_std=None)
    assert apart(preview(pipe, latents), made) > STEP


def pipelines_picture(pipe: Any, **options: Any) -> Image.Image:
    """The picture of the same run as `pipelines.run`."""
    settings = {"height": 16, "width": 16, **options}
    return pipe("a squirrel", generator=torch.manual_seed(0), **settings).images[0]


class Half(torch.nn.Module):
    """A VAE that overflows in half precision, as SDXL's does."""

    def __init__(self, force_upcast: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(4, 3, 1)
        self.config = SimpleNamespace(scaling_factor=1.0, force_upcast=force_upcast)
        self.seen: list[torch.dtype] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    device = torch.device("cpu")

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.seen.append(latents.dtype)
        return (self.layer(latents),)


@pytest.mark.parametrize(
    ("dtype", "upcast", "used"),
    [
        (torch.float16, True, torch.float32),
        (torch.float16, False, torch.float16),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float32, True, torch.float32),
    ],
)
def test_a_vae_that_overflows_in_half_precision_is_not_used_in_it(dtype, upcast, used) -> None:
    pipe = SimpleNamespace(vae=Half(upcast).to(dtype), image_processor=pipelines.sd().image_processor)
    before = pipe.vae.layer.weight.clone()
    assert preview(pipe, random(1, 4, 8, 8).to(dtype)) is not None
    assert pipe.vae.seen == [used]
    assert pipe.vae.dtype == dtype
    assert torch.equal(pipe.vae.layer.weight, before)


def without_pictures() -> dict[str, tuple[Any, Tensor]]:
    """Pipelines whose latents are none of a picture, or are packed in ways of their own."""
    torch.manual_seed(0)
    video = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    scheduler, images = FlowMatchEulerDiscreteScheduler(), pipelines.sd().image_processor
    sd = pipelines.sd()
    return {
        "video": (WanPipeline(None, None, video, scheduler, None), random(1, 4, 2, 4, 4)),
        "video with a picture's VAE": (sd, random(1, 4, 2, 4, 4)),
        "a picture of a video's VAE": (SimpleNamespace(vae=video, image_processor=images), random(1, 4, 4, 4)),
        "packed video": (LTXPipeline(scheduler, None, None, None, None), random(1, 16, 4)),
        "packed video with a picture's VAE": (
            SimpleNamespace(vae=sd.vae, image_processor=images, _unpack_latents=LTXPipeline._unpack_latents),
            random(1, 16, 4),
        ),
        "one frame": (QwenImagePipeline(scheduler, video, None, None, None), random(1, 4, 16)),
        "packed and never unpacked": (sd, random(1, 16, 4)),
        "no VAE": (SimpleNamespace(vae=None, image_processor=images), random(1, 4, 8, 8)),
        "sound": (SimpleNamespace(vae=sd.vae), random(1, 4, 8, 8)),
    }


def test_other_latents_have_no_preview() -> None:
    for kind, (pipe, latents) in without_pictures().items():
        assert preview(pipe, latents, (64, 64)) is None, kind
