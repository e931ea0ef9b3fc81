"""One sweep on many devices: rows are dealt out, and each device runs its own wave.

The rows are sorted by the work they make and dealt in turn: the first to device 0, the second to
device 1, and so on. Of ``n`` devices the busiest then has ``⌈rows alive / n⌉`` rows in every layer,
and no other order gives it fewer (where a row begins in the same layer for every prompt). Where
``n`` does not divide the rows, the last round is filled up with rows that edit nothing, which a
wave never begins.

Every device also runs the clean row, in the same call as its edited rows: the clean row is their
control. The devices run one program on equal inputs, so their clean rows agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.devices.mesh import EDITS, MODEL
from jaxalign.edits import batch as batches
from jaxalign.edits.site import Edit
from jaxalign.engine.sweep import Engine, Readout, sweep
from jaxalign.measures.metrics import Answer
from jaxalign.model.checks import check_edit
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Int, Lengths, Tokens


def rounds(rows: int, devices: int) -> int:
    """The number of rows of a batch of edits that each device runs, ``⌈rows / devices⌉``."""
    return -(-rows // devices)


def deal(edit: Edit, batch: int, devices: int) -> Int[Array, "devices rounds"]:
    """Which row of a batch of edits each device runs in each round, the most work first.

    Args:
        edit: a batch of ``M`` edits.
        batch: ``B``, how many prompts there are.
        devices: among how many the rows are dealt.

    Returns:
        Row numbers; ``M`` stands for a row that edits nothing.
    """
    touched = batches.touched(edit, batch)  # [M, B, L + 1]
    passes = jnp.where(touched.any(axis=-1), touched.shape[-1] - touched.argmax(axis=-1), 0)
    order = jnp.argsort(-passes.sum(axis=-1), stable=True)
    rows = batches.rows(edit)
    count = rounds(rows, devices)
    filled = jnp.pad(order, (0, count * devices - rows), constant_values=rows)
    return filled.reshape(count, devices).T


def sharded_sweep(
    mesh: Mesh | None,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Readout,
    *,
    engine: Engine = "wave",
    scheme: Scheme | str = F32,
) -> list[Any]:
    """``sweep`` over the devices of a mesh: the same arguments, the same result.

    Row 0 is the clean run and rows stand in the caller's order; every device, in every process,
    holds the whole result. A difference between a row and row 0 is one between rows of one call on
    one device, because the devices' clean rows agree to the bit.

    Args:
        mesh: from ``mesh.choose_mesh`` (static); None for ``sweep`` on one device.
        params: laid out by ``sharding.shard_params``.
        tokens, lengths, config, edits, readout, engine, scheme: as in ``sweep``.

    Raises:
        InputError, ValueError: as ``sweep``.

    Example:
        >>> mesh = choose_mesh(config, usable_devices(), budget=16e9)
        >>> params = shard_params(params, mesh, config)
        >>> [m] = sharded_sweep(mesh, params, tokens, lengths, config, [zero], answer)
    """
    if mesh is None:
        return sweep(params, tokens, lengths, config, edits, readout, engine=engine, scheme=scheme)
    for edit in edits:
        check_edit(edit, config, tokens.shape, batch=True)
    # Inside shard_map the edits are traced, so this has to be read off them before.
    single_step = batches.touches_one_step(edits, len(tokens))
    edits = jax.tree.map(jnp.asarray, list(edits))
    hands = [deal(edit, len(tokens), mesh.shape[EDITS]) for edit in edits]
    pairs = zip(edits, hands, strict=True)
    dealt = [batches.take_rows(edit, hand.reshape(-1)) for edit, hand in pairs]
    # A sharded vocabulary is read whole: each device reads its part and the best are compared.
    read: Readout = readout
    if isinstance(readout, Answer) and mesh.shape[MODEL] > 1:
        read = lambda logits: readout(logits)  # noqa: E731

    def own(params: Params, tokens: Tokens, lengths: Lengths, edits: Sequence[Edit]) -> list[Any]:
        how: dict[str, Any] = {"engine": engine, "scheme": scheme, "single_step": single_step}
        return sweep(params, tokens, lengths, config, edits, read, **how)

    same, split = PartitionSpec(), PartitionSpec(EDITS)
    outs = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(same, same, same, [batches.by_row(edit, split, same) for edit in dealt]),
        out_specs=split,
        # ``model`` stays with the compiler, which follows the parameters' layout.
        axis_names={EDITS},
        # Loops begin with values that are equal on all devices and end with others.
        check_vma=False,
    )(params, tokens, lengths, dealt)
    everywhere = NamedSharding(mesh, same)
    outs = jax.tree.map(lambda leaf: lax.with_sharding_constraint(leaf, everywhere), outs)
    results = zip(outs, hands, edits, strict=True)
    return [_in_order(out, hand, batches.rows(edit)) for out, hand, edit in results]


def _in_order(out: Any, hand: Int[Array, "devices rounds"], rows: int) -> Any:
    """The clean row and the rows in the caller's order, from those of device after device.

    Args:
        out: what the devices read out, a pytree of ``[devices·(1 + rounds), …]``.
        hand: which rows each device ran, from ``deal``.
        rows: ``M``.
    """
    devices, count = hand.shape
    # Each device's rows lie behind its clean row.
    held = jnp.arange(devices)[:, None] * (1 + count) + 1 + jnp.arange(count)[None]
    place = jnp.zeros(1 + rows, held.dtype)
    place = place.at[1 + hand.reshape(-1)].set(held.reshape(-1), mode="drop")
    return jax.tree.map(lambda leaf: leaf[place], out)
