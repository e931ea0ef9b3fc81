"""An alignment as text: what it means, then every measure beside chance and two seeds."""

from __future__ import annotations

import textwrap

from jaxalign.errors import counted
from jaxalign.measures.alignment import Aligned
from jaxalign.measures.estimates import LEVEL
from jaxalign.studies.align.result import AlignResult, Side
from jaxalign.study.tables import one_line, text_table

SAME = 1e-6  # below 1: f32 cosines of equal directions
NOUNS = {"dictionaries": "dictionaries", "activations": "sets of activations"}
MEANINGS = {
    "raw": "mean cosine of the first's directions, each with its nearest of the second",
    "mutual": "share of the features that are each other's nearest",
    "procrustes": "raw, after the rotation that fits feature i to feature i",
    "mutual_procrustes": "mutual, after that rotation",
    "held_out": "cosine of matched pairs after a rotation fitted on other pairs",
    "cka": "how alike the inner products between tokens are in both; not 0 by chance",
    "debiased_cka": "the same from an unbiased estimate; near 0 by chance",
}


def table(result: AlignResult) -> str:
    """The answer as one screen: in words, then a measure a line."""
    where = result.provenance
    lines = [
        f"align: {where.environment.device_kind} · {where.total_seconds:.0f} s",
        f"first   {_side(where.first, result)}",
        f"second  {_side(where.second, result)}",
        *(
            line
            for note in where.notes[:3]
            for line in textwrap.wrap(f"note: {one_line(note, 280)}", 98, subsequent_indent="  ")
        ),
        "",
        *_answer(result),
        "",
        *_measures(result),
        "",
        *(f"{_shown(name)}: {MEANINGS[name]}" for name in result.measures),
        *_beside(result),
    ]
    return "\n".join(lines)


def _side(side: Side, result: AlignResult) -> str:
    rows = counted(side.rows, "feature" if result.kind == "dictionaries" else "token")
    of = f", {one_line(side.model, 20)}" if side.model else ""
    return f"{one_line(side.name, 38)} ({side.what}, {rows} × {side.width}, {side.place}{of})"[:92]


def beside_chance(own: Aligned) -> str | None:
    """Whether a measure is "above" chance, "as" chance, or None without a test.

    It is above where the p-value, corrected for the measures, is below ``LEVEL``. Where no draw
    reaches the value and the p-value is not below it all the same, there are too "few" draws.

    Args:
        own: the measure.
    """
    if own.p is None or own.p_adjusted is None:
        return None
    if own.p_adjusted < LEVEL:
        return "above"
    return "few" if own.p * (1 + len(own.null)) < 1.5 else "as"  # no hits, by a rounded p


def beside_seeds(own: Aligned) -> str | None:
    """Whether a measure is "less" or "more" than two seeds give, "as" much, or None without a test.

    It is told apart where the p-value of "one more pair of seeds", corrected for the measures, is
    below ``LEVEL``.

    Args:
        own: the measure.
    """
    if own.floor_p_adjusted is None or own.value is None or own.floor_mean is None:
        return None
    if own.floor_p_adjusted >= LEVEL:
        return "as"
    return "less" if own.value < own.floor_mean else "more"


CHANCE_WORDS = {
    "above": "more alike than chance",
    "as": "no more alike than chance",
    "few": "more alike than every draw of chance, but these are too few for a verdict",
}
SEED_WORDS = {
    "less": "less alike than two seeds of one precision",
    "as": "as alike as two seeds of one precision",
    "more": "more alike than two seeds of one precision",
}


def is_same(result: AlignResult) -> bool:
    """Whether the two are the same up to what no measure sees: norms, of activations a rotation.

    Args:
        result: with a value of every measure that this looks at.
    """

    def whole(name: str) -> bool:
        value = result.measures[name].value
        return value is not None and value >= 1 - SAME

    if result.kind == "activations":
        return whole("cka")
    return whole("raw") and whole("mutual")


