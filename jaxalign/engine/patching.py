"""Activation patching of every place at a point, exactly and to first order.

Two prompts differ in what an answer hangs on. Values of the clean run are put into the run of the
corrupted one (*denoising*; exchange the two for *noising*), a place at a time: which of them
bring the answer back?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.edits.anywhere import Add, Replace
from jaxalign.edits.points import POINTS
from jaxalign.edits.ready import patch_masks
from jaxalign.edits.site import Edit
from jaxalign.engine.sweep import Engine, sweep
from jaxalign.errors import InputError, require_type
from jaxalign.model.checks import points_of
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import Output, forward
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, ArrayLeaf, Float, Lengths, Tokens, lead

Metric = Callable[[Float[Array, "B V"]], Float[Array, " B"]]

# A gap between the clean and the corrupted run below this part of their size is rounding.
ROUNDING = 1e-4
VECTORS = ("D", "h")  # axes that are summed over in an estimate: one vector is one place


@struct.dataclass
class Patched:
    """What patching does to a metric.

    Attributes:
        clean, corrupted: ``[B]``, the metric of the runs without edits.
        patched: ``[*places, B]``, of the corrupted run with one place of the clean run.
    """

    clean: ArrayLeaf
    corrupted: ArrayLeaf
    patched: ArrayLeaf

    @property
    def effect(self) -> Float[Array, "*places B"]:
        """``(patched − corrupted) / (clean − corrupted)``: 0 nothing, 1 all of the answer is back.

        Not a number where the two runs differ by no more than rounding.
        """
        gap = self.clean - self.corrupted
        size = jnp.maximum(jnp.abs(self.clean), jnp.abs(self.corrupted))
        gap = lead(jnp.where(jnp.abs(gap) > ROUNDING * size, gap, jnp.nan), self.patched)
        return (self.patched - lead(self.corrupted, self.patched)) / gap


@struct.dataclass
class Attributed:
    """First-order estimates of what patching does to a metric.

    Attributes:
        clean, corrupted: ``[B]``, the metric of the runs without edits.
        estimates: by point, of ``patched − corrupted`` for each place: the axes of the point
            without the width of a vector, ``[L, B, S]``, of heads ``[L, B, S, H]``, of neurons
            ``[L, B, S, F]``.
    """

    clean: ArrayLeaf
    corrupted: ArrayLeaf
    estimates: dict[str, ArrayLeaf]


def value_at(out: Output, point: str) -> Array:
    """A point's value in a run that captured it (of ``resid``: it and ``embed``)."""
    value = out.activations[point]
    if point != "resid":
        return value
    return jnp.concatenate([out.activations["embed"][None], value])


def _captured(points: Sequence[str]) -> tuple[str, ...]:
    return ("embed", *points) if "resid" in points else tuple(points)


def _check(clean: Tokens, corrupted: Tokens, points: Sequence[str], config: ModelConfig) -> None:
    if jnp.shape(clean) != jnp.shape(corrupted):
        raise InputError(
            f"clean prompts are {list(jnp.shape(clean))} and corrupted ones "
            f"{list(jnp.shape(corrupted))}, and positions are exchanged one by one",
            "give pairs of equal length",
        )
    if strange := [point for point in points if point not in points_of(config)]:
        raise InputError(
            f"the model has no point {strange[0]!r}", f"use {', '.join(points_of(config))}"
        )


