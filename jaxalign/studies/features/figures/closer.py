"""Figures of a closer look: what features do, what their damage costs, their texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxalign.plots.looks import NOISE, look
from jaxalign.plots.page import GREY, INK, PALE, Page, facets, new_page, sentence_page
from jaxalign.plots.words import listed, precision_name, short_name
from jaxalign.studies.features.figures.shared import WIDTH, caption, names_of
from jaxalign.studies.features.findings import NOISE_OF, Card, Closer, Context
from jaxalign.studies.features.result import FeaturesResult

FEATURES = 4  # of a page of cards
LETTER = 0.0585  # inches, of the card's font
TEXT_SIZE = 7.0
BEFORE, AFTER = 36, 26  # letters around a token


def effects(result: FeaturesResult) -> Page:
    """What features do in each precision, beside noise and beside another feature."""
    title = "Does a feature still do the same?"
    own = result.dictionaries[0]
    closer = own.closer
    if not closer.effects:
        return sentence_page(caption(result), title, "No feature was taken away: --effects 0.")
    schemes = [name for name in names_of(result) if _row(closer, name, "ablate")]
    page = new_page(
        caption(result), title,
        f"{len(closer.features)} features of {short_name(own.place, 20)}, spread over how well "
        f"they survive, on {closer.tokens} tokens: taken away (left) and added (right). Dots: "
        "cosine of the change of the logits with that in f32, a feature each; bar: mean with 95 % "
        "over features. Grey: random directions, as long, in the features' place. Orange: features "
        "under random weights as far from f32. Dashed: another feature.",
        width=WIDTH, body=0.7 + 0.5 * len(schemes),
    )  # fmt: skip
    axes = facets(page, 2, 2, sharey=True)
    for ax, kind in zip(axes, ("ablate", "steer"), strict=True):
        for height, name in enumerate(schemes):
            for shift, scheme, what, colour in (
                (-0.25, name, kind, look(name, names_of(result)).colour),
                (0.0, name, f"{kind} at random", GREY),
                (0.25, NOISE_OF + name, kind, NOISE.colour),
            ):
                _strip(ax, closer, scheme, what, height + shift, colour)
        others = [row.others for row in closer.effects if row.kind == kind and row.others]
        if others:
            ax.axvline(float(np.mean(others)), color=GREY, lw=0.9, ls="--")
        ax.set_xlabel("cosine with the change in f32")
        ax.set_title("taken away" if kind == "ablate" else "added")
    axes[0].set_yticks(range(len(schemes)), [precision_name(name) for name in schemes])
    axes[0].set_ylim(len(schemes) - 0.5, -0.5)
    return page


def _row(closer: Closer, scheme: str, kind: str) -> object:
    return next((r for r in closer.effects if (r.scheme, r.kind) == (scheme, kind)), None)


def _strip(ax: Axes, closer: Closer, scheme: str, kind: str, height: float, colour: str) -> None:
    """A feature a dot, and their mean."""
    for row in closer.effects:
        if (row.scheme, row.kind) != (scheme, kind):
            continue
        spread = np.linspace(-0.09, 0.09, len(row.cosine))
        ax.plot(row.cosine, height + spread, ".", color=colour, ms=3, alpha=0.6)
        if row.direction.value is not None:
            low, high = row.direction.low, row.direction.high
            if low is not None and high is not None:
                ax.plot([low, high], [height, height], color=INK, lw=2.2, solid_capstyle="butt")
            ax.plot(row.direction.value, height, "|", color=INK, ms=9, mew=1.6)


def deficit(result: FeaturesResult) -> Page:
    """What the shift along damaged features costs, and what taking it out repairs."""
    title = "Do the damaged features carry the damage?"
    own = result.dictionaries[0]
    rows = own.closer.deficits
    if not rows:
        return sentence_page(caption(result), title, "The shift was not taken apart: --effects 0.")
    page = new_page(
        caption(result), title,
        f"The shift of {short_name(own.place, 20)} under each scheme, along the "
        f"{len(rows[0].features)} features that lose most, along as many others, and along random "
        "directions, as long. Left: put into f32. Right: taken out of the scheme. Shares of the "
        "deficit KL(f32 ‖ scheme), 95 % over documents and draws; open: the whole shift.",
        width=WIDTH, body=0.8 + 0.42 * len(rows), below=0.4,
    )  # fmt: skip
    axes = facets(page, 2, 2, sharey=True)
    kinds = {"damaged": (INK, "o", -0.2), "others": ("#0072B2", "s", 0.0),
             "random": (NOISE.colour, "^", 0.2)}  # fmt: skip
    for ax, which in zip(axes, ("harm", "repaired"), strict=True):
        ax.axvline(0, color=GREY, lw=0.7)
        for height, row in enumerate(rows):
            ax.axhline(height, color=PALE, lw=0.4, zorder=0)
            for kind, (colour, marker, shift) in kinds.items():
                one = getattr(getattr(row, kind), which)
                if one.value is None:
                    continue
                if one.low is not None and one.high is not None:
                    ax.plot([one.low, one.high], [height + shift] * 2, color=colour, lw=1)
                ax.plot(one.value, height + shift, marker, color=colour, ms=4)
            whole = getattr(row.whole, which).value
            if whole is not None:
                ax.plot(whole, height, "D", color=INK, mfc="white", ms=4.5)
        ax.set_xlabel("harm ÷ deficit" if which == "harm" else "repaired ÷ deficit")
    axes[0].set_yticks(range(len(rows)), [precision_name(row.scheme) for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    words = {"damaged": "most damaged features", "others": "other features",
             "random": "random directions"}  # fmt: skip
    handles = [Line2D([], [], color=c, marker=m, ls="", ms=4, label=words[k])
               for k, (c, m, _) in kinds.items()]  # fmt: skip
    page.legend([*handles, Line2D([], [], color=INK, marker="D", mfc="white", ls="", ms=4.5,
                                  label="the whole shift")])  # fmt: skip
    return page


def scatter(result: FeaturesResult) -> Page:
    """Activations in each precision against f32's, feature by feature."""
    title = "What becomes of a feature's activations?"
    own = result.dictionaries[0]
    found = own.closer.cards
    if not found:
        return sentence_page(caption(result), title, "No feature was kept: --cards 0.")
    features = list(dict.fromkeys(card.feature for card in found))[-FEATURES:]
    names = names_of(result)
    shown = [name for name in names if any(card.scheme == name for card in found)][:6]
    page = new_page(
        caption(result), title,
        f"Features of {short_name(own.place, 20)} (rows), those that lose least first, in each "
        "precision: a token a dot, its activation in f32 to the right, in the precision upwards. "
        "On the line nothing changed; on an axis the feature is active in one of both alone.",
        width=WIDTH, body=1.55 * len(features),
    )  # fmt: skip
    grid = page.figure.subplots(len(features), len(shown), squeeze=False)
    for height, feature in enumerate(features):
        for ax, name in zip(grid[height], shown, strict=True):
            card = next(c for c in found if (c.feature, c.scheme) == (feature, name))
            top = float(card.points.max(initial=0)) * 1.05 or 1.0
            ax.plot([0, top], [0, top], color=GREY, lw=0.7)
            a, low = card.points.reshape(-1, 2).T
            ax.plot(a, low, ".", ms=3, alpha=0.7,
                    color=look(name, names).colour)  # fmt: skip
            ax.set_title("" if card.rho is None else f"ρ {card.rho:.3f}", fontsize=7,
                         fontweight="normal")  # fmt: skip
            if name == shown[0]:
                ax.set_ylabel(f"feature {feature}")
            if feature == features[-1]:
                ax.set_xlabel(precision_name(name))
    return page


