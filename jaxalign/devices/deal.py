"""One sweep on many devices: rows are dealt out, and each device runs its own wave.

The rows are sorted by the work they make and dealt like cards: the first to device 0, the second
to device 1, and so on. Of ``n`` devices the busiest then has ``⌈rows alive / n⌉`` rows in every
layer, which no other deal can better (where a row begins in the same layer for every prompt). Where
``n`` does not divide the rows, the last round is filled up with rows that edit nothing; a wave
never begins them.

Every device runs the clean row, too, in the same call as its edited ones: it is their control. The
devices run one program on equal inputs, so their clean rows agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.devices.mesh import EDITS, MODEL
from jaxalign.edit import Edit, HeadEdit, ResidualEdit
from jaxalign.measures.metrics import Answer
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Int, Lengths, Tokens
from jaxalign.sweep import Readout, sweep, touch_later


def rounds(rows: int, devices: int) -> int:
    """How many rows of a batch of edits each device runs, ``⌈rows / devices⌉``."""
    return -(-rows // devices)


def deal(edit: Edit, batch: int, devices: int) -> Int[Array, "N R"]:
    """Which row of a batch of edits each device runs in each round, the most work first.

    A number past the last row stands for a row that edits nothing.
    """
    touched = edit.touched(batch)  # [M, B, L + 1]
    passes = jnp.where(touched.any(axis=-1), touched.shape[-1] - touched.argmax(axis=-1), 0)
    order = jnp.argsort(-passes.sum(axis=-1), stable=True)
    count = rounds(edit.rows, devices)
    cards = jnp.pad(order, (0, count * devices - edit.rows), constant_values=edit.rows)
    return cards.reshape(count, devices).T


def sharded_sweep(
    mesh: Mesh | None,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Readout,
    *,
    plan: str = "wave",
    scheme: Scheme = F32,
) -> list[Any]:
    """``sweep`` over the devices of a mesh: the same arguments, the same result.

    Row 0 is the clean run and rows stand in the caller's order; every device, in every process,
    holds the whole result. A difference between a row and row 0 is one between rows of one call on
    one device, because the devices' clean rows agree to the bit.

    Args:
        mesh: from ``mesh.choose_mesh`` (static); None for ``sweep`` on one device.
        params: laid out by ``sharding.shard_params``.

    Raises:
        InputError, ValueError: as ``sweep``.

    Example:
        >>> mesh = choose_mesh(config, usable_devices(), budget=16e9)
        >>> params = shard_params(params, mesh, config)
        >>> [m] = sharded_sweep(mesh, params, tokens, lengths, config, [zero], answer)
    """
    if mesh is None:
        return sweep(params, tokens, lengths, config, edits, readout, plan=plan, scheme=scheme)
    later = touch_later(edits, len(tokens))  # now: a dealt mask can be read by nobody
    edits = jax.tree.map(jnp.asarray, list(edits))
    hands = [deal(edit, len(tokens), mesh.shape[EDITS]) for edit in edits]
    dealt = [_take(edit, hand.reshape(-1)) for edit, hand in zip(edits, hands, strict=True)]
    # A spread vocabulary is read whole: each device reads its part and the best are compared.
    read: Readout = readout
    if isinstance(readout, Answer) and mesh.shape[MODEL] > 1:
        read = lambda logits: readout(logits)  # noqa: E731

    def own(params: Params, tokens: Tokens, lengths: Lengths, edits: Sequence[Edit]) -> list[Any]:
        how: dict[str, Any] = {"plan": plan, "scheme": scheme, "later": later}
        return sweep(params, tokens, lengths, config, edits, read, **how)

    same, split = PartitionSpec(), PartitionSpec(EDITS)
    outs = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(same, same, same, [_specs(edit) for edit in dealt]),
        out_specs=split,
        # ``model`` stays with the compiler, which follows the parameters' layout.
        axis_names={EDITS},
        # Loops begin with values that are equal on all devices and end with others.
        check_vma=False,
    )(params, tokens, lengths, dealt)
    everywhere = NamedSharding(mesh, same)
    outs = jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, everywhere), outs)
    return [
        _in_order(out, hand, edit.rows) for out, hand, edit in zip(outs, hands, edits, strict=True)
    ]


def _take(edit: Edit, index: Int[Array, " R"]) -> Edit:
    """The rows ``index`` of a batch of edits; one that edits nothing past the last."""

    def taken(mask: Array) -> Array:
        return mask.at[index].get(mode="fill", fill_value=False)

    return edit.map_masks(taken)


def _specs(edit: Edit) -> Edit:
    """Masks are dealt; what they put in place is the same for all."""
    same, split = PartitionSpec(), PartitionSpec(EDITS)
    head = edit.head and HeadEdit(split, same, edit.head.mode)
    residual = edit.residual and ResidualEdit(split, same)
    return Edit(head=head, residual=residual, attn_add=None if edit.attn_add is None else same)


def _in_order(out: Any, hand: Int[Array, "N R"], rows: int) -> Any:
    """The clean row and the rows in the caller's order, from those of device after device."""
    devices, count = hand.shape
    # Each device's rows lie behind its clean row.
    held = jnp.arange(devices)[:, None] * (1 + count) + 1 + jnp.arange(count)[None]
    place = jnp.zeros(1 + rows, held.dtype)
    place = place.at[1 + hand.reshape(-1)].set(held.reshape(-1), mode="drop")
    return jax.tree.map(lambda leaf: leaf[place], out)
