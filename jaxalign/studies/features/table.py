"""A features study as text: what happened to features, beside what noise does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxalign.errors import counted
from jaxalign.measures.estimates import Estimate
from jaxalign.studies.features.findings import NOISE_OF, Closer, EffectRow
from jaxalign.studies.features.result import DictionaryReport, FeaturesResult, SchemePredictions
from jaxalign.studies.features.rows import CONTROLS, FeatureRow, Floor
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
        "f32's, mean; worst: of the 5 % that lose most; ÷ noise: over random weights as far away",
        f"[95 % over documents and draws], * told from its draws. Shares with ρ < "
        f"{result.destroyed:g} and ≥ {result.survives:g}; the same",
        "of random directions, and of the directions of single tokens, in the features' place.",
    ]
    return "\n".join(lines)


def _answer(result: FeaturesResult) -> list[str]:
    """What quantization did to features, in words: how many are left, and against what."""
    kinds: dict[str, list[str]] = {"more": [], "less": [], "what": [], "few": []}
    lines: list[str] = []
    for own in result.dictionaries:
        if not own.valid:
            continue
        where = f" ({own.place})" if len(result.dictionaries) > 1 else ""
        lines += _kept(own, result.survives, where)
        for row in own.rows:
            if verdict := row.tensor and row.tensor.verdict:
                kinds[verdict].append(f"{row.scheme}{where}{_size(verdict, row.tensor)}")
    words = {
        "less": "take less from them than random weights as far from f32 do",
        "what": "take what random weights as far from f32 take: not told from them",
        "more": "take more from them than random weights as far from f32 do",
        "few": "have too few draws of random weights beside them for a verdict: --noise-draws 3",
    }
    lines += [f"{_some(names)} {words[kind]}." for kind, names in kinds.items() if names]
    if not any(own.valid for own in result.dictionaries):
        return ["No dictionary explains enough of what it reads for a verdict."]
    if not any(kinds.values()):
        lines.append("No scheme stands beside noise: --noise-draws 0, or none moves a weight.")
    return lines[:8]


def _kept(own: DictionaryReport, survives: float, where: str) -> list[str]:
    """``Of 1016 features keep ρ ≥ 0.9: int8-g64 100 %, nf4 97 %, …``."""
    kept = [f"{one_line(row.scheme, 16)} {plain(row.survives, '.0%')}" for row in own.rows[:5]]
    more = f" and {len(own.rows) - 5} more" if len(own.rows) > 5 else ""
    return [f"Of {own.judged} features{where} keep ρ ≥ {survives:g}: {', '.join(kept)}{more}."]


def _size(verdict: str, floor: Floor | None) -> str:
    """How much more or less, where a scheme was told apart: a difference may be told and small."""
    if verdict == "what" or floor is None or floor.ratio.value is None:
        return ""
    return f" ({100 * (floor.ratio.value - 1):+.0f} %)".replace("-", "−")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(one_line(name, 40) for name in names[:6]) + more


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
    ends = f"< {destroyed:g}", f"≥ {survives:g}"
    head = ["scheme", "bits", "lost", "÷ noise", "worst", "slope", *ends, "random", "tokens"]
    lines += text_table(head, [_line(own, row) for row in own.rows]).splitlines()
    return lines + (sentences(own.closer) if own.valid else [])


def _line(own: DictionaryReport, row: FeatureRow) -> list[str]:
    floor = row.tensor
    lost = None if floor is None else floor.ratio
    beside = own.beside(row.scheme)
    return [
        one_line(row.scheme, 16),
        f"{row.bits:.2f}",
        small(row.lost.value),
        ratio_text(lost, floor is not None and floor.verdict in ("more", "less")),
        small(row.worst),
        plain(row.slope, ".3f"),
        plain(row.destroyed, ".1%"),
        plain(row.survives, ".1%"),
        *(plain(one.survives if one else None, ".1%") for one in map(beside.get, CONTROLS)),
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
