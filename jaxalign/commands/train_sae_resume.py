"""The parts of a training on disk, so that one that was cut off goes on from its last part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.dictionaries.fit import Parts
from jaxalign.dictionaries.training import Steps, Training, TrainingOptions, begin
from jaxalign.runtime.resume import Resume


@dataclass(frozen=True)
class OnDisk(Parts):
    """The last part of a training in a folder.

    Attributes:
        resume: the folder.
        like: the structure of what a part returns.
    """

    resume: Resume
    like: Any

    def has(self, number: int) -> bool:
        """As ``Parts.has``."""
        return self.resume.found(("training", number), self.like) is not None

    def keep(self, number: int, compute: Callable[[], Any]) -> Any:
        """As ``Parts.keep``."""
        found = self.resume.keep(("training", number), compute, self.like)
        self.resume.forget(("training", number - 1))
        return found


@contextlib.contextmanager
def kept_until_the_end(folder: Path, facts: dict[str, Any]) -> Iterator[Resume]:
    """The parts of a training, removed once everything made of it is written.

    Args:
        folder: of the parts.
        facts: what decides them.
    """
    resume = Resume(folder, facts)
    try:
        yield resume
    except BaseException:  # an interruption, too, leaves the parts that are finished
        resume.close()
        raise
    resume.remove()


def like_part(training: TrainingOptions) -> tuple[Training, Any]:
    """The structure of what a part of a training returns.

    Args:
        training: its options.
    """
    one = replace(training, features=max(2, training.k), seeds=(0,), penalties=(0.0,))
    shapes = jax.eval_shape(lambda: begin(one, jnp.zeros((1, 2))))
    return shapes, Steps(error=0, total=0, active=0)
