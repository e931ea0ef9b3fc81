"""``train-sae``: dictionaries of a model's activations, many at once."""

from __future__ import annotations

import argparse
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxalign.checkpoints.activations import open_activations
from jaxalign.checkpoints.dictionaries import (
    DictionaryFacts,
    TrainedDictionary,
    save_dictionary,
)
from jaxalign.commands.opening import opened
from jaxalign.commands.parser import options_from
from jaxalign.commands.train_sae_material import Material, from_folder, from_texts, model_beside
from jaxalign.commands.train_sae_options import TrainSaeOptions, refuse_beside_activations
from jaxalign.commands.train_sae_resume import OnDisk, kept_until_the_end, like_part
from jaxalign.dictionaries.dead import CAUSES, SELDOM, dead_causes, silent_since
from jaxalign.dictionaries.fit import Fitted, bytes_of, fit
from jaxalign.dictionaries.training import TrainingOptions, stack_of
from jaxalign.engine.activations import Place
from jaxalign.errors import InputError
from jaxalign.runtime.files import check_writable
from jaxalign.runtime.messages import note
from jaxalign.runtime.progress import Progress
from jaxalign.runtime.resume import Resume
from jaxalign.studies.features.quality import DEAD, VALID, Quality, quality_of
from jaxalign.study.tables import text_table
from jaxalign.version import VERSION


def run(arguments: argparse.Namespace) -> int:
    """Train, write and print; returns the exit code."""
    options, output = options_from(arguments, TrainSaeOptions), arguments.output
    check_writable(output / "cfg.json")
    progress = Progress()
    if options.activations is None:
        material = from_texts(
            opened(arguments, "dictionaries of {}", options.memory_gb), options, progress
        )
    else:
        refuse_beside_activations(arguments)
        found = open_activations(options.activations, check=True)
        model, why = model_beside(arguments, found.facts, options.memory_gb)
        material = from_folder(found, model, why, options)
    rows, how = train(material, options, output, progress)
    print(f"\n{table(rows)}\n\ndictionaries: {output}, {how}", flush=True)
    return 0


# What the table says of a dictionary: its name, its quality, how many features are dead by cause.
Row = tuple[str, Quality, Mapping[str, int]]


def train(
    material: Material, options: TrainSaeOptions, output: Path, progress: Progress
) -> tuple[list[Row], str]:
    """Train a dictionary of every place, seed and penalty, and write each to a folder.

    Args:
        material: activations, and what is held out of them.
        options: of the training.
        output: gets a folder for each of them.
        progress: shows how far it is.

    Returns:
        The rows of ``table``, and in words how the training went.

    Raises:
        InputError: the training does not fit into the memory, or activations that cannot be
            learned from.
    """
    start = time.perf_counter()
    sites, training = stack_of(range(len(material.places)), options.training(material.width))
    need = material.memory + bytes_of(training, len(material.places), material.width)
    if need > options.memory_gb * 1e9:
        raise InputError(
            f"{len(sites)} dictionaries of {training.features} features take about "
            f"{need / 1e9:.3g} GB to train, and --memory-gb is {options.memory_gb:g}",
            "raise it, or train fewer --layers, --seeds or --features, or a smaller --batch",
        )
    with kept_until_the_end(output / ".training", _facts(material, training)) as resume:
        fitted = _trained(material, sites, training, resume, progress)
        seconds = time.perf_counter() - start
        rows: list[Row] = []
        for number, site in enumerate(sites):
            place = material.places[site]
            name = _name(place, options, training, number)
            sums = material.sums(fitted.dictionaries[number], site)
            quality = quality_of(sums)
            since = silent_since(fitted.fired[number], fitted.steps)
            causes = dead_causes(sums.top < DEAD, since, fitted.dictionaries[number])
            counts = dict(Counter(causes.values()))
            trained = _described(fitted, number, place, material, training)
            trained = _with(
                trained, silent_since=since, quality=_plain(quality), dead_causes=counts
            )
            if (output / name).exists():
                note(f"{output / name} held a dictionary, which is replaced")
            save_dictionary(trained, output / name, options.layout)
            rows.append((name, quality, counts))
    return rows, f"{fitted.steps} steps ({fitted.ended}), {seconds:.0f} s"


