"""Claims about figures: what every one of them holds, and those of a heads study."""

from __future__ import annotations

import os
import re
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from synthetic_result import make_result

from jaxalign.errors import InputError
from jaxalign.measures.estimates import Estimate
from jaxalign.plots import draw
from jaxalign.plots.labels import place_labels
from jaxalign.plots.page import new_page, styled, wrapped, write
from jaxalign.plots.words import p_text, places_for, short_names, shown, signed, significant
from jaxalign.studies.heads.details import details
from jaxalign.studies.heads.figures import FIGURES
from jaxalign.studies.heads.figures.values import MAX_TASKS
from jaxalign.studies.heads.findings import Agreement, Correlation
from jaxalign.studies.heads.result import HeadsResult, PromptResult
from jaxalign.studies.heads.table import screen

NOTE = "demo model, stands in for the published checkpoint"
NAMES = (
    "fig1_importance_vs_drift",
    "fig2_zero_vs_mean_ablation",
    "fig3_task_specificity",
    "fig4_circuit_repair",
    "fig5_task_degradation",
    "fig6_head_map",
    "fig7_first_order",
)
NUMBER = r"[+−]?\d+\.\d+"
Record = TypeVar("Record", Correlation, Agreement)
WHOLE_CORRELATION = re.compile(
    rf".*[rρ] = {NUMBER} \[{NUMBER}, {NUMBER}\], p [=<] 0?\.?\d[\d.]*(; noise {NUMBER})?"
)
# What each result differs in, and the figures that show it.
TASKS = (NAMES[2], NAMES[3], NAMES[4])
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "two precisions": ({"note": NOTE}, NAMES),
    "int8 disabled": ({"precisions": ("f16",)}, NAMES),
    "no low precision": ({"precisions": ()}, NAMES),
    "one task": ({"tasks": ("IOI",)}, TASKS),
    "four tasks, another precision": (
        {
            "tasks": ("FactualRecall", "IOI", "a task named by $someone", "x"),
            "precisions": ("f16", "nf4"),
        },
        TASKS,
    ),
    "no repair": ({"repair": False}, (NAMES[3],)),
    "heads that overflow": ({"nonfinite": True}, NAMES),
    "one prompt": ({"tasks": ("IOI",), "prompts_per_task": 1}, NAMES),
    "one head": (
        {"num_layers": 1, "num_heads": 1, "prompts_per_task": 1, "nonfinite": True},
        NAMES,
    ),
    "24 layers of 16 heads": (
        {"num_layers": 24, "num_heads": 16},
        (*NAMES[:3], *NAMES[5:]),
    ),
}


@pytest.fixture(scope="module")
def result() -> HeadsResult:
    return make_result(note=NOTE)


