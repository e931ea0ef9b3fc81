"""No option is ever ignored: on each command it is honoured, or refused by name."""

import argparse
import contextlib
import dataclasses
import re
import shlex
from pathlib import Path

import jax
import pytest
from tiny_run import run

from jaxalign import plots
from jaxalign.checkpoints import Model, Quantized, load, locate
from jaxalign.commands import (
    align,
    doctor,
    extract,
    one_study,
    opening,
    over_training,
    parser,
    plot,
    run_study,
    screen,
    selftest,
    speed,
    train_sae,
    verify,
)
from jaxalign.commands.arguments import COMMANDS, REPLACED, flags, parse, parser_of
from jaxalign.errors import InputError
from jaxalign.model import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import PromptSet, read_prompts
from jaxalign.studies.registry import find_studies
from jaxalign.study.kind import ResultKind

OUTSIDE = ("-h", "--help", "--version")
EVERY = sorted(set().union(*map(flags, COMMANDS)) - set(OUTSIDE))


def actions(command):
    return [a for a in parser_of(command)._actions if a.option_strings[-1] not in OUTSIDE]


PAIRS = [
    (command, action.option_strings[-1]) for command in COMMANDS for action in actions(command)
]


# Honoured: what a study is given, or whether something is written, is another.


def in_words(name, given, named):
    shown = [one for one in given if not isinstance(one, Model | PromptSet | Params)]
    return f"{name}{shown}{named}"


class Anything:
    """Stands for whatever a command calls; says what it was called with."""

    def __init__(self, name, log):
        self._name, self._log = name, log

    def __call__(self, *given, **named):
        self._log.append(in_words(self._name, given, named))
        return Anything(f"{self._name}()", self._log)

    def __getattr__(self, name):
        return Anything(f"{self._name}.{name}", self._log)

    def __getitem__(self, name):
        return Anything(f"{self._name}[{name}]", self._log)

    def __setitem__(self, name, value):
        pass

    def __iter__(self):
        return iter(())

    def __add__(self, other):
        return self

    def __or__(self, other):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __repr__(self):
        return self._name


CALLED = {
    run_study: "processes",
    one_study: "Session check_writable choose_mesh default_memory_gb is_first locate preparer "
    "remove_calls select_device",
    opening: "enable_compilation_cache load load_beside locate one_prompt read_bytes read_texts "
    "select_device usable_devices",
    screen: "content_of",
    selftest: "CHECKS load select_device",
    doctor: "findings select_device",
    over_training: "is_first",
    plot: "check_writable read_any",
    plots: "draw",
    verify: "load locate select_device verify",
    speed: "forward_speed",
    extract: "_said check_writable fill plan",
    train_sae: "check_writable from_folder from_texts model_beside open_activations train",
    align: "Resume check_inputs_stay check_output compare facts_of open_sides select_device",
}


@pytest.fixture(scope="module")
def answers():
    """What is typed in the signatures of commands, so it has to be the real thing."""
    model = load("demo")
    quantized = Quantized(
        params=model.params,
        scheme=Scheme("quantized"),
        title="",
        matrices={},
        inputs=None,
        rescaled=False,
        disk_bytes=0,
        weights_sha256="",
        notes=(),
    )
    [device, *_] = jax.devices()
    return {
        "is_first": True,
        "choose_mesh": None,
        "load": model,
        "locate": locate("demo"),
        "read_prompts": read_prompts(),
        "read_bytes": b"",
        "read_texts": ("text",),
        "select_device": device,
        "usable_devices": [device],
        "load_beside": quantized,
        "draw": ("png", "svg"),
        "fill": [],
        "plan": ("source", "facts"),
        "model_beside": (None, ""),
        "train": ([], ""),
        "details": "",
        "content_of": {},
        "one_prompt": read_prompts(),
        "default_memory_gb": 4.0,
        "findings": {},
        "read_any": (argparse.Namespace(draw=lambda *given: plots.draw({}, *given)), None),
        "forward_speed": [speed.Timing("f32", 1, 2, 1.0, 1.0, 1.0)],
    }


