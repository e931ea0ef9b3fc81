"""One study from the command line: open what it needs, run it, write, print and draw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.calibration import preparer
from jaxalign.checkpoints import Model, locate
from jaxalign.commands.opening import (
    asked_prompts,
    calibration_texts,
    described,
    ignoring,
    keep_programs,
    load_for,
    shared_devices,
)
from jaxalign.commands.reporting import report
from jaxalign.commands.screen import Screen
from jaxalign.devices.mesh import choose_mesh
from jaxalign.errors import InputError
from jaxalign.numerics.scheme import Scheme
from jaxalign.processes.distributed import is_first
from jaxalign.prompts import PromptSet
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.files import check_writable
from jaxalign.runtime.memory import default_memory_gb
from jaxalign.runtime.messages import note
from jaxalign.runtime.progress import Progress
from jaxalign.runtime.resume import remove_calls
from jaxalign.study.estimate import Estimated
from jaxalign.study.session import Prepare, Session
from jaxalign.study.shards import Shard, ShardFinished
from jaxalign.study.study import Study

# Of several devices each keeps this share of its memory for activations: where the parameters would
# leave less, they are spread further.
ACTIVATIONS = 0.25
FIGURE_ENDINGS = (".png", ".svg")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What the command line of a study opens: the arguments of ``Session.open``."""

    model: Model
    prompts: PromptSet
    texts: tuple[str, ...]
    mesh: Mesh | None
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A checkpoint that another tool quantized, as one more scheme of a study.

    Attributes:
        options: with its scheme.
        prepare: makes its parameters, too.
        weights_sha256: of its files.
        notes: what a reader has to know of it.
    """

    options: Any
    prepare: Prepare
    weights_sha256: str
    notes: tuple[str, ...]


def run_study(
    study: Study[Any, Any],
    options: Any,
    arguments: argparse.Namespace,
    audit: Callable[[Model, Any, Prepare], Audit] | None = None,
) -> Any:
    """Run a study as the command line asks; the result as its file has it.

    Args:
        study: which.
        options: its own.
        arguments: where the rest is: model, revision, prompts, device, devices, compilation cache,
            shard, output, no_figures, and what only some namespaces have: calibration, estimate,
            quiet, verbose, json, one prompt, tasks, limit, memory_gb.
        audit: reads a quantized checkpoint beside the model.

    Returns:
        None in a shard, and where the study is only estimated.

    Raises:
        InputError: anything that cannot be used.
    """
    device = select_device(arguments.device)  # first, since it says what JAX does not find
    if getattr(arguments, "memory_gb", 0) is None:
        options = replace(options, memory_gb=default_memory_gb(device))
    output, first, shard = arguments.output, is_first(), parse_shard(arguments.shard)
    screen, estimate = Screen.of(arguments), getattr(arguments, "estimate", False)
    if estimate and shard:
        raise InputError(
            f"--estimate is of the whole study, and --shard {shard} of a share", "leave one out"
        )
    if first:
        check_output(output, not arguments.no_figures)
        check_inputs_stay(
            {
                "--prompts": arguments.prompts,
                "--calibration": getattr(arguments, "calibration", None),
                "--model": arguments.model,
                "--quantized": getattr(arguments, "quantized", None),
            },
            output,
            () if arguments.no_figures else study.figures,
        )
    calibration = getattr(arguments, "calibration", None)
    check_texts_are_used(calibration, options)
    shown = first and not screen.quiet
    with Progress(shown).phase("opening the model"):
        given = _open(study, options, arguments, device, screen)
    unfinished = output.with_name(f"{output.name}.calibration")
    prepare = preparer(given.model, given.texts, progress=shown, folder=unfinished)
    source = given.source
    notes: tuple[str, ...] = ()
    if audit:
        audited = audit(given.model, options, prepare)
        options, prepare, notes = audited.options, audited.prepare, audited.notes
        source = source | {"quantized": audited.weights_sha256}
    with Session.open(
        study.format,
        given.model,
        given.prompts,
        options,
        kind=study.prompts,
        mesh=given.mesh,
        folder=None if estimate else resume_folder(output),
        shard=shard,
        prepare=prepare,
        progress=shown,
        estimate=estimate,
        source=source,
    ) as session:
        session.notes += notes
        try:
            result = study.run(session, options)
        except ShardFinished:
            screen.say(f"shard {shard}: its calls are in {resume_folder(output)}")
            return None
        except Estimated as estimated:
            for text in session.notes if first else ():
                note(text)
            if first:
                screen.estimate(estimated.taken)
            return None
        if shard:
            return None
        if not first:
            return result
        result = study.write(result, output)
        arguments.written = output
        session.resume.remove()
        remove_calls(unfinished)
        beside = study.beside(session, result, output) if study.beside else ()
    report(study, result, arguments, screen, beside)
    return result


def resume_folder(output: Path) -> Path:
    """Where the finished calls of a study are, until its result is written."""
    if os.path.islink(output):  # one folder, whatever link the output is given by
        output = Path(os.path.realpath(output))
    return output.with_name(f"{output.name}.journal")


def check_inputs_stay(
    given: Mapping[str, Path | str | None],
    output: Path,
    figures: Callable[[], Mapping[str, Any]] | tuple[()],
) -> None:
    """Refuse an output, or a figure, that is one of the files that a command reads.

    Args:
        given: by option, the file or folder that is read; None for none.
        output: the result's file.
        figures: that are drawn beside it, by name; () for none.

    Raises:
        InputError: names the file.
    """
    folder = output.parent / "figures"
    for flag, path in given.items():
        # The files of a checkpoint's folder are listed, not searched for: a folder may hold much.
        inside = path is not None and os.path.isdir(path)
        files = sorted(Path(path).iterdir()) if path and inside else [Path(path)] if path else []
        for file in filter(os.path.isfile, files):
            if os.path.exists(output) and file.samefile(output):
                raise InputError(
                    f"--output {output} is a file that {flag} reads",
                    "give --output another name",
                )
            if figures and _is_figure(file, folder, figures):
                raise InputError(
                    f"{file}, which {flag} reads, has the name of a figure and would be drawn over",
                    "rename it, give --output another folder, or --no-figures",
                )


def _is_figure(file: Path, folder: Path, figures: Callable[[], Mapping[str, Any]]) -> bool:
    """Whether a figure would be written over a file; matplotlib is imported only if it may be."""
    inside = os.path.realpath(file.parent) == os.path.realpath(folder)
    return inside and file.suffix in FIGURE_ENDINGS and file.stem in figures()


def check_texts_are_used(path: Path | None, options: Any) -> None:
    """Refuse texts to calibrate on where no scheme is chosen by any.

    Args:
        path: of ``--calibration``, or None.
        options: with schemes.

    Raises:
        InputError: names the schemes.
    """
    schemes = _schemes(options)
    if path is not None and schemes and not any(scheme.needs_texts for scheme in schemes):
        names = ", ".join(scheme.name for scheme in schemes)
        raise InputError(
            f"--calibration {path} is given, but no scheme of {names} is chosen by texts",
            "leave it out, or name a scheme that is: awq, gptq, smoothquant",
        )


def _schemes(options: Any) -> tuple[Scheme, ...]:
    """The schemes that a study's options name; none where it has no such option."""
    one = (options.scheme,) if hasattr(options, "scheme") else ()
    return getattr(options, "schemes", one)


