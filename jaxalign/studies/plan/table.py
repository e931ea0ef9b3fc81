"""A damage map and a plan, as tables on a terminal."""

from __future__ import annotations

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.plan.result import ComponentDamage, DamageMap, PlanResult
from jaxalign.study.measure import KL, MARGIN_CHANGE
from jaxalign.study.tables import estimate_text, head_label, text_table


def table(result: PlanResult) -> str:
    """Where the damage is, and what the plan buys."""
    return f"{damage_table(result.damage)}\n\n{plan_table(result)}"


def damage_table(damage: DamageMap) -> str:
    """Matrices, sites and layers with their KL beside noise's, and the sums against the whole."""
    header = ["component", KL.short, "|Δm|", MARGIN_CHANGE.short, "KL / noise", ""]
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
    name = {"head": head_label(c.layer, c.name), "whole": "everything"}.get(c.kind)
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
    header = ["validated", "bits", "bytes", KL.short, "|Δm|", MARGIN_CHANGE.short, "answered"]
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
            *_no_gain(result),
            f"KL less that of whole layers {_interval(plan.against_layers, '+.2e')}, of random "
            f"choices {_interval(plan.against_random, '+.2e')}",
            *_curve_lines(result),
        ]
    )


def _no_gain(result: PlanResult) -> list[str]:
    """A warning where keeping nothing in 16 bit validates at least as well as the plan."""
    plan, low = (result.plan.choice(name).kl.value for name in ("plan", "all low"))
    if not result.plan.kept or plan is None or low is None or plan < low:
        return []
    return [
        f"keeping nothing in 16 bit has a KL of {low:.2e} here, the plan {plan:.2e}: its recipes "
        "make nothing better; more prompts (--prompts) or another --budget may"
    ]


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


def _interval(estimate: Estimate, form: str) -> str:
    return estimate_text(estimate, f"{{:{form}}}".format, p=None)
