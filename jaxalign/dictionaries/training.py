"""Training dictionaries: many of one shape at once, stacked on a leading axis, in compiled calls.

Every dictionary of a stack has its own seed, its own penalty and its own site; batches, first
weights and results are those of training it alone. Adam, a learning rate that rises over the first
twentieth of the steps and falls along a cosine; what features write has norm 1 after every step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax

from jaxalign.dictionaries.dictionary import Dictionary, Kind
from jaxalign.dictionaries.losses import TRAINED, Loss, Trained, loss
from jaxalign.errors import InputError
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float, Int, Leaf

FIRST_THRESHOLD = 1e-3  # of jumprelu
THRESHOLD_RATE = 0.01  # of batchtopk's running threshold
# Of what trains: a threshold is the losses' own until it is found.
_BEFORE: dict[str, Kind] = {"topk": "topk", "gated": "gated", "sigmoid": "sigmoid"}
PENALTIES: dict[str, float] = {"relu": 1e-3, "sigmoid": 1e-3, "gated": 1e-3, "jumprelu": 1e-3}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How dictionaries are trained.

    Attributes:
        kind: of ``losses.TRAINED``.
        features: how many.
        k: features a token, of ``topk`` and ``batchtopk``.
        penalties: of the dictionaries, one each; the kind's own by default.
        seeds: of first weights and batches, one each.
        steps: of the optimizer.
        batch: tokens a step.
        learning_rate: Adam's, at its highest.
        auxiliary: the weight of the second reconstruction by dead features; 0 for none.
        resample: steps after which dead features begin anew at tokens that are reconstructed badly
            (Bricken et al. 2023), again and again in the first half of the steps; 0 for never.
        dead_after: tokens without a firing after which a feature counts as dead.
        tolerance: training ends early where the error has fallen by less than this share over the
            last tenth of the steps; 0 for never.
    """

    kind: Trained = "topk"
    features: int
    k: int = 64
    penalties: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (0,)
    steps: int = 5000
    batch: int = 1024
    learning_rate: float = 1e-3
    auxiliary: float = 1 / 32
    resample: int = 0
    dead_after: int = 250_000
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in TRAINED:
            raise InputError(f"--kind {self.kind!r} is unknown", f"use {', '.join(TRAINED)}")
        if not self.penalties:
            own = (PENALTIES.get(self.kind, 0.0),)
            object.__setattr__(self, "penalties", own * len(self.seeds))
        if len(self.penalties) != len(self.seeds):
            raise InputError(
                f"{len(self.penalties)} penalties for {len(self.seeds)} seeds", "give one each"
            )
        if self.kind in ("topk", "batchtopk") and not 1 <= self.k <= self.features:
            raise InputError(f"--k is {self.k}", f"give 1 to {self.features}, the features")

    @property
    def trained_kind(self) -> Kind:
        """The kind of the dictionaries that come out."""
        return _BEFORE.get(self.kind, "relu" if self.kind == "relu" else "jumprelu")


@struct.dataclass
class Training:
    """A stack of dictionaries being trained; every leaf begins with the stack's axis.

    Attributes:
        dictionary: of scaled activations; of ``jumprelu`` with the threshold's logarithm.
        moments: Adam's.
        step: how many are done (no axis).
        fired: int ``[stack, features]``, the step after which each was last active, 0 for never.
        least: ``[stack]``, running mean of the smallest activation that was left, of ``batchtopk``.
    """

    dictionary: Any
    moments: Any
    step: Leaf
    fired: Leaf
    least: Leaf


@struct.dataclass
class Steps:
    """What happened in some steps.

    Attributes:
        error: ``[steps, stack]``, share of the variance that is not reconstructed.
        total: ``[steps, stack]``, the loss.
        active: ``[steps, stack]``, features a token.
    """

    error: Leaf
    total: Leaf
    active: Leaf


def _schedule(options: TrainingOptions) -> Any:
    rise = max(1, options.steps // 20)
    return optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, rise, max(options.steps, rise + 1)
    )


def begin(options: TrainingOptions, means: Float[Array, "stack D"]) -> Training:
    """Dictionaries before the first step: random directions, read by what they write.

    Args:
        options: of the training.
        means: of the scaled activations that each will see, where their decoders' biases begin.
    """
    width, features = means.shape[-1], options.features

    def one(seed: Array, mean: Array) -> Dictionary:
        directions = jax.random.normal(jax.random.key(seed), (features, width))
        decoder = directions / jnp.linalg.norm(directions, axis=-1, keepdims=True)
        none = jnp.zeros(features)
        gated = options.kind == "gated"
        gate = jax.random.normal(jax.random.fold_in(jax.random.key(seed), 1), (width, features))
        return Dictionary(
            encoder=decoder.T,
            decoder=decoder,
            encoder_bias=none,
            decoder_bias=mean,
            threshold=none + jnp.log(FIRST_THRESHOLD) if options.kind == "jumprelu" else None,
            gate=gate / np.sqrt(width) if options.kind == "sigmoid" else None,
            gate_bias=none if options.kind in ("gated", "sigmoid") else None,
            log_magnitude=none if gated else None,
            kind=_BEFORE.get(options.kind, "relu"),
            k=options.k if options.kind == "topk" else None,
        )

    dictionary = jax.vmap(one)(jnp.asarray(options.seeds, jnp.uint32), means)
    stack = len(options.seeds)
    return Training(
        dictionary=dictionary,
        moments=jax.vmap(optax.scale_by_adam().init)(dictionary),
        step=jnp.zeros((), jnp.int32),
        fired=jnp.zeros((stack, features), jnp.int32),
        least=jnp.zeros(stack),
    )


