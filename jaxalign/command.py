"""The command line. No science here: it reads arguments, calls the studies, and reports."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxalign import plan_command, results
from jaxalign.compilation_cache import VARIABLE, enable_compilation_cache
from jaxalign.convert import Model, ModelUnavailable, Source, load, locate
from jaxalign.convert.hub import DEFAULT_MODEL
from jaxalign.distributed import is_first, processes, require_same
from jaxalign.edit import HEAD_MODES
from jaxalign.environment import DEVICES, select_device
from jaxalign.errors import InputError
from jaxalign.experiments.heads import Options, heads_study
from jaxalign.experiments.heads.options import MEAN_POSITIONS
from jaxalign.experiments.heads.study import facts
from jaxalign.experiments.speed import forward_speed
from jaxalign.experiments.verify import Check, published, verify
from jaxalign.journal import Journal
from jaxalign.numerics.scheme import F16, F32, INT8_SIM
from jaxalign.plots import draw_all, drawing_process
from jaxalign.prompts import SHIPPED, read_prompts
from jaxalign.report import summary
from jaxalign.sharding import choose_mesh, usable_devices
from jaxalign.sweep import PLANS
from jaxalign.version import VERSION

BAD_INPUT = 2
MISMATCH = 1
NOT_CHECKED = 3
# Of several devices each keeps this share of its memory for activations: where the parameters would
# leave less, they are spread further.
ACTIVATIONS = 0.25
DEFAULT_OUTPUT = Path("results/experiment.json")

EXAMPLES = f"""\
examples:
  %(prog)s                                  the whole study; {DEFAULT_MODEL}, or the bundled
                                            model where that cannot be had
  %(prog)s --model demo                     the bundled model, offline
  %(prog)s --model EleutherAI/pythia-160m --revision step3000
  %(prog)s --model ./my-checkpoint --prompts my-prompts.json --use-all-prompts
  %(prog)s --device gpu --memory-gb 40      on all GPUs of this machine, with larger batches
  %(prog)s plot                             draw the figures of results/experiment.json again
  %(prog)s verify                           check numbers that others published for Pythia-70M

a prompts file is JSON: {{"factual": [{{"prompt": "The capital of France is", "target": " Paris",
"distractor": " Rome"}}, ...], "ioi": [...], "reference": ["Any neutral text", ...]}}; distractors
are optional, and any other list of such objects is a task of its own.

exit codes: 0 done; 1 verify found a number that differs; 2 bad input, or activations that left a
precision's range; 3 verify could check nothing.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar and help."""
    parser = argparse.ArgumentParser(
        prog="jaxalign",
        description="Which attention heads matter, which ones lower precision moves, and what\n"
        "restoring them buys: the heads study in f32, f16 and simulated int8.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxalign {VERSION}")
    _add_what_runs(parser)
    _add_study(parser)
    _add_output(parser)
    _add_speed(parser)
    _add_commands(parser)
    return parser


