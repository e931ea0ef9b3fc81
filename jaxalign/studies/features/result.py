"""The result of a features study: dictionaries, and what each precision does to their features."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.features.findings import Closer
from jaxalign.study.provenance import Provenance
from jaxalign.study.records import Result


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What was read.

    Attributes:
        windows, documents, tokens: how many; tokens that features are read on: each once, without
            the first of each window.
        window, stride: tokens of a window, and from one to the next.
        bos: whether each begins with a beginning-of-sequence token.
        sha256: of the documents.
        groups: of documents that were resampled.
    """

    windows: int
    documents: int
    tokens: int
    window: int
    stride: int
    bos: bool
    sha256: str
    groups: int


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What something else than the scheme does to the same features on the same tokens.

    Attributes:
        lost, worst, unlike: as ``FeatureRow`` has them; means over draws.
        ratio: the scheme's mean over features of ``1 − ρ²`` over the floor's, with its interval
            over documents and draws, and the p of "the scheme takes what the floor takes", by
            flipping the signs of the difference in each group of documents.
        worst_ratio: the same over the 5 % of the features that lose most in both together.
        order: Spearman's correlation over features of what scheme and floor take, with its interval
            over features: whether both damage the same ones. order_draws: the same of one draw of
            the floor and the others, a mean over draws; None for fewer than two.
        shared: features that survive neither over those that do not survive one of them (Jaccard);
            None where all survive both.
        curve: share of the features with ρ of at least each of ``thresholds``, a mean over draws.
        draws: ``lost`` of each draw. one_more: the p of "the scheme is one more of these draws", a
            t-test of one new value, corrected for the number of schemes; None for fewer than three.
        perplexity: of the floor's model; None for noise.
        share: of the weights that are removed, of pruning.
    """

    lost: float | None
    worst: float | None
    unlike: float | None
    ratio: Estimate
    worst_ratio: Estimate
    order: Estimate
    order_draws: float | None
    shared: float | None
    curve: tuple[float | None, ...]
    draws: tuple[float | None, ...] = ()
    one_more: float | None = None
    perplexity: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureRow:
    """What a precision does to the features of a dictionary.

    Attributes:
        scheme: its name.
        bits: of a weight, scales included.
        lost: the mean over features of ``1 − ρ²``, the share of the variance of ``â`` that no line
            through ``a`` explains; median: the median of ``1 − ρ``; worst: the mean of ``1 − ρ²``
            over the 5 % that lose most; unlike: the mean of one less the overlap (Jaccard) of
            firings. Intervals over documents.
        survives, blurred, destroyed: shares of the features by ρ, at the thresholds of the options.
        curve: share of the features with ρ of at least each of ``thresholds``.
        slope: the median slope of the activations on those in f32.
        moved: the change of the reconstruction over the variance of f32's (FVU).
        explained: variance that the dictionary explains in this precision.
        dead, rare, common, frequent: shares of all features by how often they are active in it.
        tensor, group, pruning: floors: random weights as far away, matrix by matrix and head by
            head; group by group; pruned weights of the same perplexity. None where not asked for.
        rho, overlap, slopes: of each feature, null where it is not judged.
    """

    scheme: str
    bits: float
    lost: Estimate
    median: float | None
    worst: float | None
    unlike: Estimate
    survives: float | None
    blurred: float | None
    destroyed: float | None
    curve: tuple[float | None, ...]
    slope: float | None
    moved: float | None
    explained: float | None
    dead: float
    rare: float
    common: float
    frequent: float
    tensor: Floor | None
    group: Floor | None
    pruning: Floor | None
    rho: np.ndarray
    overlap: np.ndarray
    slopes: np.ndarray

    def __post_init__(self) -> None:
        """Check that shares of the features are some: a file may say anything."""
        names = ("survives", "blurred", "destroyed", "dead", "rare", "common", "frequent")
        shares = {name: getattr(self, name) for name in names}
        shares |= {f"curve {i}": share for i, share in enumerate(self.curve)}
        for name, value in shares.items():
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} of {self.scheme} is {value}, expected a share, 0 … 1")


@dataclass(frozen=True, kw_only=True)
class SchemePredictions:
    """What a precision does to the model's predictions.

    Attributes:
        scheme: its name.
        perplexity: with its interval over documents.
        kl: of the next token from f32's, nats; same: share of tokens with f32's first choice.
    """

    scheme: str
    perplexity: Estimate
    kl: Estimate
    same: Estimate


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Random directions in place of what a dictionary learnt, as many, as many active on a token.

    Attributes:
        explained: variance that they explain in f32.
        judged: directions that are active often enough to be judged.
        rows: one a scheme, as the dictionary has them.
    """

    explained: float | None
    judged: int
    rows: tuple[FeatureRow, ...]


