"""What the examples share: a Stable Diffusion pipeline of random weights, and checkpoints written by real trainers.

Everything is made on the spot, in a second, without a network. The pictures are noise; the arithmetic is the real one.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

PROMPT = "a cat in the rain"
OUT = Path(__file__).resolve().parent.parent / "out"


def unet(seed: int = 0) -> UNet2DConditionModel:
    """A UNet with Stable Diffusion's module names, 600 times smaller."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, sample_size=32, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=8,
    )  # fmt: skip


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=24)


def pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A complete text-to-image pipeline; the same seed gives the same weights."""
    from diffusers import StableDiffusionPipeline  # here, because it warns while it is imported

    torch.manual_seed(seed)
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=54,
        max_position_embeddings=24, bos_token_id=52, eos_token_id=53,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=64,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer(), unet=unet(seed),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: StableDiffusionPipeline, path: Path | None = None) -> Tensor:
    """The latents of one image, always from the same noise. path: also decode them and write a PNG there."""
    latents: Tensor = pipe(PROMPT, num_inference_steps=4, output_type="latent", generator=_noise()).images
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pipe(PROMPT, num_inference_steps=4, generator=_noise()).images[0]
        image.resize((256, 256), resample=0).save(path)
    return latents


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value of b."""
    return float((a - b).abs().max() / b.abs().max())


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timestep and text features for one call of the UNet."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(1, 4, 16, 16, generator=generator), torch.tensor([3]), torch.randn(1, 5, 32, generator=generator)


@torch.no_grad()
def lycoris_file(path: Path, algorithm: str, seed: int = 0, **options: Any) -> Tensor:
    """Train nothing, but let lycoris-lora write its file for the tiny UNet, as Kohya's scripts do.

    algorithm: "lora", "loha", "lokr", "diag-oft", "boft", ... Returns what LyCORIS' own forward gives on `inputs()`.
    """
    from lycoris import LycorisNetwork, create_lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    model = unet()
    LycorisNetwork.apply_preset({"target_module": ["Attention", "Transformer2DModel", "ResnetBlock2D"]})
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    network = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=2, algo=algorithm, **options)
    network.apply_to()
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "dora" in name:
            parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
        else:
            parameter.normal_(0, 0.1)
    save_file({k: v.detach().clone().contiguous() for k, v in network.state_dict().items()}, path)
    truth: Tensor = model(*inputs()).sample
    return truth


@torch.no_grad()
def peft_folder(folder: Path, seed: int = 0) -> Tensor:
    """Let PEFT write its adapter folder for the tiny UNet. Returns what PEFT's own forward gives on `inputs()`."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(unet(), LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.normal_(0, 0.2)
    model.save_pretrained(str(folder))
    truth: Tensor = model(*inputs()).sample
    return truth


def say(*words: object, end: str = "\n") -> None:
    """Print at once, also into a pipe."""
    print(*words, end=end, flush=True)
