"""What dictionaries are trained on: activations of texts in memory, or of files on disk."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.checkpoints import Model
from jaxalign.checkpoints.activations import ActivationFacts, Activations
from jaxalign.commands.opening import keep_programs, opened
from jaxalign.commands.text_activations import (
    AT_ONCE,
    TextActivations,
    places_of,
)
from jaxalign.commands.train_sae_options import TrainSaeOptions
from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.dictionaries.fit import Rows
from jaxalign.engine.activations import Place, check_places, width_at
from jaxalign.errors import InputError, counted
from jaxalign.prompts import Windows, bos_token, cut_windows, first_tokens
from jaxalign.prompts.named_texts import named_texts
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.messages import note
from jaxalign.runtime.progress import Progress
from jaxalign.studies.features.quality import Sums, first_left_out, row_sums, text_sums

HELD_OUT = 10  # of so many documents one is kept for the quality


@dataclass(frozen=True, kw_only=True)
class Material:
    """Activations of several places, and what is held out of them.

    Attributes:
        data: of each place, all of one width.
        places: point and step of each.
        memory: bytes of the activations that are in memory.
        model: the model's name.
        weights_sha256: of its weight files.
        scheme: the precision that it computed them in.
        texts: what decides the numbers beside that: windows, documents, hashes.
        called: what the texts are called.
        sums: what a dictionary of the place with a number does on what is held out.
    """

    data: Sequence[Rows]
    places: tuple[Place, ...]
    memory: float
    model: str
    weights_sha256: str
    scheme: str
    texts: Mapping[str, Any]
    called: str
    sums: Callable[[Dictionary, int], Sums]

    @property
    def width(self) -> int:
        """Of the activations."""
        return self.data[0].shape[1]


def from_texts(model: Model, options: TrainSaeOptions, progress: Progress) -> Material:
    """Activations of texts, in memory.

    Args:
        model: in f32.
        options: site, layers, texts and the memory there is.
        progress: shows how far it is.

    Raises:
        InputError: a layer that there is not, texts that are too short, or activations that do not
            fit into the memory.
    """
    layers = range(model.config.num_layers) if options.layers is None else options.layers
    places = places_of(options.site, layers)
    check_places(places, model.config)
    if len(set(places)) < len(places) or not places:
        raise InputError("--layers: expected numbers, each once", "name one or more")
    texts, called = named_texts(options.texts, model.source.model)
    windows, held = read_windows(texts, model, options)
    print(
        f"{windows.counted_tokens} tokens of {counted(windows.documents, 'document')} of {called}, "
        f"{held.counted_tokens} of {held.documents} held out",
        flush=True,
    )
    data = gathered(model, windows, places, options, progress)
    return Material(
        data=data,
        places=places,
        memory=float(sum(each.nbytes for each in data)),
        model=model.source.model,
        weights_sha256=model.weights_sha256,
        scheme="f32",
        texts={**windows.facts, "prepend_bos": windows.bos is not None},
        called=called,
        sums=lambda dictionary, number: text_sums(
            model.params, model.config, held, dictionary, places[number],
            rows=rows_of(options.window),
        ),
    )  # fmt: skip


def rows_of(window: int) -> int:
    """How many windows make a call."""
    return max(1, AT_ONCE // window)


def read_windows(
    texts: Sequence[str], model: Model, options: TrainSaeOptions
) -> tuple[Windows, Windows]:
    """Windows to train on, and those of every tenth document, which are held out.

    Args:
        texts: the documents.
        model: whose tokenizer reads them.
        options: window and tokens.

    Raises:
        InputError: fewer than two documents, or none that is long enough.
    """
    if len(texts) < 2:
        raise InputError(
            f"--texts has {counted(len(texts), 'document')}, expected 2 or more: some are held out",
            "give more documents, for example JSON lines with a field 'text'",
        )
    how: dict[str, Any] = {
        "window": options.window, "bos": bos_token(model.tokenizer), "config": model.config,
    }  # fmt: skip
    each = min(HELD_OUT, len(texts))
    held = texts[each - 1 :: each]
    kept = [text for i, text in enumerate(texts) if i % each != each - 1]
    windows, others = (cut_windows(part, model.tokenizer, **how) for part in (kept, held))
    return (
        first_tokens(windows, options.tokens),
        first_tokens(others, max(options.tokens // HELD_OUT, options.window)),
    )


def gathered(
    model: Model,
    windows: Windows,
    places: tuple[Place, ...],
    options: TrainSaeOptions,
    progress: Progress,
) -> list[np.ndarray]:
    """Activations of every place, f32 ``[tokens, D]``, in memory.

    Args:
        model: in f32.
        windows: of the texts.
        places: point and step of each.
        options: the memory there is.
        progress: shows how far it is.

    Raises:
        InputError: they do not fit.
    """
    source = TextActivations(
        params=model.params, config=model.config, windows=windows,
        counted=first_left_out(windows), places=places, batch=rows_of(options.window),
    )  # fmt: skip
    shape = source.tokens, width_at(options.site, model.config)
    need = 4.0 * len(places) * shape[0] * shape[1]
    if need > options.memory_gb * 1e9:
        raise InputError(
            f"the activations of {len(places)} places take {need / 1e9:.3g} GB, and --memory-gb is "
            f"{options.memory_gb:g}",
            "raise it, read fewer --tokens or --layers at a time, or write them to disk: jaxalign "
            "extract, and then train-sae --activations",
        )
    found = [np.empty(shape, np.float32) for _ in places]
    first = 0
    for call in progress.track(range(len(source.ends)), "activations"):
        last = int(source.ends[call])
        for own, rows in zip(found, source.call(call), strict=True):
            own[first:last] = rows
        first = last
    return found


def model_beside(
    arguments: argparse.Namespace, facts: ActivationFacts, memory_gb: float
) -> tuple[Model | None, str]:
    """The model that activations on disk are of, to measure the loss that is recovered; or why not.

    Args:
        arguments: of the command; without ``--model`` the one that the facts name.
        facts: of the folder.
        memory_gb: for the parameters, in 1e9 bytes.

    Raises:
        InputError: ``--model`` names another model or one that there is not, or has no use.
    """
    asked = next(
        (flag for flag, given in (
            ("--model", arguments.model), ("--revision", arguments.revision),
            ("--ignore-setting", arguments.ignore_setting),
        ) if given), None,
    )  # fmt: skip
    why = ""
    if facts.scheme != "f32":
        why = f"they are in {facts.scheme}, and it is measured in f32"
    elif facts.positions != "all":
        why = "they are of the last positions alone"
    if why:
        if asked:
            raise InputError(
                f"{asked} has no use beside these --activations: {why}", f"leave out {asked}"
            )
        select_device(arguments.device)
        keep_programs(arguments)
        return None, why
    if arguments.model is None:
        arguments = argparse.Namespace(
            **{
                **vars(arguments),
                "model": facts.model,
                "revision": arguments.revision or facts.revision,
            }
        )
    try:
        model = opened(arguments, "dictionaries of {}", memory_gb)
    except InputError as error:
        if asked:
            raise
        return None, error.problem
    if model.weights_sha256 == facts.weights_sha256:
        return model, ""
    if asked:
        raise InputError(
            f"{asked} names a model with other weights than the one that --activations are of, "
            f"{facts.model}",
            f"leave out {asked}, or give that model",
        )
    return None, f"{facts.model} has other weights now"


def from_folder(
    found: Activations, model: Model | None, why: str, options: TrainSaeOptions
) -> Material:
    """Activations of a folder, read when a step needs them; every tenth document is held out.

    Args:
        found: the folder.
        model: that they are of, where there is one.
        why: there is none.
        options: the layers.

    Raises:
        InputError: a layer that is not there, or fewer than two documents.
    """
    facts = found.facts
    layers = facts.layers if options.layers is None else options.layers
    if len(set(layers)) < len(layers) or not layers:
        raise InputError("--layers: expected numbers, each once", "name one or more")
    if facts.documents < 2:
        raise InputError(
            f"{found.folder} has the activations of {counted(facts.documents, 'document')}, "
            "expected 2 or more: some are held out",
            "extract those of more documents",
        )
    each = min(HELD_OUT, facts.documents)
    held = found.documents % each == each - 1
    kept, other = np.flatnonzero(~held), np.flatnonzero(held)
    places = places_of(facts.site, layers)
    windows, why = (None, why) if model is None else _held_windows(model, facts, each)
    if windows is None:
        note(f"the share of the model's loss that is recovered is not measured: {why}")
    print(
        f"{len(kept)} rows of {facts.documents - facts.documents // each} documents of "
        f"{facts.texts} in {found.folder}, {len(other)} of {facts.documents // each} held out",
        flush=True,
    )

    def sums(dictionary: Dictionary, number: int) -> Sums:
        if windows is None or model is None:
            return row_sums(found.source(layers[number], other), dictionary)
        return text_sums(
            model.params, model.config, windows, dictionary, places[number],
            rows=rows_of(facts.window),
        )  # fmt: skip

    shards = "".join(shard.sha256 for shard in found.shards)
    return Material(
        data=[found.source(layer, kept) for layer in layers],
        places=places,
        memory=8.0 * found.tokens,
        model=facts.model,
        weights_sha256=facts.weights_sha256,
        scheme=facts.scheme,
        texts={
            "texts_sha256": facts.texts_sha256,
            "window": facts.window,
            "stride": facts.stride,
            "bos": facts.bos,
            "prepend_bos": facts.bos is not None,
            "documents": facts.documents,
            "positions": facts.positions,
            "tokens": len(kept),
            "activations_sha256": hashlib.sha256(shards.encode()).hexdigest(),
        },
        called=facts.texts,
        sums=sums,
    )


def _held_windows(model: Model, facts: ActivationFacts, each: int) -> tuple[Windows | None, str]:
    """The windows of the documents that are held out, made again; or why they cannot be."""
    try:
        texts, _ = named_texts(facts.texts, model.source.model)
        windows = cut_windows(
            texts, model.tokenizer, window=facts.window, stride=facts.stride, bos=facts.bos,
            config=model.config,
        )  # fmt: skip
    except InputError as error:
        return None, error.problem
    if windows.texts_sha256 != facts.texts_sha256:
        return None, f"the texts {facts.texts} are no longer those that were read"
    read = windows.document[: facts.windows]
    own = np.flatnonzero(read % each == each - 1)
    names = ("tokens", "lengths", "first", "counted", "document")
    part = {name: getattr(windows, name)[own] for name in names}
    _, part["document"] = np.unique(part["document"], return_inverse=True)
    return replace(windows, **part, documents=int(part["document"].max()) + 1), ""
