"""Uniform formats beside a plan: every matrix rounded alike, at most as large as the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from jaxalign.measures import estimates
from jaxalign.measures.stats import generator
from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import matrix_name
from jaxalign.model.params import Block, Params
from jaxalign.model.size import matrix_sizes
from jaxalign.numerics.scheme import WHOLE_NUMBERS, Scheme, WeightFormat, scheme_named
from jaxalign.runtime.compile import jit
from jaxalign.studies.plan.calls import Bench
from jaxalign.studies.plan.components import Component, rows_of
from jaxalign.studies.plan.cost import Unit, bits_per_weight, units_of
from jaxalign.studies.plan.result import UniformFormat, UniformVerdict
from jaxalign.study.calls import Late, spec_of
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import low_matrices

LEVEL = 0.05
GROUPS = ("g16", "g32", "g64", "g128", "channel")
KINDS = ("", "-sym")
# Other formats that round to the nearest code and need no texts.
NAMED = ("nf4", "nf4-dq", "fp4", "fp4-dq")


@dataclass(frozen=True)
class Uniform:
    """A uniform format, measured.

    Attributes:
        scheme: its name.
        bytes: of the matrices of all blocks.
        chosen: KL on the choosing prompts, ``[C]``, nats.
        held: KL on the validating prompts, ``[W]``.
    """

    scheme: str
    bytes: int
    chosen: Float[np.ndarray, " C"]
    held: Float[np.ndarray, " W"]


def size_of_format(config: ModelConfig, form: WeightFormat) -> int | None:
    """Bytes of all matrices in a format; None where its groups do not divide their inputs."""
    if not all(form.fits(inputs) for inputs, _ in matrix_sizes(config).values()):
        return None
    return sum(unit.low for unit in units_of(config, form))


def formats_within(config: ModelConfig, most: int, low: Scheme) -> list[Scheme]:
    """Formats of at most that size, which no text and no search chooses; ``low`` among them.

    Of each kind of whole codes and each group size the most bits that fit: fewer bits in the same
    groups are smaller and worse.

    Args:
        config: the architecture.
        most: bytes of the matrices of all blocks.
        low: the plan's own scheme, which is a uniform format as well.
    """
    found = [low]
    for kind in KINDS:
        for group in GROUPS:
            widths = (scheme_named(f"int{bits}{kind}-{group}") for bits in reversed(WHOLE_NUMBERS))
            found += [scheme for scheme in widths if _fits(config, scheme, most)][:1]
    found += [s for s in map(scheme_named, NAMED) if _fits(config, s, most)]
    # Where one group holds all inputs, "-g128" and "-channel" are the same format.
    return list({_of_model(config, scheme): scheme for scheme in reversed(found)}.values())[::-1]


def _fits(config: ModelConfig, scheme: Scheme, most: int) -> bool:
    assert scheme.weights is not None
    size = size_of_format(config, scheme.weights)
    return size is not None and size <= most


def _of_model(config: ModelConfig, scheme: Scheme) -> tuple[Any, ...]:
    """What two formats share that are the same for this model's matrices."""
    form = scheme.weights
    assert form is not None
    groups = tuple(form.groups(inputs) for inputs, _ in matrix_sizes(config).values())
    return replace(form, group=None), groups, scheme.method


def _unpacked(high: Params, low: Params, config: ModelConfig) -> Params:
    """``high`` with ``low``'s matrices as f32 arrays, so that all formats share one program."""

    def layer(given: tuple[Block, Block]) -> Block:
        weights, lows = given
        target = low_matrices(weights, lows, config)

        def leaf(path: Any, w: Any) -> Any:
            return target.get(matrix_name(path) or "", w)

        return jax.tree_util.tree_map_with_path(leaf, weights)

    return replace(high, blocks=lax.map(layer, (high.blocks, low.blocks)))


unpacked = jit(_unpacked, static_argnames=("config",))


def measure_uniform(
    session: Session,
    bench: Bench,
    formats: Sequence[Scheme],
    choosing: Int[np.ndarray, " C"],
    validating: Int[np.ndarray, " W"],
) -> list[Uniform]:
    """Run the whole model in each format, on all prompts.

    Args:
        session: of the study.
        bench: the f32 model and all prompts.
        formats: from ``formats_within``.
        choosing, validating: which prompts chose the plan, and which did not.
    """
    rows = rows_of([Component("whole")], bench.parts)
    like = len(bench.parts.components())  # rows of the map's calls, whose program serves here, too
    found = []
    for scheme in formats:
        low = _late(session, scheme)
        effect = bench.measure(low, rows, f"uniform {scheme.name}", needed=False, least=like)
        size = size_of_format(session.config, scheme.weights) if scheme.weights else None
        assert size is not None
        kl = effect.kl[0]
        found.append(Uniform(scheme.name, size, kl[choosing], kl[validating]))
    return found


def _late(session: Session, scheme: Scheme) -> Late:
    params, config = session.model.params, session.config

    def make() -> Params:
        return unpacked(params, session.low(scheme), config=config)

    spec = None if session.mesh else spec_of(params)
    return Late(make=lambda: session.last("uniform", scheme, make), spec=spec)


def describe_uniform(
    found: Sequence[Uniform], plan: Float[np.ndarray, " W"], units: Sequence[Unit], seed: int
) -> tuple[UniformFormat, ...]:
    """Formats with what they do on the validating prompts, the best of the choosing ones first.

    Args:
        found: from ``measure_uniform``.
        plan: the plan's KL on the validating prompts, nats.
        units: what can be kept.
        seed: of the bootstrap.
    """
    ranked = sorted(found, key=lambda each: (float(each.chosen.mean()), each.bytes))

    def described(place: int, each: Uniform) -> UniformFormat:
        rng = generator(seed, "validated")
        # One format is tested, the one that the choosing prompts picked; the others are there.
        against = estimates.estimate(plan - each.held, rng, test=place == 0)
        return UniformFormat(
            scheme=each.scheme,
            bytes=each.bytes,
            bits=bits_per_weight(each.bytes, units),
            chosen_kl=float(each.chosen.mean()),
            kl=estimates.estimate(each.held, generator(seed, "validated")),
            plan_less_it=against,
        )

    return tuple(described(place, each) for place, each in enumerate(ranked))


def judge(formats: Sequence[UniformFormat]) -> UniformVerdict | None:
    """How the plan stands beside the best uniform format; None without one.

    Args:
        formats: from ``describe_uniform``, the best first.
    """
    if not formats or formats[0].plan_less_it.value is None:
        return None
    difference = formats[0].plan_less_it
    assert difference.value is not None
    if difference.p is None or difference.p > LEVEL:
        return "no better than the best uniform format"
    if difference.value < 0:
        return "beats the best uniform format"
    return "worse than the best uniform format"
