"""How many floating-point operations a wave needs at the least, term by term.

Matrix products only, a multiply-add counted as two: norms, rotations, softmax and activations cost
time, but next to nothing of this count. What is counted is what no exact f32 wave can leave out:
each prompt's real positions, the pairs of positions that the causal mask and a layer's window let
see each other, in the last layer everything after keys and values at the last position alone, and
the logits of that position. Divided by time and by a machine's measured peak it says how much of
the machine was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from jaxalign.model.config import ModelConfig


@dataclass(frozen=True)
class WaveFlops:
    """Floating-point operations of a wave, by term.

    Attributes:
        qkv: projections to queries, keys and values, one number a layer.
        attention: scores and weighted values, one number a layer.
        out: ``W_O`` of the rows that enter the layer, one number a layer.
        newborn: the edited head's own ``z W_O`` in each row that begins, one number a layer.
        mlp: the products of the MLP (two, gated three), one number a layer.
        unembed: logits of each row's last position.
    """

    qkv: tuple[int, ...]
    attention: tuple[int, ...]
    out: tuple[int, ...]
    newborn: tuple[int, ...]
    mlp: tuple[int, ...]
    unembed: int

    def by_term(self) -> dict[str, int]:
        """Each term summed over layers."""
        terms = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value if isinstance(value, int) else sum(value) for name, value in terms}

    @property
    def total(self) -> int:
        """All terms together."""
        return sum(self.by_term().values())


def wave_flops(config: ModelConfig, lengths: Sequence[int], births: Sequence[int]) -> WaveFlops:
    """The fewest floating-point operations of an exact f32 wave that replaces heads.

    Args:
        config: the architecture.
        lengths: real tokens of each prompt.
        births: for each edited row the block, counted from 0, whose head it replaces first; the
            clean row is not among them.

    Example:
        >>> seventy = ModelConfig(50304, 6, 8, 512, 2048)
        >>> heads = [layer for layer in range(6) for _ in range(8)]
        >>> wave_flops(seventy, [16] * 64, heads).total / 1e9
        771.247570944
    """
    D, F, V, last = config.hidden_size, config.intermediate_size, config.vocab_size, len(lengths)
    Q, K = config.attention_width, config.num_kv_heads * config.head_size
    positions = sum(lengths)
    products = 3 if config.gated else 2
    windows = config.windows or (None,) * config.num_layers
    rows = 1
    layers = []
    for layer in range(config.num_layers):
        shortcut = layer == config.num_layers - 1
        queries = last if shortcut else positions
        visible = sum(_visible(length, windows[layer], shortcut) for length in lengths)
        newborn = births.count(layer)
        # In a parallel-residual block a newborn row shares the MLP of the clean row.
        through_mlp = rows if config.parallel_residual else rows + newborn
        layers.append(
            (
                rows * 2 * D * (Q * queries + 2 * K * positions),
                rows * 4 * Q * visible,
                rows * 2 * D * Q * queries,
                newborn * 2 * config.head_size * D * queries,
                through_mlp * 2 * products * D * F * queries,
            )
        )
        rows += newborn
    qkv, attention, out, newborn_heads, mlp = zip(*layers, strict=True)
    unembed = rows * 2 * D * V * last
    return WaveFlops(qkv, attention, out, newborn_heads, mlp, unembed)


def patching_flops(
    config: ModelConfig,
    length: int,
    prompts: int,
    births: Sequence[int],
    firsts: Sequence[int],
    tokens_read: int | None = None,
) -> WaveFlops:
    """The fewest floating-point operations of an exact f32 wave in layer and position.

    A row is its positions from the first edited one on, in the blocks behind its edit; positions
    before them are the clean run's, whose keys and values it reads. What begins a row inside a
    block (a head's own ``z W_O``, and a sequential block's MLP) is left out, so that this is a
    little less than any wave needs. Every row's logits are counted.

    Args:
        config: the architecture.
        length: tokens of each prompt.
        prompts: how many there are, each with every row.
        births: for each edited row the first block, counted from 0, that it passes as a whole; the
            number of layers for one that begins behind the last. The clean row is not among them.
        firsts: for each edited row the first position that it changes.
        tokens_read: logits of a row that are read; all by default.

    Example:
        >>> seventy = ModelConfig(50304, 6, 8, 512, 2048)
        >>> places = [(step, position) for step in range(7) for position in range(16)]
        >>> patching_flops(seventy, 16, 64, *zip(*places)).total / 1e9
        1317.770625024
    """
    D, F, layers = config.hidden_size, config.intermediate_size, config.num_layers
    Q, K = config.attention_width, config.num_kv_heads * config.head_size
    products = 3 if config.gated else 2
    windows = config.windows or (None,) * layers
    rows = [(0, 0), *zip(births, firsts, strict=True)]
    each = []
    for layer in range(layers):
        last = layer == layers - 1
        alive = [first for birth, first in rows if birth <= layer]
        held = sum(length - first for first in alive)
        queries = len(alive) if last else held
        window = windows[layer]
        seen = sum(_visible(length, window, last, first) for first in alive)
        each.append(
            (
                prompts * 2 * D * (Q * queries + 2 * K * held),
                prompts * 4 * Q * seen,
                prompts * 2 * D * Q * queries,
                0,
                prompts * 2 * products * D * F * queries,
            )
        )
    qkv, attention, out, newborn, mlp = zip(*each, strict=True)
    return WaveFlops(
        qkv,
        attention,
        out,
        newborn,
        mlp,
        prompts * len(rows) * 2 * D * (tokens_read or config.vocab_size),
    )


def _visible(length: int, window: int | None, last_only: bool, first: int = 0) -> int:
    """Pairs of a query and a key that it sees, of positions from ``first`` on or of the last."""
    seen = range(length, length + 1) if last_only else range(first + 1, length + 1)
    return sum(before if window is None else min(before, window) for before in seen)
