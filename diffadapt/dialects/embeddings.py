"""Textual-inversion vectors: packed into adapter files, or a file of their own.

Keys: `bundle_emb.<token>.<encoder>` (OneTrainer), `bundle_emb.<token>.string_to_param.*` (sd-webui bundles),
`emb_params` (ai-toolkit), `clip_l` / `clip_g` alone (Kohya, ComfyUI), `string_to_param.*` (sd-webui), and
`{token: vectors}` (Diffusers).

Files of the last two kinds do not say all: placeholders beside `clip_l`, the encoder beside a token. Ours note it in
their header, where no loader looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from diffadapt.adapter import Embedding
from diffadapt.errors import DialectError

NOTE = "diffadapt.embeddings"
"""Our own note in the header, JSON: key -> [component, [[placeholder, number of vectors], ...]]."""
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
    tensors: Mapping[str, Tensor], name: str, whole: bool, slots: Mapping[str, str], note: str | None = None
) -> tuple[dict[str, Embedding], set[str]]:
    """The embeddings of a file by placeholder, and the keys that they are made of.

    name: the placeholder where the file names none. whole: whether a file of its own is acceptable, which is told by
    there being nothing else in it. slots: the family's components by encoder ("clip_g", ...). note: `NOTE` of the
    file's header. Raises DialectError for a note that is none, or not of this file.
    """
    found: dict[str, dict[str, Tensor]] = {}
    taken: set[str] = set()
    if note is not None:
        for key, component, tokens in _noted(note, tensors):
            parts = torch.split(_rows(tensors[key]), [count for _, count in tokens])
            for (token, _), part in zip(tokens, parts, strict=True):
                found.setdefault(token, {})[component] = part
            taken.add(key)
    for key in [key for key in tensors if key not in taken]:
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


def _noted(note: str, tensors: Mapping[str, Tensor]) -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Key, component, and the placeholders with their numbers of vectors, of every key that a note is about."""
    try:
        read = [
            (str(key), str(component), [(str(token), int(count)) for token, count in tokens])
            for key, (component, tokens) in json.loads(note).items()
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DialectError(
            f"{NOTE} in the header is not as we write it ({error}). Save the embedding again."
        ) from error
    for key, _, tokens in read:
        counts = [count for _, count in tokens]
        if key not in tensors or min(counts, default=0) < 1 or sum(counts) != _rows(tensors[key]).shape[0]:
            raise DialectError(f"{NOTE} in the header tells of a tensor {key!r} with {counts} vectors, and none is so.")
    return read


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


def embedding_file(embeddings: Mapping[str, Embedding]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a file of embeddings alone, as Diffusers' `load_textual_inversion` takes them.

    For one encoder: `{token: vectors}`. For several: a tensor for each by its name (`clip_l`, `clip_g`, `t5xxl`), with
    the vectors of all placeholders in order, which Diffusers loads encoder by encoder.
    """
    components = list(dict.fromkeys(part for embedding in embeddings.values() for part in embedding.vectors))
    names = {**_BUNDLED, "text_encoder_3": "t5xxl"}
    tensors: dict[str, Tensor] = {}
    note: dict[str, tuple[str, list[tuple[str, int]]]] = {}
    for part in components:
        rows = {token: _rows(e.vectors[part]) for token, e in embeddings.items() if part in e.vectors}
        by_key = (
            {token: {token: own} for token, own in rows.items()}
            if len(components) == 1
            else {names.get(part, part): rows}
        )
        for key, own in by_key.items():
            tensors[key] = torch.cat(list(own.values())) if len(own) > 1 else next(iter(own.values()))
            note[key] = (part, [(token, one.shape[0]) for token, one in own.items()])
    return tensors, {NOTE: json.dumps(note)}


def is_left_over(key: str) -> bool:
    """Whether the key is what else a textual-inversion file of sd-webui holds."""
    return key.partition(".")[0] in _LEFT_OVER
