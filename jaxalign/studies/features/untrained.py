"""The controls of a dictionary: directions that nothing was trained for, as many, as many active.

*Random directions* are where a training begins. *Token directions* are the activations of single
tokens, less the mean: they know where the stream varies, and nothing else. What both show as well
as the dictionary does is a property of the model's activations and of the errors in its weights. A
difference from one of them alone is no sign of training: how much a direction loses depends on how
much of the stream's variance lies along it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints.dictionaries import dictionary_sha256
from jaxalign.dictionaries.dictionary import Dictionary, encode
from jaxalign.engine.activations import Place, activations_below
from jaxalign.measures import stats
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float, Lengths, Tokens
from jaxalign.studies.features.calls import Work, batches_of
from jaxalign.studies.features.quality import padded
from jaxalign.studies.features.sources import Source
from jaxalign.study.session import Session

READ = 2000  # tokens at least, on which means, directions and active features are taken


def controls(sources: Sequence[Source], session: Session, work: Work, seed: int) -> list[Source]:
    """Both controls of every dictionary, those of the first dictionary first.

    Args:
        sources: the dictionaries.
        session: whose model is read.
        work: the texts.
        seed: of what is drawn.

    Returns:
        ``topk`` dictionaries under hashes of their own, read at the same place. Each feature is
        written as it is read; as many are active on a token as the dictionary has in the mean.
    """
    return [one for source in sources for one in _of(source, session, work, seed)]


def _of(source: Source, session: Session, work: Work, seed: int) -> list[Source]:
    own = source.dictionary
    x = np.zeros((2, own.width), np.float32)  # an estimate computes nothing
    k = 1
    if not session.estimate:
        x = _activations(source, session, work, max(READ, 2 * own.features))
        active = np.asarray(encode(own, jnp.asarray(x[:READ]))) > 0
        k = own.k or max(1, round(float(active.sum(axis=1).mean())))
    rng = stats.generator(seed, "features", "untrained")
    mean = x.mean(axis=0)
    both = random_directions(own.features, own.width, rng), token_directions(x, own.features, rng)
    found = []
    for directions in both:
        dictionary = as_read(directions, k, mean, own)
        facts = replace(source.trained.facts, sha256=dictionary_sha256(dictionary))
        trained = replace(source.trained, dictionary=dictionary, facts=facts)
        found.append(replace(source, trained=trained))
    return found


def random_directions(
    count: int, width: int, rng: np.random.Generator
) -> Float[np.ndarray, "features D"]:
    """Directions of length 1, all as likely.

    Args:
        count: how many.
        width: ``D``.
        rng: draws them.
    """
    return _unit(rng.standard_normal((count, width)))


def token_directions(
    x: Float[np.ndarray, "tokens D"], count: int, rng: np.random.Generator
) -> Float[np.ndarray, "features D"]:
    """Activations of tokens drawn at random, less the mean, at length 1.

    Args:
        x: activations.
        count: how many; where there are fewer tokens, sums of two of them with random signs and
            sizes make up the rest.
        rng: draws them.
    """
    centred = x - x.mean(axis=0)
    first = centred[rng.permutation(len(x))[:count]]
    missing = count - len(first)
    pairs = rng.integers(0, len(x), (missing, 2))
    sizes = rng.standard_normal((missing, 2))
    return _unit(np.concatenate([first, (centred[pairs] * sizes[..., None]).sum(axis=1)]))


def _unit(directions: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions / np.where(norms > 0, norms, 1)).astype(np.float32)


def as_read(
    directions: Float[np.ndarray, "features D"], k: int, mean: Float[np.ndarray, " D"],
    own: Dictionary,
) -> Dictionary:  # fmt: skip
    """The ``k`` directions along which an activation lies furthest from the mean.

    Args:
        directions: of length 1.
        k: how many are active.
        mean: of the activations; where they are scaled first, the dictionary's own bias stands in.
        own: the dictionary whose scaling they have.
    """
    return Dictionary(
        encoder=np.ascontiguousarray(directions.T),
        decoder=directions,
        encoder_bias=np.zeros(len(directions), np.float32),
        decoder_bias=mean if own.scaling == "none" else own.decoder_bias,
        kind="topk",
        k=min(k, len(directions)),
        scaling=own.scaling,
    )


def _activations(
    source: Source, session: Session, work: Work, count: int
) -> Float[np.ndarray, "tokens D"]:
    """Activations of tokens that count, from windows spread over the texts; about so many."""
    each = work.counted.sum() / len(work.counted)
    wanted = min(len(work.counted), max(1, round(count / each)))
    # Calls at even steps of the texts, so that many documents are among them.
    every = list(batches_of(work))
    some = np.unique(
        np.linspace(0, len(every) - 1, min(len(every), -(-wanted // work.rows))).astype(int)
    )
    found = []
    for batch, part in (every[i] for i in some):
        x = _read(
            session.model.params, batch.tokens, batch.lengths, config=session.config,
            place=source.place,
        )  # fmt: skip
        found.append(np.asarray(x)[padded(work.counted[part], work.rows)])
    return np.concatenate(found)[:count].astype(np.float32)


@functools.partial(jit, static_argnames=("config", "place"))
def _read(
    params: Params, tokens: Tokens, lengths: Lengths, *, config: ModelConfig, place: Place
) -> Float[Array, "B S D"]:
    (x,) = activations_below(params, tokens, lengths, config, (place,))
    return x
