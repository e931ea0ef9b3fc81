"""The command line. No science here: it reads arguments, calls the studies, and reports."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax

from jaxalign import plan_command, results
from jaxalign.calibration import preparer
from jaxalign.compilation_cache import enable_compilation_cache
from jaxalign.convert import Model, ModelUnavailable, Quantized, Source, load, load_beside, locate
from jaxalign.distributed import is_first, processes, require_same
from jaxalign.environment import select_device
from jaxalign.errors import InputError
from jaxalign.experiments.heads import Options, heads_study
from jaxalign.experiments.heads.study import facts
from jaxalign.experiments.speed import forward_speed
from jaxalign.experiments.verify import Check, verify
from jaxalign.grammar import build_parser
from jaxalign.journal import Journal
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F16, F32, INT8_SIM, Scheme
from jaxalign.plots import draw_all, drawing_process
from jaxalign.prompts import SHIPPED, read_prompts
from jaxalign.report import summary
from jaxalign.runtime.files import check_writable
from jaxalign.schemes_command import calibration, compare_schemes, listed, named
from jaxalign.sharding import choose_mesh, usable_devices
from jaxalign.training_command import over_training

BAD_INPUT = 2
MISMATCH = 1
NOT_CHECKED = 3
# Of several devices each keeps this share of its memory for activations: where the parameters would
# leave less, they are spread further.
ACTIVATIONS = 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    actions = {
        "schemes": compare_schemes,
        "plan": plan_command.run,
        "plot": _plot,
        "verify": _verify,
        None: _run,
    }
    try:
        return actions[arguments.command](arguments)
    except InputError as error:
        print(f"jaxalign: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(
            "jaxalign: error: interrupted; earlier results are unchanged. "
            f"Run it again{_what_is_kept(arguments)}.",
            file=sys.stderr,
        )
    return BAD_INPUT


def _journal_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.journal")


def _what_is_kept(arguments: argparse.Namespace) -> str:
    if arguments.command is None and _journal_folder(arguments.output).is_dir():
        return ": with the same options it goes on from the calls that are finished"
    return ""


def _run(arguments: argparse.Namespace) -> int:
    options = _options(arguments)
    with processes(arguments.coordinator, arguments.processes, arguments.process_id):
        if arguments.revisions:
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
    first = is_first()
    if first:
        check_writable(arguments.output)
    prompts = read_prompts(arguments.prompts)
    origin = _prompts_origin(arguments.prompts)
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    job = "speed" if arguments.benchmark_speed else "heads study"
    if first:
        print(f"{job} of {_described(source, device.platform)}", flush=True)
    if arguments.benchmark_speed:
        _keep_programs(arguments)
        _speed(arguments, load(source), options)
        return []
    draws = first and not arguments.no_figures
    # Started first, since it imports what it needs while this process computes.
    with drawing_process() if draws else contextlib.nullcontext() as second:
        _keep_programs(arguments)
        devices = _devices(arguments, device)
        model = _load(source, devices, arguments.memory_gb)
        budget = arguments.memory_gb * 1e9
        reserve = ACTIVATIONS * budget if len(devices) > 1 else 0.0
        mesh = choose_mesh(model.config, devices, budget, reserve=reserve)
        texts = calibration(arguments, prompts)
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
        journal = Journal(_journal_folder(arguments.output), known)
        unfinished = arguments.output.with_name(f"{arguments.output.name}.calibration")
        result = heads_study(
            model,
            prompts,
            options,
            progress=first,
            journal=journal,
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
        journal.remove()
        shutil.rmtree(unfinished, ignore_errors=True)
        print(f"\n{summary(result)}\n\nresult: {arguments.output}", flush=True)
        if draws:
            figures = arguments.output.parent / "figures"
            draw_all(result, figures, second)
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
    # Its codes are the file's, which rounding would not find again.
    return replace(found, scheme=replace(found.scheme, method="file"))


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


def _devices(arguments: argparse.Namespace, device: jax.Device) -> list[jax.Device]:
    """The devices that share the work: all GPUs by default, one CPU."""
    count = arguments.devices
    if count is None and device.platform == "cpu":
        count = 1
    return usable_devices(device.platform, count)


def _load(source: Source, devices: Sequence[jax.Device], memory_gb: float | None = None) -> Model:
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


def _keep_programs(arguments: argparse.Namespace) -> None:
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)


def _options(arguments: argparse.Namespace) -> Options:
    if arguments.disable_int8 and arguments.repair_int8:
        raise InputError("--repair-int8 and --disable-int8 exclude each other", "choose one")
    schemes = _schemes(arguments)
    return Options(
        schemes=schemes,
        repaired=_repaired(arguments, [scheme.name for scheme in schemes]),
        head_mode=arguments.head_mode,
        mean_positions=arguments.mean_positions,
        max_repair_k=arguments.max_repair_k,
        use_all_prompts=arguments.use_all_prompts,
        memory_gb=arguments.memory_gb,
        engine=arguments.plan,
        seed=arguments.seed,
    )


def _schemes(arguments: argparse.Namespace) -> tuple[Scheme, ...]:
    if arguments.schemes is None and arguments.quantized is not None:
        return ()
    if arguments.schemes is None:
        return (F16,) if arguments.disable_int8 else (F16, INT8_SIM)
    if arguments.disable_int8:
        raise InputError("--schemes and --disable-int8 exclude each other", "leave int8-sim out")
    return named(arguments.schemes)


def _repaired(arguments: argparse.Namespace, names: list[str]) -> tuple[str, ...]:
    """The schemes that get repair curves; those of int8-sim take long, so only when asked for."""
    if arguments.repair_int8 and INT8_SIM.name not in names:
        raise InputError(
            "--repair-int8 is given, but int8-sim is not among the schemes", "choose one"
        )
    chosen = [name for name in names if name != INT8_SIM.name]
    if arguments.repair is not None:
        words = {"all": names, "none": []}
        chosen = words.get(arguments.repair, listed(arguments.repair))
    if arguments.repair_int8:
        chosen = [*chosen, INT8_SIM.name]
    return tuple(dict.fromkeys(chosen))


def _described(source: Source, platform: str) -> str:
    revision = f" at {source.revision}" if source.revision else ""
    note = f" ({source.note})" if source.note else ""
    return f"{source.model}{revision} on {platform}{note}"


def _prompts_origin(path: Path | None) -> dict[str, str]:
    origin = SHIPPED if path is None else path
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()
    return {"file": "shipped" if path is None else str(path), "sha256": digest}


def _speed(arguments: argparse.Namespace, model, options: Options) -> None:  # type: ignore[no-untyped-def]
    timings = forward_speed(
        model,
        arguments.benchmark_prompt,
        (F32, *options.schemes),
        arguments.benchmark_iters,
        arguments.benchmark_warmup,
    )
    print(f"one forward pass of {timings[0].tokens} tokens, {timings[0].iterations} passes")
    for t in timings:
        shown = f"{t.median * 1e3:8.3f} ms  (quartiles {t.low * 1e3:.3f} … {t.high * 1e3:.3f})"
        print(f"{t.scheme:>10}  {shown}")


def _plot(arguments: argparse.Namespace) -> int:
    result = results.read(arguments.input)
    folder = arguments.figures or arguments.input.parent / "figures"
    check_writable(folder / "figure.png")
    for path in draw_all(result, folder):
        print(path)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    select_device(arguments.device)
    _keep_programs(arguments)
    try:
        model, missing = load(locate(arguments.verify_model)), ""
    except ModelUnavailable as unavailable:
        model, missing = None, f"the weights could not be had: {unavailable.problem}"
    remark = "no weights" if missing else ""
    checks = verify(model, arguments.lambada, arguments.wikitext, remark)
    for check in checks:
        print(_check_line(check))
    if all(check.passed is None for check in checks):
        print(f"nothing was checked: {missing or 'see above'}")
        return NOT_CHECKED
    return MISMATCH if any(check.passed is False for check in checks) else 0


def _check_line(check: Check) -> str:
    verdict = {True: "matches", False: "DIFFERS", None: "not checked"}[check.passed]
    found = check.remark if check.found is None else f"found {check.found:.6g}"
    wanted = f"published {check.expected:.6g} ± {check.tolerance:.2g}"
    return f"{verdict:>11}  {check.name}: {wanted}, {found}  [{check.source}]"
