"""Many edited runs at once, and what is read off their logits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.site import Edit
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.readout import Readout, read_out
from jaxalign.engine.wave import wave
from jaxalign.errors import InputError, require_type
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import check_dtype, check_edit, check_prompts, forward
from jaxalign.model.layers import at_position
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.shapes import Array, Float, Lengths, Tokens

if TYPE_CHECKING:
    Engine = Literal["wave", "vmap"]
else:
    Engine = str  # another name is refused below, by an error that a user reads
ENGINES: tuple[Engine, ...] = ("wave", "vmap")


def sweep(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Readout,
    *,
    engine: Engine = "wave",
    scheme: Scheme | str = F32,
    single_step: bool | None = None,
) -> list[Any]:
    """Run the model under every edit and read out each prompt's last logits.

    Works inside ``jit``, ``vmap`` and ``grad``. Row 0 of every result is the clean run of the same
    call: in 16-bit floats only rows of one call may be compared.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        edits: batches of edits (``edits.Edit``); each shares some arrays among its rows.
        readout: from f32 logits ``[B, V]`` at the last real position to a pytree of ``[B, …]``.
        engine: "wave" (``engine.wave``), or "vmap": ``jax.vmap`` of ``forward`` over the rows,
            which defines what the wave computes (static).
        scheme: the precision, or its name (static).
        single_step: True promises that no row edits a step after the first one it touches, which
            saves the wave work; read off the edits by default (static).

    Returns:
        For each batch of edits the readout with a leading axis ``[1 + M_g, …]``.

    Raises:
        InputError: unknown engine or scheme, or an argument of another type.
        ValueError: parameters of another dtype than the scheme's; tokens or lengths of another
            shape or out of range; something else than a list of edits; or an edit that does not
            fit, at a point that the model does not have, or that does not say where its rows act.

    Example:
        >>> zero = zero_ablation(config.num_layers, config.num_heads)
        >>> answer = lambda logits: logit_difference(logits, targets)
        >>> [m] = sweep(params, tokens, lengths, config, [zero], answer)
        >>> importance = m[:1] - m[1:]  # [L·H, B]
    """
    scheme = as_scheme(scheme)
    require_type("params", params, Params, "the parameters of a model, model.params")
    require_type("config", config, ModelConfig, "the architecture, model.config")
    if not callable(readout):
        require_type("readout", readout, (), "a function of logits [B, V]")
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown", f"use {' or '.join(ENGINES)}")
    scheme = check_dtype(params, scheme)
    tokens, lengths = check_prompts(tokens, lengths, config)
    if isinstance(edits, Edit) or not all(isinstance(edit, Edit) for edit in edits):
        raise ValueError(f"edits are {type(edits).__name__}, expected a list of Edit")
    for edit in edits:
        check_edit(edit, config, tokens.shape, batch=True)
    read_off = batches.touches_one_step(edits, len(tokens))
    single_step = read_off if single_step is None else single_step
    edits = [jax.tree.map(jnp.asarray, batches.hold_rows(edit)) for edit in edits]
    inputs = Inputs(params, tokens, lengths, edits, config, scheme)
    final = _plain(inputs) if engine == "vmap" else _wave(inputs, single_step)
    starts = np.cumsum([1] + [batches.rows(edit) for edit in edits])
    rows = [np.r_[0, a:b] for a, b in itertools.pairwise(starts)]
    late = [batches.with_clean(edit.at_logits()) for edit in edits]
    if any(edit.sites for edit in late):
        # Each with a clean row of its own, read as its rows are.
        return [
            read_out(params, final[i], config, readout, edit, lengths - 1)
            for i, edit in zip(rows, late, strict=True)
        ]
    values = read_out(params, final, config, readout)
    return [jax.tree.map(lambda v, i=i: v[i], values) for i in rows]


def _plain(inputs: Inputs) -> Float[Array, "rows B D"]:
    """``vmap`` over the rows of each batch of edits, with a row before them that edits nothing."""
    lengths = inputs.lengths

    def run(row: Edit) -> Array:
        out = forward(
            inputs.params,
            inputs.tokens,
            inputs.config,
            lengths=lengths,
            scheme=inputs.scheme,
            edit=row,
            capture=("final_norm",),
        )
        return at_position(out.activations["final_norm"], lengths - 1)[:, 0]

    finals: list[Array] = []
    for edit in inputs.edits:
        rows = batches.with_clean(edit)
        final = jax.vmap(run, in_axes=(batches.by_row(rows, 0, None),))(rows)
        finals.append(final[1:] if finals else final)
    return jnp.concatenate(finals)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _wave(inputs: Inputs, single_step: bool) -> Float[Array, "rows B D"]:
    return wave(inputs, single_step)


def _wave_forward(inputs: Inputs, single_step: bool) -> tuple[Array, Inputs]:
    return wave(inputs, single_step), inputs


def _wave_backward(single_step: bool, inputs: Inputs, cotangent: Array) -> Any:
    """The plain path's: the wave's loops end where the data say, which has no reverse."""
    _, pull = jax.vjp(_plain, inputs)
    return pull(cotangent)


_wave.defvjp(_wave_forward, _wave_backward)
