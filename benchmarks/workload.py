"""What is measured: checkpoints of Pythia's shapes with random weights, and random prompts.

Speed depends on shapes alone, so nothing has to be downloaded; both sides of a comparison read the
same checkpoint from disk.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import jaxalign
from jaxalign.checkpoints import Model
from jaxalign.edit import Edit, HeadEdit, head_ablation_masks
from jaxalign.flops import WaveFlops, wave_flops
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, Params
from jaxalign.prompts import Batch
from jaxalign.shapes import Array, Float, Int, Lengths, Tokens
from jaxalign.studies.heads.calls import Runner
from tests.pythia_shape import PYTHIA_SIZES, tiny_checkpoint, write_checkpoint

TINY = "tiny"  # 3 layers of 4 heads, width 32: for trying a benchmark out
SIZES = (TINY, *PYTHIA_SIZES)


@dataclass(frozen=True)
class Prompts:
    """Random prompts of one length: ``tokens`` int32 ``[P, S]``, ``target`` int32 ``[P]``."""

    tokens: np.ndarray
    target: np.ndarray

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [self.tokens.shape[1]] * len(self.tokens)


def random_prompts(config: ModelConfig, count: int, length: int, seed: int = 0) -> Prompts:
    """Prompts and targets drawn uniformly from the vocabulary."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, config.vocab_size, (count, length), np.int32)
    return Prompts(tokens, rng.integers(0, config.vocab_size, count, np.int32))


@contextmanager
def checkpoint(size: str) -> Iterator[Path]:
    """A folder with a random checkpoint of a size of ``SIZES``, for as long as it is needed.

    Its tokenizer knows the words ``w0``, ``w1``, …, so that a text spells its token ids.
    """
    with TemporaryDirectory(prefix=f"pythia-{size}-shape-") as temporary:
        folder = Path(temporary)
        tiny_checkpoint(folder) if size == TINY else write_checkpoint(folder, size=size)
        vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
        tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
        yield folder


def words(tokens: Sequence[int]) -> str:
    """The text that ``checkpoint``'s tokenizer reads as these tokens."""
    return " ".join(f"w{token}" for token in tokens)


@functools.partial(jaxalign.jit, static_argnames=("config", "rows", "plan"))
def zero_ablation(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    target: Int[Array, " B"],
    *,
    config: ModelConfig,
    rows: tuple[int, int],
    plan: str = "wave",
) -> Float[Array, "M B"]:
    """``m(clean) − m(head zeroed)`` of the heads ``rows``, counted layer by layer."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)[slice(*rows)]
    edit = Edit(head=HeadEdit(masks, np.zeros((config.num_layers, 1, 1, 1, 1), np.float32)))
    [out] = jaxalign.sweep(
        params,
        tokens,
        lengths,
        config,
        [edit],
        Answer(target, target),
        plan=plan,
    )
    return out.logit_diff[:1] - out.logit_diff[1:]


def importance(
    runner: Runner, prompts: Prompts, work: Sequence[Batch] | None = None, plan: str = "wave"
) -> np.ndarray:
    """Every head's importance by zero ablation, ``[P, L·H]``; in the engine's chunks by default."""
    work = batches(runner, prompts) if work is None else work
    out = np.zeros((len(prompts.tokens), runner.num_heads), np.float32)
    for batch in work:
        target = batch.fill(list(prompts.target))
        for rows in runner.row_ranges(batch.shape[1], 0, 1):
            found = zero_ablation(
                runner.model.params,
                batch.tokens,
                batch.lengths,
                target,
                config=runner.config,
                rows=rows,
                plan=plan,
            )
            out[list(batch.index), slice(*rows)] = np.asarray(found).T[: len(batch.index)]
    return out


def batches(runner: Runner, prompts: Prompts) -> list[Batch]:
    """The calls that the engine would make of these prompts within its memory budget."""
    return runner.batches(prompts.tokens.tolist(), 1 + runner.num_heads, 0)


def least_flops(config: ModelConfig, prompts: Prompts) -> WaveFlops:
    """What ``importance`` costs at the least."""
    births = [layer for layer in range(config.num_layers) for _ in range(config.num_heads)]
    return wave_flops(config, prompts.lengths, births)


def parameter_bytes(model: Model) -> int:
    """Bytes of the f32 parameters."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