@pytest.fixture(scope="module")
def drawn(result: HeadsResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "made"
    draw(FIGURES, result, folder)
    return folder


def figure(name: str, result: HeadsResult) -> Figure:
    with styled():
        return FIGURES[name](result).settled()


def words(drawn: Figure) -> list[str]:
    """Every line of visible text."""
    texts = [text for text in drawn.findobj(Text) if text.get_visible()]
    return [line for text in texts for line in text.get_text().split("\n") if line]


def on_every_precision(prompt: PromptResult, **changes: Any) -> PromptResult:
    lows = {name: replace(low, **changes) for name, low in prompt.precisions.items()}
    return replace(prompt, precisions=lows)


def test_all_fourteen_files_are_written(drawn: Path) -> None:
    assert tuple(FIGURES) == NAMES
    expected = {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    assert {path.name for path in drawn.iterdir()} == expected


def test_two_draws_of_one_result_are_byte_identical(
    result: HeadsResult, drawn: Path, tmp_path: Path
) -> None:
    chosen = {name: FIGURES[name] for name in (NAMES[0], NAMES[3])}  # dots with labels, curves
    for path in draw(chosen, result, tmp_path):
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_files_carry_no_date_and_no_version(drawn: Path) -> None:
    for path in drawn.iterdir():
        content = path.read_bytes()
        for trace in (b"Software", b"dc:date", matplotlib.__version__.encode()):
            assert trace not in content, (path.name, trace)


def test_png_has_200_dots_an_inch(result: HeadsResult, drawn: Path) -> None:
    size = figure(NAMES[4], result).get_size_inches()
    height, width = imread(drawn / f"{NAMES[4]}.png").shape[:2]
    np.testing.assert_allclose((width, height), size * 200, atol=1)


@pytest.mark.parametrize("name", NAMES)
def test_caption_names_model_revision_device_prompts_and_note(drawn: Path, name: str) -> None:
    text = (drawn / f"{name}.svg").read_text(encoding="utf-8")
    plain = " ".join(" ".join(re.findall(r">([^<>]+)<", text)).split())
    for part in (
        "Model EleutherAI/pythia-70m",
        "revision a39f36b100fe8a5377810d56c3f4789b9c53ac42",
        "device cpu",
        "10 prompts (5 FactualRecall, 5 IOI)",
        "true attention heads",
        f"Note: {NOTE}",
    ):
        assert part in plain, part


def test_caption_says_when_heads_are_not_heads(result: HeadsResult) -> None:
    text = " ".join(words(figure(NAMES[5], replace(result, head_mode="edge-align"))))
    assert "not attention heads" in text


# Drawn to the pixel, the many heads of a large model take long.
LARGE = ("24 layers of 16 heads", "four tasks, another precision")


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in VARIANTS],
)
def test_every_result_is_drawn_whole(variant: str) -> None:
    """No warning (they are errors), nothing cut off, and no half correlation."""
    changes, names = VARIANTS[variant]
    given = make_result(**changes)
    for name in names:
        made = figure(name, given)
        made.draw_without_rendering()
        renderer = made.canvas.get_renderer()  # type: ignore[attr-defined]
        width, height = made.bbox.size
        undrawn = _undrawn(made)
        for text in made.findobj(Text):
            if text.get_text() and text.get_visible() and id(text) not in undrawn:
                box = text.get_window_extent(renderer)
                inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width and box.y1 <= height
                assert inside, (name, text.get_text(), box, (width, height))
        for line in words(made):
            if re.search(r"[rρ] = ", line):
                assert WHOLE_CORRELATION.fullmatch(line), (name, line)


def _undrawn(made: Figure) -> set[int]:
    """Labels of ticks outside of the limits, or of axes that are off: there, but never drawn."""
    every: set[int] = set()
    drawn: set[int] = set()
    for ax in made.findobj(Axes):
        for axis in (ax.xaxis, ax.yaxis):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                every |= {id(tick.label1), id(tick.label2)}
            every.add(id(axis.label))
            if ax.axison and ax.get_visible():
                drawn |= {id(tick.label1) for tick in axis._update_ticks()} | {id(axis.label)}
    return every - drawn


def test_a_correlation_without_p_or_interval_is_not_shown(result: HeadsResult) -> None:
    def stripped(record: Record, part: str) -> Record:
        return replace(
            record,
            pearson=replace(record.pearson, **{part: None}),
            spearman=replace(record.spearman, **{part: None}),
        )

    for part in ("p", "over_heads"):
        records = tuple(stripped(r, part) for r in result.statistics.correlations)
        alike = tuple(
            stripped(r, "chance_p" if part == "p" else part) for r in result.statistics.agreement
        )
        first = tuple(
            replace(r, spearman=replace(r.spearman, **{part: None}))
            for r in result.statistics.first_order
        )
        statistics = replace(
            result.statistics, agreement=alike, correlations=records, first_order=first
        )
        for name in (NAMES[0], NAMES[2], NAMES[6]):
            text = " ".join(words(figure(name, replace(result, statistics=statistics))))
            assert "cannot be estimated" in text
            assert not re.search(r"[rρ] = [^;]*, p", text)


def test_figure_without_content_says_why(result: HeadsResult) -> None:
    bare = make_result(precisions=(), repair=False)
    assert any("No repair was run" in line for line in words(figure(NAMES[3], bare)))
    assert any("No low precision was run" in line for line in words(figure(NAMES[0], bare)))
    one = " ".join(words(figure(NAMES[2], make_result(tasks=("IOI",)))))
    assert "There is one task only (IOI)" in one
    alone = tuple(replace(p, resample_importance=None) for p in result.prompts)
    text = " ".join(words(figure(NAMES[1], replace(result, prompts=alone))))
    assert "to resample from" in text


def test_heads_without_drift_stay_visible_on_a_log_axis(result: HeadsResult) -> None:
    def still(prompt: PromptResult) -> PromptResult:
        drift = prompt.precisions["f16"].drift.copy()
        drift[0, 0] = 0
        return on_every_precision(prompt, drift=drift)

    calm = replace(result, prompts=tuple(still(p) for p in result.prompts))
    for name in (NAMES[0], NAMES[2]):
        made = figure(name, calm)
        assert name == NAMES[2] or "do not drift at all" in " ".join(words(made))
        logged = [ax for ax in made.axes if ax.get_xscale() == "log"]
        assert logged
        for ax in logged:
            points = np.asarray(ax.collections[0].get_offsets())
            assert len(points) == 48
            assert (points[:, 0] > ax.get_xlim()[0]).all()


