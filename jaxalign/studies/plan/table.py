"""A damage map and a plan, as tables on a terminal."""

from __future__ import annotations

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.plan.result import ChoiceName, ComponentDamage, DamageMap, PlanResult
from jaxalign.study.measure import KL, MARGIN_CHANGE
from jaxalign.study.tables import estimate_text, head_label, header, one_line, text_table

SHOWN_PARTS = 6
SHOWN_FORMATS = 3
KEPT_NAMED = 6


def table(result: PlanResult) -> str:
    """What the plan is worth, and where the damage is: one screen."""
    screen = [
        header("plan", result.provenance),
        "",
        *verdict_lines(result),
        "",
        *_choices(result),
        "",
        *_worst(result),
        "",
        "KL: of f32's next token at the last position. --verbose: every part, sums, budgets.",
    ]
    return "\n".join(screen)


def details(result: PlanResult) -> str:
    """Every component, the sums, all choices and formats, and the curve."""
    return f"{damage_table(result.damage)}\n\n{plan_table(result)}"


def verdict_lines(result: PlanResult) -> list[str]:
    """The plan against the best uniform format and against random choices, in sentences."""
    plan, own = result.plan, result.plan.choice("plan")
    lines = []
    if plan.uniform:
        best, verdict = plan.uniform[0], plan.uniform_verdict
        word = {
            "beats the best uniform format": "beats",
            "worse than the best uniform format": "loses to",
        }.get(verdict or "", "is not to be told from")
        p = "" if best.plan_less_it.p is None else f", {_p(best.plan_less_it.p)}"
        lines += [
            f"The plan ({own.bits:.2f} bits a weight) {word} plain {best.scheme} "
            f"({best.bits:.2f} bits):",
            f"KL {_short(own.kl)} against {_short(best.kl)} nats, difference "
            f"{estimate_text(best.plan_less_it, _signed, p=None)}{p}.",
        ]
    random = plan.random
    word = {
        "beats random": "It beats",
        "worse than random": "It is worse than",
    }.get(plan.verdict, "It is no better than")
    lines.append(
        f"{word} {len(random.kl)} random choices of what to keep ({_p(random.p_kl)}); on "
        f"{len(result.validating)} prompts that did not choose."
    )
    return lines + _no_gain(result)


def _choices(result: PlanResult) -> list[str]:
    """The plan, uniform formats and controls, a line each."""
    plan, low = result.plan, one_line(result.scheme, 20)
    named: dict[ChoiceName, str] = {
        "plan": f"the plan: {low} and 16 bit",
        "layers": "whole layers in 16 bit",
        "all low": f"all in {low}",
    }
    rows = [
        [
            text,
            f"{choice.bits:.2f}",
            f"{choice.bytes / 1e6:.3f}",
            _short(choice.kl),
            f"{choice.moved.value or 0:.3f}",
            f"{choice.answered:.0%}",
        ]
        for text, choice in ((text, plan.choice(name)) for name, text in named.items())
        if choice.name != "layers" or choice.bytes > plan.choice("all low").bytes  # one fits
    ]
    random = plan.random
    kl, moved = (sum(values) / len(values) for values in (random.kl, random.moved))
    mean = [f"{len(random.kl)} random choices", f"{random.bits:.2f}", "", _exponent(kl, ".1e")]
    uniform = [
        [f"all in {u.scheme}", f"{u.bits:.2f}", f"{u.bytes / 1e6:.3f}", _short(u.kl), "", ""]
        for u in plan.uniform[:SHOWN_FORMATS]
        if u.scheme != result.scheme
    ]
    rows = [rows[0], *uniform, [*mean, f"{moved:.3f}", ""], *rows[1:]]
    head = ["prompts that did not choose", "bits", "MB", "KL, nats ± 95 %", "|Δm|", "answered"]
    return text_table(head, rows).splitlines()


def _worst(result: PlanResult) -> list[str]:
    """The parts that do most damage, and how many differ from noise."""
    damage = result.damage
    parts = sorted(
        (c for c in damage.components if c.kind in ("matrix", "site")),
        key=lambda c: -(c.kl.value or 0),
    )[:SHOWN_PARTS]
    whole = next((c.kl.value for c in damage.of("whole")), None)

    def share(c: ComponentDamage) -> str:
        return f"{(c.kl.value or 0) / whole:.0%}" if whole else ""

    rows = [
        [
            _name(c),
            _short(c.kl),
            share(c),
            "" if c.ratio.value is None else f"{c.ratio.value:.2f}",
            "" if c.corrected is None else _p(c.corrected).removeprefix("p ").removeprefix("= "),
            c.verdict,
        ]
        for c in parts
    ]
    head = [f"{one_line(result.scheme, 20)} in one part alone", "KL, nats ± 95 %", "of all"]
    return [
        *text_table([*head, "÷ noise", "p", "verdict"], rows).splitlines(),
        _tested(damage),
        f"kept in 16 bit: {_kept(result)}",
    ]


