"""Measures of behaviour and of change, as pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.shapes import Array, Bool, Float, Int, Leaf, lead


@struct.dataclass
class AnswerMetrics:
    """What a prompt's last logits say about its answer; every field ``[*rows, B]``.

    Attributes:
        logit_diff: ``m = logit(target) − max(other logits)``.
        logit_diff_f16: ``m`` of logits rounded to f16. Around 1070, where Pythia's logits lie,
            f16 knows whole numbers only; kept so that nobody takes that rounding for damage.
        distractor_diff: ``logit(target) − logit(distractor)``.
        correct: whether the target is the top-1 next token.
    """

    logit_diff: Leaf
    logit_diff_f16: Leaf
    distractor_diff: Leaf
    correct: Leaf


def logit_difference(
    logits: Float[Array, "*rows B V"], target: Int[Array, " B"]
) -> Float[Array, "*rows B"]:
    """``logit(target) − max over all other tokens``; 0 or less where the target is not first."""
    is_target = jnp.arange(logits.shape[-1])[None] == target[:, None]
    best_other = jnp.where(lead(is_target, logits), -jnp.inf, logits).max(axis=-1)
    return pick(logits, target) - best_other


def pick(logits: Float[Array, "*rows B V"], token: Int[Array, " B"]) -> Float[Array, "*rows B"]:
    """The logit of one token a prompt."""
    index = jnp.broadcast_to(lead(token[:, None], logits), (*logits.shape[:-1], 1))
    return jnp.take_along_axis(logits, index, axis=-1)[..., 0]


def probability_of(
    logits: Float[Array, "*rows V"], tokens: Int[Array, "#B n"] | Int[Array, " n"]
) -> Float[Array, "*rows"]:
    """The probability that the next token is one of a set.

    Args:
        logits: f32, ``[*rows, B, V]`` where each prompt has its own tokens.
        tokens: int ``[n]``, or ``[B, n]``; a token twice counts twice.
    """
    tokens = jnp.asarray(tokens)
    index = jnp.broadcast_to(lead(tokens, logits), (*logits.shape[:-1], tokens.shape[-1]))
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), index, axis=-1)
    return jnp.exp(chosen).sum(axis=-1)


def continuation_loss(
    logits: Float[Array, "*rows B P V"], continuation: Int[Array, "B P"]
) -> Float[Array, "*rows B"]:
    """Cross entropy of a continuation, nats a token.

    Args:
        logits: f32, at the positions before each of its tokens: ``sweep``'s, read ``at`` them.
        continuation: its tokens, -1 behind the end of a shorter one.
    """
    said = jax.nn.log_softmax(logits, axis=-1)
    index = lead(jnp.maximum(continuation, 0)[..., None], said)
    index = jnp.broadcast_to(index, (*said.shape[:-1], 1))
    real = lead(continuation >= 0, said[..., 0])
    each = jnp.where(real, -jnp.take_along_axis(said, index, axis=-1)[..., 0], 0)
    return each.sum(axis=-1) / real.sum(axis=-1).astype(each.dtype)


def answers_difference(
    logits: Float[Array, "*rows B V"],
    tokens: Int[Array, "B answers"],
    weights: Float[Array, "B answers"],
) -> Float[Array, "*rows B"]:
    """The mean logit of a prompt's answers minus that of its wrong answers, as ``answer_weights``
    writes it: ``Σ weight · logit(token)``.

    Args:
        logits: f32.
        tokens: answers and wrong answers, filled up with any token.
        weights: of each: 1 / answers, −1 / wrong answers, 0 for filler.
    """
    index = jnp.broadcast_to(lead(tokens, logits), (*logits.shape[:-1], tokens.shape[1]))
    found = jnp.take_along_axis(logits, index, axis=-1)
    return (found * lead(weights, found)).sum(axis=-1)


@struct.dataclass
class AnswersDifference:
    """``answers_difference`` as a readout: a sweep unembeds the tokens that it names and no others.

    Attributes:
        tokens: answers and wrong answers, int ``[B, answers]``, filled up with any token.
        weights: of each, ``[B, answers]``: 1 / answers, −1 / wrong answers, 0 for filler.

    Example:
        >>> metric = AnswersDifference(jnp.stack([right, wrong], axis=1), jnp.array([[1.0, -1.0]]))
    """

    tokens: Leaf
    weights: Leaf

    def __call__(self, logits: Float[Array, "*rows B V"]) -> Float[Array, "*rows B"]:
        """The difference in f32 logits."""
        weights = jnp.broadcast_to(self.weights, self.tokens.shape)
        return answers_difference(logits, self.tokens, weights)


def answer_weights(
    answers: Sequence[Sequence[int]], wrong: Sequence[Sequence[int]]
) -> tuple[Int[np.ndarray, "P answers"], Float[np.ndarray, "P answers"]]:
    """Tokens and weights of ``answers_difference``, for prompts with any numbers of answers.

    Args:
        answers, wrong: token ids, a list a prompt.
    """
    most = max(len(a) + len(b) for a, b in zip(answers, wrong, strict=True))
    tokens = np.zeros((len(answers), most), np.int32)
    weights = np.zeros((len(answers), most), np.float32)
    for row, (own, others) in enumerate(zip(answers, wrong, strict=True)):
        count = len(own) + len(others)
        tokens[row, :count] = [*own, *others]
        weights[row, :count] = [1 / len(own)] * len(own) + [-1 / len(others)] * len(others)
    return tokens, weights


def answer_metrics(
    logits: Float[Array, "*rows B V"], target: Int[Array, " B"], distractor: Int[Array, " B"]
) -> AnswerMetrics:
    """``AnswerMetrics`` of last-position logits.

    Args:
        logits: f32.
        target: the answers' tokens.
        distractor: the tokens they are compared with.
    """
    difference = logit_difference(logits, target)
    rounded = logit_difference(logits.astype(jnp.float16).astype(jnp.float32), target)
    return AnswerMetrics(
        logit_diff=difference,
        logit_diff_f16=rounded,
        distractor_diff=pick(logits, target) - pick(logits, distractor),
        correct=difference > 0,
    )


def kl_divergence(
    base: Float[Array, "*rows V"], moved: Float[Array, "*rows V"]
) -> Float[Array, "*rows"]:
    """``KL(p‖q) = Σ p log(p / q)`` in nats, of f32 logits.

    Summed as ``Σ p (e^(−d) − 1 + d)`` with ``d = log p − log q``, which is the same since both sum
    to 1, and which has no negative terms: what f32 rounds off ``d`` counts only squared, so that a
    divergence of 1e-8 still has digits.
    """
    p, q = jax.nn.log_softmax(base, axis=-1), jax.nn.log_softmax(moved, axis=-1)
    distance = p - q
    return (jnp.exp(p) * (jnp.expm1(-distance) + distance)).sum(axis=-1)


@struct.dataclass
class Answer:
    """Reads ``AnswerMetrics`` off the last logits; both tokens int ``[B]``.

    Called with logits it is ``answer_metrics``. A sweep instead folds it over blocks of the
    vocabulary, so that no row's logits are ever held: the best other token is a running maximum.
    """

    target: Leaf
    distractor: Leaf

    def __call__(self, logits: Float[Array, "*rows B V"]) -> AnswerMetrics:
        """``AnswerMetrics`` of f32 logits."""
        return answer_metrics(logits, self.target, self.distractor)

    def start(self) -> AnswerLogits:
        """Nothing read yet."""
        low = jnp.full(self.target.shape, -jnp.inf)
        return AnswerLogits(low, low, low)

    def fold(
        self, seen: AnswerLogits, logits: Float[Array, "v N"], tokens: Int[Array, " v"]
    ) -> AnswerLogits:
        """Update the running values with a block of tokens' logits; a token twice is harmless.

        Args:
            seen: what the tokens before said.
            logits: one column a run.
            tokens: which tokens the rows are, in order.
        """

        def find(wanted: Array, before: Array) -> Array:
            place = jnp.clip(wanted - tokens[0], 0, len(tokens) - 1)
            found = jnp.take_along_axis(logits, place[None], axis=0)[0]
            return jnp.where(tokens[place] == wanted, found, before)

        others = jnp.where(tokens[:, None] == self.target[None], -jnp.inf, logits).max(axis=0)
        return AnswerLogits(
            find(self.target, seen.target),
            find(self.distractor, seen.distractor),
            jnp.maximum(seen.other, others),
        )

    def finish(self, seen: AnswerLogits) -> AnswerMetrics:
        """``AnswerMetrics`` when all tokens are read.

        Rounding keeps order, so the best other token of rounded logits is the best one rounded.
        """
        difference = seen.target - seen.other
        target, other = (
            a.astype(jnp.float16).astype(jnp.float32) for a in (seen.target, seen.other)
        )
        return AnswerMetrics(
            logit_diff=difference,
            logit_diff_f16=target - other,
            distractor_diff=seen.target - seen.distractor,
            correct=difference > 0,
        )


@struct.dataclass
class AnswerLogits:
    """Logits that ``Answer`` has read: of the target, the distractor and the best other token."""

    target: Leaf
    distractor: Leaf
    other: Leaf


@struct.dataclass
class Drift:
    """How far each head's contribution moved between two runs; every field ``[…, H]``.

    Attributes:
        last, cosine_last: ``‖c_q − c‖ / ‖c‖`` and cosine at each prompt's last position.
        all, cosine_all: the same over all real positions, as one long vector.
        finite: whether every compared number is finite.
    """

    last: Leaf
    cosine_last: Leaf
    all: Leaf
    cosine_all: Leaf
    finite: Leaf


def _relative(moved: Array, base: Array) -> Array:
    return jnp.where(base > 0, moved / jnp.where(base > 0, base, 1), 0)


def _change(
    a: Float[Array, "*rows C"], b: Float[Array, "*rows C"]
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    norm_a, norm_b = jnp.linalg.norm(a, axis=-1), jnp.linalg.norm(b, axis=-1)
    product = norm_a * norm_b
    cosine = _relative((a * b).sum(axis=-1), product)
    return _relative(jnp.linalg.norm(a - b, axis=-1), norm_b), cosine


def head_drift(
    moved: Float[Array, "B S H C"],
    base: Float[Array, "B S H C"],
    lengths: Int[Array, " B"],
) -> Drift:
    """Drift of head contributions ``moved`` (low precision) from ``base`` (f32), both f32.

    Relative distance and cosine are 0 where a norm is 0. Positions past a prompt's length do not
    count.

    Args:
        moved: each head's contribution in low precision.
        base: the same in f32.
        lengths: real tokens of each prompt.
    """
    real = jnp.arange(base.shape[1])[None] < lengths[:, None]
    moved, base = (jnp.where(real[..., None, None], x, 0) for x in (moved, base))
    index = (lengths - 1)[:, None, None, None]
    last, cosine_last = _change(
        *(jnp.take_along_axis(x, index, axis=1)[:, 0] for x in (moved, base))
    )
    whole = [x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1) for x in (moved, base)]
    over_all, cosine_all = _change(*whole)
    finite: Bool[Array, "B H"] = jnp.isfinite(whole[0]).all(axis=-1)
    return Drift(last, cosine_last, over_all, cosine_all, finite)


def first_order(
    gradient: Float[Array, "B S C"] | Float[Array, "B S H C"],
    moved: Float[Array, "B S H C"],
    base: Float[Array, "B S H C"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B H"]:
    """Predicted gain ``∇m · (c − c_q)`` of giving each head its f32 contribution back.

    Args:
        gradient: ``∂m / ∂c``: one vector a position for true heads, which all write to the same
            stream; one a head and position for edge-align's blocks.
        moved: each head's contribution in low precision.
        base: the same in f32.
        lengths: real tokens of each prompt.
    """
    real = jnp.arange(base.shape[1])[None] < lengths[:, None]
    returned = jnp.where(real[..., None, None], base - moved, 0)
    if gradient.ndim == returned.ndim - 1:
        gradient = gradient[:, :, None]
    return (gradient * returned).sum(axis=(1, 3))
