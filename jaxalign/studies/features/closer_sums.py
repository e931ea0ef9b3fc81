"""What a closer look adds up to: effects, deficits and cards as the result has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer

from jaxalign.measures import stats
from jaxalign.measures.correlation import rank_correlation
from jaxalign.measures.estimates import Estimate, number
from jaxalign.numerics.scheme import F32
from jaxalign.prompts import Windows
from jaxalign.shapes import Float, Int
from jaxalign.studies.features.closer import DRAWS, Seen
from jaxalign.studies.features.effects import KINDS
from jaxalign.studies.features.findings import Card, Context, DeficitRow, EffectRow, Part

QUARTERS = 4
POINTS = 200  # of a card's scatter
TOP = 5  # tokens of a card
BEFORE, AFTER = 12, 5  # tokens of text around one


def effect_rows(seen: Seen, seed: int) -> Iterator[EffectRow]:
    """Every model and kind beside f32.

    Args:
        seen: of one dictionary.
        seed: of the resamples.
    """
    for name in seen.kl:
        if name == F32.name:
            continue
        for kind in range(len(KINDS)):
            yield _effect_row(seen, name, kind, stats.generator(seed, "effects", name, KINDS[kind]))


def _effect_row(seen: Seen, name: str, kind: int, rng: np.random.Generator) -> EffectRow:
    high, low = seen.kl[F32.name][kind], seen.kl[name][kind]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log(low) - np.log(high)  # over the same tokens
        changes = [seen.change[model][kind] for model in (F32.name, name)]
        unit = [c / np.linalg.norm(c, axis=1, keepdims=True) for c in changes]
    cosines = unit[0] @ unit[1].T
    own = np.diag(cosines)
    others = cosines[~np.eye(len(own), dtype=bool)]
    losses = [seen.loss[model][kind] / seen.counts[model][1] for model in (F32.name, name)]
    return EffectRow(
        scheme=name,
        kind=KINDS[kind],
        size=_mean(ratio, rng, np.exp),
        order=rank_correlation(losses[0], losses[1], rng),
        direction=_mean(own, rng),
        others=number(np.nanmean(others)) if np.isfinite(others).any() else None,
        quarters=tuple(
            number(np.nanmean(part)) if np.isfinite(part).any() else None
            for part in np.array_split(own, min(QUARTERS, len(own)))
        ),
        kl=low / seen.counts[name][0],
        loss=losses[1],
        cosine=own,
    )


def _mean(values: np.ndarray, rng: np.random.Generator, function: object = None) -> Estimate:
    """The mean over features with its interval over them, or a rising function of it."""
    there = values[np.isfinite(values)]
    if not len(there):
        return Estimate()
    found = stats.mean_interval(there, rng)
    return Estimate(*(number(function(v) if callable(function) else v) for v in found))


def deficit_rows(seen: Seen, seed: int) -> Iterator[DeficitRow]:
    """What the shift along damaged features costs under each scheme.

    Args:
        seen: of one dictionary.
        seed: of the resamples.
    """
    for name, parts in seen.deficits.items():
        yield _deficit_row(seen, name, parts, stats.generator(seed, "deficit", name))


def _deficit_row(
    seen: Seen, name: str, parts: Sequence[object], rng: np.random.Generator
) -> DeficitRow:
    """Sums of groups of documents, then ratios of them."""
    _, group = np.unique(seen.some.group, return_inverse=True)

    def sums(which: str) -> np.ndarray:
        values = np.concatenate([getattr(part, which) for part in parts])
        out = np.zeros((group.max() + 1, *values.shape[1:]))
        np.add.at(out, group, values)
        return out

    kl, low_kl, loss, low_loss, size = map(sums, ("kl", "low_kl", "loss", "low_loss", "size"))
    tokens, predicted = sums("tokens"), sums("predicted")
    weights = stats.bootstrap_weights(len(tokens), rng)
    chosen = rng.integers(0, DRAWS, (len(weights), DRAWS))

    def over(values: np.ndarray, counts: np.ndarray) -> Estimate:
        values = values.reshape(len(values), -1)  # groups, draws
        drawn = weights @ values
        if values.shape[1] > 1:
            drawn = np.take_along_axis(drawn, chosen, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = stats.interval(drawn.mean(axis=1) / (weights @ counts))
            value = values.mean(axis=1).sum() / counts.sum()
        apart = len(tokens) > 1
        return Estimate(number(value), number(low) if apart else None,
                        number(high) if apart else None)  # fmt: skip

    deficit = low_kl[:, 0]
    # Rows: nothing, the whole shift, damaged features, draws of others, draws at random.
    rows = {
        "whole": [1], "damaged": [2], "others": range(3, 3 + DRAWS),
        "random": range(3 + DRAWS, 3 + 2 * DRAWS),
    }  # fmt: skip
    gone = {key: deficit[:, None] - low_kl[:, list(own)] for key, own in rows.items()}
    whole = size[:, 1].sum()

    def part(key: str) -> Part:
        own = list(rows[key])
        return Part(
            share=number(size[:, own].mean(axis=1).sum() / whole) if whole > 0 else None,
            harm=over(kl[:, own], deficit),
            repaired=over(gone[key], deficit),
        )

    def beyond(key: str) -> Estimate:
        found = over(gone["damaged"] - gone[key], deficit)
        if len(tokens) < 2:
            return found
        # Told apart are those that are told by the documents and by the draws.
        over_documents = stats.sign_flip_p((gone["damaged"] - gone[key]).mean(axis=1), rng)
        one_more = stats.beyond_draws(gone["damaged"].sum(), gone[key].sum(axis=0))
        return replace(found, p=number(np.maximum(over_documents, one_more)))

    return DeficitRow(
        scheme=name,
        features=seen.look.damaged[name],
        deficit=over(deficit, tokens),
        loss=over(low_loss[:, 0] - loss[:, 0], predicted),
        **{key: part(key) for key in rows},
        beyond_others=beyond("others"),
        beyond_random=beyond("random"),
    )


def cards(
    seen: Seen,
    tokenizer: Tokenizer,
    rho: dict[str, Float[np.ndarray, " features"]],
    slopes: dict[str, Float[np.ndarray, " features"]],
) -> Iterator[Card]:
    """Each chosen feature in each precision.

    Args:
        seen: of one dictionary.
        tokenizer: of the model.
        rho, slopes: of every feature, by scheme.
    """
    high = seen.cards[F32.name]
    for name, low in seen.cards.items():
        if name == F32.name:
            continue
        for place, feature in enumerate(seen.look.cards):
            a, b = high[..., place], low[..., place]
            yield Card(
                feature=int(feature),
                scheme=name,
                rho=number(rho[name][feature]),
                slope=number(slopes[name][feature]),
                points=_points(a[seen.work.counted], b[seen.work.counted]),
                top=_contexts(seen.work.windows, tokenizer, a, a, b),
                low_top=_contexts(seen.work.windows, tokenizer, b, a, b),
            )


def _points(a: Float[np.ndarray, " tokens"], b: Float[np.ndarray, " tokens"]) -> np.ndarray:
    """Some tokens where one is not 0: at even steps of their size, the largest among them."""
    active = np.flatnonzero((a > 0) | (b > 0))
    order = active[np.argsort(np.fmax(a, b)[active], kind="stable")]
    some = np.unique(np.linspace(0, len(order) - 1, min(POINTS, len(order))).astype(int))
    return np.stack([a, b], axis=1)[order[some]].astype(np.float64)


def _contexts(
    windows: Windows, tokenizer: Tokenizer, by: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[Context, ...]:
    """The tokens on which an activation is largest, the first of each window."""
    best = by.max(axis=1)
    order = [int(i) for i in np.argsort(-best, kind="stable")[:TOP] if best[i] > 0]
    return tuple(
        _context(
            windows.tokens[i][: windows.lengths[i]], int(by[i].argmax()), tokenizer, a[i], b[i]
        )
        for i in order
    )


def _context(
    tokens: Int[np.ndarray, " length"], at: int, tokenizer: Tokenizer, a: np.ndarray, b: np.ndarray
) -> Context:
    def text(ids: np.ndarray) -> str:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    return Context(
        before=text(tokens[max(0, at - BEFORE) : at]),
        token=text(tokens[at : at + 1]),
        after=text(tokens[at + 1 : at + 1 + AFTER]),
        a=float(a[at]),
        low=float(b[at]),
    )
