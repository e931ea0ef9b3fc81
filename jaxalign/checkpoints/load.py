"""A model ready to run: parameters, architecture, tokenizer, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.families import read_settings
from jaxalign.checkpoints.files import Checkpoint, StateDict, open_checkpoint
from jaxalign.checkpoints.gguf_model import open_gguf_model
from jaxalign.checkpoints.hub import BUNDLED_NAME, Source, locate
from jaxalign.checkpoints.parameters import load_params, unembeddings
from jaxalign.checkpoints.tokenizer import check_vocabulary, encode, read_tokenizer
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, count, param_shapes
from jaxalign.runtime import files
from jaxalign.runtime.memory import require_room
from jaxalign.shapes import Lengths, Tokens


@dataclass(frozen=True)
class Model:
    """What ``load`` returns.

    Attributes:
        params: the weights, in the dtype asked for.
        config: the architecture.
        tokenizer: from ``tokenizer.json`` or the GGUF file.
        source: the folder, and how it was found.
        weights_sha256: hash of the weight files.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    source: Source
    weights_sha256: str

    def encode(self, texts: Sequence[str], special: bool = False) -> tuple[Tokens, Lengths]:
        """Token ids of some texts as ``forward`` and ``sweep`` take them.

        ``encode(answers)[0][:, 0]`` are the first tokens of answers.

        Args:
            texts: to encode.
            special: with the special tokens that the tokenizer puts around a text, as studies
                have them around prompts; answers have none.

        Returns:
            tokens: int32 ``[B, S]``, padded on the right with 0 to the longest text.
            lengths: int32 ``[B]``, real tokens of each text.

        Raises:
            InputError: no text, one without tokens, one longer than the model's context, or one
                with a token that the model has no row for.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts are {texts!r}", "give a list of one text or more")
        rows = [
            encode(text, f"texts[{i}]", self.tokenizer, self.config, special)
            for i, text in enumerate(texts)
        ]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row
        return jnp.asarray(tokens), jnp.asarray(lengths)


def load(
    model: str | Path | Source | None = BUNDLED_NAME,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    memory_gb: float | None = None,
    ignore_settings: Sequence[str] = (),
) -> Model:
    """Load a checkpoint of one of ``checkpoints.families``.

    Args:
        model: folder, ``.gguf`` file (dequantized), hub repository, "demo", "smollm2" (the file of
            an installed package), None (the default model or the bundled one in its place), or a
            ``Source`` already located.
        revision: of the hub repository.
        dtype: of the parameters in memory, whatever it is on disk.
        memory_gb: what they may take, in 1e9 bytes; the memory that is available by default.
        ignore_settings: settings of ``config.json``, or keys of the GGUF file, that are not known
            here and that you know to change nothing of what the model computes; ``Model.source``
            records them.

    Raises:
        InputError: anything about it that cannot be used, named; parameters that do not fit into
            memory, before one is read.

    Example:
        >>> jaxalign.load("demo").config.num_layers
        6
    """
    source = model if isinstance(model, Source) else locate(model, revision)
    opened = _opened(source, tuple(ignore_settings))
    check_vocabulary(opened.tokenizer, opened.config)
    require_room(count(param_shapes(opened.config)), dtype, memory_gb)
    checkpoint, digest = opened.tensors()
    params = load_params(checkpoint, opened.config, dtype)
    source = replace(
        source,
        note="; ".join(filter(None, (source.note, *opened.notes))),
        ignored_settings=tuple(sorted(set(ignore_settings))),
    )
    return Model(params, opened.config, opened.tokenizer, source, digest())


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model of which no tensor has been read; ``tensors`` gives them, and the files' hash."""

    config: ModelConfig
    notes: tuple[str, ...]
    tokenizer: Tokenizer
    tensors: Callable[[], tuple[Checkpoint | StateDict, Callable[[], str]]]


def _opened(source: Source, ignored: tuple[str, ...]) -> _Opened:
    if source.file is not None:
        found = open_gguf_model(source.file, ignored)
        return _Opened(
            config=found.config,
            notes=found.notes,
            tokenizer=found.tokenizer,
            tensors=lambda: (found.tensors, found.file.sha256),
        )
    path = source.folder / "config.json"
    config, notes = read_settings(read_json(path), str(path), ignored)
    tokenizer = read_tokenizer(source.folder / "tokenizer.json")

    def tensors() -> tuple[Checkpoint, Callable[[], str]]:
        tied = unembeddings(config) if config.tied_embeddings else ()
        checkpoint = open_checkpoint(source.folder, tied)
        return checkpoint, checkpoint.sha256

    return _Opened(config=config, notes=notes, tokenizer=tokenizer, tensors=tensors)


def config_from(settings: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture that a ``config.json`` describes.

    Args:
        settings: its content.
        path: the file, for messages.

    Raises:
        InputError: see ``read_settings``.
    """
    return read_settings(settings, str(path))[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, cannot be read, or holds something else.
    """
    remedy = "point --model at a complete checkpoint, or download it again"
    content = files.read_json(path, remedy)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object", remedy)
    return content
