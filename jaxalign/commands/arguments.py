"""What each command understands, and its help: only options that the command honours.

A command is a question and the groups of options that it takes; a study's own options come from
the fields of its options dataclass. Options stand behind the command's name. Whatever a command
does not take is refused by name, and so is a value that is given twice.
"""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.checkpoints.hub import DEFAULT_MODEL
from jaxalign.commands import groups
from jaxalign.commands.extract_options import ExtractOptions
from jaxalign.commands.parser import PROGRAM, Parser, add_options
from jaxalign.commands.speed import SpeedOptions
from jaxalign.commands.train_sae_options import TrainSaeOptions
from jaxalign.errors import InputError
from jaxalign.prompts import PAIRS, SINGLE, TEXTS
from jaxalign.studies.align import AlignOptions
from jaxalign.studies.registry import find_studies
from jaxalign.study.study import Study

DEFAULT_COMMAND = "heads"

# What a command calls the option of another.
INSTEAD = {("plot", "--output"): "--figures DIR"}
# What options of earlier versions became.
REPLACED = {
    "--disable-int8": "--schemes f16",
    "--repair-int8": "--repair all",
    "--plan": "--engine",
    "--benchmark-speed": "the command speed",
    "--benchmark-iters": "speed --passes",
    "--benchmark-warmup": "speed --warm-up",
    "--benchmark-prompt": "speed --text",
}

EXAMPLES = f"""\
examples:
  {PROGRAM}                                  the heads study of {DEFAULT_MODEL}, or of the
                                            bundled model where that cannot be had
  {PROGRAM} --model demo                     the bundled model, offline
  {PROGRAM} --model demo --schemes nf4,awq-g128,llm-int8 --repair all
  {PROGRAM} --model smollm2 --schemes nf4    a real model, offline: docs/real_model.md
  {PROGRAM} schemes --model demo             a table of all precision schemes
  {PROGRAM} plan --model demo --scheme nf4 --budget 5.0bits
  {PROGRAM} patch --model demo               which places of a prompt carry the answer
  {PROGRAM} features --model demo            which features of a dictionary survive
  {PROGRAM} align --first sae/a --second sae/b   how alike two dictionaries are
  {PROGRAM} --model demo --prompt "The capital of France is" --target " Paris"
  {PROGRAM} --model demo --estimate          what it would take, without doing it
  {PROGRAM} plot                             draw the figures of results/experiment.json again
"""

PROMPTS_FILE = """\
a prompts file is JSON: {"factual": [{"prompt": "The capital of France is", "target": " Paris",
"distractor": " Rome"}, ...], "ioi": [...], "reference": ["Any neutral text", ...]}; distractors
are optional, and any other list of such objects is a task of its own.
"""

PAIRS_FILE = """\
a pairs file is JSON: {"prompts": [{"clean": "The capital of France is", "corrupted": "The capital
of Japan is", "answers": [" Paris"], "wrong_answers": [" Tokyo"]}, ...]}, or CSV with these columns,
several answers with | between them; "task" may name a group. A prompts file makes pairs, too.
"""

EXIT_CODES = """\
exit codes: 0 done; 1 verify or selftest found something that differs; 2 bad input, an
interruption, an answer that could not be printed, or activations that left a precision's range;
3 verify could check nothing.
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the command line.

    Attributes:
        name: the word that is typed.
        question: what it answers, one line of help.
        module: of ``jaxalign.commands``, whose ``run(arguments)`` returns the exit code.
        takes: groups of options, each added to the parser by a function.
        options: the dataclass whose fields are its other options.
        examples: lines of the help, what is typed behind the command's name.
    """

    name: str
    question: str
    module: str
    takes: tuple[Callable[[Parser], None], ...]
    options: type | None = None
    examples: tuple[str, ...] = ()

    def parser(self) -> Parser:
        """Its parser, with the groups that it honours."""
        prog = f"{PROGRAM} {self.name}"
        lines = ["examples:", *(f"  {prog} {line}" for line in self.examples)]
        if groups.texts in self.takes:
            lines += ["", PROMPTS_FILE.replace("%", "%%")]
        if groups.pairs in self.takes:
            lines += ["", PAIRS_FILE]
        parser = Parser(prog=prog, description=self.question, epilog="\n".join(lines))
        for add in self.takes:
            add(parser)
        if self.options is not None:
            add_options(parser, self.options)
        return parser


# What the command of a study takes beside its options, and its file where that has another name.
MORE = {"heads": (groups.quantized, groups.several_models), "features": (groups.quantized,)}
FILES = {"heads": "experiment"}
# What reads each kind of prompts.
PROMPTS = {
    SINGLE.shipped: groups.texts,
    PAIRS.shipped: groups.pairs,
    TEXTS.shipped: groups.documents,
}


def _of(study: Study[Any, Any]) -> Command:
    """The command of a study of the frame."""
    return Command(
        name=study.name,
        question=study.question,
        module="run_study",
        takes=(
            groups.model,
            groups.device,
            groups.programs,
            groups.several_devices,
            groups.shard,
            groups.estimate,
            PROMPTS[study.prompts.shipped],
            *MORE.get(study.name, ()),
            groups.output(
                f"results/{FILES.get(study.name, study.name)}.json",
                "figures go to a folder 'figures' beside it",
            ),
            groups.screen,
        ),
        options=study.options,
        examples=study.examples or ("--model demo",),
    )


