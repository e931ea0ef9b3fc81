"""A comparison of schemes, as text: one screen, and everything that it leaves out."""

from __future__ import annotations

from jaxalign.errors import counted
from jaxalign.measures.estimates import Estimate
from jaxalign.studies.schemes.result import NoiseFloor, SchemeRow, SchemesResult
from jaxalign.study.tables import estimate_text, header, one_line, text_table

LEVEL = 0.05
MOST_LINES = 35
NAMED = 6  # schemes in a sentence
LOTTERIES = 3
WIDTH = 100


def table(result: SchemesResult) -> str:
    """The answer as one screen: what costs least for its size, then a scheme a line."""
    low = sorted((row for row in result.rows if row.margin_change), key=lambda row: -row.bits)
    summary = _summary(low)
    before = [header("schemes", result.provenance), "", *summary, *([""] if summary else [])]
    after = ["", *_lotteries(low), *_notes(result)]
    room = MOST_LINES - len(before) - len(after) - 2  # lines of the table's head
    shown = low if len(low) <= room else low[: room - 1]
    head = ["scheme", "bits", "MB", "KL ± 95 %", "", "÷ noise", "top-1 %", "Δm", "drift %"]
    lines = text_table(head, [_line(row) for row in shown]).splitlines()
    if len(low) > len(shown):
        lines.append(f"and {len(low) - len(shown)} more: --verbose")
    return "\n".join([*before, *lines, *after])


def _summary(low: list[SchemeRow]) -> list[str]:
    """Which schemes beat all of at most their size, and which are not to be told from one of these.

    The smallest has none beside it, so nothing is said of it.
    """
    judged = [row for row in low if row.rival is not None]
    if not judged:
        return []
    least = [row.scheme for row in judged if row.rival and row.rival.verdict == "less"]
    even = [
        f"{row.scheme} from {row.rival.scheme}"
        for row in judged
        if row.rival and row.rival.verdict == "not told apart"
    ]
    return [
        *_wrapped(f"Less KL than everything of at most their size: {_some(least)}."),
        *_wrapped(f"Not to be told from the best of at most their size: {_some(even)}."),
    ]


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    text = ", ".join(one_line(name, 40) for name in names[:NAMED]) or "none"
    return text + (f" and {more} more" if more > 0 else "")


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _line(row: SchemeRow) -> list[str]:
    marks = {"less": "<", "more": "", "not told apart": "="}
    floor = row.kl_floor
    noise = ""
    if floor.weights and row.kl.value is not None:
        sure = floor.corrected is not None and floor.corrected <= LEVEL
        noise = f"{row.kl.value / floor.weights:.2f}{'*' if sure else ' '}"
    return [
        one_line(row.scheme, 20),
        f"{row.bits:.2f}",
        f"{row.megabytes:.4g}",
        _short(row.kl) + (" °" if floor.below else ""),
        marks[row.rival.verdict] if row.rival else "",
        noise,
        f"{100 * (row.agreement.value or 0):.1f}",
        _change(row),
        "–" if row.drift.value is None else f"{100 * row.drift.value:.2g}",
    ]


def _change(row: SchemeRow) -> str:
    """The change of the answer's lead; "same" where it is not told from 0 after correction."""
    change = row.margin_change
    if change is None or change.value is None:
        return "–"
    p = change.p if row.change_corrected is None else row.change_corrected
    if p is None or p > LEVEL:
        return "same"
    half = ((change.high or 0) - (change.low or 0)) / 2
    return f"{change.value:+.3f} ± {half:.3f}"


def _short(value: Estimate) -> str:
    """A value and half of its interval's width: ``2.3e-3 ± 3e-4``."""
    if value.value is None:
        return "not finite"
    text = _exponent(value.value, 1)
    if value.low is None or value.high is None:
        return text
    return f"{text} ± {_exponent((value.high - value.low) / 2, 0)}"


def _exponent(value: float, places: int) -> str:
    return f"{value:.{places}e}".replace("e-0", "e-").replace("e+0", "e+")


def _lotteries(low: list[SchemeRow]) -> list[str]:
    found = [
        f"{one_line(row.scheme, 20)} {_exponent(row.lottery.low, 2)} to "
        f"{_exponent(row.lottery.high, 2)}"
        for row in low
        if row.lottery
    ]
    if not found:
        return []
    text = "; ".join(found[:LOTTERIES])
    return _wrapped(f"Lottery, KL when the weights move by 1e-6: {text}.")


def _notes(result: SchemesResult) -> list[str]:
    return [
        "KL: of the next token from f32's, nats. < less than all of at most its size, = not told",
        "apart. ° not above batching noise. ÷ noise: over random weight noise of the same size, *",
        f"beyond {result.noise_draws} draws (corrected). Δm: the answer's lead, logits. --verbose: "
        "intervals, p.",
    ]


def details(result: SchemesResult) -> str:
    """Every number with its interval and both p-values, and each scheme beside its rival."""
    rows = []
    for row in result.rows:
        change = row.margin_change and estimate_text(row.margin_change, "{:+.4f}".format)
        rows.append(
            [
                row.scheme,
                f"{row.bits:.2f}",
                f"{row.megabytes:.2f}",
                _measured(row.kl, row.kl_floor),
                *_floors(row.kl_floor),
                f"{100 * (row.agreement.value or 0):.2f}",
                change or "",
                _number(row.change_corrected),
                _measured(row.drift, row.drift_floor),
                *_floors(row.drift_floor),
            ]
        )
    noise = ["batching", "noise", "p", "corrected"]
    head = ["scheme", "bits", "MB", "KL, nats", *noise, "top-1 %"]
    head += ["change of m, logits", "corrected", "head drift", *noise]
    prompts = result.provenance.prompts
    counts = f"{counted(prompts.kept, 'prompt')}, {counted(prompts.positions, 'position')}"
    return (
        f"precision schemes against f32 ({counts})\n{text_table(head, rows)}\n"
        "bits: of a weight in the blocks, scales included; MB: the model as deployed. batching: the"
        "\nsame precision, prompt by prompt instead of in batches. noise: random noise in the f32"
        "\nweights, as large as the scheme's error in each matrix. *: not above batching."
        f"{_rivals(result)}"
    )


def _rivals(result: SchemesResult) -> str:
    rows = [
        [
            row.scheme,
            row.rival.scheme,
            estimate_text(row.rival.difference, "{:+.2e}".format),
            _number(row.rival.corrected),
            "yes" if row.rival.within_lottery else "",
            row.rival.verdict,
        ]
        for row in result.rows
        if row.rival
    ]
    if not rows:
        return ""
    head = ["scheme", "least of at most its bits", "KL less its own", "corrected", "lottery", ""]
    return f"\n\n{text_table(head, rows)}"


def _number(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"


def _measured(value: Estimate, floor: NoiseFloor) -> str:
    if value.value is None:
        return "not finite"
    text = estimate_text(value, "{:.2e}".format, ends="{:.1e}".format, p=None)
    return text + ("*" if floor.below else "")


def _floors(floor: NoiseFloor) -> tuple[str, str, str, str]:
    weights = "" if floor.weights is None else f"{floor.weights:.1e}"
    return f"{floor.batching:.1e}", weights, _number(floor.p), _number(floor.corrected)