def test_labels_do_not_cover_each_other() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 0.05, (2, 40))  # a crowd
    made = Figure(figsize=(4, 3))
    ax = made.subplots()
    ax.scatter(x, y)
    made.draw_without_rendering()
    boxes = place_labels(ax, x, y, [(i, f"L{i}H{i}") for i in range(8)])
    assert len(boxes) == 8
    for i, (left, bottom, right, top) in enumerate(boxes):
        for other in boxes[:i]:
            apart = left > other[2] or right < other[0] or bottom > other[3] or top < other[1]
            assert apart


def test_verdicts_stand_in_the_legend(result: HeadsResult) -> None:
    lines = words(figure(NAMES[3], result))
    tests = [test for test in result.statistics.repair if test.task != "all"]
    assert tests
    for task, precision, ranking in {(t.task, t.precision, t.ranking) for t in tests}:
        own = [t for t in tests if (t.task, t.precision, t.ranking) == (task, precision, ranking)]
        beaten = sum(test.verdict == "beats it" for test in own)
        below = any(test.verdict == "below noise" for test in own)
        name = ranking.replace("_x_", " × ").replace("first_order", "first order |∇m·δ|")
        said = "below the noise of its roundings" if below else f"beats {beaten} of 3 controls"
        assert f"{name.replace('_', ' ')}: {said}" in lines


