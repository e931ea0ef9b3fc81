"""Llama Scope: ``hyperparams.json`` and ``final.safetensors``, here or in ``checkpoints/``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from jaxalign.checkpoints.dictionaries.facts import (
    CHANGED,
    DictionaryFacts,
    Settings,
    TrainedDictionary,
    hook_of_place,
    place_of_hook,
)
from jaxalign.checkpoints.dictionaries.tensors import (
    check_sizes,
    read_safetensors,
    write_safetensors,
)
from jaxalign.dictionaries.dictionary import Dictionary, check_dictionary
from jaxalign.errors import InputError
from jaxalign.runtime.files import read_json, replace_file

LAYOUT, CONFIG, WEIGHTS = "llama_scope", "hyperparams.json", "final.safetensors"
NAMES = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
MODEL = "meta-llama/Llama-3.1-8B"  # the one that the sets are of; the files do not say
OTHER = "jaxalign_model"  # where this project says that a dictionary is of another one
NEUTRAL = {"use_glu_encoder": False, "use_decoder_bias": True}
SCALINGS = {"dataset-wise": "none", "token-wise": "unit_rms", "inference": "none", "none": "none"}


def recognises(folder: Path) -> bool:
    """Whether a folder holds what Llama Scope publishes."""
    return (folder / CONFIG).is_file()


def read(folder: Path) -> TrainedDictionary:
    """The dictionary of a folder, its dataset-wise scaling folded into the weights.

    A feature is active where its size times the norm of what it writes is above one threshold of
    all (``sparsity_include_decoder_norm``), so each has a threshold of its own here.

    Args:
        folder: holds the settings.

    Raises:
        InputError: a missing or damaged file, settings that are not known, or tensors that do not
            fit them.
    """
    settings = Settings(read_json(folder / CONFIG, CHANGED), folder / CONFIG)
    settings.one_of("act_fn", {"jumprelu": "jumprelu"}, "jumprelu")
    settings.at_rest(NEUTRAL)
    D = settings.get("d_model", int, required=True)
    said = settings.get("d_sae", int) or D * settings.get("expansion_factor", int, required=True)
    path = folder / "checkpoints" / WEIGHTS
    path = path if path.is_file() else folder / WEIGHTS
    tensors = read_safetensors(path, NAMES)
    encoder, decoder = tensors["encoder.weight"].T, tensors["decoder.weight"].T
    check_sizes(path, encoder, {"d_model": D, "d_sae": said})
    scaling = settings.one_of("norm_activation", SCALINGS, "dataset-wise")
    into, out = _scales(settings, D)
    threshold = np.full(said, settings.get("jump_relu_threshold", float, required=True), np.float32)
    if settings.get("sparsity_include_decoder_norm", bool, True):
        norms = np.linalg.norm(decoder, axis=1)
        threshold = threshold / np.where(norms > 0, norms, 1)
    dictionary = Dictionary(
        encoder=np.ascontiguousarray(encoder) * into,
        decoder=np.ascontiguousarray(decoder) / out,
        encoder_bias=tensors["encoder.bias"],
        decoder_bias=tensors["decoder.bias"] / out,
        threshold=threshold.astype(np.float32),
        kind="jumprelu",
        centered=settings.get("apply_decoder_bias_to_pre_encoder", bool, False),
        scaling=scaling,
    )
    hooks = [settings.get(f"hook_point_{end}", str) for end in ("in", "out")]
    places = [None if hook is None else place_of_hook(hook, settings.path) for hook in hooks]
    stands = places[1] or places[0] or (None, None)
    return TrainedDictionary(
        dictionary=check_dictionary(dictionary, str(path)),
        facts=DictionaryFacts(
            layout=LAYOUT,
            model=settings.get(OTHER, str, MODEL),
            point=stands[0],
            step=stands[1],
            reads=places[0][0] if places[0] and places[0] != stands else None,
            prepend_bos=True,
            source=str(folder),
        ),
    )


def _scales(settings: Settings, D: int) -> tuple[np.float32, np.float32]:
    """What inputs are multiplied and outputs divided by: ``√D`` over their average norm."""
    if settings.get("norm_activation", str, "dataset-wise") != "dataset-wise":
        return np.float32(1), np.float32(1)
    norms = Settings(
        settings.get("dataset_average_activation_norm", dict, required=True), settings.path
    )
    into = norms.get("in", float, required=True)
    out = norms.get("out", float, into)
    if not (np.isfinite([into, out]).all() and into > 0 and out > 0):
        raise InputError(
            f"{settings.path}: dataset_average_activation_norm is {into} and {out}, expected "
            "numbers above 0",
            CHANGED,
        )
    return np.float32(D**0.5 / into), np.float32(D**0.5 / out)


def write(trained: TrainedDictionary, folder: Path) -> list[Path]:
    """Write a JumpReLU dictionary as Llama Scope does, and return the files.

    Args:
        trained: the dictionary and where it belongs. Its thresholds have to be one number times or
            over the norms of what features write.
        folder: made where it is missing.

    Raises:
        InputError: a dictionary that the layout cannot hold, or a file that cannot be written.
    """
    dictionary, facts = trained.dictionary, trained.facts
    if dictionary.kind != "jumprelu" or dictionary.skip is not None:
        raise InputError(
            f"Llama Scope's layout holds jumprelu dictionaries, not {dictionary.kind}",
            "write it as sae_lens",
        )
    threshold = np.asarray(dictionary.threshold)
    by_norm = threshold * np.linalg.norm(dictionary.decoder, axis=1)
    found = [
        (float(each[0]), normed)
        for each, normed in ((threshold, False), (by_norm, True))
        if np.allclose(each, each[0], rtol=1e-5)
    ]
    if not found:
        raise InputError(
            "Llama Scope's layout has one threshold for all features, and these differ",
            "write it as sae_lens",
        )
    value, normed = found[0]
    config = {
        "act_fn": "jumprelu",
        "d_model": dictionary.width,
        "d_sae": dictionary.features,
        "jump_relu_threshold": value,
        "sparsity_include_decoder_norm": normed,
        "norm_activation": "token-wise" if dictionary.scaling == "unit_rms" else "none",
        "apply_decoder_bias_to_pre_encoder": dictionary.centered,
        "use_decoder_bias": True,
    }
    if facts.model not in (None, MODEL):
        config[OTHER] = facts.model
    if facts.point is not None:
        config["hook_point_in"] = hook_of_place(facts.reads or facts.point, facts.step)
        config["hook_point_out"] = hook_of_place(facts.point, facts.step)
    tensors = {
        "encoder.weight": np.asarray(dictionary.encoder).T,
        "encoder.bias": dictionary.encoder_bias,
        "decoder.weight": np.asarray(dictionary.decoder).T,
        "decoder.bias": dictionary.decoder_bias,
    }
    paths = [folder / WEIGHTS, folder / CONFIG]
    write_safetensors(paths[0], tensors)
    replace_file(paths[1], json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    return paths
