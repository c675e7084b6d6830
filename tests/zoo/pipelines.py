"""Whole pipelines from the zoo's models, without a VAE: they give latents.

Prompts come as token ids: the text encoders are there, and what tokenizers do is nothing that an adapter changes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    WanPipeline,
    ZImagePipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.zoo import ZOO
from tests.zoo.specimen import flat, noise

IDS = torch.tensor([[1, 5, 7, 9, 2]])


def clip(seed: int, width: int, projection: int = 10, cls: type[nn.Module] = CLIPTextModel) -> nn.Module:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=20, num_attention_heads=2, num_hidden_layers=2, vocab_size=30,
        projection_dim=projection, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return cls(config).eval()


def t5(seed: int, width: int) -> nn.Module:
    torch.manual_seed(seed)
    config = T5Config(
        d_model=width, d_kv=8, d_ff=20, num_layers=2, num_heads=2, vocab_size=30, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config).eval()


def flux() -> FluxPipeline:
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), None, clip(1, 24), None, t5(2, 32), None, ZOO["flux1"].build()
    )


def sd3() -> StableDiffusion3Pipeline:
    first, second = (clip(seed, 8, cls=CLIPTextModelWithProjection) for seed in (1, 2))
    return StableDiffusion3Pipeline(
        ZOO["sd35_medium"].build(), FlowMatchEulerDiscreteScheduler(), None, first, None, second, None, t5(3, 24), None
    )


def qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, ZOO["qwen_image"].build())


def wan() -> WanPipeline:
    return WanPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), ZOO["wan"].build())


def zimage() -> ZImagePipeline:
    return ZImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, ZOO["zimage"].build())


def sana() -> SanaPipeline:
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    return SanaPipeline(None, None, None, ZOO["sana"].build(), scheduler)


PIPELINES = {
    "flux": flux, "sd3": sd3, "qwen_image": qwen_image, "wan": wan, "zimage": zimage, "sana": sana,
}  # fmt: skip


@torch.no_grad()
def prompt(name: str, pipe: Any) -> dict[str, Any]:
    """What the pipeline's text encoders make of the ids, as its own `encode_prompt` puts them together."""
    torch.manual_seed(5)
    if name == "flux":
        return {
            "pooled_prompt_embeds": pipe.text_encoder(IDS).pooler_output, "prompt_embeds": pipe.text_encoder_2(IDS)[0],
            "height": 48, "width": 48,
        }  # fmt: skip
    if name == "sd3":
        seen = [encoder(IDS, output_hidden_states=True) for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
        both = torch.cat([output.hidden_states[-2] for output in seen], dim=-1)
        long = pipe.text_encoder_3(IDS)[0]
        padded = nn.functional.pad(both, (0, long.shape[-1] - both.shape[-1]))
        pooled = torch.cat([output.text_embeds for output in seen], dim=-1)
        return {
            "prompt_embeds": torch.cat([padded, long], dim=1), "pooled_prompt_embeds": pooled, "guidance_scale": 1.0,
            "height": 64, "width": 64,
        }  # fmt: skip
    if name == "qwen_image":
        mask = torch.ones(1, 6, dtype=torch.long)
        return {"prompt_embeds": noise(1, 6, 20), "prompt_embeds_mask": mask, "height": 64, "width": 64}
    if name == "wan":
        return {
            "prompt_embeds": noise(1, 5, 20), "guidance_scale": 1.0, "height": 32, "width": 32, "num_frames": 5,
        }  # fmt: skip
    if name == "zimage":
        return {"prompt_embeds": [noise(6, 20)], "guidance_scale": 0.0, "height": 64, "width": 64}
    return {
        "prompt_embeds": noise(1, 5, 20), "prompt_attention_mask": torch.ones(1, 5), "guidance_scale": 1.0,
        "height": 256, "width": 256, "use_resolution_binning": False,
    }  # fmt: skip


@torch.no_grad()
def latents(name: str, pipe: Any) -> Tensor:
    """Two steps of denoising."""
    pipe.set_progress_bar_config(disable=True)
    given = prompt(name, pipe)
    generator = torch.Generator().manual_seed(3)
    made = pipe(**given, num_inference_steps=2, generator=generator, output_type="latent", return_dict=False)
    return flat(made[0])
