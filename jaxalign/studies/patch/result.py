"""The result of a patching study."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.measures import screen, stats
from jaxalign.measures.estimates import LEVEL, number
from jaxalign.study.provenance import Provenance
from jaxalign.study.records import Result


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is exchanged between the two runs of a pair, one place at a time.

    Attributes:
        point: a name of ``edits.points.POINTS``.
        apart: letters of what is exchanged one by one in each layer: ``"S"`` groups of positions,
            ``"H"`` heads at all positions, ``"SH"`` both.
        what: in words.
    """

    point: str
    apart: str
    what: str


SWEEPS = {
    "resid": Sweep(point="resid", apart="S", what="the residual stream"),
    "attn_out": Sweep(point="attn_out", apart="S", what="what attention writes"),
    "mlp_out": Sweep(point="mlp_out", apart="S", what="what the MLP writes"),
    "heads": Sweep(point="z", apart="H", what="what a head gathers, at all positions"),
    "heads-positions": Sweep(point="z", apart="SH", what="what a head gathers, by position"),
    "q": Sweep(point="q", apart="H", what="a head's queries"),
    "k": Sweep(point="k", apart="H", what="a head's keys"),
    "v": Sweep(point="v", apart="H", what="a head's values"),
    "pattern": Sweep(point="pattern", apart="H", what="where a head looks"),
}
KNOCKOUT, PATHS = "knockout", "paths"
FEW = 0.1  # of a map's places
# Of positions, as pairs of any template have them (``groups.roles``).
ROLES = ("before", "first change", "other changes", "between", "last")
NAMES = (*SWEEPS, KNOCKOUT, PATHS)


@dataclass(frozen=True, kw_only=True)
class PairScore:
    """One pair and what the model says to it.

    Attributes:
        task: of the file.
        clean, corrupted: the prompts.
        answers, wrong_answers: as written.
        clean_metric, corrupted_metric: the mean logit of the answers less that of the wrong
            answers, at the last position of either prompt.
        kept: whether the pair counts.
    """

    task: str
    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]
    clean_metric: float | None
    corrupted_metric: float | None
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Screen:
    """First-order estimates of every place of a map, and how well they agree with exact effects.

    Attributes:
        estimate: like the map's ``effect``, of every place.
        first: which places the estimates put first, 1 for those.
        drawn: which were drawn at random from all, 1 for those. Both kinds are exact in the map.
        agreement: of estimates with exact effects, means over pairs, over the places drawn.
        missed: the place drawn, but not put first, with the largest exact effect; "" for none.
        missed_effect: its size; first_effect: the smallest of those put first.
    """

    estimate: np.ndarray
    first: np.ndarray
    drawn: np.ndarray
    agreement: screen.Agreement
    missed: str = ""
    missed_effect: float | None = None
    first_effect: float | None = None

    def check(self, shape: tuple[int, int]) -> None:
        """Refuse arrays that are not of a map's places.

        Args:
            shape: of the map.

        Raises:
            ValueError: names the array.
        """
        for name in ("estimate", "first", "drawn"):
            _check_shape(f"screen/{name}", getattr(self, name), shape)


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, int]) -> None:
    if array.shape != shape:
        found = " × ".join(map(str, array.shape))
        raise ValueError(
            f"{name} is {found} numbers, expected {shape[0]} × {shape[1]} (rows × columns)"
        )


