"""One study from the command line: open what it needs, run it, write, print and draw."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from jaxalign.calibration import preparer, read_texts
from jaxalign.compilation_cache import enable_compilation_cache
from jaxalign.convert import Model, load, locate
from jaxalign.distributed import is_first
from jaxalign.environment import select_device
from jaxalign.errors import InputError
from jaxalign.plots.page import styled, write
from jaxalign.prompts import SHIPPED, PromptSet, read_prompts
from jaxalign.runtime.files import check_writable, read_bytes
from jaxalign.sharding import choose_mesh, usable_devices
from jaxalign.study.session import Prepare, Session
from jaxalign.study.shards import Shard, ShardFinished
from jaxalign.study.study import Study

R = TypeVar("R")
# Of several devices each keeps this share of its memory for activations: where the parameters would
# leave less, they are spread further.
ACTIVATIONS = 0.25
# From model, options and how schemes are prepared to the options and that of the study.
Adapt = Callable[[Model, Any, Prepare], tuple[Any, Prepare, Mapping[str, Any], Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What the command line of a study opens: the arguments of ``Session.open``."""

    model: Model
    prompts: PromptSet
    texts: tuple[str, ...]
    mesh: Mesh | None
    source: dict[str, Any] = field(default_factory=dict)


def run_study(study: Study[Any, R], options: Any, arguments: argparse.Namespace) -> R | None:
    """Run a study as the command line asks; the result as its file has it.

    Args:
        study: which.
        options: its own.
        arguments: where the rest is: model, revision, prompts, calibration, device, devices,
            compilation cache, shard, output, no_figures.

    Returns:
        None in a process that does not write, and in a shard.

    Raises:
        InputError: anything that cannot be used.
    """
    output, first, shard = arguments.output, is_first(), parse_shard(arguments)
    if first:
        check_writable(output)
    given = _open(study, options, arguments)
    unfinished = output.with_name(f"{output.name}.calibration")
    prepare = preparer(given.model, given.texts, progress=first, folder=unfinished)
    with Session.open(
        study.format,
        given.model,
        given.prompts,
        options,
        mesh=given.mesh,
        folder=resume_folder(output),
        shard=shard,
        prepare=prepare,
        progress=first,
        source=given.source,
    ) as session:
        try:
            result = study.run(session, options)
        except ShardFinished:
            print(f"shard {shard}: its calls are in {resume_folder(output)}")
            return None
        if not first or shard:
            return None
        result = study.write(result, output)
        session.resume.remove()
        shutil.rmtree(unfinished, ignore_errors=True)
        beside = study.beside(session, result, output) if study.beside else ()
    print(f"\n{study.table(result)}\n\nresult: {output}", flush=True)
    for path in beside:
        print(path)
    if not arguments.no_figures:
        for path in draw(study, result, output.parent / "figures"):
            print(path)
    return result


def resume_folder(output: Path) -> Path:
    """Where the finished calls of a study are, until its result is written."""
    return output.with_name(f"{output.name}.journal")


def parse_shard(arguments: argparse.Namespace) -> Shard | None:
    """The share of the calls that ``--shard`` names.

    Raises:
        InputError: it names none, or processes that are connected are given one.
    """
    text = getattr(arguments, "shard", None)
    if text is None:
        return None
    if jax.process_count() > 1:
        raise InputError(
            f"--shard {text} is for workers that are not connected",
            "leave out --coordinator, or --shard",
        )
    return Shard.parse(text)


def draw(study: Study[Any, R], result: R, folder: Path) -> list[Path]:
    """Write a study's figures, PNG and SVG; their paths.

    Args:
        study: whose.
        result: what they show.
        folder: made where it is missing.

    Raises:
        InputError: the folder cannot be written.
    """
    with styled():
        pages = ((name, figure(result).settled()) for name, figure in study.figures.items())
        return [path for name, page in pages for path in write(page, folder, name)]


def _open(study: Study[Any, Any], options: Any, arguments: argparse.Namespace) -> Opened:
    prompts = read_prompts(arguments.prompts)
    file = SHIPPED if arguments.prompts is None else arguments.prompts
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    if is_first():
        print(f"{study.name} of {_described(source, device.platform)}", flush=True)
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)
    count = 1 if arguments.devices is None and device.platform == "cpu" else arguments.devices
    devices = usable_devices(device.platform, count)
    budget = options.memory_gb * 1e9
    model = _load(source, devices, options.memory_gb)
    reserve = ACTIVATIONS * budget if len(devices) > 1 else 0.0
    calibration = arguments.calibration
    texts = prompts.reference if calibration is None else read_texts(calibration)
    return Opened(
        model=model,
        prompts=prompts,
        texts=texts,
        mesh=choose_mesh(model.config, devices, budget, reserve=reserve),
        source={
            "file": "shipped" if arguments.prompts is None else str(arguments.prompts),
            "file_sha256": hashlib.sha256(read_bytes(file)).hexdigest(),
            "calibration": texts,
        },
    )


def _described(source: Any, platform: str) -> str:
    revision = f" at {source.revision}" if source.revision else ""
    note = f" ({source.note})" if source.note else ""
    return f"{source.model}{revision} on {platform}{note}"


def _load(source: Any, devices: Sequence[jax.Device], memory_gb: float) -> Model:
    """The model; in the host's memory where several devices take their parts from it."""
    if len(devices) == 1:
        return load(source, memory_gb=memory_gb)
    try:
        [host, *_] = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise InputError(
            "several devices take their parts of the model from the host's memory, and "
            "JAX_PLATFORMS leaves the host's CPU out",
            "add it, for example JAX_PLATFORMS=cuda,cpu",
        ) from error
    with jax.default_device(host):
        return load(source)
