"""A closer look at a few features of a dictionary: the calls of it, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Float, Int
from jaxalign.studies.features.calls import Work, batches_of, in_equal_calls
from jaxalign.studies.features.chosen import activations_of
from jaxalign.studies.features.deficit import Shifted, shifted
from jaxalign.studies.features.effects import KINDS, Effects, feature_effects
from jaxalign.studies.features.findings import NOISE_OF
from jaxalign.studies.features.quality import padded
from jaxalign.studies.features.sources import Source
from jaxalign.study.batching import too_small
from jaxalign.study.calls import Call
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import late_noise, moves_matrices

BLOCK = 8  # features of a call
MOST_WINDOWS = 32  # of one
DAMAGED = 16  # features along which a shift is taken apart
DRAWS = 5  # of other features, and of random directions, beside them


@dataclass(frozen=True, kw_only=True)
class Model:
    """Parameters that are looked at.

    Attributes:
        name: of the scheme, or ``noise of`` it.
        params: or ``Late`` ones.
        scheme: that they run in.
    """

    name: str
    params: Any
    scheme: Scheme


def models_of(session: Session, schemes: Sequence[Scheme], noise: bool) -> Iterator[Model]:
    """f32, each scheme, and one draw of noise as far from f32 as each.

    Args:
        session: of the study.
        schemes: that are compared.
        noise: whether noise stands beside them.
    """
    high = session.model.params
    yield Model(name=F32.name, params=high, scheme=F32)
    for scheme in schemes:
        yield Model(name=scheme.name, params=session.late_low(scheme), scheme=scheme.run)
        if noise and moves_matrices(high, scheme):
            late = late_noise(session, scheme, 0)
            yield Model(name=NOISE_OF + scheme.name, params=late, scheme=F32)


def some_windows(session: Session, work: Work, tokens: int, rows: int) -> Work:
    """Windows at even steps of the texts, in calls that the memory holds.

    Args:
        session: whose memory holds a call.
        work: all of the texts.
        tokens: about so many.
        rows: runs of each window in a call.

    Raises:
        InputError: the memory does not hold one window.
    """
    windows, config = work.windows, session.config
    each_has = work.counted.sum() / len(work.group)
    count = min(len(work.group), max(1, round(tokens / each_has)))
    index = np.linspace(0, len(work.group) - 1, count).astype(int)
    stream = windows.window * (14 * config.hidden_size + 2 * config.intermediate_size)
    need = 4.0 * (rows * (stream + 2 * config.vocab_size) + 6 * windows.window * config.vocab_size)
    free = session.free(session.model.params, session.model.params)
    if free < need:
        raise too_small(f"one window of {windows.window} tokens in {rows} runs", need, free)
    each = in_equal_calls(count, min(int(free // need), MOST_WINDOWS), session.devices)
    names = ("tokens", "lengths", "first", "counted", "document")
    chosen = replace(windows, **{name: getattr(windows, name)[index] for name in names})
    return replace(
        work, windows=chosen, counted=work.counted[index], group=work.group[index],
        rows=each,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is looked at in one dictionary.

    Attributes:
        source: the dictionary. place: its number among the study's.
        features: that are ablated and steered with. doses: of each.
        random: a direction for each, as long as what it writes.
        cards: features whose texts are kept.
        damaged: of each scheme, the features that lose most.
        bases: of each scheme, orthonormal columns: damaged features, then draws of other features,
            then of random directions.
    """

    source: Source
    place: int
    features: Int[np.ndarray, " E"]
    doses: Float[np.ndarray, " E"]
    random: Float[np.ndarray, "E D"]
    cards: Int[np.ndarray, " chosen"]
    damaged: dict[str, Int[np.ndarray, " damaged"]]
    bases: dict[str, Float[np.ndarray, "rows D k"]]


SCALED = (False,) * (1 + DRAWS) + (True,) * DRAWS


