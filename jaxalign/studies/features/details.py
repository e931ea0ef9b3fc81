"""A features study in every detail, as text: all floors, and the closer look."""

from __future__ import annotations

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.features.findings import Closer
from jaxalign.studies.features.result import DictionaryReport, FeaturesResult
from jaxalign.studies.features.rows import Floor
from jaxalign.studies.features.table import plain, ratio_text, small
from jaxalign.study.tables import estimate_text, one_line, p_text, text_table

LABELS = 20  # on the screen
# What a verdict is called: told from the floor, not told, or not to be told by so few draws.
TOLD = {"more": "more", "less": "less", "what": "no", "few": "too few draws", "": ""}


def details(result: FeaturesResult) -> str:
    """Every dictionary: all floors of every scheme, and how often features are active."""
    blocks = [_details(own) for own in result.dictionaries]
    return "\n\n".join(blocks)


def _details(own: DictionaryReport) -> str:
    rows = []
    named = [("", row) for row in own.rows]
    named += [(f"{one.name}, ", row) for one in own.untrained for row in one.rows]
    for name, row in named:
        for kind in ("tensor", "group", "pruning"):
            floor: Floor | None = getattr(row, kind)
            if floor is None:
                continue
            ratio = floor.ratio
            about = ""
            if kind == "pruning":
                about = (
                    f"{plain(floor.share, '.1%')} removed: perplexity "
                    f"{plain(floor.perplexity, '.4g')}, KL {plain(floor.kl, '.2g')}"
                )
            rows.append([
                f"{name}{row.scheme} ÷ {kind}", small(row.lost.value), small(floor.lost),
                estimate_text(ratio, "{:.3f}".format), plain(ratio.p_adjusted, ".3f"),
                plain(floor.one_more, ".3f"), TOLD[floor.verdict or ""],
                ratio_text(floor.worst_ratio), small(row.unlike.value), small(floor.unlike),
                f"{plain(floor.order.value, '.2f')} ({plain(floor.order_draws, '.2f')})",
                plain(floor.shared, ".2f"), about,
            ])  # fmt: skip
    head = ["scheme ÷ floor", "lost", "floor's", "ratio", "corrected", "one more", "told", "worst",
            "unlike", "floor's", "same order (draws)", "same damaged", ""]  # fmt: skip
    often = [
        [name + row.scheme, plain(row.survives, ".1%"), plain(row.explained), small(row.moved),
         f"{row.dead:.1%}", f"{row.rare:.1%}", f"{row.common:.1%}", f"{row.frequent:.1%}"]
        for name, row in named
    ]  # fmt: skip
    names = ["scheme", "survive", "explains", "moved (FVU)", "dead", "rare", "common", "frequent"]
    rankings = (
        "" if own.rankings is None else f"; schemes' order over thresholds: W {own.rankings:.2f}"
    )
    text = f"{own.name}{rankings}\n{text_table(head, rows)}\n\n{text_table(names, often)}"
    causes = ", ".join(f"{count} {cause}" for cause, count in own.dead_causes.items() if count)
    if causes:
        text += f"\ndead in f32, by likely cause: {causes}"
    closer = closer_details(own.closer)
    return f"{text}\n\n{closer}" if closer else text


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
            p = None if beyond is None else beyond.p_adjusted
            rows.append([
                one_line(row.scheme, 20), name, _number(row.deficit.value, ".2g"),
                _number(part.share, ".0%"), _interval(part.harm, ".0%"),
                _interval(part.repaired, ".0%"), "" if p is None else p_text(p),
            ])  # fmt: skip
    head = ["", "shift", "deficit, nats", "its length²", "harm", "repaired", "damaged = this"]
    return (
        "The shift of the site put into f32 (harm) and taken out of the scheme (repaired), as "
        "shares of the\ndeficit KL(f32 ‖ scheme): whole; along the features that lose most; along "
        "as many others;\nalong random directions, as long. Over documents, draws; p corrected.\n"
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