@pytest.fixture
def called(monkeypatch, answers):
    """Everything that the command calls, in words; nothing is computed, read or written."""
    log = []

    def stand_in(name):
        def called(*given, **named):
            log.append(in_words(name, given, named))
            return answers[name]

        return called if name in answers else Anything(name, log)

    for module, names in CALLED.items():
        for name in names.split():
            monkeypatch.setattr(module, name, stand_in(name))

    @contextlib.contextmanager
    def context(*given):
        log.append(f"processes {given}")
        yield

    monkeypatch.setattr(run_study, "processes", context)
    framed = {
        name: dataclasses.replace(
            study,
            run=stand_in("run"),
            table=str,
            details=stand_in("details"),
            figures=dict,
            beside=None,
            prompts=dataclasses.replace(study.prompts, read=stand_in("read_prompts")),
        )
        for name, study in find_studies().items()
    }
    monkeypatch.setattr(run_study, "find_studies", lambda: framed)
    shown = {"table": str, "details": stand_in("details"), "figures": dict}
    monkeypatch.setattr(align, "ALIGN", dataclasses.replace(align.ALIGN, **shown))
    monkeypatch.setattr(ResultKind, "write", lambda _, result, path: result)
    monkeypatch.setattr(ResultKind, "read", lambda _, path: stand_in("read")(path))

    def of(*words):
        log.clear()
        ran = run(*words)
        assert ran.code in (0, verify.NOT_CHECKED), ran.err
        return list(log)

    return of


WORDS = {
    "--model": "some/model",
    "--revision": "step7",
    "--revisions": "step7,step8",
    "--device": "cpu",
    "--schemes": "nf4",
    "--scheme": "nf4",
    "--repair": "int8-sim",
    "--budget": "7bits",
    "--coordinator": "host:7",
    "--ignore-setting": "colour",
    "--text": "To be",
    "--shard": "1/2",
    "--prompt": "To be",
    "--target": " or",
    "--distractor": " and",
    "--tasks": "ioi",
    "--ablations": "zero,mean",
    "--sweep": "resid,heads",
    "--direction": "noising",
    "--sae": "some/folder",
    "--survives": "0.95",
    "--destroyed": "0.25",
    "--valid": "0.5",
    "--layers": "1,2",
    "--layout": "sparsify",
    "--seeds": "7,8",
    "--penalties": "0.5,0.7",
    "--first": "some/first",
    "--second": "some/second",
    "--floor": "one/seed,other/seed",
    "--of": "decoder",
    "--draws": "7",
}
# What an option needs beside it, and the value that it is compared with where it cannot be absent.
MODEL = ("--model", "other/model")
NEEDS = {
    "--revisions": MODEL,
    "--quantized": MODEL,
    "--prompt": ("--target", " or"),
    "--target": ("--prompt", "To be"),
    "--distractor": ("--prompt", "To be", "--target", " or"),
    ("heads", "--calibration"): ("--schemes", "gptq-g64"),
    ("plan", "--calibration"): ("--scheme", "gptq-g64"),
    ("features", "--calibration"): ("--schemes", "gptq-g64"),
    ("extract", "--calibration"): ("--scheme", "gptq-g64"),
    "--penalties": ("--kind", "relu"),
}


# Options that a command cannot do without, and another value of each.
REQUIRED = {"--first": "other/first", "--second": "other/second"}
# Options that have no meaning without each other.
TOGETHER = ("--prompt", "--target")


def needed(command, flag):
    """The options that an option has no effect without, and is refused without."""
    required = [
        word
        for name, value in REQUIRED.items()
        if name in flags(command) and name != flag
        for word in (name, value)
    ]
    return (*required, *NEEDS.get((command, flag), NEEDS.get(flag, ())))


def value_of(action):
    flag = action.option_strings[-1]
    if action.nargs == 0:
        return ()
    if flag in WORDS:
        return (WORDS[flag],)
    words = {parser.whole: "77", parser.real: "7.75", parser.path: "some/file"}
    return (words.get(action.type) or action.metavar.split("|")[-1],)


