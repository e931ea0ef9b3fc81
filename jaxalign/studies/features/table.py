"""A features study as text: what happened to features, beside what noise does to them."""

from __future__ import annotations

from jaxalign.errors import counted
from jaxalign.measures.estimates import LEVEL, Estimate
from jaxalign.studies.features.closer_table import closer_details, sentences
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
        "÷ noise: over random weights as far away [95 % over documents and draws]; * told from 1",
        f"(corrected). Of such ρ features survive (≥ {result.survives:g}) or are destroyed (< "
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
        "what": "did to features what random weights as far from f32 do",
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

    It is told apart where the interval of the ratio and the corrected test both say so.

    Args:
        floor: of the scheme.
    """
    if floor is None or floor.ratio.value is None:
        return None
    ratio, value = floor.ratio, floor.ratio.value
    p = ratio.p if ratio.p_adjusted is None else ratio.p_adjusted
    apart = ratio.low is not None and ratio.high is not None and not ratio.low <= 1 <= ratio.high
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
        f"explains {_plain(own.explained)}, {_plain(own.active, '.1f')} features a token, loss "
        f"recovered {_plain(own.recovered, '.1%')}; dead {own.dead:.1%}, rare {own.rare:.1%}",
        f"beside it: two batchings of f32 lose {_small(own.batching[0])}, bf16 "
        f"{_small(own.bf16[0])}, chance {_small(own.chance[0])}",
    ]
    if not own.valid:
        lines.append("* It explains too little of what it reads: say nothing of its features.")
    ends = f"≥ {survives:g}", f"< {destroyed:g}"
    head = ["scheme", "bits", "lost", "÷ noise", "worst", "÷ noise", "unlike", *ends, "slope"]
    lines += text_table(head, [_line(row) for row in own.rows]).splitlines()
    return lines + (sentences(own.closer) if own.valid else [])


def _line(row: FeatureRow) -> list[str]:
    floor = row.tensor
    lost = None if floor is None else floor.ratio
    worst = "" if floor is None else _plain(floor.worst_ratio.value, ".2f")
    return [
        one_line(row.scheme, 16),
        f"{row.bits:.2f}",
        _small(row.lost.value),
        _ratio(lost, verdict_of(floor) in ("more", "less")),
        _small(row.worst),
        worst,
        _small(row.unlike.value),
        _plain(row.survives, ".1%"),
        _plain(row.destroyed, ".1%"),
        _plain(row.slope, ".3f"),
    ]


def _ratio(ratio: Estimate | None, told: bool = False) -> str:
    if ratio is None or ratio.value is None:
        return ""
    text = f"{ratio.value:.2f}"
    if ratio.low is not None and ratio.high is not None:
        text += f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return text + ("*" if told else "")


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}".replace("e-0", "e-").replace("e+00", "")


def _plain(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def details(result: FeaturesResult) -> str:
    """Every dictionary: all floors of every scheme, and how often features are active."""
    blocks = [_details(own) for own in result.dictionaries]
    return "\n\n".join(blocks)


def _details(own: DictionaryReport) -> str:
    rows = []
    for row in own.rows:
        for kind in ("tensor", "group", "pruning"):
            floor: Floor | None = getattr(row, kind)
            if floor is None:
                continue
            ratio = floor.ratio
            about = ""
            if kind == "pruning":
                about = (
                    f"{_plain(floor.share, '.1%')} removed, perplexity {_plain(floor.perplexity)}"
                )
            rows.append([
                f"{row.scheme} ÷ {kind}", _small(row.lost.value), _small(floor.lost),
                estimate_text(ratio, "{:.3f}".format), _plain(ratio.p_adjusted, ".3f"),
                _ratio(floor.worst_ratio), _small(row.unlike.value), _small(floor.unlike),
                f"{_plain(floor.order.value, '.2f')} ({_plain(floor.order_draws, '.2f')})",
                _plain(floor.shared, ".2f"), about,
            ])  # fmt: skip
    head = ["scheme ÷ floor", "lost", "floor's", "ratio", "corrected", "worst", "unlike", "floor's",
            "same order (draws)", "same damaged", ""]  # fmt: skip
    often = [
        [row.scheme, _plain(row.explained), _small(row.moved), f"{row.dead:.1%}", f"{row.rare:.1%}",
         f"{row.common:.1%}", f"{row.frequent:.1%}"]
        for row in own.rows
    ]  # fmt: skip
    names = ["scheme", "explains", "moved (FVU)", "dead", "rare", "common", "frequent"]
    rankings = (
        "" if own.rankings is None else f"; schemes' order over thresholds: W {own.rankings:.2f}"
    )
    text = f"{own.name}{rankings}\n{text_table(head, rows)}\n\n{text_table(names, often)}"
    closer = closer_details(own.closer)
    return f"{text}\n\n{closer}" if closer else text
