"""The packages whose numbers ours must equal, imported where they are installed."""

import warnings

import pytest


def real_package(name):
    """The package, or a skip; what it warns of while it is imported is not our concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"compares with {name}: pip install -e '.[test]'")


def published(matrix):
    """A matrix or its scales, outputs first as checkpoints and these packages have them."""
    import numpy as np

    return np.ascontiguousarray(np.asarray(matrix).T)