@pytest.mark.parametrize(("command", "flag"), PAIRS)
def test_every_option_of_a_command_changes_what_the_command_does(command, flag, called):
    [action] = [a for a in actions(command) if flag in a.option_strings]
    value, needs = value_of(action), needed(command, flag)
    other = (flag, REQUIRED[flag]) if flag in REQUIRED else ()
    without = called(command, *(() if flag in TOGETHER else needs), *other)
    given = called(command, *needs, flag, *value)
    assert given != without
    for word in value:
        shown = "Shard(index=1, count=2)" if flag == "--shard" else word.split(",")[0]
        assert shown in " ".join(given)


def test_without_a_command_it_is_heads(called):
    assert called("--model", "some/model") == called("heads", "--model", "some/model")


def test_the_study_of_one_prompt_does_not_replace_that_of_a_file():
    given = ("--prompt", "a", "--target", " b")
    assert parse(given).output == Path("results/prompt/experiment.json")
    assert parse(("plan", *given)).output == Path("results/prompt/plan.json")
    assert parse((*given, "--output", "results/experiment.json")).output == parse(()).output
    assert parse(()).output == Path("results/experiment.json")


def test_verify_asks_for_the_model_that_is_named(called):
    assert "locate['demo', None]{}" in called("verify", "--model", "demo")


# Refused by name.


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_other_commands_is_refused_by_name(command):
    for flag in sorted(set(EVERY) - flags(command)):
        for words in ([flag], [flag, "7"], [f"{flag}=7"]):
            with pytest.raises(InputError, match=f"jaxalign {command} has no {flag}, which is an"):
                parse([command, *words])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_in_front_of_a_command_is_refused(command):
    said = f"options stand in front of the command {command}. put them behind it"
    for action in {a.dest: a for name in COMMANDS for a in actions(name)}.values():
        with pytest.raises(InputError, match=re.escape(said)):
            parse([action.option_strings[-1], *value_of(action), command])


@pytest.mark.parametrize("command", COMMANDS)
def test_no_abbreviation_is_taken_for_an_option(command):
    for flag in EVERY:
        for end in range(3, len(flag)):
            if flag[:end] not in flags(command):
                with pytest.raises(InputError):
                    parse([command, flag[:end], "7"])


@pytest.mark.parametrize(("command", "flag"), PAIRS)
def test_an_option_that_is_given_twice_is_refused(command, flag):
    [action] = [a for a in actions(command) if flag in a.option_strings]
    if isinstance(action, parser._StoreOnce):
        once = [flag, *value_of(action)]
        with pytest.raises(InputError, match=f"argument {flag}: is given twice"):
            parse([command, *once, *once])


@pytest.mark.parametrize("flag", REPLACED)
def test_options_that_are_gone_name_what_replaced_them(flag):
    for words in ([flag], [flag, "7"]):
        with pytest.raises(InputError, match=f"^{flag} is gone. use {REPLACED[flag]} in its place"):
            parse(words)


def test_a_word_that_is_no_command_is_refused_with_the_nearest_one():
    with pytest.raises(InputError, match="'plam' is no command; is it plan"):
        parse(["plam"])
    with pytest.raises(InputError, match="does not know '--modle'; is it --model"):
        parse(["heads", "--modle", "demo"])
    with pytest.raises(InputError, match="does not know 'demo'"):
        parse(["heads", "demo"])


# Values that nobody means.

ODD = (
    "", " ", ",", "-", "--", "-1", "0", "inf", "-inf", "nan", "1e400", "1e-320", "9" * 400,
    "9" * 5000, "x" * 5000, "x/" * 3000, "a\0b", "\ud800", "\x1b[2J", "None", "[]", "%s",
)  # fmt: skip


