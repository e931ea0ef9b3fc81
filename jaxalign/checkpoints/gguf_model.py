"""GGUF files as models of their own: dequantized, with the tokenizer that they carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from jaxalign.checkpoints.families.settings import Settings
from jaxalign.checkpoints.files import StateDict
from jaxalign.checkpoints.gguf_architectures import architecture_of
from jaxalign.checkpoints.gguf_file import GGUFFile, open_gguf
from jaxalign.checkpoints.gguf_settings import Reading
from jaxalign.checkpoints.gguf_tensors import GGUFTensors, published
from jaxalign.checkpoints.gguf_tokenizer import read_gguf_tokenizer
from jaxalign.errors import InputError, shown
from jaxalign.model.config import ModelConfig

# The blocks of a file mean what the gguf package reads since this version of the quantizers.
BLOCKS_VERSION = 2
# Keys whose values reach no number of the model: where the file comes from, how it was made, and
# how its blocks are laid out, which the reader of the file has seen to.
NEUTRAL = ("general.", "quantize.imatrix.")
# Levels of a block type, and how many numbers share them.
GRIDS = {
    "Q4_0": (16, 32),
    "Q4_1": (16, 32),
    "Q5_0": (32, 32),
    "Q5_1": (32, 32),
    "Q8_0": (255, 32),
    "Q2_K": (4, 16),
    "Q3_K": (8, 16),
    "Q4_K": (16, 32),
    "Q5_K": (32, 32),
    "Q6_K": (64, 16),
    "IQ4_NL": (16, 32),
    "IQ4_XS": (16, 32),
    "MXFP4": (16, 32),
    "NVFP4": (16, 16),
}
EXACT = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class GGUFModel:
    """A file, opened and checked, of which no tensor has been decoded.

    Attributes:
        file: the file.
        config: the architecture.
        tokenizer: from the file.
        tensors: under their published names.
        notes: what the user has to know about how the settings were read.
    """

    file: GGUFFile
    config: ModelConfig
    tokenizer: Tokenizer
    tensors: StateDict
    notes: tuple[str, ...]


def open_gguf_model(path: Path, ignored: Sequence[str] = ()) -> GGUFModel:
    """Open a GGUF file of a known architecture as a model.

    Args:
        path: the file.
        ignored: keys of the file that are not known here and that the user says change nothing.

    Raises:
        InputError: the ``gguf`` package is missing; the file is damaged or of another
            architecture; a setting is missing, out of range, or not known and not ignored; a
            tensor is not known; a tokenizer that is not read here. Each is named.
    """
    file = open_gguf(path)
    check_readable(file)
    name, architecture = architecture_of(file)
    given = {key: value for key, value in file.settings.items() if not key.startswith(NEUTRAL)}
    settings = Settings(given, str(path), ignored, "GGUF file")
    architecture.spelling.names(file.tensors, str(path))  # before settings that a tensor explains
    tokenizer = read_gguf_tokenizer(file, settings)
    config = architecture.config(Reading(file=file, architecture=name, settings=settings))
    settings.finish()
    tensors = published(file, architecture, config)
    return GGUFModel(
        file=file,
        config=config,
        tokenizer=tokenizer,
        tensors=GGUFTensors(tensors, str(path)),
        notes=tuple(settings.notes),
    )


def check_readable(file: GGUFFile) -> None:
    """Refuse a file of another architecture, or whose blocks are of another version.

    Args:
        file: its head.

    Raises:
        InputError: it is one.
    """
    architecture_of(file)
    version = file.settings.get("general.quantization_version", BLOCKS_VERSION)
    if version != BLOCKS_VERSION:
        raise InputError(
            f"{file.path} has blocks of version {shown(version)}, expected {BLOCKS_VERSION}",
            "convert and quantize the original again",
        )


def blocks_note(file: GGUFFile) -> str:
    """Which blocks the weights were dequantized from, and how fine their grid is, for people.

    Args:
        file: its head.
    """
    counts = Counter(t.kind.name for t in file.tensors.values() if len(t.shape) > 1)
    parts = [f"{count} in {name}" for name, count in counts.most_common()]
    grids = [
        f"{name} has {GRIDS[name][0]} levels in groups of {GRIDS[name][1]}"
        for name, _ in counts.most_common()
        if name in GRIDS
    ]
    if set(counts) <= set(EXACT):
        return f"weights from GGUF: {', '.join(parts)}"
    return f"weights dequantized to f32 from GGUF blocks: matrices {', '.join(parts)}" + (
        f"; {', '.join(grids)}" if grids else ""
    )
