"""The loss against plain formulas, and what a denoiser is told against what its own pipeline tells it."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

import diffadapt
from diffadapt.apps.trainer.kinds import kind_of
from diffadapt.apps.trainer.lesson import Lesson, Texts
from diffadapt.apps.trainer.material import Batch, Place
from diffadapt.apps.trainer.objectives import objective
from diffadapt.apps.trainer.settings import Loss
from diffadapt.errors import TrainingError
from tests.apps.trained import small

PROMPT = "a red star on a blue background"


def clean(count: int = 6) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def random() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def kept_share(steps: int = 1000) -> numpy.ndarray:
    """How much of a picture's variance is left after each step of Stable Diffusion's schedule."""
    return numpy.cumprod(1 - numpy.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2)


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_diffusion_is_the_plain_formula(kind: Any, predicts: str) -> None:
    """Whatever scheduler a pipeline draws with, and at whatever step it stands."""
    scheduler = kind(**SCHEDULE, prediction_type=predicts)
    scheduler.set_timesteps(5)
    x, guess = clean(), torch.randn(6, 4, 8, 8)
    found = objective(scheduler, Loss()).noised(x, random())
    draws = random()
    noise, times = torch.randn(x.shape, generator=draws), torch.randint(0, 1000, (6,), generator=draws)
    kept = torch.from_numpy(kept_share()[times.numpy()]).float()[:, None, None, None]
    noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
    target = noise if predicts == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * x
    torch.testing.assert_close(found.noisy, noisy)
    assert torch.equal(found.times, times)
    torch.testing.assert_close(found.error(guess), ((guess - target) ** 2).mean())


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_min_snr_weighs_as_its_paper_says(predicts: str) -> None:
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=predicts)
    found = objective(scheduler, Loss(min_snr=5.0)).noised(clean(64), random())
    kept = kept_share()[found.times.numpy()]
    ratio = kept / (1 - kept)
    divisor = ratio if predicts == "epsilon" else ratio + 1
    expected = torch.from_numpy(numpy.minimum(ratio, 5.0) / divisor).float()
    assert ratio.min() < 1
    assert ratio.max() > 5
    torch.testing.assert_close(found.weights, expected, rtol=1e-4, atol=1e-5)
    guess = torch.zeros_like(found.target)
    torch.testing.assert_close(found.error(guess), (expected * (found.target**2).mean((1, 2, 3))).mean())


def test_min_snr_bears_a_step_without_any_signal() -> None:
    scheduler = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    found = objective(scheduler, Loss(min_snr=5.0))
    weights = found._weights(torch.tensor([999]))
    assert weights.isfinite().all()


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_the_plain_formula(shift: float) -> None:
    x, guess = clean(), torch.randn(6, 4, 8, 8)
    found = objective(FlowMatchEulerDiscreteScheduler(shift=shift), Loss(logit_mean=0.2, logit_std=0.8)).noised(
        x, random()
    )
    draws = random()
    noise = torch.randn(x.shape, generator=draws)
    share = 1 / (1 + torch.exp(-(0.2 + 0.8 * torch.randn(6, generator=draws))))
    share = shift * share / (1 + (shift - 1) * share)
    torch.testing.assert_close(found.times, share * 1000)
    torch.testing.assert_close(found.noisy, x + share[:, None, None, None] * (noise - x))
    torch.testing.assert_close(found.error(guess), ((guess - (noise - x)) ** 2).mean())


def test_the_shift_of_flux_grows_with_the_picture_as_its_scheduler_says() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    for tokens, mu in ((256, 0.5), (4096, 1.15), (1024, 0.5 + 0.65 * 768 / 3840)):
        found = objective(scheduler, Loss(), tokens)
        times = torch.tensor([0.1, 0.5, 0.9])
        ours = found.shift * times / (1 + (found.shift - 1) * times)
        torch.testing.assert_close(ours, scheduler.time_shift(mu, 1.0, times), msg=f"{tokens}")
        assert found.shift == pytest.approx(math.exp(mu))


def test_a_scheduler_of_another_kind_is_refused() -> None:
    with pytest.raises(TrainingError, match="predicts 'sample'; training knows 'epsilon' and 'v_prediction'"):
        objective(DDIMScheduler(prediction_type="sample"), Loss())


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_lesson_is_the_error_of_the_pipelines_own_denoiser(name: str) -> None:
    """The whole way of a step, by hand: prompts, noise, the denoiser with its adapter, the mean squared error."""
    pipe = diffadapt.enable(small(name))
    pipe.adapters.add("new", rank=2, seed=3)
    with torch.no_grad():
        for parameter in pipe.adapters.parameters("new"):
            parameter.normal_(0, 0.05, generator=random())
    kind = kind_of(pipe, Loss(), 16 if name == "dit" else 0)
    x, place = torch.randn(2, 4, 16, 16, generator=random()), Place(1, 4)
    batch = Batch(x, [PROMPT, "a green heart on a white background"], [(64, 64)] * 2, (64, 64), weight=0.5)
    lesson = Lesson(kind, Texts(kind, trained=False), 0.0, pipe.adapters, "new")
    noised = kind.objective((64, 64)).noised(x, place.generator("noise 0"))
    with torch.no_grad():
        if name == "unet":
            text, _ = pipe.encode_prompt(batch.captions, "cpu", 1, False)
            made = pipe.unet(noised.noisy, noised.times, text).sample
        else:
            found = pipe.encode_prompt(
                batch.captions, None, None, do_classifier_free_guidance=False, max_sequence_length=16
            )
            made = pipe.transformer(noised.noisy, found[0], found[2], noised.times).sample
        loss = lesson([batch], place)
    torch.testing.assert_close(loss, 0.5 * ((made - noised.target) ** 2).mean(), rtol=1e-4, atol=1e-5)


class Told:
    """What a denoiser was called with the last time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.given: dict[str, Any] = {}
        names = ("sample", "timestep", "encoder_hidden_states")

        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.given = {**dict(zip(names, args, strict=False)), **kwargs}

        model.register_forward_pre_hook(keep, with_kwargs=True)