@dataclass(frozen=True, kw_only=True)
class DictionaryReport:
    """A dictionary and its features.

    Attributes:
        name: place and hash. place: ``resid 4``.
        model: that it was trained on, where its files say.
        sha256: of its arrays. kind: of it. features: how many; width: of what it reads.
        explained, active: in f32 on these texts: variance explained, features a token.
        recovered: share of the model's loss that is back where the reconstruction stands in.
        valid: whether enough is explained.
        judged: features that are active often enough to be judged.
        dead, rare, common, frequent: shares of the features in f32.
        dead_causes: how many features are dead in f32, by the likely cause: it never fired in its
            training, died in it, does not write what it reads, or is seldom active.
        batching: ``lost``, ``worst`` and ``unlike`` between two ways of batching f32: what is no
            effect. bf16: between f32 and bf16. chance: between tokens that have nothing to do with
            each other.
        rankings: Kendall's W of the schemes' order over all thresholds; None for fewer than two.
        rows: one a scheme.
        untrained: the same of random directions; None where none is active often enough.
        peak, rate, mean: of each feature in f32: its largest activation, the share of the tokens
            on which it is active, and its mean.
        closer: a closer look at some features: what they do, and what can be told of them.
    """

    name: str
    place: str
    model: str | None
    sha256: str
    kind: str
    features: int
    width: int
    explained: float | None
    active: float | None
    recovered: float | None
    valid: bool
    judged: int
    dead: float
    rare: float
    common: float
    frequent: float
    dead_causes: dict[str, int] = field(default_factory=dict)
    batching: tuple[float | None, ...]
    bf16: tuple[float | None, ...]
    chance: tuple[float | None, ...]
    rankings: float | None
    rows: tuple[FeatureRow, ...]
    untrained: Untrained | None
    peak: np.ndarray
    rate: np.ndarray
    mean: np.ndarray
    closer: Closer

    @property
    def controls(self) -> tuple[FeatureRow | None, ...]:
        """The row of the untrained dictionary beside each of ``rows``."""
        return self.untrained.rows if self.untrained else (None,) * len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A precision and a dictionary, a row for ``pandas``: as ``FeatureRow`` has them.

    Attributes:
        dictionary, place, valid: of the dictionary.
        scheme, bits, lost, median, worst, unlike, survives, blurred, destroyed, slope, moved,
            explained: of the precision.
        tensor, group, pruning: the ratio to each floor; None where not asked for.
        untrained: the ratio to noise of random directions in place of learnt ones.
        untrained_survives: the share of them that survives.
    """

    dictionary: str
    place: str
    valid: bool
    scheme: str
    bits: float
    lost: Estimate
    median: float | None
    worst: float | None
    unlike: Estimate
    survives: float | None
    blurred: float | None
    destroyed: float | None
    slope: float | None
    moved: float | None
    explained: float | None
    tensor: Estimate | None
    group: Estimate | None
    pruning: Estimate | None
    untrained: Estimate | None
    untrained_survives: float | None


@dataclass(frozen=True, kw_only=True)
class FeaturesResult(Result, rows="rows"):
    """All dictionaries.

    Attributes:
        dictionaries: each with its rows.
        predictions: of the model in each precision, f32 first.
        thresholds: of every row's curve.
        survives, destroyed, least_firings: of the options.
        texts: what was read.
        labels_sha256: of the file of labels; None without one.
        provenance: what ran, on what, with which options.
    """

    dictionaries: tuple[DictionaryReport, ...]
    predictions: tuple[SchemePredictions, ...]
    thresholds: tuple[float, ...]
    survives: float
    destroyed: float
    least_firings: int
    texts: Texts
    labels_sha256: str | None
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check that something was measured, and that curves have a value for each threshold."""
        if not self.dictionaries:
            raise ValueError("there are no dictionaries, so nothing was measured")
        for own in self.dictionaries:
            for name in ("batching", "bf16", "chance"):
                if len(getattr(own, name)) != 3:
                    raise ValueError(f"{name} has not lost, worst and unlike")
            if len(own.controls) != len(own.rows):
                raise ValueError("not every scheme stands beside the untrained dictionary")
            for row in filter(None, (*own.rows, *own.controls)):
                if len(row.curve) != len(self.thresholds):
                    raise ValueError(f"the curve of {row.scheme} is not one of the thresholds")
                if len(row.rho) != own.features:
                    raise ValueError(f"{row.scheme} has {len(row.rho)} features of {own.features}")

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every precision of every dictionary: ``result.records()``."""
        kinds = ("tensor", "group", "pruning")
        beside = ("untrained", "untrained_survives")
        others = {"dictionary", "place", "valid", *kinds, *beside}
        same = [field.name for field in fields(Row) if field.name not in others]
        return tuple(
            Row(
                dictionary=own.name, place=own.place, valid=own.valid,
                **{name: getattr(row, name) for name in same},
                **{
                    name: floor and floor.ratio
                    for name in kinds
                    for floor in [getattr(row, name)]
                },
                untrained=control and control.tensor and control.tensor.ratio,
                untrained_survives=control and control.survives,
            )
            for own in self.dictionaries
            for row, control in zip(own.rows, own.controls, strict=True)
        )  # fmt: skip
