"""Gemma Scope: 1 has ``params.npz``, 2 ``params.safetensors`` and perhaps a ``config.json``.

Both are JumpReLU dictionaries that take no bias from their input. Neither file names its place: the
folders do (``gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71``).
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np

from jaxalign.checkpoints.dictionaries.facts import DictionaryFacts, Settings, TrainedDictionary
from jaxalign.checkpoints.dictionaries.tensors import (
    check_sizes,
    read_npz,
    read_safetensors,
    write_safetensors,
)
from jaxalign.dictionaries.dictionary import Dictionary, check_dictionary
from jaxalign.errors import InputError
from jaxalign.runtime.files import read_json, replace_file

LAYOUT, ARCHIVE, WEIGHTS, CONFIG = (
    "gemma_scope",
    "params.npz",
    "params.safetensors",
    "config.json",
)
FIRST = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
SECOND = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")
SKIP = "affine_skip_connection"
WIDTHS = {"k": 1 << 10, "m": 1 << 20}
# Point, what it is counted from, and whether a norm of the model stands before it.
PLACES = {
    "resid_post": ("resid", 1, False),
    "res": ("resid", 1, False),
    "mlp_out": ("mlp_out", 0, True),
    "mlp": ("mlp_out", 0, True),
    "attn_out": ("z", 0, False),
    "att": ("z", 0, False),
    "transcoder": ("mlp_out", 0, True),
}


def recognises(folder: Path) -> bool:
    """Whether a folder holds what Gemma Scope publishes."""
    return (folder / ARCHIVE).is_file() or (folder / WEIGHTS).is_file()


def read(folder: Path) -> TrainedDictionary:
    """The dictionary of a folder.

    Args:
        folder: holds the file; what is above it names model and place.

    Raises:
        InputError: a missing or damaged file, tensors that do not fit each other, a width that the
            folder's name says otherwise, or a set on embeddings, whose scale is not published.
    """
    first = (folder / ARCHIVE).is_file()
    path = folder / (ARCHIVE if first else WEIGHTS)
    if first:
        tensors = read_npz(path, FIRST)
        encoder, decoder = tensors["W_enc"], tensors["W_dec"]
    else:
        tensors = read_safetensors(path, SECOND, (SKIP,))
        encoder, decoder = tensors["w_enc"], tensors["w_dec"]
    where = str(folder.absolute())
    check_sizes(path, encoder, {"d_in": None, "width": _width(where, encoder)})
    dictionary = Dictionary(
        encoder=encoder,
        decoder=decoder,
        encoder_bias=tensors["b_enc"],
        decoder_bias=tensors["b_dec"],
        threshold=tensors["threshold"],
        skip=tensors.get(SKIP),
        kind="jumprelu",
        centered=False,
    )
    facts = _facts(folder, where, first)
    return TrainedDictionary(dictionary=check_dictionary(dictionary, str(path)), facts=facts)


def _width(where: str, encoder: np.ndarray) -> int | None:
    """The width that a folder's name says; its thousands may be rounded."""
    found = re.search(r"width_(\d+)([km])(?![a-z0-9])", where)
    if found is None:
        return None
    said = int(found[1]) * WIDTHS[found[2]]
    # 65k and 262k are powers of two whose thousands are cut off.
    near = 1 << round(np.log2(said))
    return near if encoder.shape[-1] == near else said


def _facts(folder: Path, where: str, first: bool) -> DictionaryFacts:
    settings = Settings({}, folder / CONFIG)
    if not first and (folder / CONFIG).is_file():
        settings = Settings(read_json(folder / CONFIG, "download it again"), folder / CONFIG)
        settings.one_of("architecture", {"jump_relu": "jumprelu"})
    if "embedding" in where:
        raise InputError(
            f"{folder} is a dictionary of embeddings, whose scale its files do not say",
            "use one of the residual stream, the MLP or the attention",
        )
    layer = re.search(r"layer_(\d+)", where)
    name = _place_in(where)
    point, step, behind = None, None, False
    if layer is not None and name is not None:
        point, offset, behind = PLACES[name]
        step = int(layer[1]) + offset
    transcoder = name == "transcoder"
    return DictionaryFacts(
        layout=LAYOUT,
        model=settings.get("model_name", str) or _model(where),
        point=point,
        step=step,
        reads="mlp_in" if transcoder else None,
        prepend_bos=True,
        behind_post_norm=behind,
        source=str(folder),
    )


def _place_in(where: str) -> str | None:
    """The word for the place among the folders' names."""
    found = re.search(r"(resid_post|mlp_out|attn_out|transcoder)", where)
    if found:
        return found[1]
    found = re.search(r"gemma-scope-[\w.]+?-(?:pt|it)-(res|mlp|att|transcoders?)\b", where)
    return found[1].removesuffix("s") if found and found[1] != "res" else found and found[1]


def _model(where: str) -> str | None:
    """The model that a repository's name says, as the hub calls it."""
    found = re.search(r"gemma-scope-2-(\d+[mb])-(pt|it)", where)
    if found:
        return f"google/gemma-3-{found[1]}-{found[2]}"
    found = re.search(r"gemma-scope-(\d+b)-(pt|it)", where)
    if found:
        return f"google/gemma-2-{found[1]}" + ("-it" if found[2] == "it" else "")
    return None


def write(trained: TrainedDictionary, folder: Path, *, version: int = 1) -> list[Path]:
    """Write a JumpReLU dictionary as Gemma Scope does, and return the files.

    Args:
        trained: the dictionary; its place is what the folders' names say.
        folder: made where it is missing.
        version: 1 or 2; a transcoder's skip has a place in 2 alone.

    Raises:
        InputError: a dictionary of another kind, or a file that cannot be written.
    """
    dictionary = trained.dictionary
    plain = dictionary.kind == "jumprelu" and dictionary.scaling == "none"
    if not plain or dictionary.centered or (version == 1 and dictionary.skip is not None):
        raise InputError(
            "Gemma Scope's layout holds jumprelu dictionaries that take nothing from their input",
            "write it as sae_lens",
        )
    values = (
        dictionary.encoder,
        dictionary.decoder,
        dictionary.encoder_bias,
        dictionary.decoder_bias,
        dictionary.threshold,
    )
    names = FIRST if version == 1 else SECOND
    tensors = {n: np.asarray(v, np.float32) for n, v in zip(names, values, strict=True)}
    if version == 1:
        buffer = io.BytesIO()
        np.savez(buffer, **tensors)  # type: ignore[arg-type]
        replace_file(folder / ARCHIVE, buffer.getvalue())
        return [folder / ARCHIVE]
    if dictionary.skip is not None:
        tensors[SKIP] = np.asarray(dictionary.skip, np.float32)
    write_safetensors(folder / WEIGHTS, tensors)
    return [folder / WEIGHTS]
