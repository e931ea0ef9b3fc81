"""What a run of the model is checked against before it is computed, as far as it is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edits.batch import check
from jaxalign.edits.points import POINTS
from jaxalign.edits.site import Edit
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import Scheme, as_scheme
from jaxalign.shapes import Lengths, Tokens


def check_dtype(params: Params, scheme: Scheme | str) -> Scheme:
    """Return the scheme; raise unless the parameters are in its dtype.

    Args:
        params: of the run.
        scheme: as it is or by its name.

    Raises:
        InputError: it is no scheme.
        ValueError: the parameters are in another dtype, or the scheme packs matrices and none of
            theirs is packed.
    """
    scheme = as_scheme(scheme)
    if params.dtype != jnp.dtype(scheme.compute_dtype):
        raise ValueError(
            f"params are {params.dtype}, but scheme {scheme.name!r} computes in "
            f"{scheme.compute_dtype}: pass model.cast(params, scheme)"
        )
    blocks = jax.tree.leaves(params.blocks, is_leaf=lambda leaf: isinstance(leaf, QTensor))
    if scheme.weights is not None and not any(isinstance(leaf, QTensor) for leaf in blocks):
        raise ValueError(
            f"params hold no packed matrix, but scheme {scheme.name!r} packs them: pass "
            "model.cast(params, scheme)"
        )
    return scheme


def check_prompts(
    tokens: Tokens, lengths: Lengths | None, config: ModelConfig
) -> tuple[Tokens, Lengths]:
    """Prompts as arrays of JAX, checked as far as they are known: under ``jit`` by shape alone.

    Args:
        tokens: int ``[B, S]``.
        lengths: int ``[B]``; ``S`` by default.
        config: the architecture, whose vocabulary the tokens are numbers of.

    Raises:
        ValueError: another shape or dtype, no prompt, or a number that is no token: JAX would take
            the last row of the embedding for it.
        InputError: more positions than the model knows.
    """
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2 or not tokens.size or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens are {tokens.dtype}{list(tokens.shape)}, expected int [B, S]")
    count, size = tokens.shape
    check_positions(size, config)
    lengths = jnp.full(count, size) if lengths is None else jnp.asarray(lengths)
    if lengths.shape != (count,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"lengths are {lengths.dtype}{list(lengths.shape)}, expected int [{count}]"
        )
    for name, array, least, most in (
        ("tokens", tokens, 0, config.vocab_size - 1),
        ("lengths", lengths, 1, size),
    ):
        if isinstance(array, jax.core.Tracer) or not array.is_fully_addressable:
            continue
        values = np.asarray(array)  # on the host: inside jit, even known arrays compute as traced
        if not (least <= values.min() and values.max() <= most):
            found = f"{values.min()} … {values.max()}"
            raise ValueError(f"{name} are {found}, expected {least} … {most}")
    return tokens, lengths


def check_positions(size: int, config: ModelConfig) -> None:
    """Check that a model that knows a certain number of positions is not asked for more.

    Args:
        size: how many positions a run has.
        config: the architecture.

    Raises:
        InputError: they are more: JAX would take the last position's vector for them.
    """
    if config.bounded and size > config.max_positions:
        raise InputError(
            f"a run of {size} positions, and the model knows {config.max_positions}",
            "shorten the texts, or generate fewer tokens",
        )


def check_edit(
    edit: Edit, config: ModelConfig, tokens: tuple[int, ...], *, batch: bool = False
) -> None:
    """Check that edits fit a run of the model and that none would be dropped.

    Args:
        edit: what a run changes.
        config: the architecture.
        tokens: ``(B, S)``.
        batch: whether arrays by row carry the axis ``M`` of a batch of edits.

    Raises:
        ValueError: see ``edits.batch.check``.
    """
    sizes = {"L": config.num_layers, "B": tokens[0], "S": tokens[1], "D": config.hidden_size}
    sizes |= {"H": config.num_heads, "K": config.num_kv_heads, "h": config.head_size}
    sizes |= {"F": config.intermediate_size, "C": config.hidden_size // config.num_heads}
    sizes |= {"Q": tokens[1], "V": config.vocab_size}
    check(edit, sizes, points_of(config), batch=batch, windows=config.windows)


def points_of(config: ModelConfig) -> tuple[str, ...]:
    """The points that a model has: no stream between attention and MLP where both read one, and no
    gate where the MLP has none."""
    lacks = {"resid_mid": config.parallel_residual, "mlp_gate": not config.gated}
    return tuple(point for point in POINTS if not lacks.get(point))