def _tested(damage: DamageMap) -> str:
    tested = [c.verdict for c in damage.components if c.corrected is not None]
    draws = max((len(c.noise_kl) for c in damage.components), default=0)
    if not tested:
        return f"Not tested against noise of its size ({draws} draws)."
    more, less = (tested.count(word) for word in ("more than noise", "less than noise"))
    return (
        f"{len(tested)} parts against {draws} draws of noise of their size, p corrected: {more} do "
        f"more, {less} less."
    )


def _kept(result: PlanResult) -> str:
    names = [f"L{u.layer} {'+'.join(u.matrices)}" for u in result.plan.kept]
    more = len(names) - KEPT_NAMED
    return ", ".join(names[:KEPT_NAMED]) + (f" and {more} more" if more > 0 else "") or "nothing"


def _short(estimate: Estimate) -> str:
    """A value and half the width of its interval, in the same unit."""
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _exponent(estimate.value, ".1e")
    half = _exponent((estimate.high - estimate.low) / 2, ".0e")
    return f"{_exponent(estimate.value, '.1e')} ± {half}"


def _signed(value: float) -> str:
    return _exponent(value, "+.1e")


def _exponent(value: float, form: str) -> str:
    """``1.5e-3``: without the zero that Python puts before the exponent."""
    return f"{value:{form}}".replace("e-0", "e-").replace("e+0", "e+")


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def damage_table(damage: DamageMap) -> str:
    """Matrices, sites and layers with their KL beside noise's, and the sums against the whole."""
    head = ["component", KL.short, "|Δm|", MARGIN_CHANGE.short, "KL / noise", "p", "corrected", ""]
    shown = [c for c in damage.components if c.kind != "head"]
    heads = sorted(damage.of("head"), key=lambda c: -(c.kl.value or 0))[:5]
    lines = [text_table(head, [_component_row(c) for c in (*shown, *heads)])]
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
    return [
        _name(c),
        _interval(c.kl, ".2e"),
        f"{c.moved.value:.4f}",
        _interval(c.change, "+.4f"),
        _interval(c.ratio, ".2f"),
        *("" if p is None else f"{p:.2g}" for p in (c.p, c.corrected)),
        c.verdict,
    ]


def _name(c: ComponentDamage) -> str:
    name = {"head": head_label(c.layer, c.name), "whole": "everything"}.get(c.kind)
    if name is not None:
        return name
    return c.name if c.layer is None else f"L{c.layer} {c.name}".strip()


def plan_table(result: PlanResult) -> str:
    """The plan and what it is judged against, on the prompts that did not choose it."""
    plan = result.plan
    head = ["validated", "bits", "bytes", KL.short, "|Δm|", MARGIN_CHANGE.short, "answered"]
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
            text_table(head, rows),
            f"{plan.verdict}: p = {random.p_kl:.3f} by KL, {random.p_moved:.3f} by |Δm|",
            *_no_gain(result),
            f"KL less that of whole layers {_interval(plan.against_layers, '+.2e')}, of random "
            f"choices {_interval(plan.against_random, '+.2e')}",
            *_format_lines(result),
            *_curve_lines(result),
        ]
    )


def _no_gain(result: PlanResult) -> list[str]:
    """A warning where keeping nothing in 16 bit validates at least as well as the plan."""
    plan, low = (result.plan.choice(name).kl.value for name in ("plan", "all low"))
    if not result.plan.kept or plan is None or low is None or plan < low:
        return []
    return [
        f"Keeping nothing in 16 bit has a KL of {low:.2e} here, the plan {plan:.2e}: its recipes",
        "make nothing better; more prompts (--prompts) or another --budget may.",
    ]


def _format_lines(result: PlanResult) -> list[str]:
    """All uniform formats of at most the plan's size, best on the choosing prompts first."""
    if not result.plan.uniform:
        return []
    head = ["uniform formats", "bits", "KL, choosing", "KL, validated", "plan less it"]
    rows = [
        [
            each.scheme,
            f"{each.bits:.3f}",
            f"{each.chosen_kl:.2e}",
            _interval(each.kl, ".2e"),
            estimate_text(each.plan_less_it, "{:+.2e}".format, p=_p),
        ]
        for each in result.plan.uniform
    ]
    return ["", text_table(head, rows)]


def _curve_lines(result: PlanResult) -> list[str]:
    head = ["validated KL at", "greedy", "whole layers", "random, mean", "p of greedy"]
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
    return ["", text_table(head, rows)]


def _interval(estimate: Estimate, form: str) -> str:
    return estimate_text(estimate, f"{{:{form}}}".format, p=None)
