"""What a precision does to a dictionary's features, a row a scheme, beside floors and controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.measures.estimates import LEVEL, Estimate

# What stands in the place of a dictionary: directions that nothing was trained for.
CONTROLS = ("random directions", "token directions")


def check_shares(where: str, **shares: float | None) -> None:
    """Refuse shares of a file that are none.

    Args:
        where: of what they are, for messages.
        shares: by name; None where there is no value.

    Raises:
        ValueError: names the share.
    """
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} of {where} is {value}, expected a share, 0 … 1")


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
        perplexity, kl: of the floor's model, KL of the next token from f32's; None for noise.
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
    kl: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """Check that shares and p-values of a file are some."""
        check_shares("a floor", shared=self.shared, one_more=self.one_more, share=self.share,
                      **{f"curve {i}": v for i, v in enumerate(self.curve)})  # fmt: skip

    @property
    def verdict(self) -> str | None:
        """Whether the scheme does "more", "less" or "what" the floor does; "few" where the draws
        are too few to tell; None where nothing is known.

        It is told apart where the interval of the ratio over documents, the test that flips signs,
        and, of draws, the test that it is one more of them all say so.
        """
        ratio, value = self.ratio, self.ratio.value
        if value is None:
            return None
        if self.share is None and self.one_more is None:  # noise, and not pruned weights
            return "few"
        p = ratio.p if ratio.p_adjusted is None else ratio.p_adjusted
        apart = ratio.low is not None and ratio.high is not None
        apart = apart and not (ratio.low or 0) <= 1 <= (ratio.high or 0)
        apart = apart and p is not None and p < LEVEL
        if not apart or (self.one_more is not None and self.one_more >= LEVEL):
            return "what"
        return "more" if value > 1 else "less"


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
        """Check what no type can say: shares, and a value for every feature."""
        names = ("survives", "blurred", "destroyed", "dead", "rare", "common", "frequent")
        check_shares(self.scheme, **{name: getattr(self, name) for name in names})
        check_shares(self.scheme, **{f"curve {i}": v for i, v in enumerate(self.curve)})
        if not len(self.rho) == len(self.overlap) == len(self.slopes):
            raise ValueError(f"{self.scheme} has rho, overlap and slopes of different lengths")
        far = np.abs(self.rho[np.isfinite(self.rho)]).max(initial=0)
        if far > 1 + 1e-9:
            raise ValueError(f"rho of {self.scheme} is {far}, expected −1 … 1")
        for kind in ("tensor", "group", "pruning"):
            floor = getattr(self, kind)
            if floor is not None and len(floor.curve) != len(self.curve):
                raise ValueError(f"the curve of {self.scheme}'s {kind} has another length")


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """Directions that nothing was trained for in place of a dictionary's, as many active.

    Attributes:
        name: "random directions", or "token directions", the activations of single tokens.
        explained: variance that they explain in f32.
        judged: directions that are active often enough to be judged.
        rows: one a scheme, as the dictionary has them; none where no direction is judged.
    """

    name: str
    explained: float | None
    judged: int
    rows: tuple[FeatureRow, ...]
