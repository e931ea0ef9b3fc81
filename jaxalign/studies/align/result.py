"""The result of an alignment: every measure beside its null and the seed floor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxalign.measures.alignment import MEASURES, Aligned, Kind
from jaxalign.study.provenance import Environment
from jaxalign.study.records import Result


@dataclass(frozen=True, kw_only=True)
class Side:
    """A dictionary or a set of activations that was compared.

    Attributes:
        name: as it was given.
        what: in a few words: "topk, encoder", "int4-g32".
        sha256: of a dictionary's arrays, or of the activations that were compared.
        rows, width: features (tokens) and their width.
        model: that it belongs to, where its files say; weights_sha256: of the model's files.
        place: "resid after L3".
        seed: that a dictionary's training began at, where its files say.
    """

    name: str
    what: str
    sha256: str
    rows: int
    width: int
    model: str | None
    weights_sha256: str | None
    place: str
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class AlignProvenance:
    """Where an alignment comes from.

    Attributes:
        first, second: what was compared.
        floor: what the seed floor is of, one a seed.
        texts: of activations: which tokens.
        environment: machine, versions, flags.
        options: of the command.
        notes: what a reader of the result has to know.
        timestamp: when it ended, UTC.
        total_seconds: of all, with the parts that runs before had finished.
    """

    first: Side
    second: Side
    floor: tuple[Side, ...]
    texts: dict[str, Any] = field(default_factory=dict)
    environment: Environment
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    timestamp: str = ""
    total_seconds: float = 0.0

    @property
    def subject(self) -> str:
        """What the result is of, in a few words."""
        return f"{self.first.name} and {self.second.name}"

    @property
    def headline(self) -> dict[str, Any]:
        """What the result is of, as ``--json`` has it."""
        return {
            "first": self.first.name,
            "second": self.second.name,
            "floor": [side.name for side in self.floor],
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure, a row for ``pandas``: as ``measures.alignment.Aligned`` has it.

    Attributes:
        measure: its name.
        value, null_mean, null_sd, z, p, p_adjusted: beside chance.
        floor_mean, floor_sd, floor_p, floor_p_adjusted: beside pairs of seeds.
        missing: why there is no value.
    """

    measure: str
    value: float | None
    null_mean: float | None
    null_sd: float | None
    z: float | None
    p: float | None
    p_adjusted: float | None
    floor_mean: float | None
    floor_sd: float | None
    floor_p: float | None
    floor_p_adjusted: float | None
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class AlignResult(Result, rows="rows"):
    """How alike two dictionaries, or two sets of activations, are.

    Attributes:
        kind: "dictionaries" or "activations".
        measures: each by its name, with the draws of its null and the pairs of seeds.
        provenance: what was compared, and how.
    """

    kind: Kind
    measures: dict[str, Aligned]
    provenance: AlignProvenance

    def __post_init__(self) -> None:
        """Check that the measures are those of the kind."""
        if tuple(self.measures) != MEASURES[self.kind]:
            raise ValueError(f"measures of {self.kind} are {', '.join(MEASURES[self.kind])}")

    @property
    def rows(self) -> tuple[Row, ...]:
        """A measure each: ``result.records()``."""
        names = [name for name in Row.__dataclass_fields__ if name != "measure"]
        return tuple(
            Row(measure=measure, **{name: getattr(own, name) for name in names})
            for measure, own in self.measures.items()
        )
