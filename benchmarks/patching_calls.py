"""What ``patching`` measures of ours: pairs of prompts, and one compiled call a question."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks import pytorch_baseline as pytorch
from jaxalign.checkpoints import Model
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.measures.metrics import AnswersDifference
from jaxalign.model import ModelConfig, Params
from jaxalign.shapes import Array, Float, Int, Lengths, Tokens

POINTS = {"resid": ("resid", "S"), "heads": ("z", "HS")}  # what is patched, and taken apart
SCREENED = {"resid": "S", "z": "HS", "attn_out": "S", "mlp_out": "S"}


class Pairs(NamedTuple):
    """Prompts: ``clean`` and ``corrupted`` int32 ``[P, S]``, ``answers`` int32 ``[P, 2]``."""

    clean: np.ndarray
    corrupted: np.ndarray
    answers: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt."""
        return np.full(len(self.clean), self.clean.shape[1], np.int32)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question: our call, and what the baselines need to ask it.

    Attributes:
        name: of ``patching.CASES``.
        pairs: the prompts.
        point: where the baselines write.
        places: int ``[M, 3]``, step, position and head of each row, in our order.
        births: the first block that each row passes whole.
        call: gives ``[M, P]``, the metric of every row.
    """

    name: str
    pairs: Pairs
    point: str
    places: np.ndarray
    births: Sequence[int]
    call: Callable[[], Array]


def random_pairs(config: ModelConfig, count: int, length: int) -> Pairs:
    """Pairs that differ in every token, and their answers, drawn from the vocabulary."""
    rng = np.random.default_rng(0)
    clean, corrupted = rng.integers(0, config.vocab_size, (2, count, length), np.int32)
    return Pairs(clean, corrupted, rng.integers(0, config.vocab_size, (count, 2), np.int32))


def difference(pair: Int[Array, "B 2"]) -> AnswersDifference:
    """``logit(first) − logit(second)``, of which nobody reads the other logits."""
    return AnswersDifference(pair, jnp.array([[1.0, -1.0]]))


@functools.partial(jaxalign.jit, static_argnames=("config", "point", "apart"))
def patch(
    params: Params,
    clean: Tokens,
    corrupted: Tokens,
    lengths: Lengths,
    pair: Int[Array, "B 2"],
    *,
    config: ModelConfig,
    point: str,
    apart: str,
) -> Float[Array, "M B"]:
    """The metric of the corrupted run with each place of the clean one."""
    metric = difference(pair)
    found = jaxalign.activation_patching(
        params, clean, corrupted, lengths, config, metric, point=point, apart=apart
    )
    return jnp.asarray(found.patched).reshape(-1, len(clean))


@functools.partial(jaxalign.jit, static_argnames=("config",))
def zero_at_last(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    pair: Int[Array, "B 2"],
    *,
    config: ModelConfig,
) -> Float[Array, "M B"]:
    """The metric with each head zeroed at the last position of prompts of one length."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    last = np.arange(tokens.shape[1]) == tokens.shape[1] - 1
    edit = Edit(
        HeadEdit(masks & last[:, None], np.zeros((config.num_layers, 1, 1, 1, 1), np.float32))
    )
    metric = difference(pair)
    return jaxalign.sweep(params, tokens, lengths, config, [edit], metric)[0][1:]


@functools.partial(jaxalign.jit, static_argnames=("config",))
def screen(
    params: Params,
    clean: Tokens,
    corrupted: Tokens,
    lengths: Lengths,
    pair: Int[Array, "B 2"],
    *,
    config: ModelConfig,
) -> tuple[Array, dict[str, Array]]:
    """The corrupted metric, and by point each place's estimated change of it, ``[M, B]``."""
    metric = difference(pair)
    found = jaxalign.attribution_patching(
        params, clean, corrupted, lengths, config, metric, points=tuple(SCREENED)
    )
    each = {
        point: jnp.moveaxis(value, 1, -1).reshape(-1, len(clean))
        for point, value in found.estimates.items()
    }
    return jnp.asarray(found.corrupted), each


def patching_case(name: str, model: Model, pairs: Pairs) -> Case:
    """Activation patching by step × position, or by head × position."""
    config, (point, apart) = model.config, POINTS[name]
    heads, more = (config.num_heads, 0) if point == "z" else (1, 1)
    sizes = config.num_layers + more, pairs.clean.shape[1], heads
    places = np.array(list(np.ndindex(*sizes)))
    births = (places[:, 0] + (1 - more)).tolist()  # a step of the stream stands before its block
    given = model.params, pairs.clean, pairs.corrupted, pairs.lengths, pairs.answers
    call = functools.partial(patch, *given, config=config, point=point, apart=apart)
    return Case(name=name, pairs=pairs, point=point, places=places, births=births, call=call)


def last_case(model: Model, pairs: Pairs) -> Case:
    """Every head zeroed at the last position alone."""
    config = model.config
    heads = np.array(pytorch.all_heads(config.num_layers, config.num_heads))
    places = np.insert(heads, 1, -1, axis=1)
    given = model.params, pairs.corrupted, pairs.lengths, pairs.answers
    call = functools.partial(zero_at_last, *given, config=config)
    births = (heads[:, 0] + 1).tolist()
    return Case(name="last", pairs=pairs, point="z", places=places, births=births, call=call)