@pytest.mark.parametrize("name", ["unet", "xl", "dit", "flux", "schnell"])
def test_a_denoiser_is_told_what_its_pipeline_tells_it(name: str) -> None:
    """Text, times, sizes, places and guidance, for a picture twice as wide as high."""
    pipe = small(name)
    pipe.set_progress_bar_config(disable=True)
    kind = kind_of(pipe, Loss(guidance=2.5), 16)
    told = Told(kind.model)
    options: dict[str, Any] = {"guidance_scale": 2.5 if name in ("flux", "schnell") else 1.0}
    options |= {} if name in ("unet", "xl") else {"max_sequence_length": 16}
    pipe(PROMPT, height=32, width=64, num_inference_steps=1, output_type="latent", **options)
    theirs = dict(told.given)
    latents = theirs.get("sample", theirs.get("hidden_states"))
    if name in ("flux", "schnell"):
        latents = pipe._unpack_latents(latents, 32, 64, pipe.vae_scale_factor)
    times = torch.as_tensor(theirs["timestep"]).reshape(-1)[:1] * (1000 if name in ("flux", "schnell") else 1)
    kind.predict(latents, times, kind.text([PROMPT]), [(64, 32)])
    ours = told.given
    for key in (
        "sample",
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "img_ids",
        "txt_ids",
        "guidance",
    ):
        assert (key in theirs) == (key in ours), key
        if theirs.get(key) is None:
            assert ours.get(key) is None, key
        else:
            torch.testing.assert_close(ours[key], theirs[key].reshape(ours[key].shape), msg=key)
    if name == "xl":
        for key, value in theirs["added_cond_kwargs"].items():
            torch.testing.assert_close(ours["added_cond_kwargs"][key], value, msg=key)
    torch.testing.assert_close(
        torch.as_tensor(ours["timestep"]).reshape(-1), torch.as_tensor(theirs["timestep"]).reshape(-1)
    )


def test_the_latents_of_a_picture_give_the_picture_again() -> None:
    pipe = small("unet")
    kind = kind_of(pipe, Loss())
    red, blue = (
        torch.tensor(colour)[None, :, None, None] * 2 - 1 for colour in ((0.86, 0.10, 0.12), (0.12, 0.30, 0.88))
    )
    seen = blue.repeat(1, 1, 64, 64)
    seen[:, :, 16:48, 16:48] = red
    latents = kind.encode(seen)
    with torch.no_grad():
        again = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    assert (again - seen).abs().mean() < 0.06


def test_xl_leaves_a_prompt_out_as_its_base_does() -> None:
    kind = kind_of(small("xl"), Loss())
    assert all(not part.any() for part in kind.nothing())
    kind.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert all(part.any() for part in kind.nothing())


def test_xl_is_told_where_a_picture_was_cut() -> None:
    kind = kind_of(small("xl"), Loss())
    told = Told(kind.model)
    kind.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), kind.text([PROMPT]), [(256, 128)])
    # 256 x 128 becomes 128 x 64, of whose width the middle 64 are kept.
    assert told.given["added_cond_kwargs"]["time_ids"].tolist() == [[128, 256, 0, 32, 64, 64]]
