"""``heads``, ``schemes`` and ``plan``: read the arguments, run the study, report."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from jaxalign import results
from jaxalign.calibration import preparer
from jaxalign.commands.one_study import ACTIVATIONS, check_output, resume_folder, run_study
from jaxalign.commands.opening import (
    calibration_texts,
    described,
    ignoring,
    keep_programs,
    load_for,
    shared_devices,
)
from jaxalign.commands.over_training import over_training
from jaxalign.commands.parser import options_from
from jaxalign.convert import Model, Quantized, load_beside, locate
from jaxalign.devices.mesh import choose_mesh
from jaxalign.devices.processes import is_first, processes, require_same
from jaxalign.environment import select_device
from jaxalign.errors import InputError
from jaxalign.experiments.heads import Options, heads_study
from jaxalign.experiments.heads.study import facts
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import INT8_SIM, Scheme
from jaxalign.plots import draw
from jaxalign.prompts import SHIPPED, read_prompts
from jaxalign.runtime.files import read_bytes
from jaxalign.runtime.resume import Resume
from jaxalign.studies.heads.figures import FIGURES as HEADS_FIGURES
from jaxalign.studies.heads.table import table as heads_table
from jaxalign.studies.registry import find_studies
from jaxalign.study.option import listed


def run(arguments: argparse.Namespace) -> int:
    """Run the study that the command names; returns the exit code."""
    return _heads(arguments) if arguments.command == "heads" else _framed(arguments)


def _framed(arguments: argparse.Namespace) -> int:
    """A study of the frame, ours or somebody else's."""
    study = find_studies()[arguments.command]
    options = options_from(arguments, study.options)
    with processes(arguments.coordinator, arguments.processes, arguments.process_id):
        run_study(study, options, arguments)
    return 0


def _heads(arguments: argparse.Namespace) -> int:
    options = heads_options(arguments)
    with processes(arguments.coordinator, arguments.processes, arguments.process_id):
        if arguments.revisions is not None:
            overflows = over_training(arguments, lambda one: _study(one, options))
        else:
            overflows = _study(arguments, options)
    # Only now, since an error in there ends the other processes, and bids them start again.
    if overflows:
        raise InputError(
            overflows[0], "read that precision's columns as incomplete; bf16 has f32's range"
        )
    return 0


def _study(arguments: argparse.Namespace, options: Options) -> list[str]:
    """Run it and report; the notes on activations that left a precision's range."""
    device = select_device(arguments.device)
    first = is_first()
    if first:
        check_output(arguments.output, not arguments.no_figures)
    prompts = read_prompts(arguments.prompts)
    origin = _prompts_origin(arguments.prompts)
    source = locate(arguments.model, arguments.revision)
    if first:
        print(f"heads study of {described(source, device.platform)}", flush=True)
    draws = first and not arguments.no_figures
    keep_programs(arguments)
    devices = shared_devices(arguments.devices, device)
    model = load_for(devices, source, options.memory_gb, **ignoring(arguments))
    budget = options.memory_gb * 1e9
    reserve = ACTIVATIONS * budget if len(devices) > 1 else 0.0
    mesh = choose_mesh(model.config, devices, budget, reserve=reserve)
    texts = calibration_texts(arguments.calibration, prompts)
    quantized = _quantized(arguments, model)
    if quantized:
        options = replace(
            options,
            schemes=(quantized.scheme, *options.schemes),
            repaired=(quantized.scheme.name, *options.repaired),
        )
    known = facts(model, prompts, options, mesh)
    known |= {"calibration": texts, "quantized": quantized and quantized.weights_sha256}
    require_same({**known, "options": None, **known["options"]})
    resume = Resume(resume_folder(arguments.output), known)
    unfinished = arguments.output.with_name(f"{arguments.output.name}.calibration")
    result = heads_study(
        model,
        prompts,
        options,
        progress=first,
        resume=resume,
        mesh=mesh,
        prepare=_prepare(model, texts, quantized, first, unfinished),
    )
    if quantized:
        title = f"quantized: {quantized.title}, from {arguments.quantized}"
        result.metadata["notes"] += [title, *quantized.notes]
    overflows = [note for note in result.metadata["notes"] if "overflow" in note]
    if not first:
        return overflows
    result.metadata["prompts"] |= origin
    # As the file has it, so that `plot` draws the same.
    result = results.write(result, arguments.output)
    resume.remove()
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"\n{heads_table(result)}\n\nresult: {arguments.output}", flush=True)
    if draws:
        figures = arguments.output.parent / "figures"
        draw(HEADS_FIGURES, result, figures)
        print(f"figures: {figures}")
    return overflows


def _quantized(arguments: argparse.Namespace, original: Model) -> Quantized | None:
    """The checkpoint to audit, if one is asked for."""
    if arguments.quantized is None:
        return None
    if arguments.model is None:
        raise InputError(
            "--quantized needs the original beside it, and --model names none",
            "give --model, the model that was quantized",
        )
    found = load_beside(arguments.quantized, original)
    return replace(found, scheme=replace(found.scheme, from_file=True))


def _prepare(
    model: Model, texts: Sequence[str], quantized: Quantized | None, progress: bool, folder: Path
) -> Callable[[Params, Scheme], Params]:
    """What makes the parameters of each scheme; those of a quantized checkpoint are there."""
    prepare = preparer(model, texts, progress=progress, folder=folder)
    if quantized is None:
        return prepare
    return lambda params, scheme: (
        quantized.params if scheme == quantized.scheme else prepare(params, scheme)
    )


def heads_options(arguments: argparse.Namespace) -> Options:
    """The options of the heads study, as given.

    Args:
        arguments: of the command ``heads``.

    Raises:
        InputError: a value that cannot be used.
    """
    schemes = arguments.schemes
    if schemes is None:  # a checkpoint that is audited is a scheme of its own
        schemes = () if arguments.quantized else Options().schemes
    names = [scheme.name for scheme in schemes]
    # The curves of int8-sim take long, so only when asked for.
    words = {None: [name for name in names if name != INT8_SIM.name], "all": names, "none": []}
    asked = arguments.repair
    repaired = words[asked] if asked in words else _repair_list(asked)
    return options_from(
        arguments, Options, schemes=schemes, repaired=tuple(dict.fromkeys(repaired))
    )


def _repair_list(text: str) -> tuple[str, ...]:
    names = listed(text)
    if not names:
        raise InputError(f"--repair {text!r} names no scheme", "name one, or give all or none")
    return names


def _prompts_origin(path: Path | None) -> dict[str, str]:
    digest = hashlib.sha256(read_bytes(SHIPPED if path is None else path)).hexdigest()
    return {"file": "shipped" if path is None else str(path), "sha256": digest}
