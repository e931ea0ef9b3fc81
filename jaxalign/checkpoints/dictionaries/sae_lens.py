"""SAELens's folders: ``cfg.json`` and ``sae_weights.safetensors``, version 6 and older ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.dictionaries.facts import (
    DictionaryFacts,
    Settings,
    TrainedDictionary,
    hook_of_place,
    place_of_hook,
)
from jaxalign.checkpoints.dictionaries.tensors import (
    Tensors,
    check_sizes,
    read_safetensors,
    write_safetensors,
)
from jaxalign.dictionaries.dictionary import Dictionary, Kind, check_dictionary
from jaxalign.errors import InputError, shown
from jaxalign.runtime.files import read_json, replace_file

LAYOUT, CONFIG, WEIGHTS = "sae_lens", "cfg.json", "sae_weights.safetensors"
FIRST = 6  # the version whose settings stand in "metadata"
COMMON = ("W_enc", "W_dec", "b_dec")
# Tensors and kind of each architecture; transcoders read another point than they stand for.
ARCHITECTURES: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "standard": ("relu", ("b_enc",)),
    "topk": ("topk", ("b_enc",)),
    "jumprelu": ("jumprelu", ("b_enc", "threshold")),
    "gated": ("gated", ("b_gate", "b_mag", "r_mag")),
    "sigmoid_gated": ("sigmoid", ("b_enc", "W_gate", "b_gate")),  # of this project alone
    "transcoder": ("relu", ("b_enc",)),
    "skip_transcoder": ("relu", ("b_enc", "W_skip")),
    "jumprelu_transcoder": ("jumprelu", ("b_enc", "threshold")),
    "jumprelu_skip_transcoder": ("jumprelu", ("b_enc", "threshold", "W_skip")),
}
SCALINGS = {
    "none": "none",
    # Average norms are brought to a size once and for all; what is published has that folded in.
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "unit_rms",
}
# What version 6 writes into its settings: what is read here, and what changes no number.
KNOWN = {
    "d_in", "d_sae", "dtype", "device", "architecture", "apply_b_dec_to_input",
    "normalize_activations", "reshape_activations", "metadata", "k", "rescale_acts_by_decoder_norm",
    "d_out", "sae_lens_version",
}  # fmt: skip
FOLDED = "finetuning_scaling_factor"


def recognises(folder: Path) -> bool:
    """Whether a folder holds what SAELens writes."""
    return (folder / WEIGHTS).is_file() or (
        (folder / CONFIG).is_file() and not (folder / "sae.safetensors").exists()
    )


def read(folder: Path) -> TrainedDictionary:
    """The dictionary of a folder.

    Args:
        folder: holds both files.

    Raises:
        InputError: a missing or damaged file, settings that are not known, or tensors that do not
            fit them.
    """
    settings = Settings(read_json(folder / CONFIG, "download it again"), folder / CONFIG)
    about, old = _metadata(settings)
    settings = _modern(settings) if old else settings
    kind, own = settings.one_of("architecture", ARCHITECTURES, "standard" if old else None)
    transcoder = "transcoder" in settings.content.get("architecture", "")
    D, features = (settings.get(name, int, required=True) for name in ("d_in", "d_sae"))
    settings.get("dtype", str, required=not old)
    scaling = settings.one_of("normalize_activations", SCALINGS, "none")
    tensors = read_safetensors(folder / WEIGHTS, (*COMMON, *own), (FOLDED, "scaling_factor"))
    check_sizes(folder / WEIGHTS, tensors["W_enc"], {"d_in": D, "d_sae": features})
    centered = settings.get("apply_b_dec_to_input", bool, not transcoder)
    dictionary = _dictionary(tensors, kind, settings, centered, scaling)
    notes = []
    if not old and (unknown := sorted({*settings.content} - KNOWN)):
        notes.append(
            f"its settings have {', '.join(map(shown, unknown[:6]))}, which is not known here and "
            "changes nothing"
        )
    if settings.content.get("normalize_activations") == "expected_average_only_in":
        notes.append(
            "its settings name a normalisation by average norms (expected_average_only_in), which "
            "is taken to be folded into its weights, as SAELens publishes them"
        )
    return TrainedDictionary(
        dictionary=check_dictionary(dictionary, str(folder / WEIGHTS)),
        facts=_facts(about, folder, transcoder, tuple(notes)),
    )


def _metadata(settings: Settings) -> tuple[Settings, bool]:
    """Where model and hook are named, and whether the file is older than version 6."""
    about = Settings(settings.get("metadata", dict, {}), settings.path)
    version = about.get("sae_lens_version", str) or settings.get("sae_lens_version", str)
    major = (version or "0").partition(".")[0]
    if not major.isdigit():
        raise InputError(
            f"{settings.path}: sae_lens_version is {shown(version)}, which is no version",
            "download it again",
        )
    old = int(major) < FIRST
    return (settings if old else about), old


def _modern(settings: Settings) -> Settings:
    """Settings of an older file under the names of version 6."""
    names = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    content = {names.get(name, name): value for name, value in settings.content.items()}
    settings = Settings(content, settings.path)
    if isinstance(content.get("normalize_activations"), bool):
        yes = content["normalize_activations"]
        content["normalize_activations"] = "expected_average_only_in" if yes else "none"
    function = settings.get("activation_fn", str, "relu")
    if function == "topk":
        content["architecture"] = "topk"
        content["k"] = settings.get("activation_fn_kwargs", dict, {}).get("k")
    elif function != "relu":
        raise InputError(
            f"{settings.path}: activation_fn is {function!r}, which is not known here",
            "use a dictionary with 'relu' or 'topk'",
        )
    return settings


def _dictionary(
    tensors: Tensors, kind: Kind, settings: Settings, centered: bool, scaling: Any
) -> Dictionary:
    gated, decoder = kind == "gated", tensors["W_dec"]
    encoder, bias = tensors["W_enc"], tensors["b_mag" if gated else "b_enc"]
    for name in (
        FOLDED,
        "scaling_factor",
    ):  # what features are multiplied by before they are decoded
        if name in tensors:
            decoder = decoder * tensors[name].reshape(-1, 1)
    if kind == "topk" and settings.get("rescale_acts_by_decoder_norm", bool, False):
        # Features are chosen, and counted, by what they write: as if the decoder had unit norms.
        norms = np.linalg.norm(decoder, axis=1)
        encoder, bias = encoder * norms, bias * norms
        decoder = decoder / np.where(norms > 0, norms, 1)[:, None]
    skip = tensors.get("W_skip")
    return Dictionary(
        encoder=encoder,
        decoder=decoder,
        encoder_bias=bias,
        decoder_bias=tensors["b_dec"],
        threshold=tensors.get("threshold"),
        gate=tensors.get("W_gate"),
        gate_bias=tensors.get("b_gate"),
        log_magnitude=tensors.get("r_mag"),
        skip=None if skip is None else np.ascontiguousarray(skip.T),
        kind=kind,
        k=settings.get("k", int, required=True) if kind == "topk" else None,
        centered=centered,
        scaling=scaling,
    )


def _facts(
    about: Settings, folder: Path, transcoder: bool, notes: tuple[str, ...]
) -> DictionaryFacts:
    hook = about.get("hook_name", str) or about.get("hook_point", str)
    out = about.get("hook_name_out", str)
    if about.get("hook_head_index", int) is not None:
        raise InputError(
            f"{about.path} is a dictionary of one head (hook_head_index), which is not read here",
            "use one of all heads together",
        )
    point, step = (None, None) if hook is None else place_of_hook(hook, about.path)
    reads = None
    if transcoder and point is not None:
        reads, (point, step) = point, place_of_hook(out, about.path) if out else ("mlp_out", step)
    own = Settings(about.get("jaxalign", dict, {}), about.path)
    return DictionaryFacts(
        layout=LAYOUT,
        model=about.get("model_name", str),
        point=point,
        step=step,
        reads=reads,
        prepend_bos=about.get("prepend_bos", bool),
        context_size=about.get("context_size", int),
        weights_sha256=own.get("weights_sha256", str),
        source=str(folder),
        notes=notes,
        training=own.get("training", dict, {}),
    )


def write(trained: TrainedDictionary, folder: Path) -> list[Path]:
    """Write a dictionary as SAELens 6 does, and return the files.

    Args:
        trained: the dictionary and where it belongs; one of kind ``sigmoid``, which SAELens does
            not have, is written under an architecture of this project's own.
        folder: made where it is missing.

    Raises:
        InputError: a file cannot be written, or the place has no name in this layout.
    """
    dictionary, facts = trained.dictionary, trained.facts
    transcoder = facts.reads is not None or dictionary.skip is not None
    name = _architecture(dictionary, transcoder)
    parts: dict[str, Any] = {
        "W_enc": dictionary.encoder,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
        "b_mag" if dictionary.kind == "gated" else "b_enc": dictionary.encoder_bias,
        "threshold": dictionary.threshold,
        "W_gate": dictionary.gate,
        "b_gate": dictionary.gate_bias,
        "r_mag": dictionary.log_magnitude,
        "W_skip": None if dictionary.skip is None else np.asarray(dictionary.skip).T,
    }
    scaling = {own: theirs for theirs, own in reversed(SCALINGS.items())}[dictionary.scaling]
    config = {
        "architecture": name,
        "d_in": dictionary.width,
        "d_sae": dictionary.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.centered,
        "normalize_activations": scaling,
        "reshape_activations": "hook_z" if facts.point == "z" else "none",
        "metadata": _about(facts),
    }
    if dictionary.k is not None:
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    if transcoder:
        config["d_out"] = dictionary.out
    paths = [folder / WEIGHTS, folder / CONFIG]
    write_safetensors(paths[0], {key: v for key, v in parts.items() if v is not None})
    replace_file(paths[1], json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    return paths


def _architecture(dictionary: Dictionary, transcoder: bool) -> str:
    wanted = dictionary.kind, dictionary.skip is not None
    for name, (kind, own) in ARCHITECTURES.items():
        if transcoder == ("transcoder" in name) and wanted == (kind, "W_skip" in own):
            return name
    raise InputError(
        f"SAELens has no {dictionary.kind} transcoder", "use a relu or a jumprelu transcoder"
    )


def _about(facts: DictionaryFacts) -> dict[str, Any]:
    """The metadata of a dictionary: what SAELens reads, and what this project adds."""
    about: dict[str, Any] = {
        "sae_lens_version": "6.0.0",
        "model_name": facts.model,
        "prepend_bos": facts.prepend_bos,
        "context_size": facts.context_size,
    }
    if facts.point is not None:
        about["hook_name"] = hook_of_place(facts.reads or facts.point, facts.step)
        if facts.reads is not None:
            about["hook_name_out"] = hook_of_place(facts.point, facts.step)
    about = {name: value for name, value in about.items() if value is not None}
    own = {"weights_sha256": facts.weights_sha256, "training": dict(facts.training)}
    if own := {name: value for name, value in own.items() if value}:
        about["jaxalign"] = own
    return about