@dataclass(frozen=True, kw_only=True)
class PatchMap:
    """What exchanging each place of one kind does, as a mean over pairs.

    Attributes:
        sweep: what was exchanged; "paths to logits", "paths to L4H0 q".
        direction: which way.
        task: of the pairs, or "all".
        pairs: how many.
        rows, columns: names of the places.
        effect: ``[rows, columns]``: the share of the difference between the two runs that the
            exchange makes up; low, high: its 95 % interval over pairs. None where no pair has the
            place or it was not exchanged.
        control: the same with a random value as far away (of a knock-out: the mean of the other
            groups of positions in the same layers).
        p: corrected for the places of the map, of "effect and control are the same".
        screen: where exact effects are of some places only.
    """

    sweep: str
    direction: str
    task: str
    pairs: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    control: np.ndarray
    p: np.ndarray
    screen: Screen | None = None

    def __post_init__(self) -> None:
        """Check what no type can say: a value for every place."""
        shape = (len(self.rows), len(self.columns))
        if not all(shape):
            raise ValueError("a map without rows or columns has no places")
        for name in ("effect", "low", "high", "control", "p"):
            _check_shape(name, getattr(self, name), shape)
        if self.screen is not None:
            self.screen.check(shape)

    @property
    def told(self) -> np.ndarray:
        """Which places are told from their control and carry more than it, bool ``[rows,
        columns]``.

        A place that does less than what stands beside it, or works against the answer, is told from
        it, too, but carries nothing.
        """
        more = np.nan_to_num(self.effect) > np.abs(np.nan_to_num(self.control))
        return more & (np.nan_to_num(self.p, nan=1.0) < LEVEL)

    @property
    def least_p(self) -> float:
        """The smallest p-value that flipping the signs of so many pairs can give: all signs and
        none are as far away as what was found."""
        return max(2.0 ** (1 - self.pairs), 1 / (1 + stats.PERMUTATIONS))

    @property
    def too_few(self) -> bool:
        """Whether pairs are too few to tell places apart: where more than a tenth of all places
        would need the smallest p-value that there is before the correction (p · places / rank)
        left one below ``LEVEL``: eight pairs or fewer."""
        return self.least_p / LEVEL > FEW

    def name(self, row: int, column: int) -> str:
        """A place in words: ``L0H3``, ``L2 last``.

        Args:
            row, column: of the place.
        """
        joined = "" if self.columns[column].startswith("H") else " "
        return f"{self.rows[row]}{joined}{self.columns[column]}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One place of one map, a row for ``pandas``: attributes as of ``PatchMap``.

    Attributes:
        sweep, direction, task: of the map.
        row, column: names of the place.
        effect, low, high, control, p, told: there; None where it was not exchanged.
    """

    sweep: str
    direction: str
    task: str
    row: str
    column: str
    effect: float | None
    low: float | None
    high: float | None
    control: float | None
    p: float | None
    told: bool


@dataclass(frozen=True, kw_only=True)
class PatchResult(Result, rows="pairs"):
    """All maps of a study.

    Attributes:
        pairs: all that were given.
        maps: a map for every sweep, direction and task.
        least_gap: logits between the two runs below which a pair does not count.
        window: layers of a knock-out.
        provenance: what ran, on what, with which options.
    """

    pairs: tuple[PairScore, ...]
    maps: tuple[PatchMap, ...]
    least_gap: float
    window: int
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check that something was measured."""
        if not self.maps:
            raise ValueError("there are no maps, so nothing was measured")

    @property
    def places(self) -> tuple[Place, ...]:
        """Every place of every map: ``result.records("places")``."""
        return tuple(
            Place(
                sweep=m.sweep, direction=m.direction, task=m.task, row=row, column=column,
                effect=number(m.effect[i, j]), low=number(m.low[i, j]),
                high=number(m.high[i, j]), control=number(m.control[i, j]),
                p=number(m.p[i, j]), told=bool(m.told[i, j]),
            )
            for m in self.maps
            for i, row in enumerate(m.rows)
            for j, column in enumerate(m.columns)
        )  # fmt: skip

    def find(self, sweep: str, direction: str = "", task: str = "all") -> PatchMap | None:
        """A map, or None where there is none.

        Args:
            sweep: as the map has it.
            direction: any by default.
            task: of the pairs.
        """
        for each in self.maps:
            if (each.sweep, each.task) == (sweep, task) and direction in ("", each.direction):
                return each
        return None
