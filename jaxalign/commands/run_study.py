"""The studies: read the arguments, run the study, report."""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from typing import Any

from jaxalign.checkpoints import Model
from jaxalign.checkpoints.quantized.read import SCHEME_NAME
from jaxalign.commands.one_study import Audit, run_study
from jaxalign.commands.opening import quantized_beside
from jaxalign.commands.over_training import over_training
from jaxalign.commands.parser import options_from
from jaxalign.errors import InputError
from jaxalign.numerics.scheme import INT8_SIM
from jaxalign.processes.distributed import processes
from jaxalign.studies.heads import HeadsOptions
from jaxalign.studies.registry import find_studies
from jaxalign.study.option import listed
from jaxalign.study.session import Prepare


def run(arguments: argparse.Namespace) -> int:
    """Run the study that the command names, ours or somebody else's; returns the exit code.

    Args:
        arguments: from ``commands.arguments.parse``.

    Raises:
        InputError: anything that cannot be used, or activations that left a precision's range.
    """
    study, overflows = find_studies()[arguments.command], []
    with processes(*_process(arguments)):
        if study.name != "heads":
            options, audit = options_from(arguments, study.options), None
            if getattr(arguments, "quantized", None) is not None:
                if arguments.schemes is None:  # it is a scheme of its own
                    options = replace(options, schemes=())
                audit = functools.partial(_audit, arguments)
            run_study(study, options, arguments, audit)
        elif arguments.revisions is None:
            overflows = _heads(arguments)
        else:
            overflows = over_training(arguments, _heads)
    # Only now, since an error in there ends the other processes, and bids them start again.
    if overflows:
        raise InputError(
            overflows[0], "read that precision's columns as incomplete; bf16 has f32's range"
        )
    return 0


def _process(arguments: argparse.Namespace) -> tuple[str | None, int | None, int | None]:
    """Which of several connected processes this is; a shard is alone, whatever launched it."""
    if arguments.shard is None:
        return arguments.coordinator, arguments.processes, arguments.process_id
    if (arguments.coordinator, arguments.processes, arguments.process_id) != (None, None, None):
        raise InputError(
            f"--shard {arguments.shard} is for workers that are not connected",
            "leave out --coordinator, --processes and --process-id, or --shard",
        )
    return None, 1, None


def _heads(arguments: argparse.Namespace) -> list[str]:
    """Run the heads study; the notes on activations that left a precision's range."""
    audit = None if arguments.quantized is None else functools.partial(_audit_heads, arguments)
    study = find_studies()["heads"]
    result = run_study(study, heads_options(arguments), arguments, audit)
    return [] if result is None else [n for n in result.provenance.notes if "overflow" in n]


def _audit(arguments: argparse.Namespace, original: Model, options: Any, prepare: Prepare) -> Audit:
    """A quantized checkpoint as one more scheme of a study."""
    found = quantized_beside(arguments, original)
    scheme = found.scheme
    return Audit(
        options=replace(options, schemes=(scheme, *options.schemes)),
        prepare=lambda params, other: found.params if other == scheme else prepare(params, other),
        weights_sha256=found.weights_sha256,
        notes=(f"quantized: {found.title}, from {arguments.quantized}", *found.notes),
    )


def _audit_heads(
    arguments: argparse.Namespace, original: Model, options: HeadsOptions, prepare: Prepare
) -> Audit:
    """The same, with repair curves unless they are left out."""
    audit = _audit(arguments, original, options, prepare)
    if not _repairs_quantized(arguments):
        return audit
    schemes = audit.options.schemes
    repaired = (schemes[0].name, *options.repaired)
    return replace(audit, options=replace(options, schemes=schemes, repaired=repaired))


def _repairs_quantized(arguments: argparse.Namespace) -> bool:
    """Whether the quantized checkpoint gets repair curves: unless ``--repair`` leaves it out."""
    asked = arguments.repair
    return arguments.quantized is not None and (
        asked in (None, "all") or SCHEME_NAME in listed(asked)
    )


def heads_options(arguments: argparse.Namespace) -> HeadsOptions:
    """The options of the heads study, as given.

    Args:
        arguments: of the command ``heads``.

    Raises:
        InputError: a value that cannot be used.
    """
    schemes = arguments.schemes
    if schemes is None:  # a checkpoint that is audited is a scheme of its own
        schemes = () if arguments.quantized else HeadsOptions().schemes
    names = [scheme.name for scheme in schemes]
    # The curves of int8-sim take long, so only when asked for.
    words = {None: [name for name in names if name != INT8_SIM.name], "all": names, "none": []}
    asked = arguments.repair
    repaired = words[asked] if asked in words else _repair_list(asked)
    audited = _repairs_quantized(arguments)
    if audited:  # it is a scheme of the study once its file is read
        repaired = [name for name in repaired if name != SCHEME_NAME]
    if arguments.max_repair_k is not None and not repaired and not audited:
        raise InputError(
            f"--max-repair-k {arguments.max_repair_k} is given, but no scheme has repair curves",
            "leave it out, or name schemes to repair with --repair",
        )
    return options_from(
        arguments, HeadsOptions, schemes=schemes, repaired=tuple(dict.fromkeys(repaired))
    )


def _repair_list(text: str) -> tuple[str, ...]:
    names = listed(text)
    if not names:
        raise InputError(f"--repair {text!r} names no scheme", "name one, or give all or none")
    return names