def cards(result: FeaturesResult) -> Page:
    """The texts on which features are most active, in f32 and in the coarsest precision."""
    title = "Does a feature still answer to the same texts?"
    own = result.dictionaries[0]
    losses = {row.scheme: row.lost.value or 0.0 for row in own.rows}
    there = [c for c in own.closer.cards if c.scheme in losses]
    if not there:
        return sentence_page(caption(result), title, "No feature was kept: --cards 0.")
    worst = max({c.scheme for c in there}, key=lambda name: losses[name])
    shown = [c for c in there if c.scheme == worst][-FEATURES:]
    page = new_page(
        caption(result), title,
        f"Features of {short_name(own.place, 20)}, those that lose least first. Left: the tokens "
        f"on which each is most active in f32; right: in {precision_name(worst)}, which takes "
        "most. Activations stand in front: f32, then the precision. Marked in the right column: "
        "tokens that are not among those of the left.",
        width=WIDTH, body=1.12 * len(shown),
    )  # fmt: skip
    grid = page.figure.subplots(len(shown), 2, squeeze=False)
    for line, card in zip(grid, shown, strict=True):
        rho = "" if card.rho is None else f", ρ {card.rho:.3f}"
        line[0].set_title(f"feature {card.feature}: f32")
        line[1].set_title(f"{precision_name(worst)}{rho}")
        for ax, contexts in zip(line, (card.top, card.low_top), strict=True):
            _texts(ax, card, contexts)
    return page


