"""What the command line understands, and its help."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxalign import plan_command, schemes_command
from jaxalign.compilation_cache import VARIABLE
from jaxalign.convert.hub import DEFAULT_MODEL
from jaxalign.edits import HEAD_MODES
from jaxalign.engine import ENGINES
from jaxalign.environment import DEVICES
from jaxalign.experiments.heads import Options
from jaxalign.experiments.heads.options import MEAN_POSITIONS
from jaxalign.experiments.verify import published
from jaxalign.version import VERSION

DEFAULT_OUTPUT = Path("results/experiment.json")

EXAMPLES = f"""\
examples:
  %(prog)s                                  the whole study; {DEFAULT_MODEL}, or the bundled
                                            model where that cannot be had
  %(prog)s --model demo                     the bundled model, offline
  %(prog)s --model EleutherAI/pythia-160m --revision step3000
  %(prog)s --model EleutherAI/pythia-70m --revisions step1000,step10000,step143000
  %(prog)s --model ./my-checkpoint --prompts my-prompts.json --use-all-prompts
  %(prog)s --schemes nf4,awq-g128,llm-int8  other precisions than f16 and simulated int8
  %(prog)s --model ./original --quantized ./original-awq
  %(prog)s --device gpu --memory-gb 40      on all GPUs of this machine, with larger batches
  %(prog)s schemes                          table of all precision schemes
  %(prog)s plan --scheme nf4 --budget 5.0bits   what to keep in 16 bit within a budget
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
        "restoring them buys: the heads study in f32 and any list of lower precisions.",
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
    model.add_argument(
        "--revisions",
        metavar="LIST",
        help="several, with commas: one study each, and a figure of importance and drift over "
        "training; of a local --model, the names of its folders",
    )
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
        choices=ENGINES,
        default=Options.engine,
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
    study.add_argument(
        "--schemes",
        metavar="LIST",
        help="low precisions, with commas: f16, bf16, int8-sim, int8, llm-int8, nf4, fp4, "
        "int4-g128, awq-g128, gptq-g128, hqq-g64, smoothquant, fp8-e4m3, ...; docs/schemes.md has "
        "them all (default: f16,int8-sim)",
    )
    study.add_argument(
        "--repair",
        metavar="LIST",
        help="schemes with repair curves, with commas, or 'all' or 'none' (default: all but "
        "int8-sim)",
    )
    study.add_argument(
        "--quantized",
        metavar="PATH",
        help="audit a checkpoint that another tool quantized (AutoAWQ, GPTQ, bitsandbytes, "
        "compressed-tensors: a folder; GGUF: a file) against --model, its original",
    )
    study.add_argument(
        "--calibration",
        type=Path,
        metavar="F",
        help="texts that awq, gptq and smoothquant are calibrated on, one a line (default: the "
        "reference texts of the prompts file)",
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
    commands = parser.add_subparsers(
        dest="command", metavar="schemes | plan | plot | verify", title="also"
    )
    schemes_command.add_parser(commands)
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
