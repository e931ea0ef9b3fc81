"""The points of a decoder at which a run is read and edited, in the order in which it passes them.

================  ========================  ======================================================
point             one run's value           what it is
================  ========================  ======================================================
``resid``         ``[L+1, B, S, D]``        the residual stream after the embedding and each block
``q``             ``[L, B, S, H, h]``       queries, before their norm and rotation
``k``, ``v``      ``[L, B, S, K, h]``       keys, before their norm and rotation; values
``scores``        ``[L, B, H, Q, S]``       attention scores, f32: scaled, capped, masked
``pattern``       ``[L, B, H, Q, S]``       attention probabilities, f32
``z``             ``[L, B, S, H, h]``       what each head has gathered, before ``W_O``
``attn_out``      ``[L, B, S, D]``          what ``W_O`` writes, before a post norm
``resid_mid``     ``[L, B, S, D]``          the stream between attention and MLP (sequential blocks)
``mlp_in``        ``[L, B, S, D]``          what the MLP reads: after its norm
``mlp_gate``      ``[L, B, S, F]``          what ``W_gate`` writes, before the nonlinearity
``mlp_up``        ``[L, B, S, F]``          what ``W_up`` writes (ungated: before it)
``mlp_hidden``    ``[L, B, S, F]``          neurons: what the MLP's last product reads
``mlp_out``       ``[L, B, S, D]``          what the MLP writes, before a post norm
``final_norm``    ``[B, S, D]``             what the unembedding reads
``logits``        ``[B, S, V]``             f32, capped where the model caps them
================  ========================  ======================================================

``Q`` are the positions that attend and ``S`` those attended to. The stream before block ``l`` is
``resid`` at step ``l``, the embedding's is step 0. Only gated MLPs have ``mlp_gate``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Point:
    """The axes of a value, around the prompts' ``B``.

    Attributes:
        layers: ``L``, or ``L+1`` for the embedding and then the layers; none at the model's end.
        position: ``S``, where the value has one vector or more a position.
        unit: what is left: of a position, or of a pair of positions.
    """

    layers: tuple[str, ...] = ("L",)
    position: tuple[str, ...] = ("S",)
    unit: tuple[str, ...] = ("D",)

    @property
    def axes(self) -> tuple[str, ...]:
        """All axes of a value: ``("L", "B", "S", "H", "h")``."""
        return (*self.layers, "B", *self.position, *self.unit)


_PAIRS = Point(position=(), unit=("H", "Q", "S"))

POINTS = {
    "resid": Point(layers=("L+1",)),
    "q": Point(unit=("H", "h")),
    "k": Point(unit=("K", "h")),
    "v": Point(unit=("K", "h")),
    "scores": _PAIRS,
    "pattern": _PAIRS,
    "z": Point(unit=("H", "h")),
    "attn_out": Point(),
    "resid_mid": Point(),
    "mlp_in": Point(),
    "mlp_gate": Point(unit=("F",)),
    "mlp_up": Point(unit=("F",)),
    "mlp_hidden": Point(unit=("F",)),
    "mlp_out": Point(),
    "final_norm": Point(layers=()),
    "logits": Point(layers=(), unit=("V",)),
}

# Inside an MLP: whatever acts there, the MLP is computed again.
INSIDE_MLP = ("mlp_in", "mlp_gate", "mlp_up", "mlp_hidden")
# Behind what heads look at: runs that are edited nowhere else share what the clean run's heads read
# where they are born, and leave the last layer at one position.
BEHIND_MLP = ("mlp_out", "resid", "final_norm", "logits")
BEHIND_ATTENTION = ("z", "attn_out", "resid_mid", *INSIDE_MLP, *BEHIND_MLP)
# Why a model may lack a point.
LACKING = {
    "resid_mid": "its attention and MLP read one stream, so that there is none between them",
    "mlp_gate": "its MLP has no gate matrix",
}
# What a site may read beside the value at its own point: an earlier one of the same block.
READABLE = {"mlp_out": ("mlp_in",)}


def axes_at(point: str, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Axes of an array of a site at a point, from those that hold at any.

    Args:
        point: a name of ``POINTS``.
        axes: ``L``, ``position`` and ``unit`` stand for the point's own, with ``|1`` behind them
            for axes that may also be 1; letters stay.

    Raises:
        ValueError: there is no such point.

    Example:
        >>> axes_at("q", ("L", "B|1", "position|1", "unit|1"))
        ('L', 'B|1', 'S|1', 'H|1', 'h|1')
    """
    if point not in POINTS:
        raise ValueError(f"there is no point {point!r}, only {', '.join(POINTS)}")
    at = POINTS[point]
    own = {"L": at.layers, "position": at.position, "unit": at.unit}
    found: list[str] = []
    for axis in axes:
        name, bar, one = axis.partition("|")
        found += [f"{letter}{bar}{one}" for letter in own.get(name, (name,))]
    return tuple(found)
