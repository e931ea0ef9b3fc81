"""Calibration: weights, codes and scales chosen by what linear layers read on some texts.

The f32 model is walked layer by layer. Each layer is watched on all texts, its matrices are
chosen from the moments of their inputs (``numerics.moments``), and the texts move on to the next
layer. What that one then sees is each method's own convention (``SEES_ROUNDED``).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.calibration.block import choose, core_of, observe
from jaxalign.calibration.groups import get, groups_of
from jaxalign.calibration.texts import check_texts
from jaxalign.errors import InputError
from jaxalign.model.checks import check_dtype
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import block, embed, layer_windows, real_positions
from jaxalign.model.layers import Pass
from jaxalign.model.params import Block, Params, compiled_cast
from jaxalign.numerics.methods.gptq import DAMPING
from jaxalign.numerics.moments import Moments
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.runtime.compile import jit
from jaxalign.runtime.environment import describe
from jaxalign.runtime.progress import Progress
from jaxalign.runtime.resume import Resume
from jaxalign.shapes import Array, Bool, Float, Int, Lengths, Tokens

# Positions of texts in one call.
CALL_POSITIONS = 4096


# GPTQ makes each layer answer for the rounding of those before it; AWQ, SmoothQuant and static
# scales watch the model as it was trained. Each as in its published code.
SEES_ROUNDED = ("gptq",)


def calibrate(
    params: Params,
    config: ModelConfig,
    scheme: Scheme | str,
    tokens: Tokens | None = None,
    lengths: Lengths | None = None,
    *,
    progress: bool = False,
    folder: Path | None = None,
    damping: float = DAMPING,
) -> Params:
    """The parameters as a scheme has them, where it chooses them by activations on texts.

    For a scheme without such a method it is ``cast``. The same arguments give the same bits.

    Args:
        params: f32.
        config: the architecture.
        scheme: the precision or its name.
        tokens: int ``[N, S]``, the texts, padded on the right; none for "hqq".
        lengths: int ``[N]``, real tokens of each text.
        progress: say how far it is, layer by layer (``runtime.progress``).
        folder: keeps each finished layer, so that a calibration that was cut off goes on from
            there (``runtime.resume``); a calibration of other weights, texts or scheme has its own.
        damping: GPTQ's.

    Raises:
        InputError: no texts, or one that the model cannot read; activations that are not finite;
            second moments that cannot be factored; groups that do not divide a matrix's inputs.

    Example:
        >>> model = jaxalign.load("demo")
        >>> texts = model.encode(list(shipped_texts()), special=True)
        >>> low = calibrate(model.params, model.config, scheme_named("gptq-g64"), *texts)
    """
    scheme = as_scheme(scheme)
    if not scheme.needs_texts and scheme.method != "hqq":
        return compiled_cast(params, scheme)
    check_dtype(params, F32)
    _check_norms(params, scheme)
    given = check_texts(tokens, lengths, config, scheme) if scheme.needs_texts else ()
    texts = _Texts(_start(params, config, *given) if given else [], config)
    facts = _facts(params, config, scheme, given, damping) if folder else {}
    resume = Resume(folder, facts)
    layers = len(jax.tree.leaves(params.blocks)[0])
    shown = Progress(progress).track(range(layers), f"calibration, {scheme.name}", "layer")
    like = _like(_layer_of(params, 0), scheme, config)
    chosen: list[Block] = []
    for number in shown:
        weights = _layer_of(params, number)
        compute = functools.partial(_layer, weights, texts, scheme, damping, number)
        chosen.append(resume.keep(("layer", number), compute, like))
        passed = chosen[-1] if scheme.method in SEES_ROUNDED else weights
        texts.behind.append((number, passed))
    blocks = jax.tree.map(lambda *parts: jnp.stack(parts), *chosen)
    # Matrices are packed already, so only the rest changes its dtype.
    return _in_dtype(replace(params, blocks=blocks), scheme)


def _check_norms(params: Params, scheme: Scheme) -> None:
    """SmoothQuant divides inputs by way of norms, so a model needs norms with a scale."""
    norms = any(group.norm for group in groups_of(_layer_of(params, 0)))
    if scheme.method == "smoothquant" and not norms:
        raise InputError(
            f"scheme {scheme.name!r} moves scales into the norms that linear layers read, and this "
            "model has none with a scale there",
            "use a scheme that rounds to the nearest, gptq or hqq",
        )


def _layer_of(params: Params, number: int) -> Block:
    return jax.tree.map(lambda a: a[number], params.blocks)


@dataclass(frozen=True)
class _Stream:
    """Some texts between two layers, on the host: ``x`` ``[B, S, D]``, and which are tokens."""

    x: np.ndarray
    real: np.ndarray


@dataclass
class _Texts:
    """All texts, and the layers that they have yet to pass (a resumed run may never need it)."""

    streams: list[_Stream]
    config: ModelConfig
    behind: list[tuple[int, Block]] = field(default_factory=list)

    def window(self, layer: int) -> Int[Array, ""] | None:
        """How far a layer's attention reaches back, in families with windows."""
        windows = layer_windows(self.config)
        return None if windows is None else windows[layer]

    def catch_up(self) -> list[_Stream]:
        """Take the texts through the layers that are behind."""
        for layer, weights in self.behind:
            run = functools.partial(_advanced, weights, config=self.config)
            window = self.window(layer)
            self.streams = [
                replace(stream, x=np.asarray(run(stream.x, stream.real, window)))
                for stream in self.streams
            ]
        self.behind.clear()
        return self.streams


