"""Calibration texts: where they come from by default, and whether the model can read them."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints import Model
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import real_positions
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import PromptSet
from jaxalign.runtime.files import read_text
from jaxalign.shapes import Lengths, Tokens

SHIPPED = Path(__file__).parent / "neutral.txt"


def calibration_texts(prompts: PromptSet, model: Model) -> tuple[Tokens, Lengths]:
    """The reference texts of a prompt set as ``calibrate`` takes them: tokens and lengths.

    They begin with the same special tokens as the texts and prompts of a study.
    """
    return model.encode(list(prompts.reference), special=True)


def shipped_texts() -> tuple[str, ...]:
    """Neutral English of about 4100 words, written for this project: what studies calibrate on.

    Example:
        >>> tokens, lengths = model.encode(list(shipped_texts()), special=True)
    """
    return read_texts(SHIPPED)


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a file, one a line; empty lines do not count.

    Raises:
        InputError: the file is missing, is no UTF-8 text, or has no line.
    """
    lines = read_text(path, "give a text file, one a line").splitlines()
    texts = tuple(line for line in lines if line.strip())
    if not texts:
        raise InputError(f"calibration texts {path} are empty", "give one text a line")
    return texts


def check_texts(
    tokens: Tokens | None, lengths: Lengths | None, config: ModelConfig, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """The texts on the host, padding as 0.

    Args:
        tokens: int ``[B, S]``, a text a row; None where no texts were given.
        lengths: int ``[B]``, tokens of each text.
        config: the architecture: its context and its vocabulary.
        scheme: the scheme that is chosen by these texts; errors name it.

    Raises:
        InputError: there are none, or the model cannot read one of them.
    """
    if tokens is None or lengths is None or not len(tokens):
        raise InputError(
            f"scheme {scheme.name!r} is chosen by activations on calibration texts, and got none",
            "give --calibration FILE, or the tokens of calibration.shipped_texts()",
        )
    ids, counts = np.asarray(tokens), np.asarray(lengths)
    if counts.shape != ids.shape[:1] or counts.max() > ids.shape[1]:
        raise InputError(
            f"calibration texts are tokens {ids.shape} with lengths {counts.shape} up to "
            f"{counts.max()}",
            "give one length a text, and no more than there are tokens",
        )
    if counts.min() < 1:
        raise InputError(
            f"calibration text {int(counts.argmin())} has no tokens",
            "give it a text, or leave it out",
        )
    real = np.asarray(real_positions(jnp.asarray(counts), ids.shape[1]))
    if counts.max() > config.max_positions:
        raise InputError(
            f"calibration text {int(counts.argmax())} has {counts.max()} tokens, more than the "
            f"model's context of {config.max_positions}",
            "cut it into several texts",
        )
    known = np.where(real, ids, 0)
    if known.min() < 0 or known.max() >= config.vocab_size:
        raise InputError(
            f"calibration texts have tokens from {known.min()} to {known.max()}, outside the "
            f"vocabulary of {config.vocab_size}",
            "use the tokenizer.json that was published with these weights",
        )
    return known.astype(np.int32), counts.astype(np.int32)