def _texts(ax: Axes, card: Card, contexts: tuple[Context, ...]) -> None:
    ax.set_axis_off()
    ax.set_xlim(0, WIDTH / 2 - 0.2)
    ax.set_ylim(5.2, 0)
    known = {(c.before, c.token) for c in card.top}
    for place, one in enumerate(contexts):
        y = place + 0.5
        mark = "" if contexts is card.top or (one.before, one.token) in known else "+"
        style: dict[str, Any] = {"size": TEXT_SIZE, "family": "DejaVu Sans Mono", "va": "center"}
        ax.text(0, y, f"{one.a:4.1f} {one.low:4.1f}{mark:1}", color=GREY, **style)
        start = 11 * LETTER
        before = _plain(one.before)[-BEFORE:]
        token = _plain(one.token)[:14] or "␣"
        after = _plain(one.after)[: max(0, AFTER - len(token))]
        ax.text(start + BEFORE * LETTER, y, before, ha="right", color=GREY, **style)
        ax.text(start + BEFORE * LETTER, y, token, color=INK, weight="bold", **style)
        ax.text(start + (BEFORE + len(token)) * LETTER, y, after, color=GREY, **style)


def _plain(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", " ")


def predictors(result: FeaturesResult) -> Page:
    """Which statistics of f32 tell which features survive, and noise beside it."""
    title = "Can one tell ahead which features survive?"
    own = result.dictionaries[0]
    rows = own.closer.predictors
    if not rows:
        return sentence_page(
            caption(result), title, "Too few features survive, or too few do not, to be told apart."
        )
    names = [one.name for one in rows[0].single]
    page = new_page(
        caption(result), title,
        f"Features of {short_name(own.place, 20)}: how well what is known of f32 alone tells which "
        "survive (area under the curve; 0.5 says nothing, and below it the smaller survive), 95 % "
        "over features. First line: all together, on features left out; orange: which survive "
        "random weights as far away. "
        + listed([f"{precision_name(r.scheme)}: ρ ≥ {r.above:.3g}" for r in rows])
        + ".",
        width=WIDTH, body=0.8 + 0.26 * (1 + len(names)),
    )  # fmt: skip
    axes = facets(page, min(6, len(rows)), 6, sharey=True, sharex=True)
    for ax, row in zip(axes, rows, strict=False):
        ax.axvline(0.5, color=GREY, lw=0.7)
        colour = look(row.scheme, names_of(result)).colour
        if row.noise is not None:
            _bar(ax, row.noise, 0.18, NOISE.colour, "D")
        _bar(ax, row.auc, -0.05, colour, "D")
        for height, one in enumerate(row.single, 1):
            _bar(ax, one.auc, height, colour, "o")
        ax.set_title(precision_name(row.scheme))
        ax.set_xlabel("AUC")
    axes[0].set_yticks(range(1 + len(names)), ["all together", *names])
    axes[0].set_ylim(len(names) + 0.5, -0.5)
    return page


def _bar(ax: Axes, estimate: object, height: float, colour: str, marker: str) -> None:
    value, low, high = (getattr(estimate, name) for name in ("value", "low", "high"))
    if value is None:
        return
    if low is not None and high is not None:
        ax.plot([low, high], [height, height], color=colour, lw=1.2)
    ax.plot(value, height, marker, color=colour, ms=4, mec=INK, mew=0.3)