def _start(
    params: Params, config: ModelConfig, tokens: np.ndarray, lengths: np.ndarray
) -> list[_Stream]:
    """The texts' embeddings, in batches of one shape; rows that fill the last one are empty."""
    count, size = tokens.shape
    width = min(count, max(1, CALL_POSITIONS // size))
    filler = -count % width
    tokens = np.pad(tokens, ((0, filler), (0, 0)))
    real = np.asarray(real_positions(jnp.asarray(np.pad(lengths, (0, filler))), size))
    streams = []
    for start in range(0, count, width):
        part = slice(start, start + width)
        x = embed(params, jnp.asarray(tokens[part]), Pass(config, F32, jnp.asarray(real[part])))
        streams.append(_Stream(np.asarray(x), real[part]))
    return streams


def _layer(weights: Block, texts: _Texts, scheme: Scheme, damping: float, number: int) -> Block:
    """One layer as the scheme has it."""
    seen: tuple[Moments, ...] | None = None
    second = scheme.method in ("awq", "gptq")
    for stream in texts.catch_up():
        given = weights, stream.x, stream.real, texts.window(number)
        own = observe(*given, config=texts.config, second=second)
        seen = own if seen is None else tuple(a + b for a, b in zip(seen, own, strict=True))
    for group, found in zip(groups_of(weights), seen or (), strict=bool(seen)):
        if not _finite(found):
            raise InputError(
                f"layer {number}: what {group.linears[0]} reads on the calibration texts is not "
                "finite in f32",
                "check the checkpoint: its weights are broken or too large for f32 activations",
            )
    chosen = choose(
        weights, seen, jnp.float32(damping), scheme=core_of(scheme), config=texts.config
    )
    for name in (name for group in groups_of(weights) for name in group.linears):
        if not _finite(get(weights, name)):
            raise InputError(f"layer {number}: {name} is not finite", "check the checkpoint")
        if not _finite(get(chosen, name).scale):
            raise InputError(
                f"layer {number}: the second moments of what {name} reads cannot be factored "
                f"(Cholesky) with damping {damping:g}",
                "increase damping, or give more and longer calibration texts",
            )
    return chosen


def _finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@functools.partial(jit, static_argnames=("config",))
def _advanced(
    weights: Block,
    x: Float[Array, "B S D"],
    real: Bool[Array, "B S"],
    window: Int[Array, ""] | None,
    *,
    config: ModelConfig,
) -> Float[Array, "B S D"]:
    return block(x, weights, Pass(config, F32, real, window))[0]


def _like(weights: Block, scheme: Scheme, config: ModelConfig) -> Block:
    """A tree as ``_layer`` returns it, for ``Resume``."""
    groups = groups_of(weights)
    shape: Any = jax.ShapeDtypeStruct
    seen = []
    for group in groups if scheme.needs_texts else ():
        a = len(get(weights, group.linears[0]))
        rows, square = shape((a,), jnp.float32), shape((a, a), jnp.float32)
        seen.append(Moments(shape((), jnp.float32), rows, rows, square))
    run = functools.partial(choose.fun, scheme=core_of(scheme), config=config)
    return jax.eval_shape(run, weights, tuple(seen) or None, shape((), jnp.float32))


def _in_dtype(params: Params, scheme: Scheme) -> Params:
    def leaf(value: Any) -> Any:
        return value if isinstance(value, QTensor) else jnp.asarray(value, scheme.compute_dtype)

    return jax.tree.map(leaf, params, is_leaf=lambda value: isinstance(value, QTensor))


def _facts(
    params: Params,
    config: ModelConfig,
    scheme: Scheme,
    texts: Sequence[np.ndarray],
    damping: float,
) -> dict[str, Any]:
    """Everything that decides the bits, by which ``Resume`` knows this calibration."""
    described = describe(jax.local_devices()[0])
    return {
        "weights": _hash(jax.tree.leaves(params)),
        "config": asdict(config),
        "scheme": asdict(scheme),
        "texts": _hash(texts),
        "damping": damping,
        "call positions": CALL_POSITIONS,
        "device": described["device_kind"],
        "versions": described["versions"],
        "compiler options": described["compiler_options"],
    }


def _hash(arrays: Sequence[Any]) -> str:
    """SHA-256 of arrays: shapes, dtypes, bits."""
    found = hashlib.sha256()
    for array in arrays:
        host = np.ascontiguousarray(array)
        found.update(f"{host.shape} {host.dtype}".encode())
        found.update(host.view(np.uint8).data if host.size else b"")
    return found.hexdigest()
