"""Path patching: what one head says to another, or to the logits, and to nobody else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edits.anywhere import Replace
from jaxalign.edits.site import Edit
from jaxalign.engine.patching import Metric, Patched
from jaxalign.engine.sweep import sweep
from jaxalign.errors import InputError, require_type
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Bool, Float, Int, Lengths, Tokens

INPUTS = "qkv"  # what a head reads by

Receiver = tuple[Any, Any]  # a layer and a head, ints or arrays that hold one


def path_patching(
    params: Params,
    clean: Tokens,
    corrupted: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    metric: Metric,
    *,
    receiver: Receiver | None = None,
    inputs: str = INPUTS,
    through_mlps: bool = True,
    scheme: Scheme | str = F32,
) -> Patched:
    """Put what each head writes in the clean run into the corrupted one, for one reader alone
    (Wang et al. 2023, arXiv 2211.00593, section 3.1; Goldowsky-Dill et al. 2023, arXiv 2304.05969).

    Every head but the sender has its ``z`` of the corrupted run, so that the sender's change goes
    along the residual stream and, as Wang et al. have it, through the MLPs. Where it arrives at the
    receiver it is kept (its query, key or value at all positions), and the corrupted run is made
    again with that one input exchanged. Without a receiver it is read off the logits.

    Args:
        params, clean, corrupted, lengths, config, metric, scheme: as for ``activation_patching``.
        receiver: the layer and the head that read; None for the logits.
        inputs: by which of its inputs the receiver reads, each by itself: letters of ``"qkv"``
            (static). Heads that share keys and values all read what is exchanged there.
        through_mlps: whether MLPs between the two pass the change on; without, they keep what they
            write in the corrupted run, too, as on Goldowsky-Dill's direct paths (static).

    Returns:
        ``Patched``, whose places are ``[inputs, L, H]`` senders, ``[L, H]`` without a receiver.
        A sender that is not below its receiver changes nothing.

    Raises:
        InputError: pairs of unequal length, no such input, or no such head.

    Example:
        >>> found = path_patching(model.params, clean, corrupted, lengths, model.config, m,
        ...                       receiver=(4, 0), inputs="v")
        >>> found.effect.shape  # [1, L, H, B]
        (1, 6, 8, 1)
    """
    if jnp.shape(clean) != jnp.shape(corrupted):
        raise InputError("clean and corrupted prompts differ in shape", "give pairs of one length")
    _check(receiver, inputs, config)
    donor = forward(params, clean, config, lengths=lengths, scheme=scheme, capture=("z",),
                    last_only=True)  # fmt: skip
    senders = np.argwhere(np.ones((config.num_layers, config.num_heads), bool))
    [base], patched = along_paths(
        params, corrupted, lengths, config, metric, jnp.asarray(senders),
        (donor.activations["z"],), receiver=receiver, inputs=inputs, through_mlps=through_mlps,
        scheme=scheme,
    )  # fmt: skip
    shape = (*patched.shape[1:-2], config.num_layers, config.num_heads, patched.shape[-1])
    return Patched(metric(donor.logits), base, patched[0].reshape(shape))


def along_paths(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    metric: Metric,
    senders: Int[Array, "M 2"],
    values: tuple[Float[Array, "L B S H h"], ...],
    *,
    receiver: Receiver | None = None,
    inputs: str = INPUTS,
    through_mlps: bool = True,
    scheme: Scheme | str = F32,
) -> tuple[Float[Array, "1 B"], Float[Array, "values *inputs M B"]]:
    """The metric of a run with some heads' ``z`` exchanged on the way to one reader.

    Args:
        params, tokens, lengths, config, metric: of the run that is changed.
        senders: layer and head, one a row.
        values: what stands in place of the senders' ``z``; each makes a batch of rows.
        receiver, inputs, through_mlps, scheme: as for ``path_patching``.

    Raises:
        InputError: no such input, or no such head.
    """
    _check(receiver, inputs, config)
    how: dict[str, Any] = {"lengths": lengths, "scheme": scheme, "last_only": True}
    base = forward(params, tokens, config, capture=("z", "mlp_out"), **how).activations
    chosen = _at(senders, config.num_layers, config.num_heads)  # [M, L, 1, 1, H, 1]
    every = jnp.ones((len(senders), config.num_layers, 1, 1, 1, 1), bool)

    def changed(mask: Array, every: Array, value: Array) -> Edit:
        frozen = [] if through_mlps else [Replace("mlp_out", every[..., 0], base["mlp_out"])]
        return Edit(Replace("z", every, base["z"]), Replace("z", mask, value), *frozen)

    if receiver is None:
        edits = [changed(chosen, every, value) for value in values]
        found = sweep(params, tokens, lengths, config, edits, metric, scheme=scheme)
        return found[0][:1], jnp.stack([m[1:] for m in found])
    layer, head = receiver

    def heard(mask: Array, value: Array) -> dict[str, Array]:
        """What the receiver's layer reads where one sender is changed."""
        edit = changed(mask, every[0], value)
        out = forward(params, tokens, config, edit=edit, capture=tuple(inputs), **how)
        return {letter: out.activations[letter][layer] for letter in inputs}

    def exchanged(letter: str, own: Array) -> Edit:
        heads = config.num_heads if letter == "q" else config.num_kv_heads
        at = jnp.stack([jnp.asarray(layer), jnp.asarray(head) * heads // config.num_heads])[None]
        mask = _at(at, config.num_layers, heads)
        return Edit(Replace(letter, jnp.repeat(mask, len(senders), axis=0), own=own))

    runs = [
        jax.lax.map(lambda mask, v=value: heard(mask, v), chosen, batch_size=config.num_heads)
        for value in values
    ]
    edits = [exchanged(letter, run[letter]) for run in runs for letter in inputs]
    found = sweep(params, tokens, lengths, config, edits, metric, scheme=scheme, single_step=True)
    rows = jnp.stack([m[1:] for m in found])
    return found[0][:1], rows.reshape(len(values), len(inputs), *rows.shape[1:])


def _at(places: Int[Array, "M 2"], layers: int, heads: int) -> Bool[Array, "M L 1 1 H 1"]:
    """A row a layer and head."""
    here = jnp.arange(layers)[None, :, None] == places[:, 0, None, None]
    here = here & (jnp.arange(heads)[None, None] == places[:, 1, None, None])
    return here[:, :, None, None, :, None]


def _check(receiver: Receiver | None, inputs: str, config: ModelConfig) -> None:
    require_type("inputs", inputs, str, f"letters of {INPUTS!r}")
    if not inputs or set(inputs) - set(INPUTS) or len(set(inputs)) < len(inputs):
        raise InputError(
            f"inputs are {inputs!r}", f"name some of {', '.join(INPUTS)}, each once: {INPUTS!r}"
        )
    if receiver is None:
        return
    if not (isinstance(receiver, tuple | list) and len(receiver) == 2 and all(map(_int, receiver))):
        raise InputError(
            f"the receiver is {receiver!r:.60}, expected a layer and a head, two integers",
            "give a pair: receiver=(4, 0)",
        )
    if any(isinstance(place, jax.core.Tracer) for place in receiver):
        return
    sizes = config.num_layers, config.num_heads
    if not all(0 <= int(at) < size for at, size in zip(receiver, sizes, strict=True)):
        raise InputError(
            f"the receiver is layer {receiver[0]}, head {receiver[1]}, and the model has "
            f"{sizes[0]} layers of {sizes[1]} heads",
            "count both from 0",
        )


def _int(place: Any) -> bool:
    """Whether it is one integer, traced or not."""
    if isinstance(place, jax.Array | np.ndarray | np.generic):
        return jnp.issubdtype(place.dtype, jnp.integer) and place.shape == ()
    return isinstance(place, int) and not isinstance(place, bool)
