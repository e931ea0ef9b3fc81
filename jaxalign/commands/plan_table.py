"""The command ``plan``: it reads arguments, runs the damage study, and reports."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxalign.calibration import preparer
from jaxalign.compilation_cache import enable_compilation_cache
from jaxalign.convert import load, locate
from jaxalign.environment import select_device
from jaxalign.experiments.damage import PlanOptions, plan_study, write_recipes
from jaxalign.numerics.scheme import scheme_named
from jaxalign.plots.damage import draw_plan
from jaxalign.prompts import read_prompts
from jaxalign.report import text_table
from jaxalign.results import Estimate
from jaxalign.results.damage import ComponentDamage, DamageMap, PlanResult, write_plan
from jaxalign.runtime.files import check_writable
from jaxalign.schemes_command import calibration

PLAN_OUTPUT = Path("results/plan.json")


def add_parser(commands: Any) -> None:
    """Add ``plan`` to the commands of the main parser, whose options it shares."""
    parser = commands.add_parser(
        "plan", help="where quantization does its damage, and what to keep in 16 bit in a budget"
    )
    parser.add_argument("--scheme", default="int4-g32", metavar="NAME", help="of the other weights")
    parser.add_argument(
        "--budget",
        default=PlanOptions.budget,
        metavar="SIZE",
        help="for the matrices of all blocks: bits a weight (5.0bits) or bytes (1.5MB); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--noise-draws", type=int, default=PlanOptions.noise_draws, metavar="N",
        help="random perturbations beside each component (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--random-choices", type=int, default=PlanOptions.random_choices, metavar="N",
        help="random choices to judge the plan against (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", dest="plan_output", type=Path, default=PLAN_OUTPUT, metavar="F",
        help="result file (default: %(default)s); recipes for other tools and a folder 'figures' "
        "go beside it",
    )  # fmt: skip
    # Options of the main command, which may stand on either side of the word "plan".
    for option, kind in (
        ("--model", str),
        ("--revision", str),
        ("--prompts", Path),
        ("--calibration", Path),
        ("--device", str),
        ("--memory-gb", float),
        ("--seed", int),
    ):
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, help="as for the study")
    for flag in ("--no-figures", "--no-compilation-cache"):
        parser.add_argument(
            flag, action="store_true", default=argparse.SUPPRESS, help="as for the study"
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the study and write result, recipes and figures; returns the exit code."""
    output = arguments.plan_output
    check_writable(output)
    scheme = scheme_named(arguments.scheme)
    options = PlanOptions(
        budget=arguments.budget,
        noise_draws=arguments.noise_draws,
        random_choices=arguments.random_choices,
        memory_gb=arguments.memory_gb,
        seed=arguments.seed,
    )
    prompts = read_prompts(arguments.prompts)
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    print(f"damage of {scheme.name} in {source.model} on {device.platform}", flush=True)
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)
    model = load(source)
    prepare = preparer(model, calibration(arguments, prompts), progress=True)
    low = prepare(model.params, scheme) if scheme.method else None
    result = plan_study(model, prompts, scheme, options, low=low, progress=True)
    write_plan(result, output)
    modules = [name for unit in result.plan.kept for name in unit.modules]
    written = [output, *write_recipes(modules, model.config, scheme, output)]
    print(f"\n{damage_table(result.damage)}\n\n{plan_table(result)}\n")
    for path in written:
        print(path)
    if not arguments.no_figures:
        for path in draw_plan(result, output.parent / "figures"):
            print(path)
    return 0


def damage_table(damage: DamageMap) -> str:
    """Matrices, sites and layers with their KL beside noise's, and the sums against the whole."""
    header = ["component", "KL (nats)", "|Δm|", "Δm (logits)", "KL / noise", ""]
    shown = [c for c in damage.components if c.kind != "head"]
    heads = sorted(damage.of("head"), key=lambda c: -(c.kl.value or 0))[:5]
    lines = [text_table(header, [_component_row(c) for c in (*shown, *heads)])]
    for each in damage.sums:
        beside = ""
        if each.noise_ratios:
            low, high = min(each.noise_ratios), max(each.noise_ratios)
            beside = f"; of noise {low:.2f} … {high:.2f}"
        what = {"kl": "KL", "change": "Δm"}[each.metric]
        lines.append(
            f"sum of {each.parts}, {what}: {_interval(each.sum, '+.2e')}; the whole: "
            f"{_interval(each.whole, '+.2e')}; difference {_interval(each.difference, '+.2e')}; "
            f"ratio {_interval(each.ratio, '.2f')}{beside}"
        )
    return "\n".join(lines)


def _component_row(c: ComponentDamage) -> list[str]:
    name = {"head": f"L{c.layer}H{c.name}", "whole": "everything"}.get(c.kind)
    if name is None:
        name = c.name if c.layer is None else f"L{c.layer} {c.name}".strip()
    return [
        name,
        _interval(c.kl, ".2e"),
        f"{c.moved.value:.4f}",
        _interval(c.change, "+.4f"),
        _interval(c.ratio, ".2f"),
        c.verdict,
    ]


def plan_table(result: PlanResult) -> str:
    """The plan and what it is judged against, on the prompts that did not choose it."""
    plan = result.plan
    header = ["validated", "bits", "bytes", "KL (nats)", "|Δm|", "Δm (logits)", "answered"]
    rows = [
        [
            c.name,
            f"{c.bits:.3f}",
            str(c.bytes),
            _interval(c.kl, ".2e"),
            f"{c.moved.value:.4f}",
            _interval(c.change, "+.4f"),
            f"{c.answered:.1%}",
        ]
        for c in plan.choices
    ]
    random = plan.random
    mean = [sum(values) / len(values) for values in (random.kl, random.moved)]
    rows.insert(
        3,
        [
            f"random ({len(random.kl)})",
            f"{random.bits:.3f}",
            "",
            f"{mean[0]:.2e} [{min(random.kl):.2e}, {max(random.kl):.2e}]",
            f"{mean[1]:.4f}",
            "",
            "",
        ],
    )
    kept = ", ".join(f"L{u.layer} {'+'.join(u.matrices)}" for u in plan.kept) or "nothing"
    return "\n".join(
        [
            f"budget {plan.budget} = {plan.budget_bytes} bytes; kept in 16 bit: {kept}",
            f"found by {plan.found_by}; on the choosing prompts KL {plan.chosen_kl:.2e}, the sum "
            f"of single effects {plan.predicted_kl:.2e}",
            text_table(header, rows),
            f"{plan.verdict}: p = {random.p_kl:.3f} by KL, {random.p_moved:.3f} by |Δm|",
            f"KL less that of whole layers {_interval(plan.against_layers, '+.2e')}, of random "
            f"choices {_interval(plan.against_random, '+.2e')}",
            *_curve_lines(result),
        ]
    )


def _curve_lines(result: PlanResult) -> list[str]:
    header = ["validated KL at", "greedy", "whole layers", "random, mean", "p of greedy"]
    rows = [
        [
            f"{point.bits:.2f} bits",
            f"{point.greedy:.2e}",
            f"{point.layers:.2e}",
            f"{sum(point.random) / len(point.random):.2e}",
            f"{point.p:.3f}",
        ]
        for point in result.curve
    ]
    return ["", text_table(header, rows)]


def _interval(e: Estimate, form: str) -> str:
    if e.value is None:
        return "–"
    shown = format(e.value, form)
    if e.low is None or e.high is None:
        return shown
    return f"{shown} [{format(e.low, form)}, {format(e.high, form)}]"
