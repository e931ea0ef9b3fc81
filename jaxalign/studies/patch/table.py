"""A patching study as text: one screen, and everything that it leaves out."""

from __future__ import annotations

from collections import Counter

import numpy as np

from jaxalign.errors import counted
from jaxalign.measures.estimates import ALL_TASKS, LEVEL
from jaxalign.studies.patch.result import KNOCKOUT, SWEEPS, PatchMap, PatchResult
from jaxalign.study.tables import estimate_text, header, one_line, p_text, shortened, text_table

MOST_LAYERS = 8  # lines of the map by layer and position
TOP = 2  # places of each sweep
MOST_TASKS = 4
MOST_MAPS = 5  # of which these are shown
DETAILS = 12  # places of each map, behind --verbose
MOST = "last"
VERBS = {"denoising": "brings back", "noising": "takes away", "clean run": "takes away"}
WIDTH = 100
JUDGED = " judged "  # in notes on answers that are not what they seem


def table(result: PatchResult) -> str:
    """The answer as one screen: where it is carried, then the largest effects of every sweep."""
    lines = [header("patch", result.provenance), "", *_summary(result), ""]
    if stream := result.find("resid"):
        lines += [*_layers(stream), ""]
    wide = _by_effect([m for m in result.maps if m.task == ALL_TASKS and m.sweep != "resid"])
    rows = [_line(each, place) for each in wide[:MOST_MAPS] for place in _largest(each, TOP)]
    if rows:
        head = ["sweep", "place", "effect, % [95 %]", "control, %", "p", "told"]
        lines += text_table(head, rows).splitlines()
    if len(wide) > MOST_MAPS:
        lines.append(f"and {counted(len(wide) - MOST_MAPS, 'map')} more: --verbose")
    for each in result.maps:
        lines += _agreement(each)
    lines += [
        "effect: share of the difference of clean and corrupted run, mean over pairs. control (in",
        "brackets above): random values as far away (knock-out: other positions). p: both are the",
        f"same, corrected. told: p < {LEVEL}, and the effect is beyond the control. L0: block 0.",
    ]
    return "\n".join(lines)


def _by_effect(maps: list[PatchMap]) -> list[PatchMap]:
    """Maps as they are, but paths between heads last, those with the largest effects first."""

    def place(each: PatchMap) -> float:
        between = each.sweep.startswith("paths to L")
        return -float(np.nanmax(np.abs(each.effect), initial=0)) if between else -np.inf

    return sorted(maps, key=place)


def _percent(share: float) -> str:
    """A share in percent, no decimals; a dash where there is none."""
    return "–" if not np.isfinite(share) else f"{100 * share:.0f}".replace("-0", "0")


def _largest(each: PatchMap, count: int) -> list[tuple[int, int]]:
    """The places with the largest effects, by size."""
    size = np.nan_to_num(np.abs(each.effect), nan=-1.0)
    order = np.argsort(-size, axis=None, kind="stable")[:count]
    places = zip(*np.unravel_index(order, size.shape), strict=True)
    return [(int(row), int(column)) for row, column in places if size[row, column] >= 0]


def _value(each: PatchMap, place: tuple[int, int], unit: str = "") -> str:
    low, high = each.low[place], each.high[place]
    ends = f" [{_percent(low)}, {_percent(high)}]" if np.isfinite(low) else ""
    return f"{_percent(each.effect[place])}{unit}{ends}"


def _line(each: PatchMap, place: tuple[int, int]) -> list[str]:
    shown = each.sweep if each.sweep == KNOCKOUT else f"{each.sweep}, {each.direction}"
    p = each.p[place]
    return [
        one_line(shown, 34),
        one_line(each.name(*place), 24),
        _value(each, place),
        _percent(each.control[place]),
        "–" if not np.isfinite(p) else p_text(p).removeprefix("p ").removeprefix("= "),
        _told(each),
    ]


def _told(each: PatchMap) -> str:
    """How many places are told from their control, of those that were exchanged."""
    exact = " exact" if each.screen is not None else ""
    return f"{int(each.told.sum())} of {int(np.isfinite(each.effect).sum())}{exact}"


def _summary(result: PatchResult) -> list[str]:
    """Where the answer is carried, in a sentence or two."""
    lines = []
    if stream := result.find("resid"):
        lines += _carried(stream)
    for name in ("heads", KNOCKOUT):
        if each := result.find(name):
            lines += _sentence(result, each)
        if name == "heads":
            lines += _by_task(result)
    if not lines:
        lines = _sentence(result, result.maps[0])
    if others := [pair for pair in result.pairs if not pair.kept]:
        tasks = Counter(pair.task for pair in others)
        named = ", ".join(f"{count} of {one_line(task, 16)}" for task, count in tasks.items())
        lines.append(f"{counted(len(others), 'pair')} do not count ({named}): the model does not")
        lines.append("prefer each prompt's own answer, or hardly.")
    if any(each.too_few and each.task == ALL_TASKS for each in result.maps):
        lines.append(
            f"With {counted(result.maps[0].pairs, 'pair')} hardly any effect can be told from its "
            "control: read the intervals (--verbose)."
        )
    notes = [note for note in result.provenance.notes if JUDGED in note]
    return [*lines, *(shortened(f"note: {one_line(note, 10 * WIDTH)}", WIDTH) for note in notes)]


