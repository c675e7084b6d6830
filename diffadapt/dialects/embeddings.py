"""Textual-inversion vectors: packed into adapter files, or a file of their own.

Keys: `bundle_emb.<token>.<encoder>` (OneTrainer), `bundle_emb.<token>.string_to_param.*` (sd-webui bundles),
`emb_params` (ai-toolkit), `clip_l` / `clip_g` alone (Kohya, ComfyUI), `string_to_param.*` (sd-webui), and
`{token: vectors}` (Diffusers).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from diffadapt.adapter import Embedding

BUNDLE = "bundle_emb."
_PARAM = "string_to_param"
# By the width of their vectors: which component of a Stable Diffusion pipeline they belong to.
_ENCODERS = {
    "clip_l": "text_encoder", "clip_g": "text_encoder_2", "clip_h": "text_encoder", "t5": "text_encoder_3",
    "t5xxl": "text_encoder_3", "emb_params": "text_encoder",
}  # fmt: skip
_BUNDLED = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5"}
_NARROWEST = 16
_LEFT_OVER = frozenset({"string_to_token", "name", "step", "sd_checkpoint", "sd_checkpoint_name"})


def take_embeddings(
    tensors: Mapping[str, Tensor], name: str, whole: bool, slots: Mapping[str, str]
) -> tuple[dict[str, Embedding], set[str]]:
    """The embeddings of a file by placeholder, and the keys that they are made of.

    name: the placeholder where the file names none. whole: whether a file of its own is acceptable, which is told by
    there being nothing else in it. slots: the family's components by encoder ("clip_g", ...).
    """
    found: dict[str, dict[str, Tensor]] = {}
    taken: set[str] = set()
    for key in tensors:
        place = _place(key, name, slots)
        if place is not None:
            token, component = place
            found.setdefault(token, {})[component] = _rows(tensors[key])
            taken.add(key)
    rest = [key for key in tensors if key not in taken]
    if whole and not taken and rest and all(_is_vectors(key, tensors[key]) for key in rest):
        found = {key: {"text_encoder": _rows(tensors[key])} for key in rest}
        taken = set(rest)
    return {token: Embedding(token, vectors) for token, vectors in found.items()}, taken


def _place(key: str, name: str, slots: Mapping[str, str]) -> tuple[str, str] | None:
    """The placeholder and component of an embedding's key."""
    if key.startswith(BUNDLE):
        token, _, rest = key[len(BUNDLE) :].partition(".")
        encoder = rest.split(".")[0]
        if encoder == _PARAM:
            return token, "text_encoder"
        # `_out` vectors are added behind the encoder: no token rows, so they keep a name of their own.
        plain = encoder.removesuffix("_out")
        known = slots.get(plain, _ENCODERS.get(plain, plain))
        return token, f"{known}_out" if encoder.endswith("_out") else known
    if key in _ENCODERS:
        return name, slots.get(key, _ENCODERS[key])
    if key.startswith(f"{_PARAM}."):
        return name, "text_encoder"
    return None


def _rows(tensor: Tensor) -> Tensor:
    """(tokens, dim), also for one vector."""
    return tensor.reshape(1, -1) if tensor.ndim == 1 else tensor


def _is_vectors(key: str, tensor: Tensor) -> bool:
    """Diffusers' form: the key is the placeholder, so it is no dotted name."""
    return "." not in key and tensor.is_floating_point() and tensor.ndim in (1, 2) and tensor.shape[-1] >= _NARROWEST


def bundle_keys(embeddings: Mapping[str, Embedding]) -> dict[str, Tensor]:
    """The embeddings by the keys of OneTrainer's bundles, which `take_embeddings` reads back."""
    keys: dict[str, Tensor] = {}
    for token, embedding in embeddings.items():
        for component, vectors in embedding.vectors.items():
            part, behind, _ = component.partition("_out")
            keys[f"{BUNDLE}{token}.{_BUNDLED.get(part, part)}{behind}"] = vectors
    return keys


def is_left_over(key: str) -> bool:
    """Whether the key is what else a textual-inversion file of sd-webui holds."""
    return key.partition(".")[0] in _LEFT_OVER
