"""How long one clean forward pass takes in each precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxalign.convert import Model
from jaxalign.errors import InputError
from jaxalign.model import cast, forward
from jaxalign.numerics.compile import jit
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import encode


@dataclass(frozen=True)
class Timing:
    """Seconds of one pass: the median and the quartiles of ``iterations`` passes."""

    scheme: str
    tokens: int
    iterations: int
    median: float
    low: float
    high: float


def forward_speed(
    model: Model, prompt: str, schemes: Sequence[Scheme], iterations: int = 30, warmup: int = 3
) -> list[Timing]:
    """Time a forward pass of one prompt, last-position logits, compilation excluded.

    Raises:
        InputError: an empty prompt, or counts that leave nothing to time.
    """
    if iterations < 2 or warmup < 1:
        raise InputError(
            f"{iterations} iterations after {warmup} warm-up passes cannot be timed",
            "give at least 2 iterations and 1 warm-up pass",
        )
    tokens = jnp.array([encode(prompt, "--benchmark-prompt", model.tokenizer, model.config)])
    timings = []
    for scheme in schemes:
        params = cast(model.params, scheme)

        def run(params, scheme=scheme):  # type: ignore[no-untyped-def]
            out = forward(params, tokens, model.config, scheme=scheme, last_only=True)
            return out.logits

        program = jit(run)
        seconds = []
        for _ in range(warmup + iterations):
            start = time.perf_counter()
            jax.block_until_ready(program(params))
            seconds.append(time.perf_counter() - start)
        low, median, high = statistics.quantiles(seconds[warmup:], n=4)
        timings.append(Timing(scheme.name, tokens.shape[1], iterations, median, low, high))
    return timings
