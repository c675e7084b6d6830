"""The embedded adapters, applied by the libraries that wrote them: what their own code makes of a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffadapt.shapes import Sample


def apply(pipe: Any, sample: Sample) -> None:
    """Put the adapter onto the pipeline by its home library."""
    apply_file(pipe, sample.path, sample.layout)


def apply_file(pipe: Any, path: Path, layout: str) -> None:
    """Put a file or a folder onto a pipeline by its home library.

    layout: "Diffusers", "PEFT folder", "LyCORIS wrapper", or else that of LyCORIS' Kohya plugin.
    """
    if layout == "Diffusers":
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    elif layout == "PEFT folder":
        _peft(pipe, path)
    elif layout == "LyCORIS wrapper":
        _wrapped(pipe, path)
    else:
        _lycoris(pipe, path)


def _peft(pipe: Any, path: Path) -> None:
    from peft import PeftModel

    part = "unet" if hasattr(pipe, "unet") else "transformer"
    PeftModel.from_pretrained(getattr(pipe, part), str(path))  # the layers are put into the model itself


def _wrapped(pipe: Any, path: Path) -> None:
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    LycorisNetwork.LORA_PREFIX = "lycoris"  # of its class: others who used it may have left theirs
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    network, _ = create_lycoris_from_weights(1.0, str(path), model)
    network.apply_to()
    network.eval()


def _lycoris(pipe: Any, path: Path) -> None:
    from lycoris.kohya import LycorisNetworkKohya, create_network_from_weights

    # It first makes a network of all layers its lists name, some of them twice in these models.
    LycorisNetworkKohya.apply_preset(
        {
            "unet_target_module": [],
            "unet_target_name": [],
            "text_encoder_target_module": [],
            "text_encoder_target_name": [],
        }
    )
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    encoders = [part for name, part in pipe.components.items() if part is not None and name.startswith("text_encoder")]
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    text = encoders if len(encoders) > 1 else encoders[0]
    network, weights = create_network_from_weights(1.0, str(path), None, text, model)
    network.apply_to(None, None, bool(network.text_encoder_loras), True)
    if all(type(module).__name__ == "FullModule" for module in network.unet_loras + network.text_encoder_loras):
        return  # it holds base + difference since `apply_to`, and would add the difference once more
    found = network.load_state_dict(weights, strict=False)
    if found.unexpected_keys:
        raise RuntimeError(f"{path.name}: lycoris-lora does not take {found.unexpected_keys[:3]}")
    network.eval()
