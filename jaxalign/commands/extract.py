"""``extract``: activations of a model, in any precision, to shards on disk."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.calibration import preparer
from jaxalign.checkpoints import Model
from jaxalign.checkpoints.activations import (
    ActivationFacts,
    Shard,
    is_whole,
    read_manifest,
    write_manifest,
    write_shard,
)
from jaxalign.checkpoints.activations.manifest import MANIFEST
from jaxalign.checkpoints.hub import BUNDLED_NAME
from jaxalign.commands.extract_options import ExtractOptions
from jaxalign.commands.one_study import check_texts_are_used, check_texts_fit
from jaxalign.commands.opening import calibration_texts, opened, quantized_beside
from jaxalign.commands.parser import options_from
from jaxalign.commands.text_activations import (
    EMBEDDING,
    TextActivations,
    places_of,
    positions_read,
    windows_at_once,
)
from jaxalign.engine.activations import check_places, width_at
from jaxalign.errors import InputError, counted
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Windows, bos_token, cut_windows, first_tokens
from jaxalign.prompts.named_texts import CODE, DEMO, named_texts
from jaxalign.runtime.files import check_writable
from jaxalign.runtime.lock import alone_in
from jaxalign.runtime.messages import note
from jaxalign.runtime.progress import Progress
from jaxalign.runtime.resume import remove_calls
from jaxalign.studies.features.sources import check_basis
from jaxalign.version import VERSION


def run(arguments: argparse.Namespace) -> int:
    """Read, write and say where; returns the exit code."""
    options, output = options_from(arguments, ExtractOptions), arguments.output
    check_writable(output / MANIFEST)
    if arguments.quantized is not None and arguments.scheme is not None:
        raise InputError(
            "--scheme and --quantized are both given, and one precision is read",
            "leave one of them out, and extract each to a folder of its own",
        )
    check_texts_are_used(arguments.calibration, options)
    model = opened(arguments, "activations of {}", options.memory_gb)
    scheme, params, precision = _precision(arguments, model, options)
    source, facts = plan(model, scheme, options, precision)
    print(_said(facts, source, output), flush=True)
    if options.estimate:
        return 0
    shards = fill(output, source, facts, model, params, arguments.calibration)
    print(f"\nactivations: {output}", flush=True)
    if not all(shard.finite for shard in shards):
        raise InputError(
            f"{scheme.name}: some activations left the precision's range and are not finite",
            "do not use them; bf16 has f32's range",
        )
    return 0


def fill(
    output: Path,
    source: TextActivations,
    facts: ActivationFacts,
    model: Model,
    params: Any,
    calibration: Path | None,
) -> list[Shard]:
    """Write what is missing in a folder; returns all of its shards.

    Args:
        output: the folder.
        source: reads the texts.
        facts: of the folder.
        model: in f32.
        params: in the precision; None where they are made here.
        calibration: of ``--calibration``, or None.

    Raises:
        InputError: the folder has other activations, too little room, or another run that writes.
    """
    _check_room(output, facts, _finished(output, facts))
    with alone_in(output):
        if params is None:
            unfinished = output / ".calibration"
            texts = calibration_texts(calibration) if source.scheme.needs_texts else ()
            prepare = preparer(model, texts, progress=True, folder=unfinished)
            params = prepare(model.params, source.scheme)
            remove_calls(unfinished)
        return extract(dataclasses.replace(source, params=params), facts, output, Progress())


def _precision(
    arguments: argparse.Namespace, model: Model, options: ExtractOptions
) -> tuple[Scheme, Any, dict[str, str | None]]:
    """The scheme, its parameters where they are a checkpoint's, and hashes of what made them."""
    hashes: dict[str, str | None] = {"quantized_sha256": None, "calibration_sha256": None}
    if arguments.quantized is not None:
        found = quantized_beside(arguments, model)
        scheme = found.scheme
        check_basis([options.site], [scheme])
        for text in found.notes:
            note(text)
        return scheme, found.params, hashes | {"quantized_sha256": found.weights_sha256}
    check_basis([options.site], [options.scheme])
    if options.scheme.needs_texts:
        texts = calibration_texts(arguments.calibration)
        check_texts_fit(model, texts, arguments.calibration)
        hashes["calibration_sha256"] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return options.scheme, None, hashes