@functools.partial(jit, static_argnames=("options",), donate_argnames=("training",))
def advance(
    training: Training,
    batches: Float[Array, "steps sets B D"],
    sets: Int[Array, " stack"],
    *,
    options: TrainingOptions,
) -> tuple[Training, Steps]:
    """Some steps.

    Args:
        training: so far.
        batches: scaled activations of the tokens of every step, once for all dictionaries that
            read the same.
        sets: which of them each dictionary reads.
        options: of the training (static).
    """
    schedule, adam = _schedule(options), optax.scale_by_adam()
    penalties = jnp.asarray(options.penalties, jnp.float32)

    def step(training: Training, rows: Array) -> tuple[Training, Steps]:
        rate = schedule(training.step.astype(jnp.float32))
        tokens = (training.step - training.fired) * options.batch
        dead = tokens > options.dead_after

        def one(
            auxiliary: float, d: Dictionary, moments: Any, own: Array, penalty: Array, dead: Array
        ) -> tuple[Dictionary, Any, Loss]:
            x = rows[own]

            def of(d: Dictionary) -> tuple[Array, Loss]:
                found = loss(
                    d, x, penalty, dead, kind=options.kind, k=options.k, auxiliary=auxiliary
                )
                return found.total, found

            (_, found), slope = jax.value_and_grad(of, has_aux=True)(d)
            change, moments = adam.update(slope, moments)
            d = jax.tree.map(lambda w, c: w - rate * c, d, change)
            return _unit(d), moments, found

        stacked = training.dictionary, training.moments, sets, penalties, dead
        plain = jax.vmap(functools.partial(one, 0.0))
        dictionary, moments, found = plain(*stacked) if not options.auxiliary else lax.cond(
            # As long as no feature is dead, which is mostly, there is nothing to be computed.
            dead.any(), jax.vmap(functools.partial(one, options.auxiliary)), plain, *stacked
        )  # fmt: skip
        active = (found.features > 0).any(axis=1)
        here = training.step + 1
        training = Training(
            dictionary=dictionary,
            moments=moments,
            step=here,
            fired=jnp.where(active, here, training.fired),
            least=_running(training.least, found.least, training.step),
        )
        seen = Steps(
            error=found.error,
            total=found.total,
            active=(found.features > 0).sum(axis=-1).mean(axis=-1, dtype=jnp.float32),
        )
        return training, seen

    return lax.scan(step, training, batches)


def _unit(d: Dictionary) -> Dictionary:
    """What features write, of norm 1."""
    norms = jnp.linalg.norm(d.decoder, axis=-1, keepdims=True)
    return replace(d, decoder=d.decoder / jnp.maximum(norms, 1e-8))


def _running(least: Array, found: Array, step: Array) -> Array:
    found = jnp.where(jnp.isfinite(found), found, least)
    return jnp.where(step == 0, found, (1 - THRESHOLD_RATE) * least + THRESHOLD_RATE * found)


def batches_of(
    options: TrainingOptions, first: int, steps: int, tokens: int
) -> Int[np.ndarray, "steps stack B"]:
    """The tokens of some steps: every dictionary's own order, each token once before any twice.

    Args:
        options: of the training.
        first: the step that they begin with.
        steps: how many.
        tokens: that there are, at least a batch.

    Returns:
        The same for a step whatever steps are asked for.
    """
    each = tokens // options.batch
    seeds = [*dict.fromkeys(options.seeds)]
    out = np.empty((steps, len(seeds), options.batch), np.int32)
    for place, seed in enumerate(seeds):
        order, known = np.empty(0, np.int64), -1
        for i, step in enumerate(range(first, first + steps)):
            if step // each != known:
                known = step // each
                order = np.random.default_rng([seed, 7, known]).permutation(tokens)
            at = step % each * options.batch
            out[i, place] = order[at : at + options.batch]
    return out[:, [seeds.index(seed) for seed in options.seeds]]


def finished(training: Training, scales: Float[np.ndarray, " stack"], options: TrainingOptions
) -> list[Dictionary]:  # fmt: skip
    """The dictionaries of a stack, of activations as the model has them.

    Args:
        training: at its end.
        scales: what the activations of each were multiplied by.
        options: of the training.
    """
    out = []
    for place, scale in enumerate(np.asarray(scales, np.float32)):
        d = jax.tree.map(lambda a, i=place: np.asarray(a[i]), training.dictionary)
        threshold = d.threshold
        if options.kind == "jumprelu":
            threshold = np.exp(threshold)
        if options.kind == "batchtopk":
            threshold = np.full(options.features, np.asarray(training.least)[place], np.float32)
        gate = None if d.gate is None else d.gate * scale
        out.append(
            replace(
                d,
                encoder=d.encoder * scale,
                decoder=d.decoder / scale,
                decoder_bias=d.decoder_bias / scale,
                gate=gate,
                threshold=threshold,
                kind=options.trained_kind,
            )
        )
    return out


def stack_of(sites: Sequence[int], options: TrainingOptions) -> tuple[list[int], TrainingOptions]:
    """Every site with every seed and penalty of ``options``: one stack.

    Args:
        sites: numbers of the sites.
        options: of one site.
    """
    each = len(options.seeds)
    return (
        [site for site in sites for _ in range(each)],
        replace(
            options,
            seeds=options.seeds * len(sites),
            penalties=options.penalties * len(sites),
        ),
    )
