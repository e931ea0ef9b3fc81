"""Claims about the figures of a heads study."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from synthetic_result import make_result

from jaxalign import plots
from jaxalign.errors import InputError
from jaxalign.plots import FIGURES, draw_all, drawing_process
from jaxalign.plots.labels import place_labels
from jaxalign.plots.page import styled, wrapped, write
from jaxalign.plots.values import p_text, places_for, signed, significant
from jaxalign.results import Correlation, Estimate, HeadsResult, PromptResult

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
WHOLE_CORRELATION = re.compile(rf".*[rρ] = {NUMBER} \[{NUMBER}, {NUMBER}\], p [=<] 0?\.?\d[\d.]*")
VARIANTS: dict[str, dict[str, Any]] = {
    "two precisions": {"note": NOTE},
    "int8 disabled": {"precisions": ("f16",)},
    "no low precision": {"precisions": ()},
    "one task": {"tasks": ("IOI",)},
    "four tasks, another precision": {
        "tasks": ("FactualRecall", "IOI", "a task named by $someone", "x"),
        "precisions": ("f16", "nf4"),
    },
    "no repair": {"repair": False},
    "heads that overflow": {"nonfinite": True},
    "one prompt": {"tasks": ("IOI",), "prompts_per_task": 1},
    "one head": {"num_layers": 1, "num_heads": 1, "prompts_per_task": 1, "nonfinite": True},
    "24 layers of 16 heads": {"num_layers": 24, "num_heads": 16},
}


@pytest.fixture(scope="module")
def result() -> HeadsResult:
    return make_result(note=NOTE)


@pytest.fixture(scope="module")
def drawn(result: HeadsResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "made"
    draw_all(result, folder)
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
    for path in draw_all(result, tmp_path):
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_second_process_draws_the_same_bytes(
    result: HeadsResult, drawn: Path, tmp_path: Path
) -> None:
    with drawing_process() as second:
        assert second
        draw_all(result, tmp_path, second)
        assert second.returncode == 0, "it drew its share"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in drawn.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_figures_of_a_process_that_died_are_drawn_all_the_same(
    result: HeadsResult, drawn: Path, tmp_path: Path
) -> None:
    with drawing_process() as second:
        assert second
        second.kill()
        second.wait()
        draw_all(result, tmp_path, second)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in drawn.iterdir()}


def test_process_that_is_never_asked_ends_with_its_context() -> None:
    with pytest.raises(KeyboardInterrupt), drawing_process() as second:
        raise KeyboardInterrupt
    assert second
    assert second.returncode != 0


def test_without_a_second_core_there_is_no_second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with drawing_process() as second:
        assert second is None  # what draw_all takes for "draw them all yourself"


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_result_is_drawn_whole(variant: str) -> None:
    """No warning (they are errors), nothing cut off, and no half correlation."""
    given = make_result(**VARIANTS[variant])
    for name in NAMES:
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
    def stripped(record: Correlation, part: str) -> Correlation:
        return replace(
            record,
            pearson=replace(record.pearson, **{part: None}),
            spearman=replace(record.spearman, **{part: None}),
        )

    for part in ("p", "low"):
        records = tuple(stripped(r, part) for r in result.statistics.correlations)
        first = tuple(
            replace(r, spearman=replace(r.spearman, **{part: None}))
            for r in result.statistics.first_order
        )
        statistics = replace(result.statistics, correlations=records, first_order=first)
        for name in (NAMES[0], NAMES[2], NAMES[6]):
            text = " ".join(words(figure(name, replace(result, statistics=statistics))))
            assert "cannot be estimated" in text
            assert not re.search(r"[rρ] = ", text)


def test_figure_without_content_says_why(result: HeadsResult) -> None:
    bare = make_result(precisions=(), repair=False)
    assert any("No repair was run" in line for line in words(figure(NAMES[3], bare)))
    assert any("No low precision was run" in line for line in words(figure(NAMES[0], bare)))
    one = " ".join(words(figure(NAMES[2], make_result(tasks=("IOI",)))))
    assert "There is one task only (IOI)" in one
    alone = tuple(replace(p, resample_importance=None) for p in result.prompts)
    text = " ".join(words(figure(NAMES[1], replace(result, prompts=alone))))
    assert "to resample from" in text


def test_results_of_nothing_but_nan_and_of_no_drift_are_drawn(result: HeadsResult) -> None:
    shape = (result.num_layers, result.num_heads)
    nowhere = Estimate()
    for value in (np.nan, 0.0):
        filled = np.full(shape, value)
        account = result.prompts[0].precisions["f16"].first_order
        account = replace(account, predicted=filled, restored=filled)
        prompts = tuple(
            on_every_precision(p, drift=filled, logit_diff=None, first_order=account)
            for p in result.prompts
        )
        means = tuple(
            replace(m, logit_diff=nowhere, change=nowhere) for m in result.statistics.task_means
        )
        statistics = replace(result.statistics, task_means=means)
        for name in NAMES:
            figure(name, replace(result, prompts=prompts, statistics=statistics))


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
    for test in result.statistics.repair:
        if test.task != "all":
            name = test.ranking.replace("_x_", " × ").replace("first_order", "first order |∇m·δ|")
            assert f"{name.replace('_', ' ')}: {test.verdict}" in lines


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
    with pytest.raises(InputError):
        draw_all(result, tmp_path / "file" / "figures")
    with drawing_process() as second, pytest.raises(InputError, match="cannot be written"):
        draw_all(result, tmp_path / "file" / "figures", second)


def test_plots_see_a_result_and_never_a_run() -> None:
    allowed = ("jaxalign.results", "jaxalign.plots", "numpy", "matplotlib")
    for path in Path(plots.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                ours = name.split(".")[0] in ("jaxalign", "jax", "flax", "scipy")
                assert not ours or name.startswith(allowed), (path.name, name)
                assert "pyplot" not in name


def test_numbers_are_written_as_a_reader_expects() -> None:
    assert p_text(0.00004) == "p < 0.001"
    assert p_text(0.0123) == "p = 0.012"
    assert signed(-0.001, 2) == "0.00"
    assert signed(-1.5, 1) == "−1.5"
    assert significant(0.0612) == "0.061"
    assert significant(44.4) == "44"
    assert places_for(-0.0121, None, 0.0024) == 4


def test_text_breaks_at_spaces_only_and_within_its_width() -> None:
    lines = wrapped("one two three four five |a\u00a0−\u00a0b|", 0.8, 8.0)
    assert " ".join(lines) == "one two three four five |a\u00a0−\u00a0b|"
    assert len(lines) > 1
    assert wrapped("", 1.0, 8.0) == []