def _trained(
    material: Material,
    sites: list[int],
    training: TrainingOptions,
    resume: Resume,
    progress: Progress,
) -> Fitted:
    """Train, or go on where a training with the same options was cut off."""
    return fit(
        material.data, sites, training, parts=OnDisk(resume, like_part(training)),
        track=lambda parts: progress.track(parts, "training", "part"),
    )  # fmt: skip


def _facts(material: Material, training: TrainingOptions) -> dict[str, Any]:
    """What decides the numbers of a training."""
    return {
        "weights_sha256": material.weights_sha256,
        "scheme": material.scheme,
        "texts": dict(material.texts),
        "training": dict(vars(training)),
        "sites": [list(place) for place in material.places],
        "device": jax.devices()[0].device_kind,
        "versions": [VERSION, jax.__version__],
    }


def _name(place: Place, options: TrainSaeOptions, training: TrainingOptions, number: int) -> str:
    """The folder of a dictionary: its place, and its seed and penalty where there are several."""
    point, step = place
    layer = int(step or 0) - (point == "resid")
    if options.layout == "sparsify":
        if layer < 0:
            return "embed_tokens"
        return f"layers.{layer}" + {"resid": "", "mlp_out": ".mlp"}.get(point, f".{point}")
    name = "embed" if layer < 0 else f"{point}.{layer}"
    if len(options.seeds) > 1:
        name += f".seed{training.seeds[number]}"
    if options.penalties is not None and len(options.penalties) > 1:
        name += f".penalty{training.penalties[number]:g}"
    return name


def _described(
    fitted: Fitted, number: int, place: Place, material: Material, training: TrainingOptions
) -> TrainedDictionary:
    own = vars(training) | {
        "seeds": None,
        "penalties": None,
        "seed": training.seeds[number],
        "penalty": training.penalties[number],
    }
    texts = dict(material.texts)
    return TrainedDictionary(
        dictionary=fitted.dictionaries[number],
        facts=DictionaryFacts(
            layout="sae_lens",
            model=material.model,
            point=place[0],
            step=place[1],
            prepend_bos=texts.pop("prepend_bos"),
            context_size=texts["window"],
            weights_sha256=material.weights_sha256,
            training={
                "options": {name: value for name, value in own.items() if value is not None},
                "steps": fitted.steps,
                "ended": fitted.ended,
                "scheme": material.scheme,
                "texts": material.called,
                **texts,
                "never_fired": int((fitted.fired[number] == 0).sum()),
            },
        ),
    )


def _with(trained: TrainedDictionary, **more: object) -> TrainedDictionary:
    return replace(
        trained, facts=replace(trained.facts, training={**trained.facts.training, **more})
    )


def _plain(quality: Quality) -> dict[str, float | None]:
    """As JSON has it, which knows no NaN."""
    return {name: None if math.isnan(v) else v for name, v in vars(quality).items()}


def table(rows: Sequence[Row]) -> str:
    """The quality of dictionaries for people.

    Args:
        rows: name, quality, and how many features are dead by cause.
    """

    def lines() -> Iterator[tuple[str, ...]]:
        for name, q, causes in rows:
            yield (
                name + ("" if q.valid() else " *"), f"{q.explained:.3f}", f"{q.active:.1f}",
                "-" if math.isnan(q.recovered) else f"{q.recovered:.1%}", f"{q.dead:.1%}",
                f"{q.rare:.1%}", f"{q.frequent:.1%}",
                *(str(causes.get(cause, 0)) for cause in CAUSES),
            )  # fmt: skip

    head = ("dictionary", "explains", "L0", "loss recovered", "dead", "rare", "frequent",
            *CAUSES)  # fmt: skip
    text = text_table(head, list(lines()))
    if any(q.dead for _, q, _ in rows):
        text += (
            "\nwhy features are dead on what was held out: never fired in training; died before "
            f"its last\ntenth; encoder and decoder disagree; {SELDOM} active, maybe on other texts"
        )
    if any(not q.valid() for _, q, _ in rows):
        text += f"\n* explains less than {VALID:g} of the variance: do not read features off it"
    return text
