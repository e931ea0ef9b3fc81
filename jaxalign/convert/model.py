"""A model ready to run: parameters, architecture, tokenizer, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxalign.convert.checkpoint import open_checkpoint
from jaxalign.convert.hub import BUNDLED_NAME, Source, locate
from jaxalign.convert.table import load_params
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, count, param_shapes
from jaxalign.prompts import encode
from jaxalign.runtime.memory import require_room
from jaxalign.shapes import Lengths, Tokens

# Vocabularies are padded up to a multiple of this for tensor parallelism (Pythia-12b: 50277
# tokens, 50688 rows); a larger gap means that tokenizer and weights do not belong together.
PADDED_TO = 1024


@dataclass(frozen=True)
class Model:
    """What ``load`` returns.

    Attributes:
        params: the weights, in the dtype asked for.
        config: the architecture.
        tokenizer: from ``tokenizer.json``.
        source: the folder, and how it was found.
        weights_sha256: hash of the weight files.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    source: Source
    weights_sha256: str

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Lengths]:
        """Token ids of some texts as ``forward`` and ``sweep`` take them.

        No special tokens are added. ``encode(answers)[0][:, 0]`` are the first tokens of answers.

        Returns:
            tokens: int32 ``[B, S]``, padded on the right with 0 to the longest text.
            lengths: int32 ``[B]``, real tokens of each text.

        Raises:
            InputError: no text, one without tokens, or one longer than the model's context.
        """
        if isinstance(texts, str) or not texts:
            raise InputError(f"texts are {texts!r}", "give a list of one text or more")
        rows = [
            encode(text, f"texts[{i}]", self.tokenizer, self.config) for i, text in enumerate(texts)
        ]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row
        return jnp.asarray(tokens), jnp.asarray(lengths)


def load(
    model: str | Source | None = BUNDLED_NAME,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    memory_gb: float | None = None,
) -> Model:
    """Load a checkpoint of one of ``model.families``.

    Args:
        model: folder, hub repository, "demo", None (the default model or the bundled one in its
            place), or a ``Source`` already located.
        revision: of the hub repository.
        dtype: of the parameters in memory, whatever it is on disk.
        memory_gb: what they may take, in 1e9 bytes; the memory that is available by default.

    Raises:
        InputError: anything about it that cannot be used, named; parameters that do not fit into
            memory, before one is read.

    Example:
        >>> jaxalign.load("demo").config.num_layers
        6
    """
    source = model if isinstance(model, Source) else locate(model, revision)
    config = _read_config(source.folder / "config.json")
    tokenizer = read_tokenizer(source.folder / "tokenizer.json")
    check_vocabulary(tokenizer, config)
    checkpoint = open_checkpoint(source.folder)
    require_room(count(param_shapes(config)), dtype, memory_gb)
    params = load_params(checkpoint, config, dtype)
    return Model(params, config, tokenizer, source, checkpoint.sha256())


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raise ``InputError`` unless tokenizer and model can have the same vocabulary."""
    known = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if not known <= config.vocab_size <= -(-known // PADDED_TO) * PADDED_TO:
        raise InputError(
            f"the tokenizer knows {known} tokens, but the model has a vocabulary of "
            f"{config.vocab_size}",
            "use the tokenizer.json that was published with these weights",
        )


def _read_config(path: Path) -> ModelConfig:
    return config_from(read_json(path), path)


def config_from(settings: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture that a ``config.json`` describes.

    Args:
        settings: its content.
        path: the file, for messages.

    Raises:
        InputError: see ``ModelConfig.from_hf``; or a setting of a wrong type.
    """
    try:
        return ModelConfig.from_hf(settings)
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} has a setting of a wrong type ({error})", "use the config.json as published"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is missing, cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", "point --model at a complete checkpoint") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check it") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})", "download it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object", "download it again")
    return content


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer file.

    Raises:
        InputError: the file is missing, or is not a tokenizer.
    """
    read_json(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InputError(f"{path} is not a tokenizer ({error})", "download it again") from error
