"""``train-sae``: dictionaries of a model's activations, many at once."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints import Model
from jaxalign.checkpoints.dictionaries import (
    DictionaryFacts,
    TrainedDictionary,
    save_dictionary,
)
from jaxalign.commands.opening import opened
from jaxalign.commands.parser import options_from
from jaxalign.commands.train_sae_options import TrainSaeOptions
from jaxalign.dictionaries.fit import Fitted, Parts, fit
from jaxalign.dictionaries.training import Steps, Training, TrainingOptions, begin, stack_of
from jaxalign.engine.activations import Place, activations_at, check_places, width_at
from jaxalign.errors import InputError, counted
from jaxalign.prompts import Windows, bos_token, cut_windows, first_tokens
from jaxalign.prompts.named_texts import named_texts
from jaxalign.runtime.compile import jit
from jaxalign.runtime.files import check_writable
from jaxalign.runtime.progress import Progress
from jaxalign.runtime.resume import Resume
from jaxalign.studies.features.quality import (
    VALID,
    Quality,
    first_left_out,
    measure_quality,
    padded,
)
from jaxalign.study.tables import text_table
from jaxalign.version import VERSION

HELD_OUT = 10  # of so many documents one is kept for the quality
AT_ONCE = 1 << 13  # positions of a call


def run(arguments: argparse.Namespace) -> int:
    """Train, write and print; returns the exit code."""
    options, output = options_from(arguments, TrainSaeOptions), arguments.output
    check_writable(output / "cfg.json")
    model = opened(arguments, "dictionaries of {}", options.memory_gb)
    layers = range(model.config.num_layers) if options.layers is None else options.layers
    places: list[Place] = [(options.site, n + (options.site == "resid")) for n in layers]
    check_places(places, model.config)
    if len(set(places)) < len(places) or not places:
        raise InputError("--layers: expected numbers, each once", "name one or more")
    texts, called = named_texts(options.texts, model.source.model)
    rows, how = train(model, places, texts, called, options, output)
    print(f"\n{table(rows)}\n\ndictionaries: {output}, {how}", flush=True)
    return 0


# What the table says of a dictionary: its name, its quality, features that never fired or died.
Row = tuple[str, Quality, tuple[int, int]]


def train(
    model: Model,
    places: Sequence[Place],
    texts: Sequence[str],
    called: str,
    options: TrainSaeOptions,
    output: Path,
) -> tuple[list[Row], str]:
    """Train a dictionary of every place, seed and penalty, and write each to a folder.

    Args:
        model: in f32.
        places: point and step of each.
        texts: documents; every tenth is held out.
        called: what they are called.
        options: of the training.
        output: gets a folder for each of them.

    Returns:
        The rows of ``table``, and in words how the training went.

    Raises:
        InputError: texts that are too short, or activations that do not fit into the memory.
    """
    windows, held = read_windows(texts, model, options)
    print(
        f"{windows.counted_tokens} tokens of {counted(windows.documents, 'document')} of {called}, "
        f"{held.counted_tokens} of {held.documents} held out",
        flush=True,
    )
    start, progress = time.perf_counter(), Progress()
    data = gathered(model, windows, places, options, progress)
    sites, training = stack_of(
        range(len(places)), options.training(width_at(options.site, model.config))
    )
    fitted = _trained(data, sites, training, output, model, windows, options, progress)
    seconds = time.perf_counter() - start
    rows: list[Row] = []
    for number, site in enumerate(sites):
        place = places[site]
        name = _name(place, options, training, number)
        trained = _described(fitted, number, place, model, windows, training, called)
        quality = measure_quality(
            model.params, model.config, held, trained.dictionary, place,
            rows=rows_of(options.window),
        )  # fmt: skip
        save_dictionary(_with_quality(trained, quality), output / name, options.layout)
        rows.append((name, quality, _dead_causes(fitted, number)))
    return rows, f"{fitted.steps} steps ({fitted.ended}), {seconds:.0f} s"


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
    places: Sequence[Place],
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
    counts = first_left_out(windows)
    width = width_at(options.site, model.config)
    # The training has a scaled copy.
    need = 2 * 4.0 * len(places) * int(counts.sum()) * width
    if need > options.memory_gb * 1e9:
        raise InputError(
            f"the activations of {len(places)} places take {need / 1e9:.3g} GB, and --memory-gb is "
            f"{options.memory_gb:g}",
            "raise it, read fewer --tokens, or train fewer --layers at a time",
        )
    rows = rows_of(options.window)
    read = jit(
        lambda params, tokens, lengths: activations_at(
            params, tokens, lengths, model.config, places
        )[0]
    )
    found: list[list[np.ndarray]] = [[] for _ in places]
    for start in progress.track(range(0, len(counts), rows), "activations"):
        part = slice(start, start + rows)
        tokens, real = padded(windows.tokens[part], rows), padded(counts[part], rows)
        values = read(model.params, tokens, padded(windows.lengths[part], rows, 1))
        for own, value in zip(found, values, strict=True):
            own.append(np.asarray(value, np.float32)[real])
    return [np.concatenate(own) for own in found]


def _trained(
    data: list[np.ndarray],
    sites: list[int],
    training: TrainingOptions,
    output: Path,
    model: Model,
    windows: Windows,
    options: TrainSaeOptions,
    progress: Progress,
) -> Fitted:
    """Train, or go on where a training with the same options was cut off."""
    facts = {
        "weights_sha256": model.weights_sha256,
        "texts": windows.facts,
        "training": dict(vars(training)),
        "sites": [options.site, list(options.layers or ())],
        "device": jax.devices()[0].device_kind,
        "versions": [VERSION, jax.__version__],
    }
    resume = Resume(output / ".training", facts)
    try:
        fitted = fit(
            data, sites, training, parts=OnDisk(resume, _like(training)),
            track=lambda parts: progress.track(parts, "training", "part"),
        )  # fmt: skip
    except BaseException:  # an interruption, too, leaves the parts that are finished
        resume.close()
        raise
    resume.remove()
    return fitted


@dataclass(frozen=True)
class OnDisk(Parts):
    """The last part of a training in a folder.

    Attributes:
        resume: the folder.
        like: the structure of what a part returns.
    """

    resume: Resume
    like: Any

    def has(self, number: int) -> bool:
        """As ``Parts.has``."""
        return self.resume.found(("training", number), self.like) is not None

    def keep(self, number: int, compute: Callable[[], Any]) -> Any:
        """As ``Parts.keep``."""
        found = self.resume.keep(("training", number), compute, self.like)
        self.resume.forget(("training", number - 1))
        return found


def _like(training: TrainingOptions) -> tuple[Training, Any]:
    """The structure of what a part of a training returns."""
    one = replace(training, features=max(2, training.k), seeds=(0,), penalties=(0.0,))
    shapes = jax.eval_shape(lambda: begin(one, jnp.zeros((1, 2))))
    return shapes, Steps(error=0, total=0, active=0)


def _name(place: Place, options: TrainSaeOptions, training: TrainingOptions, number: int) -> str:
    """The folder of a dictionary: its place, and its seed and penalty where there are several."""
    point, step = place
    layer = int(step or 0) - (point == "resid")
    if options.layout == "sparsify":
        return f"layers.{layer}" + {"resid": "", "mlp_out": ".mlp"}.get(point, f".{point}")
    name = f"{point}.{layer}"
    if len(options.seeds) > 1:
        name += f".seed{training.seeds[number]}"
    if options.penalties is not None and len(options.penalties) > 1:
        name += f".penalty{training.penalties[number]:g}"
    return name


def _described(
    fitted: Fitted,
    number: int,
    place: Place,
    model: Model,
    windows: Windows,
    training: TrainingOptions,
    called: str,
) -> TrainedDictionary:
    own = vars(training) | {
        "seeds": None,
        "penalties": None,
        "seed": training.seeds[number],
        "penalty": training.penalties[number],
    }
    return TrainedDictionary(
        dictionary=fitted.dictionaries[number],
        facts=DictionaryFacts(
            layout="sae_lens",
            model=model.source.model,
            point=place[0],
            step=place[1],
            prepend_bos=windows.bos is not None,
            context_size=windows.window,
            weights_sha256=model.weights_sha256,
            training={
                "options": {name: value for name, value in own.items() if value is not None},
                "steps": fitted.steps,
                "ended": fitted.ended,
                "texts": called,
                **windows.facts,
                "never_fired": int((fitted.fired[number] == 0).sum()),
            },
        ),
    )


def _with_quality(trained: TrainedDictionary, quality: Quality) -> TrainedDictionary:
    training = {**trained.facts.training, "quality": vars(quality)}
    return replace(trained, facts=replace(trained.facts, training=training))


def _dead_causes(fitted: Fitted, number: int) -> tuple[int, int]:
    """Features that never fired in training, and those that last fired long before its end."""
    fired = fitted.fired[number]
    return int((fired == 0).sum()), int(((fired > 0) & (fired < 0.9 * fitted.steps)).sum())


def table(rows: Sequence[Row]) -> str:
    """The quality of dictionaries for people.

    Args:
        rows: name, quality, and features that never fired or died.
    """

    def lines() -> Iterator[tuple[str, ...]]:
        for name, q, (never, died) in rows:
            yield (
                name + ("" if q.valid() else " *"), f"{q.explained:.3f}", f"{q.active:.1f}",
                f"{q.recovered:.1%}", f"{q.dead:.1%}", f"{q.rare:.1%}", f"{q.frequent:.1%}",
                str(never), str(died),
            )  # fmt: skip

    head = ("dictionary", "explained variance", "features a token", "loss recovered", "dead",
            "rare", "frequent", "never fired", "died")  # fmt: skip
    text = text_table(head, list(lines()))
    if any(not q.valid() for _, q, _ in rows):
        text += f"\n* explains less than {VALID:g} of the variance: do not read features off it"
    return text
