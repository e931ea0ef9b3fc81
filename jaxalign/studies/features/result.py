"""The result of a features study: dictionaries, and what each precision does to their features."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.features.findings import Closer
from jaxalign.studies.features.rows import CONTROLS, FeatureRow, Untrained, check_shares
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
        untrained: the same of directions that nothing was trained for.
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
    untrained: tuple[Untrained, ...]
    peak: np.ndarray
    rate: np.ndarray
    mean: np.ndarray
    closer: Closer

    def check(self, thresholds: int, measured: set[str]) -> None:
        """Refuse what no type can say: lengths, shares, and schemes that are no rows.

        Args:
            thresholds: of every curve.
            measured: schemes whose predictions were measured.

        Raises:
            ValueError: names what is wrong.
        """
        for name in ("batching", "bf16", "chance"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} has not lost, worst and unlike")
        check_shares(self.name, dead=self.dead, rare=self.rare, common=self.common,
                      frequent=self.frequent)  # fmt: skip
        for name in ("peak", "rate", "mean"):
            if len(getattr(self, name)) != self.features:
                raise ValueError(f"{name} has another length than {self.features} features")
        schemes = [row.scheme for row in self.rows]
        if not schemes:
            raise ValueError("a dictionary has no row")
        for control in self.untrained:
            if control.rows and [row.scheme for row in control.rows] != schemes:
                raise ValueError(f"{control.name} stand beside other schemes than the dictionary's")
        for row in (*self.rows, *(row for control in self.untrained for row in control.rows)):
            if len(row.curve) != thresholds:
                raise ValueError(f"the curve of {row.scheme} is not one of the thresholds")
            if row.scheme not in measured:
                raise ValueError(f"the predictions have no {row.scheme}")
        for row in self.rows:
            if len(row.rho) != self.features:
                raise ValueError(f"{row.scheme} has {len(row.rho)} features of {self.features}")
            if not np.isfinite(row.rho).any():
                raise ValueError(f"no feature of {row.scheme} was judged")
        self.closer.check(schemes)

    def beside(self, scheme: str) -> dict[str, FeatureRow | None]:
        """The rows of the controls that stand beside a scheme's, by the name of each control.

        Args:
            scheme: its name.
        """
        return {
            control.name: next((row for row in control.rows if row.scheme == scheme), None)
            for control in self.untrained
        }


@dataclass(frozen=True, kw_only=True)
class Row:
    """A precision and a dictionary, a row for ``pandas``: as ``FeatureRow`` has them.

    Attributes:
        dictionary, place, valid: of the dictionary.
        scheme, bits, lost, median, worst, unlike, survives, blurred, destroyed, slope, moved,
            explained: of the precision.
        tensor, group, pruning: the ratio to each floor; None where not asked for.
        one_more: the p of "one more draw of the noise", corrected: what decides, beside the ratio's
            own p and interval, whether a scheme is told from noise. verdict: "more", "less", "what"
            noise does, "few" draws to tell; None without noise.
        random, tokens: of random directions and of token directions in place of learnt ones, the
            ratio to noise; random_survives, tokens_survive: the share of them that survives.
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
    one_more: float | None
    verdict: str | None
    random: Estimate | None
    tokens: Estimate | None
    random_survives: float | None
    tokens_survive: float | None


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
        measured = {own.scheme for own in self.predictions}
        for own in self.dictionaries:
            own.check(len(self.thresholds), measured)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every precision of every dictionary: ``result.records()``."""
        kinds = ("tensor", "group", "pruning")
        beside = ("one_more", "verdict", "random", "tokens", "random_survives", "tokens_survive")
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
                one_more=row.tensor.one_more if row.tensor else None,
                verdict=row.tensor.verdict if row.tensor else None,
                random=drawn.tensor.ratio if drawn and drawn.tensor else None,
                tokens=token.tensor.ratio if token and token.tensor else None,
                random_survives=drawn.survives if drawn else None,
                tokens_survive=token.survives if token else None,
            )
            for own in self.dictionaries
            for row in own.rows
            for drawn, token in [map(own.beside(row.scheme).get, CONTROLS)]
        )  # fmt: skip
