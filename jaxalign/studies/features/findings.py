"""What a closer look at some features found, as a result has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.measures.estimates import Estimate

NOISE_OF = "noise of "  # in front of a scheme's name: random weights as far from f32


@dataclass(frozen=True, kw_only=True)
class EffectRow:
    """What features do under a precision, beside what they do in f32.

    Attributes:
        scheme: the precision; or ``noise of`` it, one draw of random weights as far from f32.
        kind: "ablate", features taken away, or "steer", features added; "at random" the same with a
            random direction, as long, in place of what the feature writes.
        size: ``KL(clean ‖ edited)`` over that in f32, the geometric mean over features.
        order: Spearman's correlation over features of the change of the loss with that in f32.
        direction: cosine of the change of the logits with that in f32, the mean over features.
            Intervals over features.
        others: the same cosine between different features: chance.
        quarters: ``direction`` in each quarter of the features, those that lose least first.
        kl, loss, cosine: of each feature; nats a token.
    """

    scheme: str
    kind: str
    size: Estimate
    order: Estimate
    direction: Estimate
    others: float | None
    quarters: tuple[float | None, ...]
    kl: np.ndarray
    loss: np.ndarray
    cosine: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the shift that a precision causes.

    Attributes:
        share: of the squared length of the shift.
        harm: ``KL(f32 ‖ f32 with it)`` over the deficit.
        repaired: share of the deficit that is gone where it is taken out of the other model.
    """

    share: float | None
    harm: Estimate
    repaired: Estimate


@dataclass(frozen=True, kw_only=True)
class DeficitRow:
    """What the shift along the features that lose most costs the model.

    Intervals are over documents and, of ``others`` and ``random``, over draws.

    Attributes:
        scheme: the precision.
        features: which lose most.
        deficit: ``KL(f32 ‖ scheme)`` of the next token, nats. loss: how much more its loss is.
        damaged: the shift along these features. whole: all of it, which carries what happens up to
            the site. others: along other features, as many, a mean over draws. random: along random
            directions, as many, made as long as ``damaged`` at every position.
        beyond_others, beyond_random: how much more of the deficit ``damaged`` repairs. Of the p of
            "as much", by flipping signs over documents, and that of "one more of these draws", a
            t-test of one new value, the larger.
    """

    scheme: str
    features: np.ndarray
    deficit: Estimate
    loss: Estimate
    damaged: Part
    whole: Part
    others: Part
    random: Part
    beyond_others: Estimate
    beyond_random: Estimate


@dataclass(frozen=True, kw_only=True)
class Context:
    """A token on which a feature is active, with the text around it.

    Attributes:
        before, token, after: text.
        a, low: the activation in f32 and in the precision.
    """

    before: str
    token: str
    after: str
    a: float
    low: float


@dataclass(frozen=True, kw_only=True)
class Card:
    """A feature in f32 and in a precision, side by side.

    Attributes:
        feature: its number. scheme: the precision.
        rho, slope: of its activations.
        points: ``[n, 2]``, activations in f32 and in the precision, of tokens where one is not 0.
        top, low_top: the tokens on which it is most active in f32, and in the precision; one of a
            window.
    """

    feature: int
    scheme: str
    rho: float | None
    slope: float | None
    points: np.ndarray
    top: tuple[Context, ...]
    low_top: tuple[Context, ...]


@dataclass(frozen=True, kw_only=True)
class Single:
    """How well one statistic of f32 tells which features survive.

    Attributes:
        name: of the statistic.
        auc: above 0.5 where the larger survive; its interval is over features.
    """

    name: str
    auc: Estimate


@dataclass(frozen=True, kw_only=True)
class PredictorRow:
    """How well f32 alone tells which features survive a precision.

    Attributes:
        scheme: the precision.
        above: the correlation from which a feature counts as surviving: the option's, or the
            median where nearly all features survive, or nearly none.
        share: of the features that do.
        auc: of a logistic regression on features that it was not fitted to, with its interval over
            features and the p of "as well with labels exchanged".
        exchanged: its mean with labels exchanged.
        noise: the same of the features that survive random weights as far away: what is told of
            any change of that size.
        single: of each statistic alone.
    """

    scheme: str
    above: float
    share: float
    auc: Estimate
    exchanged: float | None
    noise: Estimate | None
    single: tuple[Single, ...]


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """What a precision takes from the features of a label.

    Attributes:
        label, scheme: which.
        count: features of the label that are judged.
        lost: their mean of ``1 − ρ²``.
        ratio: over random groups, as many features that fire as often. The interval is that of
            random groups; p of "one more random group".
    """

    label: str
    scheme: str
    count: int
    lost: float
    ratio: Estimate


@dataclass(frozen=True, kw_only=True)
class Closer:
    """A closer look at some features of a dictionary.

    Attributes:
        features: that were ablated and steered with, those that lose least first.
        tokens: on which.
        kl, loss: ``[4, features]``, in f32: ablated, steered with, and the same with a random
            direction of the same norm; nats a token.
        effects: under each precision.
        deficits: of each precision.
        cards: of a few features in each precision.
        predictors: of each precision.
        groups: of labels.
    """

    features: np.ndarray
    tokens: int
    kl: np.ndarray
    loss: np.ndarray
    effects: tuple[EffectRow, ...]
    deficits: tuple[DeficitRow, ...]
    cards: tuple[Card, ...]
    predictors: tuple[PredictorRow, ...]
    groups: tuple[GroupRow, ...]

    def check(self, schemes: Sequence[str]) -> None:
        """Refuse rows of schemes that were not studied, and points that are none.

        Args:
            schemes: of the dictionary's rows.

        Raises:
            ValueError: names the row.
        """
        named = [(one.scheme, "deficits") for one in self.deficits]
        named += [(one.scheme, "cards") for one in self.cards]
        named += [(one.scheme, "predictors") for one in self.predictors]
        named += [(one.scheme, "groups") for one in self.groups]
        named += [(one.scheme.removeprefix(NOISE_OF), "effects") for one in self.effects]
        for scheme, where in named:
            if scheme not in schemes:
                raise ValueError(f"{where} have a row of {scheme}, which was not studied")
        for card in self.cards:
            if card.points.size and card.points.shape[1:] != (2,):
                raise ValueError(f"the points of feature {card.feature} are no pairs")
        for one in self.predictors:
            if not 0 <= one.share <= 1:
                raise ValueError(f"share of {one.scheme} is {one.share}, expected 0 … 1")
