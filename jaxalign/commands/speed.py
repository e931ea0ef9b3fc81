"""``speed``: how long one clean forward pass takes in each precision."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from jaxalign.checkpoints import Model
from jaxalign.commands.opening import opened
from jaxalign.commands.parser import options_from
from jaxalign.errors import InputError
from jaxalign.model import cast, forward
from jaxalign.numerics.scheme import F16, F32, INT8_SIM, Scheme
from jaxalign.prompts import encode
from jaxalign.runtime.compile import jit
from jaxalign.study.option import check_options, option, refuse_repeated, schemes_option


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What is timed.

    Attributes:
        schemes: precisions beside f32.
        text: the prompt; its last position's logits are computed.
        passes: how many are timed.
        warm_up: how many run before, the first of which compiles.

    Raises:
        InputError: counts that leave nothing to time.
    """

    schemes: tuple[Scheme, ...] = field(
        default=(F16, INT8_SIM),
        metadata=schemes_option("precisions beside f32"),
    )
    text: str = field(
        default="The capital of France is",
        metadata=option("--text", metavar="TEXT", help="what the model reads"),
    )
    passes: int = field(
        default=30,
        metadata=option(
            "--passes", metavar="N", least=2, most=1_000_000, help="how many are timed"
        ),
    )
    warm_up: int = field(
        default=3,
        metadata=option(
            "--warm-up", metavar="N", least=1, most=1_000_000, help="how many run before"
        ),
    )

    def __post_init__(self) -> None:
        check_options(self)
        refuse_repeated(self.schemes, F32)
        if chosen := [scheme.name for scheme in self.schemes if not scheme.to_nearest]:
            raise InputError(
                f"{', '.join(chosen)}: speed times schemes that round to the nearest",
                "name the one of the same format, such as int4-g64 for awq-g64",
            )


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
    model: Model, text: str, schemes: Sequence[Scheme], iterations: int = 30, warmup: int = 3
) -> list[Timing]:
    """Time a forward pass of one prompt, last-position logits, compilation excluded.

    Args:
        model: in f32.
        text: the prompt.
        schemes: precisions, each timed alone.
        iterations: passes that are timed, 2 or more.
        warmup: passes before them, 1 or more.

    Raises:
        InputError: an empty prompt, or a scheme that has to be calibrated.
    """
    tokens = jnp.array([encode(text, "--text", model.tokenizer, model.config)])
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
        low, median, high = statistics.quantiles(seconds[warmup:], n=4, method="inclusive")
        timings.append(Timing(scheme.name, tokens.shape[1], iterations, median, low, high))
    return timings


def run(arguments: argparse.Namespace) -> int:
    """Time and print; returns the exit code."""
    options = options_from(arguments, SpeedOptions)
    model = opened(arguments, "speed of {}")
    timings = forward_speed(
        model, options.text, (F32, *options.schemes), options.passes, options.warm_up
    )
    print(f"one forward pass of {timings[0].tokens} tokens, {timings[0].iterations} passes")
    for t in timings:
        shown = f"{t.median * 1e3:8.3f} ms  (quartiles {t.low * 1e3:.3f} … {t.high * 1e3:.3f})"
        print(f"{t.scheme:>10}  {shown}")
    return 0