def _answer(result: AlignResult) -> list[str]:
    """What the values mean, in words; measures of one verdict together."""
    noun = NOUNS[result.kind]
    if is_same(result):
        if result.kind == "activations":
            return [f"The two {noun} are the same, up to shift, scale and rotation."]
        return [f"The two {noun} have the same directions, whatever their norms."]
    found: dict[str, list[str]] = {}
    for name, own in result.measures.items():
        words = [
            CHANCE_WORDS.get(beside_chance(own) or "", ""),
            SEED_WORDS.get(beside_seeds(own) or "", ""),
        ]
        if said := "; ".join(filter(None, words)):
            found.setdefault(said, []).append(_shown(name))
    lines = [f"The two {noun} are {said}." for said in found]
    if len(found) > 1:
        lines = [f"The two {noun} are"]
        lines += [f"- {said}: {', '.join(names)}" for said, names in found.items()]
    lines = [part for line in lines for part in textwrap.wrap(line, 98, subsequent_indent="  ")]
    return [*(lines or ["Nothing to hold the values against: --draws 0."]), *_no_floor(result)]


def _no_floor(result: AlignResult) -> list[str]:
    """Why nothing is said of two seeds."""
    seeds = len(result.provenance.floor)
    if any(beside_seeds(own) for own in result.measures.values()):
        return []
    if seeds:
        return [f"{seeds} seeds are too few, or too alike, for a verdict: name three or more."]
    if result.kind == "activations":
        return []
    return ["How alike two seeds of one precision are is not known: name some with --floor."]


def _measures(result: AlignResult) -> list[str]:
    head = ["measure", "value", "chance", "sd", "z", "p"]
    seeds = bool(result.provenance.floor)
    if seeds:
        head += ["seeds", "sd", "p"]
    rows = []
    for name, own in result.measures.items():
        row = [_shown(name), _plain(own.value), _plain(own.null_mean), _plain(own.null_sd, ".4f")]
        row += [_plain(own.z, "+.1f"), _p(own.p_adjusted)]
        if seeds:
            row += [_plain(own.floor_mean), _plain(own.floor_sd, ".4f"), _p(own.floor_p_adjusted)]
        rows.append(row)
    missing = [
        f"{_shown(name)} has no value: {own.missing}"
        for name, own in result.measures.items()
        if own.missing
    ]
    return [*text_table(head, rows).splitlines(), *missing]


def _beside(result: AlignResult) -> list[str]:
    """What stands beside the values."""
    draws = max(len(own.null) for own in result.measures.values())
    first, floor = result.provenance.first, result.provenance.floor
    lines = []
    if draws:
        what = {
            "dictionaries": f"{counted(draws, 'draw')} of random directions in the second's place",
            "activations": f"{counted(draws, 'random order')} of the second's tokens",
        }[result.kind]
        lines += [
            f"chance: {what}. p: of as much or more,",
            "corrected for the number of measures (Benjamini–Hochberg), as all p-values here.",
        ]
    if floor:
        pairs = counted(len(floor) * (len(floor) - 1) // 2, "pair")
        lines.append(
            f"seeds: {pairs} of {len(floor)}. p: of one more pair of such seeds, two-sided."
        )
    if result.kind == "activations" and first.rows < 10 * first.width:
        lines.append(
            f"{first.rows} tokens are few for a width of {first.width}: read the debiased CKA, or "
            "give more --tokens."
        )
    return lines


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: float | None, form: str = ".3f") -> str:
    if value is None:
        return "–"
    text = format(value, form)
    return text if float(text) else text.replace("-", "")


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 1e-3 else f"{p:.3f}"


def details(result: AlignResult) -> str:
    """What was compared, in full, and the range of every null."""
    where = result.provenance
    sides = [("first", where.first), ("second", where.second)]
    sides += [(f"seed {i}", side) for i, side in enumerate(where.floor)]
    lines = [f"{name:<7} {side.sha256[:16]}  {one_line(side.name, 72)}" for name, side in sides]
    lines += [f"{name}: {one_line(str(value), 80)}" for name, value in where.texts.items()]
    rows = [
        [
            _shown(name),
            *(_plain(one, ".4f") for one in (min(own.null), max(own.null))),
            " ".join(f"{one:.4f}" for one in own.floor[:6]),
        ]
        for name, own in result.measures.items()
        if own.null
    ]
    table = text_table(["measure", "chance: least", "most", "pairs of seeds"], rows) if rows else ""
    return "\n".join([*lines, *([""] if table else []), *table.splitlines()])
