"""Activations at chosen places of a model, as dictionaries read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import jax

from jaxalign.edits.points import POINTS
from jaxalign.errors import InputError
from jaxalign.model.checks import points_of
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import Output, forward
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Lengths, Tokens

# A point, and its layer; of ``resid`` the step: 0 the embedding, ``l + 1`` behind block ``l``. None
# at the model's end.
Place = tuple[str, int | None]


def place_name(place: Place) -> str:
    """What people call a place: ``resid after L3``, ``embedding``, ``mlp_out L2``, ``final_norm``.

    Args:
        place: point and step.
    """
    point, step = place
    if point == "resid" and step is not None:
        return f"resid after L{step - 1}" if step else "embedding"
    return point if step is None else f"{point} L{step}"


def width_at(point: str, config: ModelConfig) -> int:
    """How many numbers a position has at a point, heads side by side.

    Args:
        point: a name of ``edits.points.POINTS``.
        config: the architecture.
    """
    return math.prod(unit_shape(point, config))


def unit_shape(point: str, config: ModelConfig) -> tuple[int, ...]:
    """What a position has at a point: ``(D,)``, of heads ``(H, h)``.

    Args:
        point: a name of ``edits.points.POINTS``.
        config: the architecture.
    """
    sizes = {
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "H": config.num_heads,
        "K": config.num_kv_heads,
        "h": config.head_size,
    }
    return tuple(sizes[axis] for axis in POINTS[point].unit)


def check_places(places: Sequence[Place], config: ModelConfig) -> None:
    """Refuse places that a model does not have.

    Args:
        places: point and step of each.
        config: the architecture.

    Raises:
        InputError: a point without vectors a position, or a step that there is not.
    """
    for point, step in places:
        if point not in points_of(config) or not POINTS[point].position or point == "logits":
            known = [n for n in points_of(config) if POINTS[n].position and n != "logits"]
            raise InputError(f"the model has no place {point!r}", f"use {', '.join(known)}")
        layers = POINTS[point].layers
        steps = config.num_layers + (layers == ("L+1",))
        if (step is None) != (not layers) or (step is not None and not 0 <= step < steps):
            expected = f"0 … {steps - 1}" if layers else "none"
            raise InputError(f"the model has no {place_name((point, step))}", f"give {expected}")


def activations_at(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    places: Sequence[Place],
    scheme: Scheme = F32,
) -> tuple[tuple[Array, ...], Output]:
    """Run the model and read places of it.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        places: point and step of each (static).
        scheme: the precision (static).

    Returns:
        For each place an array ``[B, S, D]`` in the scheme's dtype, heads side by side where the
        point has them; and the run, whose logits are of every position.
    """
    names = tuple({"embed" if place == ("resid", 0) else place[0] for place in places})
    out = forward(params, tokens, config, lengths=lengths, scheme=scheme, capture=sorted(names))
    return tuple(_read(out, place) for place in places), out


def blocks_below(places: Sequence[Place], config: ModelConfig) -> int:
    """How many blocks have to run to read places: at least one.

    Args:
        places: point and step of each.
        config: the architecture.
    """
    above = config.num_layers
    return max(1, *(above if step is None else step + (point != "resid") for point, step in places))


def activations_below(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    places: Sequence[Place],
    scheme: Scheme = F32,
) -> tuple[Array, ...]:
    """``activations_at`` without the blocks above the highest place, and without logits.

    Inside ``jit``, where what is not asked for is not computed.

    Args:
        params, tokens, lengths, config, places, scheme: as ``activations_at`` has them.
    """
    blocks = blocks_below(places, config)
    if blocks < config.num_layers:
        params = replace(params, blocks=jax.tree.map(lambda a: a[:blocks], params.blocks))
        config = replace(config, num_layers=blocks, windows=config.windows[:blocks])
    return activations_at(params, tokens, lengths, config, places, scheme)[0]


def _read(out: Output, place: Place) -> Array:
    point, step = place
    if place == ("resid", 0):
        return out.activations["embed"]
    value = out.activations[point]
    if step is not None:
        value = value[step - (point == "resid")]
    return value.reshape(*value.shape[:2], -1)
