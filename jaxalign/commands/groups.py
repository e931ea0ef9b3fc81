"""Groups of options that commands share, each added to a parser by one function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxalign.checkpoints.hub import DEFAULT_MODEL
from jaxalign.commands.parser import Parser, path, whole
from jaxalign.commands.verify import published
from jaxalign.runtime.compilation_cache import VARIABLE
from jaxalign.runtime.environment import DEVICES


def model(parser: Parser, default: str | None = None) -> None:
    """Which model."""
    add = parser.group("what runs").add_argument
    default = default or f"{DEFAULT_MODEL}, or the bundled model where that cannot be had"
    add(
        "--model",
        metavar="ID|PATH",
        help="hub repository, folder, .gguf file (dequantized), 'demo' for the bundled model or "
        "'smollm2' for a real one that a package carries, docs/real_model.md "
        f"(default: {default})",
    )
    add("--revision", metavar="R", help="branch, tag (step3000) or commit")
    add(
        "--ignore-setting",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting of config.json or of a GGUF file that is not known and may be ignored; the "
        "result says so (may be repeated)",
    )


def published_model(parser: Parser) -> None:
    """Which model; by default the one that the published numbers are of."""
    model(parser, published()["model"])


def device(parser: Parser) -> None:
    """On which kind of device."""
    parser.group("what runs").add_argument(
        "--device",
        default="auto",
        metavar="|".join(DEVICES),
        help="where to compute (default: %(default)s)",
    )


def programs(parser: Parser) -> None:
    """Where compiled programs are kept."""
    kept = parser.group("what runs").add_mutually_exclusive_group()
    kept.add_argument(
        "--compilation-cache",
        type=path,
        metavar="DIR",
        help="where compiled programs are kept for the next run, within 1 GB (default: "
        f"jaxalign/programs in your cache folder; {VARIABLE} names another, or none if empty)",
    )
    kept.add_argument(
        "--no-compilation-cache", action="store_true", help="compile everything anew, keep nothing"
    )


def several_devices(parser: Parser) -> None:
    """How many devices and processes share the work."""
    parser.group("what runs").add_argument(
        "--devices",
        type=whole,
        metavar="N",
        help="how many devices of this machine share the work (default: all GPUs, one CPU)",
    )
    add = parser.group(
        "several processes, one a machine or GPU; see docs/scaling_out.md"
    ).add_argument
    add("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    add("--processes", type=whole, metavar="N", help="how many there are")
    add("--process-id", type=whole, metavar="I", help="which one this is, from 0")


def shard(parser: Parser) -> None:
    """Which share of the work this worker does."""
    parser.group("what runs").add_argument(
        "--shard",
        metavar="I/N",
        help="compute the I-th of N shares of the calls into the folder beside the result, which "
        "workers share; the same command without it assembles them (docs/scaling_out.md)",
    )


def pairs(parser: Parser) -> None:
    """Pairs of prompts."""
    add = parser.group("the study").add_argument
    add(
        "--prompts",
        type=path,
        metavar="F",
        help="file of pairs, JSON or CSV, or of prompts that make pairs (default: shipped pairs)",
    )
    some_of_them(parser)


def documents(parser: Parser) -> None:
    """Texts that are read window by window, and texts for calibration."""
    add = parser.group("the study").add_argument
    add(
        "--texts",
        dest="prompts",
        type=path,
        metavar="F",
        help="a text file, JSON lines with a field 'text', or one of demo, code, shipped (default: "
        "demo, documents of the bundled model's kinds that it was not trained on)",
    )
    calibration(parser)


def some_of_them(parser: Parser) -> None:
    """Which prompts of a file."""
    add = parser.group("the study").add_argument
    add("--tasks", metavar="LIST", help="only these tasks of the prompts file, with commas")
    add("--limit", type=whole, metavar="N", help="only the first N prompts of each task")


def texts(parser: Parser) -> None:
    """Prompts, and texts for calibration."""
    add = parser.group("the study").add_argument
    add("--prompts", type=path, metavar="F", help="prompts file (default: shipped)")
    add(
        "--prompt",
        metavar="TEXT",
        help="one prompt in place of a file; needs --target; without --output its result goes to a "
        "folder 'prompt' of its own",
    )
    add("--target", metavar="TEXT", help="the answer to --prompt, with its space in front")
    add("--distractor", metavar="TEXT", help="a wrong answer to --prompt that it is held against")
    some_of_them(parser)
    calibration(parser)


def calibration(parser: Parser) -> None:
    """Texts that schemes are calibrated on."""
    parser.group("the study").add_argument(
        "--calibration",
        type=path,
        metavar="F",
        help="texts that awq, gptq and smoothquant are calibrated on, one a line (default: "
        "shipped neutral English, 4100 words)",
    )


def several_models(parser: Parser) -> None:
    """What heads compares beside the schemes, and where it repairs."""
    add = parser.group("the study").add_argument
    add(
        "--repair",
        metavar="LIST",
        help="schemes with repair curves, with commas, or 'all' or 'none' (default: all but "
        "int8-sim, whose curves take long)",
    )
    add(
        "--revisions",
        metavar="LIST",
        help="several, with commas: one study each, and a figure of importance and drift over "
        "training; of a local --model, the names of its folders",
    )


def quantized(parser: Parser) -> None:
    """A checkpoint that another tool quantized."""
    parser.group("the study").add_argument(
        "--quantized",
        type=path,
        metavar="PATH",
        help="audit a checkpoint that another tool quantized (AutoAWQ, GPTQ, bitsandbytes, "
        "compressed-tensors, FP8: a folder; GGUF: a file) against --model, its original",
    )


def output(default: str, beside: str) -> Callable[[Parser], None]:
    """Where the result goes."""

    def add(parser: Parser) -> None:
        group = parser.group("what is written")
        group.add_argument(
            "--output",
            type=path,
            default=Path(default),
            metavar="F",
            help=f"result file (default: %(default)s); {beside}",
        )
        group.add_argument("--no-figures", action="store_true", help="draw no figures")

    return add


def folder(default: str, holds: str) -> Callable[[Parser], None]:
    """Which folder the files go to."""

    def add(parser: Parser) -> None:
        parser.group("what is written").add_argument(
            "--output", type=path, default=Path(default), metavar="DIR",
            help=f"folder, {holds} (default: %(default)s)",
        )  # fmt: skip

    return add


def screen(parser: Parser) -> None:
    """How much is printed."""
    group = parser.group("what is printed")
    group.add_argument(
        "--quiet",
        action="store_true",
        help="the answer alone: no progress, no lines about what runs and where files are",
    )
    much = group.add_mutually_exclusive_group()
    much.add_argument("--verbose", action="store_true", help="every table, behind the answer")
    much.add_argument(
        "--json",
        action="store_true",
        help="the answer as one JSON object (one a line, of several --revisions), alone on stdout; "
        "what else is said goes to stderr",
    )


def estimate(parser: Parser) -> None:
    """Whether it runs at all."""
    parser.group("what runs").add_argument(
        "--estimate",
        action="store_true",
        help="say how many calls, how much memory, work and time the study would take, and end",
    )


def plot(parser: Parser) -> None:
    """Input and output of plot."""
    add = parser.add_argument
    add(
        "--input",
        type=path,
        default=Path("results/experiment.json"),
        metavar="F",
        help="result file of any study (default: %(default)s)",
    )
    add("--figures", type=path, metavar="DIR", help="default: 'figures' beside the input")


def published_texts(parser: Parser) -> None:
    """Texts for verify."""
    add = parser.group("texts that are not ours to ship").add_argument
    add("--lambada", type=path, metavar="F", help="LAMBADA test set, JSON lines")
    add("--wikitext", type=path, metavar="F", help="WikiText-2 raw test split")
