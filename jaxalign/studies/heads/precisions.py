"""The calls of each low precision, and of f32 under noise of its size, before any of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.engine import Engine
from jaxalign.model.params import Params
from jaxalign.numerics.qtensor import QTensor, unpack
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.prompts import Prompt
from jaxalign.runtime.compile import jit
from jaxalign.studies.heads.calls import Runner, Variant
from jaxalign.studies.heads.findings import Replacement
from jaxalign.studies.heads.importance import Ablations, importance_calls
from jaxalign.studies.heads.repair import Orders, Repair
from jaxalign.study.calls import Call, Late, spec_of
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import late_noise, moves_matrices

# Of these the noise floors are made: resampling would take four runs a head in every draw.
NOISE_KINDS: tuple[Replacement, ...] = ("zero", "mean")
Calls = Sequence[Call[Any]]


@dataclass(frozen=True, kw_only=True)
class NoiseCalls:
    """One draw of f32 with noise of a scheme's size, and its calls."""

    variant: Variant
    clean: Calls
    importance: Calls


@dataclass(frozen=True, kw_only=True)
class PrecisionCalls:
    """A low precision and its calls, made before any of them runs.

    ``reordered`` is empty where activations are f32.
    """

    scheme: Scheme
    variant: Variant
    clean: Calls
    importance: Calls
    reordered: Calls
    repair: Repair
    restoring: Calls
    moving: Calls
    noise: tuple[NoiseCalls, ...]

    @property
    def first_calls(self) -> list[Call[Any]]:
        """Those whose programs are needed first."""
        return [*self.clean, *self.importance]

    @property
    def sweeps(self) -> list[Call[Any]]:
        """Those that replace every head in turn."""
        noise = [call for one in self.noise for call in one.importance]
        return [*self.importance, *self.reordered, *noise]

    @property
    def later_calls(self) -> list[Call[Any]]:
        """The others, in the order in which they run."""
        noise = [call for one in self.noise for call in (*one.clean, *one.importance)]
        return [*self.reordered, *self.restoring, *self.moving, *noise]


def precision_calls(
    session: Session,
    runner: Runner,
    scheme: Scheme,
    asked: Ablations,
    ablated: Ablations,
    everything: list[Prompt],
    work: list[Any],
) -> PrecisionCalls:
    """A precision's calls.

    Args:
        session, runner: the study's.
        scheme: the precision.
        asked: all prompts.
        ablated: heads that are ablated, and on which prompts; ``asked`` where all are.
        everything, work: prompts and reference texts, and their batches.
    """
    options = runner.options
    variant = Variant(scheme.name, _late_unpacked(session, scheme), scheme)
    other: Engine = "vmap" if options.engine == "wave" else "wave"
    repaired = Repair(
        runner=runner,
        prompts=asked.prompts,
        work=asked.work,
        clean=asked.clean,
        variant=variant,
        orders=Orders(scheme.name in options.repaired),
        alone=ablated.heads,
    )
    in_f32 = scheme.compute_dtype == F32.compute_dtype
    draws = options.noise_draws if moves_matrices(session.model.params, scheme) else 0
    return PrecisionCalls(
        scheme=scheme,
        variant=variant,
        clean=runner.low_calls(variant, everything, work, asked.clean),
        importance=importance_calls(runner, ablated, variant, options.ablations, options.engine),
        reordered=() if in_f32 else importance_calls(runner, ablated, variant, ("zero",), other),
        repair=repaired,
        restoring=repaired.restoring(),
        moving=repaired.moving(),
        noise=tuple(
            _noise_calls(session, runner, scheme, draw, asked, ablated, everything, work)
            for draw in range(draws)
        ),
    )


def _noise_calls(
    session: Session,
    runner: Runner,
    scheme: Scheme,
    draw: int,
    asked: Ablations,
    ablated: Ablations,
    everything: list[Prompt],
    work: list[Any],
) -> NoiseCalls:
    variant = Variant(f"{scheme.name}, noise {draw}", late_noise(session, scheme, draw), F32)
    kinds = tuple(kind for kind in NOISE_KINDS if kind in runner.options.ablations)
    return NoiseCalls(
        variant=variant,
        clean=runner.low_calls(variant, everything, work, asked.clean),
        importance=importance_calls(runner, ablated, variant, kinds, runner.options.engine),
    )


def _late_unpacked(session: Session, scheme: Scheme) -> Any:
    """A scheme's parameters, each packed matrix as the array that products would unpack it to.

    A scheme that rounds nothing but weights then runs by f32's programs, which are compiled once.
    """
    packed = session.late_low(scheme)
    if scheme.weights is None or session.mesh or scheme.compute_dtype != F32.compute_dtype:
        return packed

    # A method may leave a divisor of the input behind, which stays packed: only a look will tell.
    same = scheme.inputs is None and scheme.to_nearest
    return Late(
        make=lambda: session.last("unpacked", scheme, lambda: _unpacked(session.low(scheme))),
        spec=spec_of(session.model.params) if same else None,
    )


@jit
def _unpacked(params: Params) -> Params:
    """The parameters with packed matrices as arrays, but for those whose input is changed, too."""

    def leaf(w: Any) -> Any:
        plain = isinstance(w, QTensor) and w.inputs is None and w.input_divisor is None
        return unpack(w).astype(jnp.float32) if plain else w

    return jax.tree.map(leaf, params, is_leaf=lambda w: isinstance(w, QTensor))