def test_figures_do_not_depend_on_the_users_settings(
    result: HeadsResult, drawn: Path, tmp_path: Path
) -> None:
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        with styled():
            made = FIGURES[NAMES[4]](result).settled()
            paths = write(made, tmp_path, NAMES[4])
        assert dict(matplotlib.rcParams) == before
    for path in paths:
        assert path.read_bytes() == (drawn / path.name).read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "a.png"
    old.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with styled(), pytest.raises(InputError, match="disk full"):
        write(Figure(), tmp_path, "a")
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_an_input_error(
    result: HeadsResult, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        draw(FIGURES, result, tmp_path / "file" / "figures")


def test_numbers_are_written_as_a_reader_expects() -> None:
    assert p_text(0.00004) == "p < 0.001"
    assert p_text(0.0123) == "p = 0.012"
    assert signed(-0.001, 2) == "0.00"
    assert signed(-1.5, 1) == "−1.5"
    assert significant(0.0612) == "0.061"
    assert significant(44.4) == "44"
    assert significant(1.5e-12) == "1.5e−12"
    assert signed(1e30, 2) == "+1.00e+30"
    assert places_for(-0.0121, None, 0.0024) == 4


def test_text_breaks_at_spaces_only_and_within_its_width() -> None:
    lines = wrapped("one two three four five |a\u00a0−\u00a0b|", 0.8, 8.0)
    assert " ".join(lines) == "one two three four five |a\u00a0−\u00a0b|"
    assert len(lines) > 1
    assert wrapped("", 1.0, 8.0) == []


# What a file may name and hold: no text and no number of it ends a drawing, or takes long.


HOSTILE = "\x1b]0;OWNED\x07\x1b[2J"
FOREIGN = "日本語\t🦙\nx\u202ey"


def test_text_of_figures_is_what_the_font_can_draw_and_xml_can_hold() -> None:
    assert shown("Größe ρ ≤ 1\u00a0%\nnext") == "Größe ρ ≤ 1\u00a0%\nnext"
    assert shown(HOSTILE) == "\\x1b]0;OWNED\\x07\\x1b[2J"
    assert shown("日\t🦙") == "\\u65e5\\t\\U0001f999"
    assert len(shown("x" * 10**5)) <= 2000


def test_long_names_lose_their_middle_and_stay_apart() -> None:
    names = tuple("x" * 10**5 + end + "x" * 10**5 for end in ("a", "b"))
    short = short_names((*names, "IOI"))
    assert len(set(short.values())) == 3
    assert short["IOI"] == "IOI"
    assert short[names[0]] == "xxxxxxxxxx…xxxxxxxxx (1)"


@pytest.fixture(scope="module")
def hostile() -> HeadsResult:
    made = make_result(tasks=(HOSTILE, FOREIGN), precisions=("f16", f"nf4{HOSTILE}"), note=FOREIGN)
    return replace(made, provenance=replace(made.provenance, notes=(HOSTILE,)))


@pytest.mark.parametrize("name", [NAMES[0], NAMES[4]])  # a caption and titles; ticks and a legend
def test_no_name_breaks_a_figure(name: str, hostile: HeadsResult, tmp_path: Path) -> None:
    """Warnings, as of a missing glyph, are errors here."""
    _, svg = draw({name: FIGURES[name]}, hostile, tmp_path)
    texts = "".join(ElementTree.parse(svg).getroot().itertext())
    assert "\\x1b]0;OW" in texts
    assert not set(texts) & {"\x1b", "\x07", "\t", "日"}


def test_no_name_reaches_a_terminal_as_it_is(hostile: HeadsResult) -> None:
    text = screen(hostile) + details(hostile)
    assert "\\x1b]0;OWNED" in text
    assert "\x1b" not in text
    assert "\t" not in text


def many_tasks(result: HeadsResult, count: int, length: int) -> HeadsResult:
    """The result with as many tasks, of one prompt each but for the last, which has two."""
    names = [f"t{i}".ljust(length, "x") for i in range(count)]
    prompts = [replace(result.prompts[0], task=name) for name in (*names, names[-1])]
    repairs = [
        replace(repair, task=name)
        for name in (*names, names[-1])
        for repair in result.repairs[:: len(result.prompts)]
    ]
    return replace(result, prompts=tuple(prompts), repairs=tuple(repairs))


def test_200_tasks_with_names_of_100000_characters_are_drawn_in_bounded_time(
    result: HeadsResult, tmp_path: Path
) -> None:
    many = many_tasks(result, 200, 10**5)
    begun = time.process_time()
    for name in (NAMES[2], NAMES[3]):
        made = figure(name, many)
        assert made.get_size_inches().max() < 40
        lines = words(made)
        text = " ".join(" ".join(lines).split())
        assert f"{200 - MAX_TASKS} of 200 tasks are left out" in text
        assert "the 6 tasks with the most prompts" in text
        for task, is_drawn in (("t199", True), ("t4x", True), ("t5x", False)):
            assert is_drawn == any(task in line and "f16" in line for line in lines), task
    assert time.process_time() - begun < 90  # it took more than 120 s without bounds


@pytest.mark.parametrize("value", [np.nan, 0.0, 1e-310, 3e38])
def test_no_number_ends_a_drawing(value: float) -> None:
    result = make_result(num_layers=2, num_heads=3, prompts_per_task=2)
    number = None if np.isnan(value) else value
    extreme = Estimate(number, number and -number, number, number and 0.5)
    filled = np.full((result.num_layers, result.num_heads), value)
    account = result.prompts[0].precisions["f16"].first_order
    account = replace(account, predicted=filled, restored=-filled)
    maps = {} if number is None else {"zero_importance": filled, "mean_importance": -filled}
    prompts = tuple(
        replace(on_every_precision(p, drift=filled, logit_diff=number, first_order=account), **maps)
        for p in result.prompts
    )
    statistics = replace(
        result.statistics,
        task_means=tuple(
            replace(m, logit_diff=extreme, change=extreme) for m in result.statistics.task_means
        ),
        repair=tuple(replace(r, difference=extreme) for r in result.statistics.repair),
    )
    repairs = tuple(
        replace(r, logit_diff_quantized=number, random=np.full_like(r.random, value))
        for r in result.repairs
    )
    given = replace(result, prompts=prompts, repairs=repairs, statistics=statistics)
    for name in NAMES:
        figure(name, given).draw_without_rendering()


def test_a_page_wider_than_its_dots_has_fewer_an_inch() -> None:
    with styled():
        assert new_page("", "", "", width=600.0, body=1.0).figure.dpi == 20


def test_the_table_says_of_how_many_prompts_a_column_is():
    whole = make_result()
    assert "resample " in details(whole)
    assert "resample (of" not in details(whole)
    first, *others = whole.prompts
    alone = replace(first, resample_importance=None, resample_partners=0)
    one = replace(whole, prompts=(alone, *others))
    assert f"resample (of {len(others)})" in details(one)
    none = tuple(replace(p, resample_importance=None, resample_partners=0) for p in whole.prompts)
    shown = details(replace(whole, prompts=none))
    assert "resample (of 0)" in shown
    assert "nan" not in shown
