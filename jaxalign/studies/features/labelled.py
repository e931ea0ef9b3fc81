"""Groups of features by their labels, each beside random features that fire as often."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.engine.activations import Place, place_name
from jaxalign.errors import InputError, shown
from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, number
from jaxalign.runtime.files import read_json_lines, read_text
from jaxalign.shapes import Float, Int

DRAWS = 1000
NEAREST = 20  # features by rate, of which a group's feature is matched with one
REMEDY = 'give CSV with the columns feature,label, or JSON lines {"feature": 12, "label": "names"}'


def read_labels(path: Path, features: int, place: Place) -> dict[str, Int[np.ndarray, " group"]]:
    """Features by label, of a file of CSV or JSON lines (a name that ends in ``.jsonl``).

    Each line has a feature and its label; a feature may have several. Lines that say where they
    belong, as the published labels of Pythia-70M's features do (``Component``, ``Layer``,
    ``Feature``, ``Annotation``; Marks et al. 2024, arXiv 2403.19647), count where it is here.

    Args:
        path: the file.
        features: how many the dictionary has.
        place: of the dictionary.

    Raises:
        InputError: no such file, a line without a feature or a label, a feature that the
            dictionary does not have, or no label of this place.
    """
    groups: dict[str, list[int]] = {}
    for line, given in _lines(path):
        if None in given:
            raise InputError(f"{path}: line {line} has more than a feature and a label", REMEDY)
        entry = {str(name).strip().lower(): value for name, value in given.items()}
        if not _is_here(entry, place):
            continue
        label = entry.get("label", entry.get("annotation"))
        if not isinstance(label, str) or not label.strip():
            raise InputError(f"{path}: line {line} has no label", REMEDY)
        feature = _whole(entry.get("feature"))
        if feature is None:
            raise InputError(
                f"{path}: line {line} has feature {shown(entry.get('feature'))}, expected a whole "
                "number",
                REMEDY,
            )
        if not 0 <= feature < features:
            raise InputError(
                f"{path}: line {line} names feature {feature}, and the dictionary has 0 … "
                f"{features - 1}",
                "give labels of this dictionary",
            )
        own = groups.setdefault(label.strip(), [])
        if feature not in own:
            own.append(feature)
    if not groups:
        raise InputError(f"{path} has no labels of {place_name(place)}", REMEDY)
    return {label: np.array(own) for label, own in groups.items()}


def _lines(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The lines of a file by number."""
    if path.suffix.lower() == ".jsonl":
        for line, entry in read_json_lines(path, REMEDY):
            if not isinstance(entry, dict):
                raise InputError(f"{path}: line {line} is {shown(entry)}", REMEDY)
            yield line, entry
        return
    rows = csv.DictReader(io.StringIO(read_text(path, REMEDY)))
    if not {"feature", "label"} <= {str(name).strip().lower() for name in rows.fieldnames or ()}:
        raise InputError(f"{path} does not begin with the line feature,label", REMEDY)
    for entry in rows:
        yield rows.line_num, entry


COMPONENTS = {"resid": "resid", "attn": "attn_out", "mlp": "mlp_out"}


def _is_here(entry: Mapping[str, Any], place: Place) -> bool:
    """Whether a line that says where it belongs belongs to a place."""
    if "component" not in entry or "layer" not in entry:
        return True
    point, layer = COMPONENTS.get(str(entry["component"])), _whole(entry["layer"])
    if point is None or layer is None:
        return False
    return place == (point, layer + (point == "resid"))


def _whole(value: object) -> int | None:
    """A whole number, or its digits; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    try:
        return int(value)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class Group:
    """What a scheme takes from the features of a label.

    Attributes:
        count: features of it that are judged.
        lost: their mean of ``1 − ρ²``.
        ratio: over random groups, as many features that fire as often; the interval is that of
            random groups over their mean: a ratio inside it says nothing; p of "one more random
            group", two-sided.
    """

    count: int
    lost: float
    ratio: Estimate


def groups_of(
    labels: Mapping[str, Int[np.ndarray, " group"]],
    lost: Float[np.ndarray, " features"],
    rate: Float[np.ndarray, " features"],
    rng: np.random.Generator,
) -> dict[str, Group]:
    """Each label's features beside matched random groups.

    Every feature of a group is matched with one of the 20 others whose rate is nearest, drawn anew
    in each of 1000 random groups.

    Args:
        labels: features by label.
        lost: ``1 − ρ²``; NaN where a feature is not judged.
        rate: of tokens on which each is active in f32.
        rng: draws random groups.
    """
    found = {}
    for label, members in labels.items():
        own = members[np.isfinite(lost[members])]
        others = np.setdiff1d(np.flatnonzero(np.isfinite(lost)), members)
        if not len(own) or len(others) < NEAREST:
            continue
        order = others[np.argsort(rate[others], kind="stable")]
        at = np.searchsorted(rate[order], rate[own])
        begin = np.clip(at - NEAREST // 2, 0, len(order) - NEAREST)
        picked = begin + rng.integers(0, NEAREST, (DRAWS, len(own)))
        drawn = lost[order[picked]].mean(axis=1)
        value, mean = float(lost[own].mean()), float(drawn.mean())
        hits = int((np.abs(drawn - mean) >= abs(value - mean) - stats.TIE).sum())
        low, high = stats.interval(drawn)
        ratio = Estimate(
            number(value / mean) if mean > 0 else None,
            number(low / mean) if mean > 0 else None,
            number(high / mean) if mean > 0 else None,
            (1 + hits) / (1 + DRAWS),
        )
        found[label] = Group(count=len(own), lost=value, ratio=ratio)
    return found