@pytest.mark.parametrize(("command", "flag"), PAIRS)
def test_odd_values_are_refused_in_one_line_or_taken_as_they_are(command, flag, called):
    [action] = [a for a in actions(command) if flag in a.option_strings]
    for odd in ODD if action.nargs != 0 else ():
        ran = run(command, *needed(command, flag), f"{flag}={odd}")
        assert ran.code in (0, 2, verify.NOT_CHECKED)
        if ran.code == 2:
            assert re.fullmatch(r"jaxalign: error: .+\.\n", ran.err)
            assert len(ran.err) < 12_000


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--memory-gb", "nan", "--memory-gb is nan. give a positive number"),
        ("--memory-gb", "inf", "--memory-gb is inf. give a positive number"),
        ("--memory-gb", "1e30", "--memory-gb is 1e+30. give at most 1000000000"),
        ("--seed", "-1", "--seed is -1. give 0 or a positive whole number"),
        ("--seed", "4294967296", "--seed is 4294967296. give at most 4294967295"),
        ("--seed", "1.5", "argument --seed: '1.5' is no whole number"),
        ("--seed", "1_0", "argument --seed: '1_0' is no whole number"),
        ("--seed", "\u0661", "argument --seed: '\u0661' is no whole number"),
        ("--memory-gb", "1_0", "argument --memory-gb: '1_0' is no number"),
        ("--limit", "0", "--limit is 0. give 1 or more"),
        ("--limit", " 7", "argument --limit: ' 7' is no whole number"),
        ("--tasks", "nouns", "--tasks: there is no task 'nouns'. name some of factual, ioi"),
        ("--tasks", ",", "--tasks: expected names, each once"),
        ("--target", "x", "--target is of one prompt, and --prompt is missing"),
        ("--prompt", "x", "--prompt has no --target"),
        ("--shard", "1/9999999", "N at most 999999"),
        ("--output", "", "argument --output: '' is no path"),
    ],
)
@pytest.mark.parametrize("command", ["heads", "schemes", "plan"])
def test_numbers_that_cannot_be_used_are_refused_alike_by_every_study(
    command, flag, value, said, called
):
    ran = run(command, f"{flag}={value}")
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--prompts", "some/file"), "--prompt is in place of a file, and --prompts is given"),
        (("--tasks", "ioi"), "--prompt is in place of a file, and --tasks is given"),
        (("--limit", "3"), "--prompt is in place of a file, and --limit is given"),
        (("--verbose", "--json"), "not allowed with argument --verbose"),
        (("--estimate", "--shard", "1/2"), "--estimate is of the whole study"),
    ],
)
def test_options_that_exclude_each_other_are_refused(more, said, called):
    ran = run("heads", "--prompt", "To be", "--target", " or", *more)
    assert ran.code == 2
    assert said in ran.err


def test_where_figures_go_is_named_to_who_asks_for_an_output():
    ran = run("plot", "--input", "r.json", "--output", "folder")
    assert ran.code == 2
    assert "plot has no --output" in ran.err
    assert "use --figures DIR in its place" in ran.err


# Help.


def shown(words):
    with pytest.raises(SystemExit) as left, contextlib.redirect_stdout(out := Text()):
        parse(words)
    assert left.value.code == 0
    return out.text


class Text:
    """A stream that keeps what is written."""

    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_help_asks_one_question_a_command_and_teaches_by_examples():
    text = shown(["--help"])
    for command in COMMANDS.values():
        assert re.search(rf"^  {command.name} +{re.escape(command.question)}$", text, re.MULTILINE)
    for words in ("examples:", "--model demo", "exit codes:", '"reference"'):
        assert words in text
    assert max(map(len, text.splitlines())) <= 100
    for line in re.findall(r"^  jaxalign (.*?)(?:   .*)?$", text, re.MULTILINE):
        parse(shlex.split(line))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_whose_examples_it_understands(command):
    text = shown([command, "--help"])
    assert COMMANDS[command].question in " ".join(text.split())
    assert set(flags(command)) <= set(re.findall(r"--[a-z0-9-]+", text))
    for line in COMMANDS[command].examples:
        parse([command, *line.split("   ")[0].split()])


def test_fields_of_an_options_dataclass_become_options_with_its_defaults():
    given = parse(["plan", "--noise-draws", "7"])
    assert (given.noise_draws, given.random_choices) == (7, None)
    options = parser.options_from(given, COMMANDS["plan"].options)
    assert (options.noise_draws, options.random_choices) == (7, 50)
    assert "(default: 50)" in parser_of("plan").format_help()
    made = argparse.Namespace(**vars(given) | {"random_choices": 3})
    with pytest.raises(InputError, match=r"--random-choices is 3\. give at least 20"):
        parser.options_from(made, COMMANDS["plan"].options)


@pytest.mark.parametrize("columns", ["60", "80", "100"])
def test_help_breaks_no_name_across_lines(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for command in COMMANDS:
        for line in parser_of(command).format_help().splitlines():
            assert not line.endswith("-"), line
