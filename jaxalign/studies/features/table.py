"""A features study as text: what happened to features, beside what noise does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxalign.errors import counted
from jaxalign.measures.estimates import LEVEL, Estimate
from jaxalign.studies.features.findings import NOISE_OF, Closer, EffectRow
from jaxalign.studies.features.result import (
    DictionaryReport,
    FeatureRow,
    FeaturesResult,
    Floor,
    SchemePredictions,
)
from jaxalign.study.tables import estimate_text, header, one_line, text_table

NAMED = 4  # dictionaries on the screen


def table(result: FeaturesResult) -> str:
    """The answer as one screen: in words, then a scheme a line."""
    texts = result.texts
    lines = [
        header("features", result.provenance, "document"),
        "",
        *_answer(result),
        "",
        *_predictions(result),
    ]
    for own in result.dictionaries[:NAMED]:
        lines += ["", *_dictionary(own, result.survives, result.destroyed)]
    if len(result.dictionaries) > NAMED:
        lines += ["", f"and {len(result.dictionaries) - NAMED} more dictionaries: --verbose"]
    lines += [
        "",
        f"{texts.tokens} tokens of {counted(texts.documents, 'document')}. lost: 1 − ρ² of a "
        "feature's activations with",
        "f32's, mean; worst: of the 5 % that lose most; unlike: 1 − overlap of firings.",
        "÷ noise: over random weights as far away [95 % over documents and draws]; * told from its",
        f"draws. Of such ρ features survive (≥ {result.survives:g}) or are destroyed (< "
        f"{result.destroyed:g}).",
    ]
    return "\n".join(lines)


def _answer(result: FeaturesResult) -> list[str]:
    """What quantization did to features, in words: against noise of its size."""
    kinds: dict[str, list[str]] = {"more": [], "less": [], "what": []}
    for own in result.dictionaries:
        if not own.valid:
            continue
        where = f" ({own.place})" if len(result.dictionaries) > 1 else ""
        for row in own.rows:
            if verdict := verdict_of(row.tensor):
                kinds[verdict].append(f"{row.scheme}{where}{_size(verdict, row.tensor)}")
    words = {
        "less": "did less to features than random weights as far from f32",
        "what": "cannot be told from random weights as far from f32",
        "more": "did more to features than random weights as far from f32",
    }
    found = [f"{_some(names)} {words[kind]}." for kind, names in kinds.items() if names]
    if not found and not any(own.valid for own in result.dictionaries):
        return ["No dictionary explains enough of what it reads for a verdict."]
    return found or ["No scheme stands beside noise: --noise-draws 0, or none moves a weight."]


def _size(verdict: str, floor: Floor | None) -> str:
    """How much more or less, where a scheme was told apart: a difference may be told and small."""
    if verdict == "what" or floor is None or floor.ratio.value is None:
        return ""
    return f" ({100 * (floor.ratio.value - 1):+.0f} %)".replace("-", "−")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(one_line(name, 40) for name in names[:6]) + more


def verdict_of(floor: Floor | None) -> str | None:
    """Whether a scheme does "more", "less" or "what" its floor does; None where nothing is known.

    It is told apart where the interval of the ratio over documents, the test that flips signs, and,
    of draws, the test that it is one more of them all say so.

    Args:
        floor: of the scheme.
    """
    if floor is None or floor.ratio.value is None:
        return None
    ratio, value = floor.ratio, floor.ratio.value
    p = ratio.p if ratio.p_adjusted is None else ratio.p_adjusted
    apart = ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high
    if floor.share is None:  # noise, and not pruned weights
        apart = apart and floor.one_more is not None and floor.one_more < LEVEL
    if not apart or p is None or p >= LEVEL:
        return "what"
    return "more" if value > 1 else "less"


def _predictions(result: FeaturesResult) -> list[str]:
    rows = [_prediction(own) for own in result.predictions]
    return text_table(["", "perplexity", "KL, nats", "same first token"], rows).splitlines()


def _prediction(own: SchemePredictions) -> list[str]:
    return [
        one_line(own.scheme, 24),
        estimate_text(own.perplexity, "{:.4g}".format, p=None),
        estimate_text(own.kl, "{:.2g}".format, p=None),
        estimate_text(own.same, "{:.2%}".format, p=None),
    ]


def _dictionary(own: DictionaryReport, survives: float, destroyed: float) -> list[str]:
    """A dictionary's quality, then a scheme a line."""
    lines = [
        f"{one_line(own.name, 40)}: {own.features} features of {own.kind}, {own.judged} judged",
        f"explains {plain(own.explained)}, {plain(own.active, '.1f')} features a token, loss "
        f"recovered {plain(own.recovered, '.1%')}; dead {own.dead:.1%}, rare {own.rare:.1%}",
        f"beside it: two batchings of f32 lose {small(own.batching[0])}, bf16 "
        f"{small(own.bf16[0])}, chance {small(own.chance[0])}",
    ]
    if not own.valid:
        lines.append("* It explains too little of what it reads: say nothing of its features.")
    ends = f"≥ {survives:g}", f"< {destroyed:g}"
    head = ["scheme", "bits", "lost", "÷ noise", "worst", "÷ noise", "unlike", *ends, "slope"]
    lines += text_table(head, [_line(row) for row in own.rows]).splitlines()
    lines += _untrained(own)
    return lines + (sentences(own.closer) if own.valid else [])