def check_texts_fit(model: Model, texts: tuple[str, ...], path: Path | None) -> None:
    """Refuse texts to calibrate on that the model cannot read, before anything is computed.

    Args:
        model: whose tokenizer reads them.
        texts: of the file, or the shipped ones.
        path: of ``--calibration``, or None.

    Raises:
        InputError: names the text.
    """
    try:
        model.encode(list(texts), special=True)
    except InputError as error:
        if path is not None:
            raise InputError(f"{path}: {error.problem}", error.remedy) from error
        raise InputError(
            f"the shipped calibration texts: {error.problem}",
            "give --calibration FILE with texts that this model reads, one a line",
        ) from error


def check_output(output: Path, figures: bool) -> None:
    """Refuse what could not be written at the end.

    Args:
        output: the result's file.
        figures: whether figures are drawn beside it.

    Raises:
        InputError: the file cannot be written, or where figures go there is something else.
    """
    check_writable(output)
    folder = output.parent / "figures"
    if figures and output.name == folder.name:
        raise InputError(
            f"--output {output}: figures go into a folder of that name",
            "give another name, or --no-figures",
        )
    if figures and os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(
            f"{folder} is no folder, and figures go there", "move it, or give --no-figures"
        )


def parse_shard(text: str | None) -> Shard | None:
    """The share of the calls that ``--shard`` names; None without.

    Args:
        text: of ``--shard``, or None.

    Raises:
        InputError: it names none.
    """
    return None if text is None else Shard.parse(text)


def _open(
    study: Study[Any, Any],
    options: Any,
    arguments: argparse.Namespace,
    device: jax.Device,
    screen: Screen,
) -> Opened:
    prompts, named = asked_prompts(arguments, study.prompts)
    source = locate(arguments.model, arguments.revision)
    if is_first():
        screen.say(f"{study.name} study of {described(source, device.platform)}")
    keep_programs(arguments)
    devices = shared_devices(arguments.devices, device)
    budget = options.memory_gb * 1e9
    model = load_for(devices, source, options.memory_gb, **ignoring(arguments))
    reserve = ACTIVATIONS * budget if len(devices) > 1 else 0.0
    calibrated = hasattr(arguments, "calibration")  # where the study has schemes at all
    texts = calibration_texts(arguments.calibration) if calibrated else ()
    if texts and any(scheme.needs_texts for scheme in _schemes(options)):
        check_texts_fit(model, texts, arguments.calibration)
    return Opened(
        model=model,
        prompts=prompts,
        texts=texts,
        mesh=choose_mesh(model.config, devices, budget, reserve=reserve),
        source={**named, "calibration": texts},
    )
