"""sparsify's folders: ``layers.N``, ``layers.N.mlp`` with ``cfg.json`` and ``sae.safetensors``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from jaxalign.checkpoints.dictionaries.facts import DictionaryFacts, Settings, TrainedDictionary
from jaxalign.checkpoints.dictionaries.tensors import (
    check_sizes,
    read_safetensors,
    write_safetensors,
)
from jaxalign.dictionaries.dictionary import Dictionary, check_dictionary
from jaxalign.errors import InputError
from jaxalign.runtime.files import read_json, replace_file

LAYOUT, CONFIG, WEIGHTS = "sparsify", "cfg.json", "sae.safetensors"
NAMES = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
# What follows a layer's number in a folder's name: the output of the block, the MLP, the attention.
MODULES = {
    "": ("resid", 1),
    ".mlp": ("mlp_out", 0),
    ".attention": ("attn_out", 0),
    ".self_attn": ("attn_out", 0),
    ".attn": ("attn_out", 0),
}
# What the settings may say besides, and what it is where it changes nothing.
NEUTRAL = {
    "activation": "topk",
    "signed": False,
    "embed_skip": False,
    "gram_lookup": False,
    "matching_pursuit": False,
}


def recognises(folder: Path) -> bool:
    """Whether a folder holds what sparsify writes."""
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> TrainedDictionary:
    """The dictionary of a folder: ``relu`` of the ``k`` largest of ``(x − b_dec)·Wᵀ + b``.

    A transcoder (``transcode``) takes no bias from its input.

    Args:
        folder: holds both files; its name says the place.

    Raises:
        InputError: a missing or damaged file, settings that are not known, or tensors that do not
            fit them.
    """
    settings = Settings(read_json(folder / CONFIG, "download it again"), folder / CONFIG)
    settings.at_rest(NEUTRAL)
    transcoder, skip = (settings.get(n, bool, False) for n in ("transcode", "skip_connection"))
    D, k = (settings.get(name, int, required=True) for name in ("d_in", "k"))
    said = settings.get("num_latents", int, 0) or D * settings.get("expansion_factor", int, 32)
    names = (*NAMES, "W_skip") if skip else NAMES
    tensors = read_safetensors(folder / WEIGHTS, names)
    encoder = tensors["encoder.weight"].T
    check_sizes(folder / WEIGHTS, encoder, {"d_in": D, "num_latents": said})
    dictionary = Dictionary(
        encoder=np.ascontiguousarray(encoder),
        decoder=tensors["W_dec"],
        encoder_bias=tensors["encoder.bias"],
        decoder_bias=tensors["b_dec"],
        skip=np.ascontiguousarray(tensors["W_skip"].T) if skip else None,
        kind="topk",
        k=k,
        centered=not transcoder,
    )
    point, step = place_of_folder(folder.name)
    return TrainedDictionary(
        dictionary=check_dictionary(dictionary, str(folder / WEIGHTS)),
        facts=DictionaryFacts(
            layout=LAYOUT,
            model=_model(folder.parent),
            point=point,
            step=step,
            reads="mlp_in" if transcoder else None,
            source=str(folder),
        ),
    )


def place_of_folder(name: str) -> tuple[str | None, int | None]:
    """Point and step of a folder's name; None where it says nothing.

    Args:
        name: ``layers.3``, the output of block 3; ``layers.3.mlp``; ``embed_tokens``.

    Example:
        >>> place_of_folder("layers.3")
        ('resid', 4)
    """
    if name == "embed_tokens":
        return "resid", 0
    found = re.search(r"(?:layers|h)\.(\d+)(\.\w+)?$", name)
    if found is None or (found[2] or "") not in MODULES:
        return None, None
    point, first = MODULES[found[2] or ""]
    return point, int(found[1]) + first


def _model(folder: Path) -> str | None:
    """The model that the settings of all dictionaries of a set name."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    return Settings(read_json(path, "correct it"), path).get("model", str)


def write(trained: TrainedDictionary, folder: Path) -> list[Path]:
    """Write a ``topk`` dictionary as sparsify does, and return the files.

    Args:
        trained: the dictionary and where it belongs.
        folder: made where it is missing; its name says the place (``layers.3``).

    Raises:
        InputError: a dictionary of another kind, one that scales its inputs, a name that says
            another place, or a file that cannot be written.
    """
    dictionary, facts = trained.dictionary, trained.facts
    transcoder = facts.reads is not None
    fits = dictionary.kind == "topk" and dictionary.scaling == "none"
    if not fits or dictionary.centered == transcoder:
        raise InputError(
            "sparsify's layout holds topk dictionaries of inputs as they are, and this is "
            f"{dictionary.kind}",
            "write it as sae_lens",
        )
    if place_of_folder(folder.name) != (facts.point, facts.step):
        raise InputError(
            f"the folder {folder.name!r} does not say that the dictionary is at {facts.site}",
            "name it layers.N for the output of block N, layers.N.mlp for that of its MLP",
        )
    tensors = {
        "encoder.weight": np.asarray(dictionary.encoder).T,
        "encoder.bias": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    if dictionary.skip is not None:
        tensors["W_skip"] = np.asarray(dictionary.skip).T
    config = {
        "activation": "topk",
        "expansion_factor": max(1, dictionary.features // dictionary.width),
        "normalize_decoder": True,
        "num_latents": dictionary.features,
        "k": dictionary.k,
        "multi_topk": False,
        "skip_connection": dictionary.skip is not None,
        "transcode": transcoder,
        "d_in": dictionary.width,
    }
    paths = [folder / WEIGHTS, folder / CONFIG]
    write_safetensors(paths[0], tensors)
    replace_file(paths[1], json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    return paths