def _add_what_runs(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("what runs")
    model.add_argument(
        "--model",
        metavar="ID|PATH",
        help=f"hub repository, folder, or 'demo' for the bundled model (default: {DEFAULT_MODEL}, "
        "or the bundled model where that cannot be had)",
    )
    model.add_argument("--revision", metavar="R", help="branch, tag (step3000) or commit")
    model.add_argument("--prompts", type=Path, metavar="F", help="prompts file (default: shipped)")
    model.add_argument(
        "--use-all-prompts",
        action="store_true",
        help="keep prompts whose target is not the f32 model's top-1 token",
    )
    model.add_argument(
        "--device", default="auto", metavar="|".join(DEVICES), help="where to compute"
    )
    model.add_argument(
        "--memory-gb",
        type=float,
        default=Options.memory_gb,
        metavar="GB",
        help="memory of one device for weights and activations (default: %(default)s)",
    )
    model.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="how many devices of this machine share the work (default: all GPUs, one CPU)",
    )
    model.add_argument(
        "--plan",
        choices=PLANS,
        default=Options.plan,
        help="wave: every edited run starts where its edit does (default); vmap: the plain path "
        "that defines it, slower",
    )
    several = parser.add_argument_group(
        "several processes, one a machine or GPU; see docs/scaling_out.md"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")
    kept = model.add_mutually_exclusive_group()
    kept.add_argument(
        "--compilation-cache",
        type=Path,
        metavar="DIR",
        help="where compiled programs are kept for the next run, within 1 GB (default: "
        f"jaxalign/programs in your cache folder; {VARIABLE} names another, or none if empty)",
    )
    kept.add_argument(
        "--no-compilation-cache", action="store_true", help="compile everything anew, keep nothing"
    )


def _add_study(parser: argparse.ArgumentParser) -> None:
    study = parser.add_argument_group("the study")
    study.add_argument(
        "--head-mode",
        choices=HEAD_MODES,
        default=Options.head_mode,
        help="true: a head is what it adds to the residual stream (default); edge-align: blocks "
        "of the projected output, for parity with published results",
    )
    study.add_argument(
        "--mean-positions",
        choices=MEAN_POSITIONS,
        default=Options.mean_positions,
        help="where the reference means of mean ablation are taken (default: last)",
    )
    study.add_argument(
        "--max-repair-k",
        type=int,
        default=Options.max_repair_k,
        metavar="K",
        help="restore the top 1 … K heads (default: %(default)s)",
    )
    study.add_argument("--disable-int8", action="store_true", help="leave simulated int8 out")
    study.add_argument("--repair-int8", action="store_true", help="repair curves for int8, too")
    study.add_argument(
        "--seed", type=int, default=0, help="of everything drawn at random (default: 0)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("what is written")
    out.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        metavar="F",
        help="result file (default: %(default)s); figures go to a folder 'figures' beside it",
    )
    out.add_argument("--no-figures", action="store_true", help="write the result file only")


def _add_speed(parser: argparse.ArgumentParser) -> None:
    speed = parser.add_argument_group("speed of one forward pass, instead of the study")
    speed.add_argument("--benchmark-speed", action="store_true", help="time a pass per precision")
    speed.add_argument("--benchmark-iters", type=int, default=30, metavar="N")
    speed.add_argument("--benchmark-warmup", type=int, default=3, metavar="N")
    speed.add_argument("--benchmark-prompt", default="The capital of France is", metavar="TEXT")


def _add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", metavar="plot | verify | plan", title="also")
    plan_command.add_parser(commands)
    plot = commands.add_parser("plot", help="draw the figures again, from a result file alone")
    plot.add_argument("--input", type=Path, default=DEFAULT_OUTPUT, metavar="F")
    plot.add_argument("--figures", type=Path, metavar="DIR", help="default: beside the input")
    check = commands.add_parser(
        "verify", help="check numbers that others published for the real Pythia-70M"
    )
    check.add_argument(
        "--model", dest="verify_model", default=published()["model"], metavar="ID|PATH"
    )
    check.add_argument("--lambada", type=Path, metavar="F", help="LAMBADA test set, JSON lines")
    check.add_argument("--wikitext", type=Path, metavar="F", help="WikiText-2 raw test split")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    actions = {"plot": _plot, "verify": _verify, "plan": plan_command.run, None: _run}
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
        return _study(arguments, options)


def _study(arguments: argparse.Namespace, options: Options) -> int:
    first = is_first()
    if first:
        results.check_writable(arguments.output)
    prompts = read_prompts(arguments.prompts)
    origin = _prompts_origin(arguments.prompts)
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    job = "speed" if arguments.benchmark_speed else "heads study"
    if first:
        print(f"{job} of {_described(source, device.platform)}", flush=True)
    if arguments.benchmark_speed:
        _keep_programs(arguments)
        return _speed(arguments, load(source), options)
    draws = first and not arguments.no_figures
    # Started first, since it imports what it needs while this process computes.
    with drawing_process() if draws else contextlib.nullcontext() as second:
        _keep_programs(arguments)
        devices = _devices(arguments, device)
        model = _load(source, devices)
        budget = arguments.memory_gb * 1e9
        reserve = ACTIVATIONS * budget if len(devices) > 1 else 0.0
        mesh = choose_mesh(model.config, devices, budget, reserve=reserve)
        known = facts(model, prompts, options, mesh)
        require_same({**known, "options": None, **known["options"]})
        journal = Journal(_journal_folder(arguments.output), known)
        result = heads_study(model, prompts, options, progress=first, journal=journal, mesh=mesh)
        if not first:
            return 0
        result.metadata["prompts"] |= origin
        # As the file has it, so that `plot` draws the same.
        result = results.write(result, arguments.output)
        journal.remove()
        print(f"\n{summary(result)}\n\nresult: {arguments.output}", flush=True)
        if draws:
            figures = arguments.output.parent / "figures"
            draw_all(result, figures, second)
            print(f"figures: {figures}")
    overflows = [note for note in result.metadata["notes"] if "overflow" in note]
    if overflows:
        raise InputError(
            overflows[0], "read that precision's columns as incomplete; bf16 has f32's range"
        )
    return 0


def _devices(arguments: argparse.Namespace, device: jax.Device) -> list[jax.Device]:
    """The devices that share the work: all GPUs by default, one CPU."""
    count = arguments.devices
    if count is None and device.platform == "cpu":
        count = 1
    return usable_devices(device.platform, count)


def _load(source: Source, devices: Sequence[jax.Device]) -> Model:
    """The model; in the host's memory where several devices take their parts from it."""
    if len(devices) == 1:
        return load(source)
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
    return Options(
        schemes=(F16,) if arguments.disable_int8 else (F16, INT8_SIM),
        repaired=("f16", "int8-sim") if arguments.repair_int8 else ("f16",),
        head_mode=arguments.head_mode,
        mean_positions=arguments.mean_positions,
        max_repair_k=arguments.max_repair_k,
        use_all_prompts=arguments.use_all_prompts,
        memory_gb=arguments.memory_gb,
        plan=arguments.plan,
        seed=arguments.seed,
    )


def _described(source: Source, platform: str) -> str:
    revision = f" at {source.revision}" if source.revision else ""
    note = f" ({source.note})" if source.note else ""
    return f"{source.model}{revision} on {platform}{note}"


def _prompts_origin(path: Path | None) -> dict[str, str]:
    origin = SHIPPED if path is None else path
    digest = hashlib.sha256(origin.read_bytes()).hexdigest()
    return {"file": "shipped" if path is None else str(path), "sha256": digest}


def _speed(arguments: argparse.Namespace, model, options: Options) -> int:  # type: ignore[no-untyped-def]
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
    return 0


def _plot(arguments: argparse.Namespace) -> int:
    result = results.read(arguments.input)
    folder = arguments.figures or arguments.input.parent / "figures"
    results.check_writable(folder / "figure.png")
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