def activation_patching(
    params: Params,
    clean: Tokens,
    corrupted: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    metric: Metric,
    *,
    point: str = "resid",
    apart: str = "S",
    scheme: Scheme | str = F32,
    engine: Engine = "wave",
) -> Patched:
    """Put each place of the clean run into the corrupted one (Meng et al. 2022, arXiv 2202.05262).

    Works inside ``jit``; one sweep, whose rows are the places.

    Args:
        params: in the scheme's dtype.
        clean, corrupted: ``[B, S]``, pairs of equal length, padded on the right.
        lengths: ``[B]`` real tokens of both.
        config: the architecture (static).
        metric: from f32 logits ``[B, V]`` at the last real position to ``[B]``; an
            ``AnswersDifference`` unembeds the tokens that it names, and no others.
        point: where values are exchanged, a name of ``edits.points.POINTS`` (static).
        apart: what is exchanged one by one beside layers: letters of the point's axes, ``"S"``
            positions, ``"H"`` heads at all positions, ``"HS"`` both, ``""`` whole layers (static).
        scheme: the precision, or its name (static).
        engine: of the sweep (static).

    Returns:
        ``Patched``, whose places are the layers (of ``resid`` the embedding first) and the axes
        taken apart, in the order in which the point has them.

    Raises:
        InputError: pairs of unequal length, no such point in this model, or no such axis.

    Example:
        >>> found = activation_patching(model.params, clean, corrupted, lengths, model.config, m)
        >>> found.effect.shape  # [L + 1, S, B]
        (7, 15, 1)
    """
    require_type("apart", apart, str, "letters of the point's axes, such as 'HS'")
    _check(clean, corrupted, (point,), config)
    run = forward(
        params, clean, config, lengths=lengths, scheme=scheme, capture=_captured((point,)),
        last_only=True,
    )  # fmt: skip
    value = value_at(run, point)
    masks = patch_masks(point, value.shape, apart)
    edits = [Edit(Replace(point, masks, value))]
    [m] = sweep(params, corrupted, lengths, config, edits, metric, engine=engine, scheme=scheme)
    sizes = zip(POINTS[point].axes, masks.shape[1:], strict=True)
    places = [size for axis, size in sizes if axis in (*apart, "L", "L+1")]
    return Patched(metric(run.logits), m[0], m[1:].reshape(*places, m.shape[-1]))


def attribution_patching(
    params: Params,
    clean: Tokens,
    corrupted: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    metric: Metric,
    *,
    points: Sequence[str] | str = ("resid", "z", "attn_out", "mlp_out"),
    scheme: Scheme | str = F32,
) -> Attributed:
    """Estimate ``activation_patching`` of every place at once (Nanda 2023, "Attribution patching";
    Kramár et al. 2024, arXiv 2403.00745): the gradient at the corrupted run times what changes.

    One pass forward and one backward through the corrupted run, one forward through the clean one.
    It is a screen: where a place saturates (a softmax, early layers) it can be far off.

    Args:
        params, clean, corrupted, lengths, config, metric, scheme: as for ``activation_patching``.
        points: names of ``edits.points.POINTS``, or one (static).

    Raises:
        InputError: pairs of unequal length, or no such point in this model.

    Example:
        >>> found = attribution_patching(model.params, clean, corrupted, lengths, model.config, m)
        >>> found.estimates["z"].shape  # [L, B, S, H]
        (6, 1, 15, 8)
    """
    points = (points,) if isinstance(points, str) else tuple(points)
    _check(clean, corrupted, points, config)
    capture = _captured(points)
    how: dict[str, Any] = {"lengths": lengths, "scheme": scheme, "last_only": True}

    def run(tokens: Tokens, added: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        sites = (Add(p, np.ones((len(a), *[1] * (a.ndim - 1))), value=a) for p, a in added.items())
        out = forward(params, tokens, config, edit=Edit(*sites), capture=capture, **how)
        return metric(out.logits), {p: value_at(out, p) for p in points}

    def total(added: dict[str, Array]) -> tuple[Array, tuple[Array, dict[str, Array]]]:
        m, values = run(corrupted, added)
        return m.sum(), (m, values)

    m_clean, there = run(clean, {})
    zeros = {p: jnp.zeros(value.shape, jnp.float32) for p, value in there.items()}
    gradient, (m, here) = jax.grad(total, has_aux=True)(zeros)

    def estimate(point: str) -> Array:
        slope = gradient[point]
        # Hidden scores are −∞ in both runs, and nothing hangs on them.
        change = jnp.where(slope == 0, 0, (there[point] - here[point]).astype(jnp.float32))
        product = slope * change
        return product.sum(axis=-1) if POINTS[point].axes[-1] in VECTORS else product

    return Attributed(m_clean, m, {point: estimate(point) for point in points})
