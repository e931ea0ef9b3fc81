"""A closer look at some features as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.features.closer import NOISE
from jaxalign.studies.features.rows import Closer, EffectRow
from jaxalign.study.tables import one_line, p_text, text_table

LABELS = 20  # on the screen


def sentences(closer: Closer) -> list[str]:
    """What features do, whether damage is told ahead, and what it costs: a line each.

    Args:
        closer: of a dictionary.
    """
    found = []
    own = [row for row in closer.effects if not row.scheme.startswith(NOISE)]
    noise = [row for row in closer.effects if row.scheme.startswith(NOISE)]
    ablated = _range(own, "ablate")
    if ablated:
        beside = _range(noise, "ablate")
        found.append(
            f"{len(closer.features)} features taken away: logits move as in f32 at cosine {ablated}"
            + (f" (noise {beside})" if beside else "")
        )
    if closer.predictors:
        told = _span([row.auc.value for row in closer.predictors], "{:.2f}".format)
        beside = _span([row.noise and row.noise.value for row in closer.predictors],
                       "{:.2f}".format)  # fmt: skip
        found.append(
            f"which survive is told from f32 alone: AUC {told}"
            + (f", of what survives noise {beside}" if beside else "")
        )
    if closer.deficits:
        spans = [_span([getattr(row, name).repaired.value for row in closer.deficits],
                       "{:.0%}".format) for name in ("damaged", "others", "random")]  # fmt: skip
        count = len(closer.deficits[0].features)
        found.append(
            f"without the shift along the {count} most damaged {spans[0]} less KL; along others "
            f"{spans[1]}, at random {spans[2]}"
        )
    return found


def _range(rows: Sequence[EffectRow], kind: str) -> str:
    return _span([row.direction.value for row in rows if row.kind == kind], "{:.2f}".format)


def _span(values: Iterable[float | None], write: Callable[[float], str]) -> str:
    """``0.90 to 0.99``; one number where both are the same."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    low, high = write(min(there)), write(max(there))
    return low if low == high else f"{low} to {high}"


def closer_details(closer: Closer) -> str:
    """Every row of a closer look.

    Args:
        closer: of a dictionary.
    """
    blocks = [_effects(closer), _deficits(closer), _predictors(closer), _groups(closer)]
    return "\n\n".join(block for block in blocks if block)


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _interval(estimate: Estimate, form: str = ".2f") -> str:
    if estimate.value is None:
        return "–"
    text = format(estimate.value, form)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{format(estimate.low, form)}, {format(estimate.high, form)}]"
    return text


def _effects(closer: Closer) -> str:
    if not closer.effects:
        return ""
    rows = [
        [
            one_line(row.scheme, 24), row.kind, _interval(row.direction, ".3f"),
            _number(row.others, ".2f"), _interval(row.size), _interval(row.order),
            "" if row.order.p is None else p_text(row.order.p),
            " ".join(_number(q, ".2f") for q in row.quarters),
        ]
        for row in closer.effects
    ]  # fmt: skip
    head = ["", "what", "cosine", "other", "size ÷ f32", "order of losses", "", "by survival"]
    return (
        f"What {len(closer.features)} features do on {closer.tokens} tokens: cosine of the change "
        "of logits with f32's\n(other: with another feature's), KL over f32's, order of the "
        "changes of the loss,\nthe cosine by quarter, best kept first. Intervals over features.\n"
        + text_table(head, rows)
    )


def _deficits(closer: Closer) -> str:
    if not closer.deficits:
        return ""
    rows = []
    for row in closer.deficits:
        for name in ("whole", "damaged", "others", "random"):
            part = getattr(row, name)
            beyond = {"others": row.beyond_others, "random": row.beyond_random}.get(name)
            p = None if beyond is None else beyond.p
            rows.append([
                one_line(row.scheme, 20), name, _number(row.deficit.value, ".2g"),
                _number(part.share, ".0%"), _interval(part.harm, ".0%"),
                _interval(part.repaired, ".0%"), "" if p is None else p_text(p),
            ])  # fmt: skip
    head = ["", "shift", "deficit, nats", "its length²", "harm", "repaired", "damaged = this"]
    return (
        "The shift of the site put into f32 (harm) and taken out of the scheme (repaired), as "
        "shares of the\ndeficit KL(f32 ‖ scheme): whole; along the features that lose most; along "
        "as many others;\nalong random directions, as long. Intervals over documents.\n"
        + text_table(head, rows)
    )


def _predictors(closer: Closer) -> str:
    if not closer.predictors:
        return ""
    rows = []
    for row in closer.predictors:
        best = sorted(row.single, key=lambda one: -abs((one.auc.value or 0.5) - 0.5))[:3]
        rows.append([
            one_line(row.scheme, 20), f"{row.above:.3g}", f"{row.share:.0%}", _interval(row.auc),
            _number(row.exchanged, ".2f"), "" if row.noise is None else _interval(row.noise),
            ", ".join(f"{one.name} {_number(one.auc.value, '.2f')}" for one in best),
        ])  # fmt: skip
    head = ["", "survives: ρ ≥", "share", "AUC", "exchanged", "of noise", "best alone"]
    return (
        "Which features survive, told from f32 alone by logistic regression on features left out "
        "(AUC, interval\nover features), with labels exchanged, and the same of what survives "
        "noise.\n" + text_table(head, rows)
    )


def _groups(closer: Closer) -> str:
    if not closer.groups:
        return ""
    shown = sorted(closer.groups, key=lambda row: row.ratio.p or 1)[:LABELS]
    rows = [
        [
            one_line(row.label, 36), one_line(row.scheme, 16), str(row.count),
            format(row.lost, ".1e"), _number(row.ratio.value, ".2f"),
            f"{_number(row.ratio.low, '.2f')} … {_number(row.ratio.high, '.2f')}",
            _number(row.ratio.p, ".3f"), _number(row.ratio.p_adjusted, ".3f"),
        ]
        for row in shown
    ]  # fmt: skip
    head = ["label", "scheme", "features", "lost", "÷ random", "95 % of random", "p", "corrected"]
    more = (
        f"\n{len(closer.groups) - LABELS} more in the file" if len(closer.groups) > LABELS else ""
    )
    return (
        "Groups of labels beside random groups, as many features that fire as often.\n"
        + text_table(head, rows)
        + more
    )