def plan(
    model: Model, scheme: Scheme, options: ExtractOptions, precision: dict[str, str | None]
) -> tuple[TextActivations, ActivationFacts]:
    """What is read, and what a folder of it says.

    Args:
        model: in f32.
        scheme: the precision.
        options: site, layers and texts.
        precision: hashes of a quantized checkpoint, and of the texts of a calibration.

    Raises:
        InputError: a site, a layer or texts that cannot be used, or too little memory.
    """
    config, site = model.config, options.site
    layers = options.layers_of(config.num_layers)
    places = places_of(site, layers)
    check_places(places, config)
    name = options.texts or (DEMO if model.source.model == BUNDLED_NAME else CODE)
    texts, _ = named_texts(name, model.source.model)
    windows = _windows(texts, model, options)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    free = options.memory_gb * 1e9 - weights * (1 if scheme.name == "f32" else 2)
    source = TextActivations(
        params=model.params, config=config, scheme=scheme, windows=windows,
        counted=positions_read(windows, options.positions), places=places,
        batch=windows_at_once(config, site, options.window, free, options.memory_gb),
    )  # fmt: skip
    return source, ActivationFacts(
        model=model.source.model,
        revision=model.source.revision,
        weights_sha256=model.weights_sha256,
        scheme=scheme.name,
        **precision,
        site=site,
        layers=layers,
        width=width_at("resid" if site == EMBEDDING else site, config),
        dtype=scheme.compute_dtype,
        texts=name,
        texts_sha256=windows.texts_sha256,
        documents=windows.documents,
        windows=len(windows.tokens),
        tokens=source.tokens,
        window=windows.window,
        stride=windows.stride,
        bos=windows.bos,
        positions=options.positions,
        shard_tokens=options.shard_tokens,
        batch=source.batch,
        device=jax.devices()[0].device_kind,
        versions=(VERSION, jax.__version__),
        notes=windows.notes,
    )


def _windows(texts: Sequence[str], model: Model, options: ExtractOptions) -> Windows:
    windows = cut_windows(
        texts, model.tokenizer, window=options.window, stride=options.stride,
        bos=bos_token(model.tokenizer), config=model.config,
    )  # fmt: skip
    return first_tokens(windows, options.tokens)


def _finished(output: Path, facts: ActivationFacts) -> list[Shard | None]:
    """The shards that a folder has of these activations already, as its manifest says.

    Raises:
        InputError: it has others; names what differs.
    """
    if not (output / MANIFEST).exists():
        return [None] * facts.shard_count
    found, shards = read_manifest(output)
    for field in dataclasses.fields(ActivationFacts):
        there, wanted = getattr(found, field.name), getattr(facts, field.name)
        if there != wanted:
            raise InputError(
                f"{output} has other activations: their {field.name} is {_short(there)}, and "
                f"{_short(wanted)} is asked for",
                "give another --output, or remove that folder",
            )
    return [*shards, *[None] * (facts.shard_count - len(shards))]


def _short(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _said(facts: ActivationFacts, source: TextActivations, output: Path) -> str:
    places = f"{facts.site}" + (f" {_short(facts.layers)}" if facts.site != EMBEDDING else "")
    return (
        f"{facts.tokens} rows of {counted(facts.documents, 'document')} of {facts.texts}, "
        f"{places} in {facts.scheme}: {facts.size / 1e9:.3g} GB of {facts.dtype} in "
        f"{counted(facts.shard_count, 'shard')}, by {counted(len(source.ends), 'call')} of "
        f"{counted(facts.batch, 'window')}; {_free(output) / 1e9:.3g} GB are free"
    )


def _free(folder: Path) -> int:
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _check_room(output: Path, facts: ActivationFacts, done: Sequence[Shard | None]) -> None:
    missing = sum(1 for shard in done if shard is None) / len(done) * facts.size
    if missing > _free(output):
        raise InputError(
            f"{output} would take {missing / 1e9:.3g} GB more, and {_free(output) / 1e9:.3g} GB "
            "are free there",
            "give an --output with more room, fewer --layers or fewer --tokens",
        )


def extract(
    source: TextActivations, facts: ActivationFacts, output: Path, progress: Progress
) -> list[Shard]:
    """Write the shards that are missing or damaged; returns all of them.

    Args:
        source: reads the model.
        facts: of the folder.
        output: the folder, which no other process writes to.
        progress: shows how far it is.

    Raises:
        InputError: the folder has other activations, or cannot be written to; what is finished
            stays there.
    """
    shards = _finished(output, facts)
    damaged = [shard.file for shard in shards if shard is not None and not is_whole(output, shard)]
    if damaged:
        note(f"{', '.join(damaged)} in {output}: another checksum than {MANIFEST} says; made again")
    shards = [None if shard is None or shard.file in damaged else shard for shard in shards]
    write_manifest(output, facts, shards)
    documents, positions = source.documents, source.positions
    kept: dict[int, list[np.ndarray]] = {}
    missing = [number for number, shard in enumerate(shards) if shard is None]
    for number in progress.track(missing, "activations", "shard"):
        first, last = facts.rows_of(number)
        rows = _rows(source, first, last, kept)
        layers = dict(zip(facts.layers, rows, strict=True))
        part = slice(first, last)
        shards[number] = write_shard(output, number, layers, documents[part], positions[part])
        write_manifest(output, facts, shards)
    return [shard for shard in shards if shard is not None]


def _rows(
    source: TextActivations, first: int, last: int, kept: dict[int, list[np.ndarray]]
) -> list[np.ndarray]:
    """Rows of each place; the last call that they are of is kept, since the next shard has more."""
    ends = source.ends
    starts = np.concatenate([[0], ends[:-1]])
    calls = range(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last)))
    parts: list[list[np.ndarray]] = []
    for call in calls:
        found = kept[call] if call in kept else source.call(call)
        kept.clear()
        kept[call] = found
        low, high = max(first - starts[call], 0), last - starts[call]
        parts.append([rows[low:high] for rows in found])
    return [np.concatenate(own) for own in zip(*parts, strict=True)]
