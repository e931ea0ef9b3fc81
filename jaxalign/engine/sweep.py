"""Many edited runs at once, and what is read off their logits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import get_opaque_trace_state

from jaxalign.edits import batch as batches
from jaxalign.edits.site import Edit
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.readout import FromClean, Readout, check_readout, read_out
from jaxalign.engine.suffix import Suffixes, given, known, suffixes_of
from jaxalign.engine.wave import wave
from jaxalign.errors import InputError, require_type
from jaxalign.measures.metrics import Answer, AnswersDifference
from jaxalign.model.checks import check_dtype, check_edit, check_prompts
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward
from jaxalign.model.layers import normalize
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float, Int, Lengths, Tokens, lead

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
    readout: Readout | FromClean,
    *,
    engine: Engine = "wave",
    scheme: Scheme | str = F32,
    single_step: bool | None = None,
    suffixes: Suffixes | Sequence[Sequence[int]] | None = None,
    at: Array | None = None,
    every_layer: bool = False,
) -> list[Any]:
    """Run the model under every edit and read out each prompt's last logits, or others.

    Works inside ``jit``, ``vmap`` and ``grad``. Row 0 of every result is the clean run of the same
    call: in 16-bit floats only rows of one call may be compared.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        edits: batches of edits (``edits.Edit``); each shares some arrays among its rows.
        readout: from f32 logits ``[B, V]`` at the last real position (with ``at`` ``[B, P, V]``) to
            a pytree of ``[B, …]``; or ``FromClean``, which sees the clean row's beside them.
        engine: "wave" (``engine.wave``), or "vmap": ``jax.vmap`` of ``forward`` over the rows,
            which defines what the wave computes (static).
        scheme: the precision, or its name (static).
        single_step: True promises that no row edits a step after the first one it touches (with
            ``suffixes``: that it touches on any prompt), which saves the wave work; read off the
            edits by default (static).
        suffixes: for each batch of edits, how many of its prompt's last real positions each row
            computes, in f32: promises that it edits none before them. Read off the edits by
            default, where they are not traced and it saves more than it takes to compile; ``()``
            computes all (static).
        at: int ``[B, P]``: positions of each prompt whose logits are read; its last real one by
            default.
        every_layer: read out what the stream stands for before the first block and after each, too
            (logit lens): the final norm's and the unembedding's word on it (static).

    Returns:
        For each batch of edits the readout with a leading axis ``[1 + M_g, …]``, with
        ``every_layer`` ``[1 + M_g, L + 1, …]``.

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
    scheme, tokens, lengths = _checked(
        params, tokens, lengths, config, edits, readout, engine, scheme
    )
    read = (lengths - 1)[:, None] if at is None else check_positions(at, lengths, readout)
    check_readout("readout", readout, len(tokens), config, at=None if at is None else read)
    if suffixes is None:
        held = suffixes_of(edits, lengths, tokens.shape[1], config, scheme)
    else:
        held = given(suffixes, edits, lengths, tokens.shape[1], config, scheme)
    # A row of few positions begins on all prompts at once, and goes on on those behind.
    together = bool(held.sizes)
    if single_step is None or (together and all(map(known, edits))):
        one_step = batches.touches_one_step(edits, len(tokens), together=together)
        single_step = one_step and single_step is not False
    edits = [jax.tree.map(jnp.asarray, batches.hold_rows(edit)) for edit in edits]
    if every_layer and any(edit.at_logits().sites for edit in edits):
        raise ValueError("every_layer reads what no logits are edited in: sweep them apart")
    inputs = Inputs(params, tokens, lengths, edits, read, config, scheme, every_layer)
    how = _How(engine, single_step, held, last_only=at is None)
    answer = readout if isinstance(readout, (Answer, AnswersDifference)) else None
    # As one program where nobody compiles it: step by step it would be a hundred small ones.
    if get_opaque_trace_state() != OUTSIDE:
        return _swept(inputs, answer, how=how, readout=readout)
    if answer is not None:
        return _compiled(inputs, answer, how=how)
    # A function may read what has changed since the last call, so it is compiled anew.
    return jit(functools.partial(_swept, how=how, readout=readout))(inputs, None)


OUTSIDE = get_opaque_trace_state()  # where this module is imported: no transformation of JAX


@dataclass(frozen=True)
class _How:
    """What is decided before a sweep is traced."""

    engine: Engine
    single_step: bool
    held: Suffixes
    last_only: bool