def look_at(
    source: Source,
    place: int,
    features: Int[np.ndarray, " E"],
    cards: Int[np.ndarray, " chosen"],
    doses: Float[np.ndarray, " features"],
    lost: dict[str, Float[np.ndarray, " features"]],
    rng: np.random.Generator,
) -> Look:
    """Decide what is looked at.

    Args:
        source: the dictionary.
        place: its number among the study's.
        features: that are ablated and steered with.
        cards: features whose texts are kept.
        doses: how much of each feature of the dictionary is added when steering.
        lost: ``1 − ρ²`` by scheme; NaN where a feature is not judged.
        rng: draws directions and other features.
    """
    decoder = np.asarray(source.dictionary.decoder, np.float64)
    width = decoder.shape[1]
    random = rng.standard_normal((len(features), width))
    norms = np.linalg.norm(decoder[features], axis=1, keepdims=True)
    random *= norms / np.linalg.norm(random, axis=1, keepdims=True)
    damaged, bases = {}, {}
    for name, values in lost.items():
        judged = np.flatnonzero(np.isfinite(values))
        count = min(DAMAGED, width // 8 or 1, len(judged) // 2)
        if not count:
            continue  # there are no others to hold it against
        order = judged[np.argsort(-values[judged], kind="stable")]
        own, others = order[:count], order[count:]
        drawn = [rng.choice(others, count, replace=len(others) < count) for _ in range(DRAWS)]
        spans = [decoder[own].T, *(decoder[one].T for one in drawn)]
        spans += [rng.standard_normal((width, count)) for _ in range(DRAWS)]
        damaged[name] = own
        bases[name] = np.stack([np.linalg.qr(span)[0] for span in spans]).astype(np.float32)
    return Look(
        source=source, place=place, features=features, cards=cards,
        doses=np.nan_to_num(doses[features]).astype(np.float32), random=random.astype(np.float32),
        damaged=damaged, bases=bases,
    )  # fmt: skip


def effect_calls(session: Session, work: Work, look: Look, model: Model) -> Iterator[Call[Any]]:
    """Ablate and steer in one model, some features and some windows a call.

    Args:
        session: of the study.
        work: some windows.
        look: which features.
        model: which parameters.
    """
    source = look.source
    kinds = len(KINDS)
    for start in range(0, len(look.features), BLOCK):
        part = slice(start, start + BLOCK)
        own = [padded(a[part], min(BLOCK, len(look.features)))
               for a in (look.features, look.doses, look.random)]  # fmt: skip
        for number, (batch, index) in enumerate(batches_of(work)):
            yield Call(
                key=("effects", model.name, look.place, start, number),
                program=feature_effects,
                arguments=(
                    model.params, source.dictionary, *own, batch.tokens, batch.lengths,
                    padded(work.counted[index], work.rows),
                ),
                static={"config": session.config, "scheme": model.scheme, "place": source.place,
                        "mesh": session.mesh},
                batch=batch,
                rows=1 + kinds * len(own[0]),
                layer_rows=kinds * len(own[0]) * session.config.num_layers * work.rows,
                engine="wave",
            )  # fmt: skip


def deficit_calls(session: Session, work: Work, look: Look, model: Model) -> Iterator[Call[Any]]:
    """Put the shift of one scheme into f32 and take it out of the scheme.

    Args:
        session: of the study.
        work: some windows.
        look: along which features.
        model: of the scheme.
    """
    bases = look.bases[model.name]
    for number, (batch, index) in enumerate(batches_of(work)):
        rows = 2 * (2 + len(bases))
        yield Call(
            key=("deficit", model.name, look.place, number),
            program=shifted,
            arguments=(
                session.model.params, model.params, bases, batch.tokens, batch.lengths,
                padded(work.counted[index], work.rows),
            ),
            static={"config": session.config, "scheme": model.scheme,
                    "place": look.source.place, "scaled": SCALED, "mesh": session.mesh},
            batch=batch,
            rows=rows,
            layer_rows=rows * session.config.num_layers * work.rows,
            engine="wave",
        )  # fmt: skip


def card_calls(session: Session, work: Work, look: Look, model: Model) -> Iterator[Call[Any]]:
    """The activations of a few features on all texts.

    Args:
        session: of the study.
        work: all windows.
        look: which features.
        model: which parameters.
    """
    for number, (batch, index) in enumerate(batches_of(work)):
        yield Call(
            key=("cards", model.name, look.place, number),
            program=activations_of,
            arguments=(
                model.params, look.source.dictionary, look.cards, batch.tokens, batch.lengths,
                padded(work.counted[index], work.rows),
            ),
            static={"config": session.config, "scheme": model.scheme,
                    "place": look.source.place, "mesh": session.mesh},
            batch=batch,
            layer_rows=session.config.num_layers * work.rows,
        )  # fmt: skip


@dataclass
class Seen:
    """What a closer look found in one dictionary, by model.

    Attributes:
        look: what was looked at. some: windows of effects and deficits. work: all windows.
        loss, kl: ``[kinds, E]``, sums over tokens; change: ``[kinds, E, V]``.
        counts: over how many tokens the sums of kl and of loss are, by model.
        deficits: by window.
        cards: activations ``[N, W, chosen]``.
    """

    look: Look
    some: Work
    work: Work
    loss: dict[str, np.ndarray] = field(default_factory=dict)
    kl: dict[str, np.ndarray] = field(default_factory=dict)
    change: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    deficits: dict[str, list[Shifted]] = field(default_factory=dict)
    cards: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, call: Call[Any], values: Any) -> None:
        """Add what a call returned.

        Args:
            call: which.
            values: its result.
        """
        kind, name = str(call.key[0]), str(call.key[1])
        real = len(call.batch.index)
        if kind == "effects":
            found, read = values
            self._add_effects(name, int(call.key[3]), found, read, real)
        elif kind == "deficit":
            self.deficits.setdefault(name, []).append(
                jax.tree.map(lambda a: np.asarray(a, np.float64)[:real], values)
            )
        else:
            shape = (*self.work.counted.shape, len(self.look.cards))
            own = self.cards.setdefault(name, np.zeros(shape, np.float32))
            own[list(call.batch.index)] = np.asarray(values)[:real]

    def _add_effects(
        self, name: str, start: int, found: Effects, read: np.ndarray, real: int
    ) -> None:
        count = len(self.look.features)
        here = min(BLOCK, count - start)
        for key, values in (
            ("loss", np.asarray(found.loss, np.float64)[:, :real].sum(axis=1)),
            ("kl", np.asarray(found.kl, np.float64)[:, :real].sum(axis=1)),
            ("change", np.asarray(found.change, np.float64)),
        ):
            own = getattr(self, key)
            by_kind = values.reshape(len(KINDS), -1, *values.shape[1:])[:, :here]
            if name not in own:
                own[name] = np.zeros((len(KINDS), count, *values.shape[1:]))
            own[name][:, start : start + here] += by_kind
        if start == 0:
            own = np.asarray(read, np.float64)[:real].sum(axis=0)
            self.counts[name] = self.counts.get(name, np.zeros(2)) + own
