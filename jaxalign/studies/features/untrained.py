"""The control of a dictionary: random directions in place of learnt ones, as many, as many active.

What they show as well as the dictionary does is a property of the model's activations and of the
errors in its weights, and says nothing of features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jaxalign.checkpoints.dictionaries import dictionary_sha256
from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.measures import stats
from jaxalign.prompts import first_tokens
from jaxalign.shapes import Float
from jaxalign.studies.features.calls import Work
from jaxalign.studies.features.quality import text_sums
from jaxalign.studies.features.sources import Source
from jaxalign.study.session import Session

MEASURED = 2000  # tokens on which means, and the features that are active, are taken


def untrained(source: Source, session: Session, work: Work, seed: int) -> Source:
    """Random directions at the place of a dictionary, as a training of one would begin.

    Args:
        source: the dictionary.
        session: whose model is read.
        work: the texts, the first of which are read.
        seed: of the directions.

    Returns:
        A ``topk`` dictionary under a hash of its own, with as many features, as many of them active
        on a token as the dictionary has in the mean, each written as it is read.
    """
    own = source.dictionary
    k, mean = 1, np.zeros(own.width, np.float32)
    if not session.estimate:  # which computes nothing
        some = first_tokens(work.windows, MEASURED)
        rows = min(work.rows, len(some.tokens))
        params, config = session.model.params, session.config
        sums = text_sums(params, config, some, own, source.place, rows=rows)
        k = own.k or max(1, round(float(sums.active / sums.tokens)))
        mean = np.asarray(sums.x / sums.tokens, np.float32)
    dictionary = random_directions(own, k, mean, seed)
    facts = replace(source.trained.facts, sha256=dictionary_sha256(dictionary))
    return replace(source, trained=replace(source.trained, dictionary=dictionary, facts=facts))


def random_directions(
    own: Dictionary, k: int, mean: Float[np.ndarray, " D"], seed: int
) -> Dictionary:
    """The ``k`` of many random directions along which an activation lies furthest from the mean.

    Args:
        own: the dictionary whose width, number of features and scaling they have.
        k: how many are active.
        mean: of the activations; where they are scaled first, the dictionary's own bias stands in.
        seed: of the directions.
    """
    rng = stats.generator(seed, "features", "untrained")
    directions = rng.standard_normal((own.features, own.width)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return Dictionary(
        encoder=np.ascontiguousarray(directions.T),
        decoder=directions,
        encoder_bias=np.zeros(own.features, np.float32),
        decoder_bias=mean if own.scaling == "none" else own.decoder_bias,
        kind="topk",
        k=min(k, own.features),
        scaling=own.scaling,
    )