def _swept(inputs: Inputs, answer: Any, *, how: _How, readout: Any = None) -> list[Any]:
    """Run the rows and read them out, batch by batch of edits."""
    readout = readout if answer is None else answer
    final = _plain(inputs) if how.engine == "vmap" else _wave(inputs, how.single_step, how.held)
    final = final[..., 0, :] if how.last_only else final
    params, config, edits = inputs.params, inputs.config, inputs.edits
    starts = np.cumsum([1] + [batches.rows(edit) for edit in edits])
    rows = [np.r_[0, a:b] for a, b in itertools.pairwise(starts)]
    late = [batches.with_clean(edit.at_logits()) for edit in edits]
    if any(edit.sites for edit in late):
        # Each with a clean row of its own, read as its rows are.
        return [
            read_out(params, final[i], config, readout, edit=edit, read=inputs.read)
            for i, edit in zip(rows, late, strict=True)
        ]
    values = read_out(params, final, config, readout, steps=inputs.every_layer)
    return [jax.tree.map(lambda v, i=i: v[i], values) for i in rows]


_compiled = jit(_swept, static_argnames=("how", "readout"))


def _checked(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Any,
    engine: str,
    scheme: Scheme | str,
) -> tuple[Scheme, Tokens, Lengths]:
    """The scheme, tokens and lengths of a sweep whose arguments fit each other."""
    scheme = as_scheme(scheme)
    require_type("params", params, Params, "the parameters of a model, model.params")
    require_type("config", config, ModelConfig, "the architecture, model.config")
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is unknown", f"use {' or '.join(ENGINES)}")
    scheme = check_dtype(params, scheme)
    tokens, lengths = check_prompts(tokens, lengths, config)
    if isinstance(edits, Edit) or not all(isinstance(edit, Edit) for edit in edits):
        raise ValueError(f"edits are {type(edits).__name__}, expected a list of Edit")
    for edit in edits:
        check_edit(edit, config, tokens.shape, batch=True)
    return scheme, tokens, lengths


def _plain(inputs: Inputs) -> Float[Array, "rows *steps B P D"]:
    """``vmap`` over the rows of each batch of edits, with a row before them that edits nothing."""
    capture = ("embed", "resid", "final_norm") if inputs.every_layer else ("final_norm",)

    def run(row: Edit) -> Array:
        out = forward(
            inputs.params,
            inputs.tokens,
            inputs.config,
            lengths=inputs.lengths,
            scheme=inputs.scheme,
            edit=row,
            capture=capture,
        )
        value = out.activations["final_norm"]
        if inputs.every_layer:
            before = jnp.stack([out.activations["embed"], *out.activations["resid"][:-1]])
            before = normalize(before, inputs.params.final_norm, inputs.config)
            value = jnp.concatenate([before, value[None]])
        return jnp.take_along_axis(value, lead(inputs.read[..., None], value), axis=-2)

    finals: list[Array] = []
    for edit in inputs.edits:
        rows = batches.with_clean(edit)
        final = jax.vmap(run, in_axes=(batches.by_row(rows, 0, None),))(rows)
        finals.append(final[1:] if finals else final)
    return jnp.concatenate(finals)


def check_positions(at: Array, lengths: Lengths, readout: Any) -> Int[Array, "B P"]:
    """Positions that are read, as an array of JAX, checked as far as they are known.

    Args:
        at: of each prompt.
        lengths: real tokens of each prompt.
        readout: what reads them.

    Raises:
        ValueError: another shape or dtype, a position outside a prompt, or a readout of one
            position.
    """
    at, batch = jnp.asarray(at), len(lengths)
    if at.ndim != 2 or len(at) != batch or not at.size or not jnp.issubdtype(at.dtype, jnp.integer):
        raise ValueError(f"at is {at.dtype}{list(at.shape)}, expected int [{batch}, P]")
    if isinstance(readout, (Answer, AnswersDifference)):
        raise ValueError(
            f"{type(readout).__name__} reads one position: give a function of logits [B, P, V]"
        )
    if not isinstance(at, jax.core.Tracer) and not isinstance(lengths, jax.core.Tracer):
        places, ends = np.asarray(at), np.asarray(lengths)[:, None]
        if strange := np.argwhere((places < 0) | (places >= ends)).tolist():
            prompt, place = strange[0]
            raise ValueError(
                f"at reads position {places[prompt, place]} of prompt {prompt}, expected 0 … "
                f"{ends[prompt, 0] - 1}"
            )
    return at


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _wave(
    inputs: Inputs, single_step: bool, suffixes: Suffixes
) -> Float[Array, "rows *steps B P D"]:
    return wave(inputs, single_step, suffixes)


def _wave_forward(inputs: Inputs, single_step: bool, suffixes: Suffixes) -> tuple[Array, Inputs]:
    return wave(inputs, single_step, suffixes), inputs


def _wave_backward(single_step: bool, suffixes: Suffixes, inputs: Inputs, cotangent: Array) -> Any:
    """The plain path's: the wave's loops end where the data say, which has no reverse."""
    _, pull = jax.vjp(_plain, inputs)
    return pull(cotangent)


_wave.defvjp(_wave_forward, _wave_backward)
