"""A GGUF file beside the model that it was made from; blocks stay packed where JAX holds them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.families import FAMILIES
from jaxalign.checkpoints.gguf_architectures import architecture_of
from jaxalign.checkpoints.gguf_file import GGUFFile, open_gguf
from jaxalign.checkpoints.gguf_model import EXACT, check_readable
from jaxalign.checkpoints.gguf_settings import check_stretch, expected
from jaxalign.checkpoints.gguf_tensors import GGUFTensors, Published, published
from jaxalign.checkpoints.parameters import check_names, check_tied, leaf_shapes
from jaxalign.checkpoints.quantized.gguf_blocks import packed_blocks
from jaxalign.checkpoints.quantized.settings import shown
from jaxalign.checkpoints.quantized.stack import Leaf, Piece, leaf
from jaxalign.checkpoints.tables import TensorRule
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig

# Of what a file says of the model: what changes no number. ``context_of`` has the context.
PASSED_OVER = ("context_length", "tensor_data_layout", "rope.scaling.original_context_length")
REMEDY = "convert and quantize the original again"
ANOTHER = "give the original that this file was made from to --model"
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True, kw_only=True)
class GGUFLeaves:
    """The parameters of a file.

    Attributes:
        leaves: by dotted name.
        types: the block types of each kind of matrix, by dotted name.
        title: for people.
        matrix_bits: of the matrices of all blocks in the file.
        notes: what a reader of a result has to know.
        file: its head.
    """

    leaves: Mapping[str, Leaf]
    types: dict[str, str]
    title: str
    matrix_bits: int
    notes: tuple[str, ...]
    file: GGUFFile


def load_gguf(path: Path, config: ModelConfig, dtype: Any) -> GGUFLeaves:
    """The parameters of a file that was made from a model.

    Args:
        path: the file.
        config: the architecture of the original.
        dtype: of the parameters that are not packed.

    Raises:
        InputError: the ``gguf`` package is missing, the file is damaged, of another architecture,
            or disagrees with ``config``.
    """
    file = open_gguf(path)
    check_readable(file)
    _, architecture = architecture_of(file)
    _check_architecture(file, config)
    tensors = published(file, architecture, config)
    shapes = leaf_shapes(config)
    rules = FAMILIES[config.family].table.rules_for(shapes)
    whole, table = GGUFTensors(tensors, str(path)), FAMILIES[config.family].table
    check_names(whole, config, rules, tensors)
    if config.tied_embeddings and table.unembed in tensors:
        check_tied(whole, table.embed, table.unembed)
    read = functools.partial(_read, tensors, config, shapes)
    leaves = {name: leaf(name, shapes[name], rules, config, read, dtype) for name in shapes}
    kinds = _kinds(tensors, rules, config)
    types = {name: " and ".join(sorted(count)) for name, count in kinds.items()}
    inside = [name for name in kinds if name.startswith("blocks.")]
    blocks = sum((kinds[name] for name in inside), Counter())
    layered = [name for rule in rules if rule.layered for name in rule.names(config)]
    return GGUFLeaves(
        leaves=leaves,
        types=types,
        title=f"GGUF, mostly {blocks.most_common(1)[0][0]}",
        matrix_bits=sum(
            8 * file.tensors[tensors.names[name]].size
            for name in layered
            if len(tensors.shape(name)) == 2
        ),
        notes=tuple(
            f"{name} is of {types[name]}, which is not kept packed: it has the values that it was "
            "quantized to"
            for name in inside
            if not set(kinds[name]) <= {*EXACT} and not any(leaves[name].quantized)
        ),
        file=file,
    )


def _kinds(
    tensors: Published, rules: Sequence[TensorRule], config: ModelConfig
) -> dict[str, Counter[str]]:
    """How many tensors of each block type fill a matrix, by the matrix's dotted name."""
    kinds: dict[str, Counter[str]] = {}
    for rule in rules:
        for name in rule.names(config):
            for target in rule.targets if len(tensors.shape(name)) == 2 else ():
                kinds.setdefault(target.leaf, Counter())[tensors.kind(name)] += 1
    return kinds


def _read(
    tensors: Published,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    rule: TensorRule,
    name: str,
) -> Piece:
    """One published tensor, packed where its rule's targets are matrices of a block."""
    found, wanted = tensors.shape(name), rule.shape(shapes, config)
    where = f"{tensors.file.path}: tensor {tensors.names[name]!r}"
    if found != wanted:
        raise InputError(f"{where} has shape {list(found)}, expected {list(wanted)}", ANOTHER)
    packed = None
    if rule.layered and len(found) == 2:
        packed = packed_blocks(tensors.blocks(name), tensors.kind(name))
    piece: Piece = tensors[name] if packed is None else packed
    parts = [piece] if isinstance(piece, np.ndarray) else [*piece.arrays.values()]
    if not all(np.isfinite(part).all() for part in parts):
        raise InputError(f"{where} has values that are NaN or infinite", "download it again")
    return piece


def tokens_of(path: Path) -> list[str] | None:
    """The vocabulary of a file in the order of the token numbers; None where it has none.

    Raises:
        InputError: see ``open_gguf``; or what the file has under that key is no list of texts.
    """
    tokens = open_gguf(path).settings.get(TOKENS)
    if not isinstance(tokens, list | None) or not all(isinstance(t, str) for t in tokens or ()):
        raise InputError(
            f"{path} is damaged: {TOKENS} is {shown(tokens)}, expected a list of texts", REMEDY
        )
    return tokens


def context_of(path: Path) -> Any:
    """The longest sequence that a file names; None where it names none."""
    file = open_gguf(path)
    return file.settings.get(f"{file.settings.get('general.architecture')}.context_length")


def _check_architecture(file: GGUFFile, config: ModelConfig) -> None:
    """Whatever the file says of the model is true of it."""
    found, architecture = architecture_of(file)
    if config.family not in architecture.families:
        raise InputError(
            f"{file.path} is of the architecture {shown(found)}, and the original is of "
            f"{FAMILIES[config.family].title}",
            ANOTHER,
        )
    values = expected(config)
    for key, said in file.settings.items():
        name = key.removeprefix(f"{found}.")
        if name == key or name in PASSED_OVER:
            continue
        value = values.get(name, "nothing of it")
        if type(said) is not type(value) or said != value:
            raise InputError(
                f"{file.path} says {name} {shown(said)}, but the original has {value}", ANOTHER
            )
    refusal = InputError(
        f"{file.path} stretches the rotation in another way than the original", ANOTHER
    )
    check_stretch(file, config.rotary_dims, config.rotary_base, config.rotary_scaling, refusal)
