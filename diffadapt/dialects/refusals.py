"""Files that look like adapters and are none: named, so that the user learns which loader wants them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from diffadapt.dialects.peft_prefix import KEY, is_prefix
from diffadapt.dialects.roles import split_role
from diffadapt.errors import NotAnAdapterError


class Refusal(NamedTuple):
    """A kind of file: the beginning of the keys that tell it, what it is, what to do with it.

    whole: only keys that are a module's own weight or bias count, because adapters have names that begin so too.
    """

    key: str
    what: str
    cure: str
    whole: bool = False


REFUSALS: tuple[Refusal, ...] = (
    Refusal(r"lora_controlnet$", "a control-lora (Stability AI)", "It replaces a ControlNet; Diffusers has no loader."),
    Refusal(r"[^.]*lllite_", "a ControlNet-LLLite", "It changes activations by an image, not weights."),
    Refusal(r"(image_proj|ip_adapter|image_proj_model)\.", "an IP-Adapter", "Load it with pipe.load_ip_adapter(...)."),
    Refusal(r"redux_(up|down)\.", "a Flux Redux image embedder", "Load it with FluxPriorReduxPipeline."),
    Refusal(r"prompt_embeddings|base_model\.prompt_encoder|(.+\.)?prompt_encoder\.", "a prompt or prefix tuning",
            "A prefix tuning loads from PEFT's folder, with its adapter_config.json; a prompt tuning only with PEFT."),
    Refusal(r"(320|640|768|1024|1280)\.\d+\.linear", "a hypernetwork", "Diffusers has no loader for hypernetworks."),
    Refusal(r"(control_model|controlnet_\w+)\.", "a whole ControlNet",
            "Load it with ControlNetModel.from_single_file or from_pretrained.", whole=True),
    Refusal(r"(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\.",
            "a whole checkpoint", "Load it with from_single_file(...).", whole=True),
    Refusal(r"(encoder\.(down|mid|conv_in)|decoder\.(up|mid|conv_in)|quant_conv|post_quant_conv)[._]", "a VAE",
            "Load it with AutoencoderKL.from_single_file or from_pretrained.", whole=True),
)  # fmt: skip
_PATTERNS = tuple((re.compile(refusal.key), refusal) for refusal in REFUSALS)
# What a whole model's file holds at least; an adapter with a few replaced tensors holds fewer.
_MANY = 8


def refuse(keys: Collection[str], name: str, config: Mapping[str, Any] | None = None) -> None:
    """Raise NotAnAdapterError, saying what the file is and how to load it, if its keys are of no adapter.

    config: the JSON beside the file, if any.
    """
    keys = [key for key in keys if key != KEY] if is_prefix(config) else keys
    plain = [key for key in keys if key.endswith((".weight", ".bias")) and _is_attribute(key)]
    # Whole tensors beside an adapter's are replacements (PEFT's modules_to_save, norms): the file is an adapter.
    only_plain = len(plain) == len(keys) or not any(map(_is_adapter_tensor, keys))
    for pattern, refusal in _PATTERNS:
        if refusal.whole and not only_plain:
            continue
        key = next((key for key in (plain if refusal.whole else keys) if pattern.match(key)), None)
        if key is not None:
            raise NotAnAdapterError(f"{name}: is {refusal.what} (key {key!r}), not a weight adapter. {refusal.cure}")
    if len(plain) >= _MANY and only_plain:
        raise NotAnAdapterError(
            f"{name}: holds whole weights and no tensor of an adapter (keys {plain[0]!r}, {plain[-1]!r}): a model's "
            "state dict. Load it with from_pretrained or from_single_file."
        )


def _is_attribute(key: str) -> bool:
    """Whether the key is a module's own weight or bias, not an adapter's (of a dialect still unknown: "..._lora1.")."""
    if "lora" in key:
        return False
    ending = split_role(key)
    return ending is None or ending.role in ("weight", "bias")


def _is_adapter_tensor(key: str) -> bool:
    ending = split_role(key)
    return ending is not None and ending.role not in ("weight", "bias")