def _untrained(own: DictionaryReport) -> list[str]:
    """What random directions in place of learnt ones say of the same schemes."""
    if own.untrained is None:
        return []
    rows = own.untrained.rows
    survive = ", ".join(plain(row.survives, ".1%") for row in rows[:6])
    ratios = _span([row.tensor and row.tensor.ratio.value for row in rows], "{:.2f}".format)
    return [
        "beside it, random directions, as many, as many active: of them survive",
        survive + (f"; ÷ noise {ratios}" if ratios else ""),
    ]


def _line(row: FeatureRow) -> list[str]:
    floor = row.tensor
    lost = None if floor is None else floor.ratio
    worst = "" if floor is None else plain(floor.worst_ratio.value, ".2f")
    return [
        one_line(row.scheme, 16),
        f"{row.bits:.2f}",
        small(row.lost.value),
        ratio_text(lost, verdict_of(floor) in ("more", "less")),
        small(row.worst),
        worst,
        small(row.unlike.value),
        plain(row.survives, ".1%"),
        plain(row.destroyed, ".1%"),
        plain(row.slope, ".3f"),
    ]


def ratio_text(ratio: Estimate | None, told: bool = False) -> str:
    """``0.97 [0.95, 0.99]*``: a ratio with its interval, marked where it is told from 1.

    Args:
        ratio: or None for nothing.
        told: whether it is.
    """
    if ratio is None or ratio.value is None:
        return ""
    text = f"{ratio.value:.2f}"
    if ratio.low is not None and ratio.high is not None:
        text += f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return text + ("*" if told else "")


def small(value: float | None) -> str:
    """``3.2e-2``: a number of two digits; a dash for none.

    Args:
        value: any size.
    """
    return "–" if value is None else f"{value:.1e}".replace("e-0", "e-").replace("e+00", "")


def plain(value: float | None, form: str = ".3f") -> str:
    """A number as a form has it; a dash for none.

    Args:
        value: any.
        form: of ``format``.
    """
    return "–" if value is None else format(value, form)


def sentences(closer: Closer) -> list[str]:
    """What features do, whether damage is told ahead, and what it costs: a line each.

    Args:
        closer: of a dictionary.
    """
    found = []
    own = [row for row in closer.effects if not row.scheme.startswith(NOISE_OF)]
    ablated = _range(own, "ablate")
    if ablated:
        found.append(
            f"{len(closer.features)} features taken away: logits move as in f32 at cosine "
            f"{ablated}; random directions as long: {_range(own, 'ablate at random')}"
        )
    if closer.predictors:
        told = _span([row.auc.value for row in closer.predictors], "{:.2f}".format)
        beside = _span(
            [None if row.noise is None else row.noise.value for row in closer.predictors],
            "{:.2f}".format,
        )
        found.append(
            f"which survive is told from f32 alone: AUC {told}"
            + (f", of what survives noise {beside}" if beside else "")
        )
    if closer.deficits:
        spans = [_span([getattr(row, name).repaired.value for row in closer.deficits],
                       "{:.0%}".format) for name in ("damaged", "others", "random")]  # fmt: skip
        count = len(closer.deficits[0].features)
        found.append(
            f"shift along the {count} most damaged taken out: {spans[0]} of the KL gone (others "
            f"{spans[1]}, random {spans[2]})"
        )
    return found


def _range(rows: Sequence[EffectRow], kind: str) -> str:
    return _span([row.direction.value for row in rows if row.kind == kind], "{:.2f}".format)


def _span(values: Iterable[float | None], write: Callable[[float], str]) -> str:
    """``0.90–0.99``; one number where both are the same."""
    there = [value for value in values if value is not None]
    if not there:
        return ""
    low, high = write(min(there)), write(max(there))
    return low if low == high else f"{low}–{high}"