def _carried(stream: PatchMap) -> list[str]:
    """From which layer on the last position carries most of the answer."""
    if MOST not in stream.columns:
        return []
    column = stream.columns.index(MOST)
    # By the interval's lower end, where there is one.
    share = np.fmin(np.nan_to_num(stream.effect[:, column]), stream.low[:, column])
    # From its last crossing on, so that a layer that dips below does not count.
    below = np.flatnonzero(share < 0.5)
    row = int(below[-1]) + 1 if below.size else 0
    if row >= len(share):
        return ["In no layer does the last position alone carry half of the answer."]
    place = row, column
    return [
        f"From {stream.rows[row]} on the last position carries most of the answer: its stream",
        f"{VERBS[stream.direction]} {_value(stream, place, ' %')}, a random one as far away "
        f"{_percent(stream.control[place])} %.",
    ]


def _sentence(result: PatchResult, each: PatchMap) -> list[str]:
    """The largest effect of a sweep, beside its control and what it is in each task."""
    [place, *_] = _largest(each, 1) or [(0, 0)]
    name, value = each.name(*place), _value(each, place, " %")
    beside = f"{_percent(each.control[place])} %"
    verb = VERBS[each.direction]
    if each.sweep == KNOCKOUT:
        row, column = place
        what = f"Hiding '{each.columns[column]}' from the last position in {each.rows[row]} {verb}"
        return [f"{what} {value} (others {beside})."]
    what = SWEEPS[each.sweep].what if each.sweep in SWEEPS else each.sweep
    of = "one head" if each.sweep == "heads" else what
    told = f"{_told(each)} are told from it"
    first = f"Most by {of}: {name} {verb} {value}"
    # A mean over tasks may be of none of them.
    if tasks := _of_tasks(result, each, place):
        return [f"{first} ({', '.join(tasks)};", f"control {beside}); {told}."]
    return [f"{first} (control {beside}); {told}."]


def _of_tasks(result: PatchResult, whole: PatchMap, place: tuple[int, int]) -> list[str]:
    """The effect of one place in each task, where they have maps of the same places."""
    return [
        f"{one_line(each.task, 12)} {_percent(each.effect[place])} %"
        for each in result.maps
        if each.task != ALL_TASKS
        and (each.sweep, each.direction) == (whole.sweep, whole.direction)
        and (each.rows, each.columns) == (whole.rows, whole.columns)
    ][:MOST_TASKS]


def _by_task(result: PatchResult) -> list[str]:
    """The head with the largest effect in each task."""
    maps = [m for m in result.maps if m.sweep == "heads" and m.task != ALL_TASKS]
    maps = [m for m in maps if m.direction == maps[0].direction]
    found = []
    for each in maps[:MOST_TASKS]:
        for place in _largest(each, 1):
            share = _percent(each.effect[place])
            few = "*" if each.too_few else ""
            found.append(f"{one_line(each.task, 16)} {each.name(*place)} {share} %{few}")
    if not found:
        return []
    last = " (*: too few pairs to tell)" if any(m.too_few for m in maps[:MOST_TASKS]) else ""
    return [f"By task: {', '.join(found)}{last}."]


def _layers(stream: PatchMap) -> list[str]:
    """The stream by layer and position, with its control in brackets."""
    count = len(stream.rows)
    shown = np.unique(np.linspace(0, count - 1, min(count, MOST_LAYERS)).round().astype(int))
    head = [f"stream ({stream.direction}), %", *stream.columns]
    rows = [
        [
            stream.rows[row],
            *(
                f"{_percent(value)} ({_percent(beside)})" if np.isfinite(value) else "–"
                for value, beside in zip(stream.effect[row], stream.control[row], strict=True)
            ),
        ]
        for row in shown
    ]
    return text_table(head, rows).splitlines()


def _agreement(each: PatchMap) -> list[str]:
    """How well estimates agree with exact effects, where a map has both."""
    screen = each.screen
    if screen is None:
        return []
    exact, every = (int(np.isfinite(x).sum()) for x in (each.effect, screen.estimate))
    rho = estimate_text(screen.agreement.spearman, "{:.2f}".format)
    slope = estimate_text(screen.agreement.slope, "{:.2f}".format)
    lines = [
        f"{each.sweep}, {each.direction}: {exact} of {every} exact. Estimates of "
        f"{int(screen.drawn.sum())} drawn at random against exact effects:",
        f"  Spearman {rho}; slope {slope}"
        if screen.agreement.slope.value is not None
        else "  too few to say how well they agree",
    ]
    if screen.missed_effect is not None and screen.first_effect is not None:
        lines.append(
            f"  largest drawn that they do not put first: {screen.missed} "
            f"{100 * screen.missed_effect:.1f} %; smallest of the first: "
            f"{100 * screen.first_effect:.1f} %"
        )
    return lines


def details(result: PatchResult) -> str:
    """Every map's largest places with their intervals, and every pair with both of its metrics."""
    parts = []
    for each in result.maps:
        rows = [_line(each, place)[1:-1] for place in _largest(each, DETAILS)]
        head = ["place", "effect, % [95 %]", "control, %", "p"]
        title = f"{each.sweep}, {each.direction}, {each.task}: {counted(each.pairs, 'pair')}"
        parts.append(f"{one_line(title)}\n{text_table(head, rows)}")
    rows = [
        [
            one_line(pair.clean, 40),
            one_line(pair.corrupted, 40),
            "–" if pair.clean_metric is None else f"{pair.clean_metric:+.2f}",
            "–" if pair.corrupted_metric is None else f"{pair.corrupted_metric:+.2f}",
            "" if pair.kept else "does not count",
        ]
        for pair in result.pairs
    ]
    head = ["clean", "corrupted", "m clean", "m corrupted", ""]
    return "\n\n".join([*parts, text_table(head, rows)])