COMMANDS = {
    command.name: command
    for command in (
        *map(_of, find_studies().values()),
        Command(
            name="plot",
            question="Draw the figures of a study again, from its result file alone.",
            module="plot",
            takes=(groups.plot,),
            examples=("--input results/experiment.json",),
        ),
        Command(
            name="verify",
            question="Does this implementation reproduce what others published of Pythia-70M?",
            module="verify",
            takes=(groups.published_model, groups.device, groups.programs, groups.published_texts),
            examples=("--lambada lambada_test.jsonl --wikitext wiki.test.raw",),
        ),
        Command(
            name="speed",
            question="How long one clean forward pass takes in each precision.",
            module="speed",
            takes=(groups.model, groups.device, groups.programs),
            options=SpeedOptions,
            examples=("--model demo --schemes f16,nf4 --passes 100",),
        ),
        Command(
            name="extract",
            question="Write a model's activations to disk, in any precision, shard by shard.",
            module="extract",
            takes=(
                groups.model,
                groups.device,
                groups.programs,
                groups.quantized,
                groups.calibration,
                groups.folder("results/activations", "with a manifest and files of rows"),
            ),
            options=ExtractOptions,
            examples=(
                "--model demo --layers 3",
                "--model demo --layers 3 --scheme nf4 --output results/activations-nf4",
                "--model smollm2 --texts wiki.test.raw --estimate",
            ),
        ),
        Command(
            name="train-sae",
            question="Train sparse autoencoders on a model's activations, many at once.",
            module="train_sae",
            takes=(
                groups.model,
                groups.device,
                groups.programs,
                groups.folder("results/sae", "with a folder for each of them"),
            ),
            options=TrainSaeOptions,
            examples=(
                "--model demo --layers 3 --k 16 --steps 2000",
                "--model smollm2 --layers 15 --k 32 --texts wiki.test.raw",
                "--activations results/activations --k 16",
            ),
        ),
        Command(
            name="align",
            question="Are two dictionaries, or two sets of activations, alike? Beside chance.",
            module="align",
            takes=(
                groups.device,
                groups.output(
                    "results/alignment.json", "figures go to a folder 'figures' beside it"
                ),
                groups.screen,
            ),
            options=AlignOptions,
            examples=(
                "--first results/sae/resid.3 --second results/sae-int4/resid.3",
                "--first a --second b --floor a,a.seed1,a.seed2 --draws 20",
                "--first results/activations-f32 --second results/activations-int4 --layer 3",
            ),
        ),
        Command(
            name="selftest",
            question="Does this installation compute what it should? A minute, offline.",
            module="selftest",
            takes=(groups.device, groups.programs),
            examples=("", "--device gpu"),
        ),
        Command(
            name="doctor",
            question="Versions, devices, memory and cache folder, for a report of a fault.",
            module="doctor",
            takes=(groups.device,),
            examples=("",),
        ),
    )
}


@functools.cache
def parser_of(command: str) -> Parser:
    """The parser of a command, by its name."""
    return COMMANDS[command].parser()


def help_text() -> str:
    """The help of the whole: one question a command, examples, exit codes."""
    lines = [f"  {name:9} {command.question}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PROGRAM} [COMMAND] [OPTIONS]     without a command: {DEFAULT_COMMAND}",
            "",
            "When a language model is quantized, does it still think the same way inside?",
            "",
            "commands:",
            *lines,
            "",
            f"options stand behind the command; {PROGRAM} COMMAND --help explains them.",
            f"{PROGRAM} --version says which version this is.",
            "",
            EXAMPLES,
            PROMPTS_FILE,
            EXIT_CODES,
        ]
    )


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, whose name is ``command`` among them.

    Args:
        given: what was typed behind the program's name.

    Raises:
        InputError: anything that the command does not take, by name.
        SystemExit: after the help or the version was printed.
    """
    if given and given[0] in ("-h", "--help"):
        print(help_text(), end="")
        raise SystemExit(0)
    name, rest = DEFAULT_COMMAND, list(given)
    if rest and not rest[0].startswith("-"):
        name, rest = rest[0], rest[1:]
    if name not in COMMANDS:
        raise InputError(
            f"{name[:40]!r} is no command{_like(name, COMMANDS)}",
            f"use one of {', '.join(COMMANDS)}",
        )
    arguments, unknown = parser_of(name).parse_known_args(rest)
    if unknown:
        raise _refusal(name, unknown, leading=bool(given) and given[0] != name)
    arguments.command = name
    if getattr(arguments, "prompt", None) is not None and "output" not in arguments._given:
        # A look at one prompt does not replace the study of a whole file.
        arguments.output = arguments.output.parent / "prompt" / arguments.output.name
    return arguments


def _refusal(command: str, unknown: Sequence[str], leading: bool) -> InputError:
    """What a command does not take, and where it belongs."""
    prog = f"{PROGRAM} {command}"
    words = [word for word in unknown if word in COMMANDS]
    if leading and words:
        return InputError(
            f"options stand in front of the command {words[0]}",
            f"put them behind it: {PROGRAM} {words[0]} --option value",
        )
    option = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
    if option in REPLACED:
        return InputError(f"{option} is gone", f"use {REPLACED[option]} in its place")
    others = [name for name in COMMANDS if option in flags(name)]
    if others:
        own = INSTEAD.get((command, option))
        return InputError(
            f"{prog} has no {option}, which is an option of {' and '.join(others)}",
            f"use {own} in its place" if own else "leave it out",
        )
    return InputError(
        f"{prog} does not know {option[:40]!r}{_like(option, flags(command))}",
        f"see {prog} --help",
    )


def _like(word: str, known: Iterable[str]) -> str:
    [*close] = difflib.get_close_matches(word[:40], list(known), 1)
    return f"; is it {close[0]}" if close else ""


def flags(command: str) -> set[str]:
    """The options that a command takes, as they are typed."""
    return {flag for flag in parser_of(command)._option_string_actions if flag != "-h"}
