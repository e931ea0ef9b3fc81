"""Why features are dead: what their training and their directions say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.shapes import Bool, Float, Int

NEVER, DIED, DISAGREE, SELDOM = "never fired", "died", "disagree", "seldom"
CAUSES = (NEVER, DIED, DISAGREE, SELDOM)
END = 0.9  # a feature that was last active before this share of the steps has died
# Cosine of what a feature reads and what it writes, below which the two disagree. The smallest of
# the bundled dictionary, which has no dead feature, is 0.53.
LEAST_COSINE = 0.2


def agreement(dictionary: Dictionary) -> Float[np.ndarray, " features"]:
    """The cosine of each feature's encoder and decoder directions.

    Args:
        dictionary: any kind; of a gated one, the directions of its gate.
    """
    reads = np.asarray(dictionary.encoder, np.float64).T
    writes = np.asarray(dictionary.decoder, np.float64)
    norms = np.linalg.norm(reads, axis=1) * np.linalg.norm(writes, axis=1)
    return (reads * writes).sum(axis=1) / np.maximum(norms, 1e-30)


def silent_since(fired: Int[np.ndarray, " features"], steps: int) -> dict[str, int]:
    """The step after which each feature was last active, of those that were silent at the end.

    Args:
        fired: that step of every feature, 0 for never (``fit.Fitted.fired``).
        steps: of the training.

    Returns:
        By the feature's number, as JSON has it. A feature that is missing was active in the last
        tenth of the steps.
    """
    return {str(i): int(fired[i]) for i in np.flatnonzero(fired < END * steps)}


def dead_causes(
    dead: Bool[np.ndarray, " features"], since: Mapping[str, Any], dictionary: Dictionary
) -> dict[int, str]:
    """The likely cause of each dead feature, the first of these that holds.

    "never fired": it was not active once in its training. "died": its last firing was before the
    last tenth of the steps. "disagree": what it writes is not what it reads, by ``LEAST_COSINE``.
    "seldom": none of these, so that it may be active on other texts.

    Args:
        dead: which features were never active on the texts that are looked at.
        since: from ``silent_since``; the facts of a dictionary have it as "silent_since".
        dictionary: whose features they are.
    """
    cosines = agreement(dictionary)

    def cause(feature: int) -> str:
        step = since.get(str(feature))
        if step is not None:
            return DIED if step else NEVER
        return DISAGREE if cosines[feature] < LEAST_COSINE else SELDOM

    return {int(feature): cause(int(feature)) for feature in np.flatnonzero(dead)}
