"""Claims about pages with many panels, and about axes whose values lie close together."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxalign.plots.page import MOST_ASIDE, facets, new_page, rows_of, styled
from jaxalign.studies.heads.figures import training


@pytest.mark.parametrize("panels", range(1, 20))
def test_panels_stand_in_rows_of_at_most_three_and_nearly_equal_ones(panels):
    rows, columns = rows_of(panels)
    assert columns <= MOST_ASIDE
    assert rows * columns >= panels > (rows - 1) * columns
    assert rows == -(-panels // MOST_ASIDE), "no more rows than it takes"


def test_facets_are_all_seen_and_no_empty_panel_is_left():
    with styled():
        page = new_page("caption", "title", "reading", width=9.6, body=2 * 2.5)
        axes = facets(page, 5, sharey=True, sharex=True)
        for number, ax in enumerate(axes):
            ax.plot([0, 1], [0, number])
            ax.set_title(f"precision {number}")
        figure = page.settled()
    assert len(axes) == len(figure.axes) == 5
    boxes = [ax.get_position().bounds for ax in axes]
    assert min(width for _, _, width, _ in boxes) * 9.6 > 2, "wide enough to be read"
    assert len({round(bottom, 3) for _, bottom, _, _ in boxes}) == 2
    # The third panel has nothing under it, so it shows its ticks itself.
    shown = [any(t.label1.get_visible() for t in ax.xaxis.get_major_ticks()) for ax in axes]
    assert shown == [False, False, True, True, True]


@pytest.mark.parametrize("spread", [1.3, 5.0, 40.0, 3000.0])
def test_drift_over_training_has_labels_however_far_it_spreads(spread, monkeypatch):
    drift = np.geomspace(0.11, 0.11 * spread, 12).reshape(2, 6)
    monkeypatch.setattr(training, "drift_percent", lambda result, precision: drift * result.by)
    monkeypatch.setattr(training, "drawn", lambda result: result)
    results = [SimpleNamespace(precisions=("nf4",), by=by) for by in (1.0, 1.1, 0.9)]
    with styled():
        figure = Figure()
        ax = figure.subplots()
        training._drifts(ax, np.arange(3.0), results)
        figure.draw_without_rendering()
    low, high = ax.get_ylim()
    seen = [
        tick.label1.get_text()
        for tick in ax.yaxis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    assert len([text for text in seen if text]) >= 2, seen
