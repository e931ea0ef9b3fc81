"""Families of models, one file each: how a family spells its architecture and its tensors.

A family reads and writes ``config.json`` and has a table of its published tensors; all families run
through one decoder. A new one is a file here and a line in ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.checkpoints.families import (
    gemma2,
    gemma3,
    gpt2,
    llama,
    mistral,
    neox,
    olmo,
    olmo2,
    phi3,
    qwen,
)
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig

FAMILIES: dict[str, Family] = {
    "gpt_neox": neox.NEOX,
    "llama": llama.LLAMA,
    "qwen2": qwen.QWEN2,
    "qwen3": qwen.QWEN3,
    "mistral": mistral.MISTRAL,
    "gemma2": gemma2.GEMMA2,
    "gemma3": gemma3.GEMMA3,
    "gemma3_text": gemma3.GEMMA3_TEXT,
    "phi3": phi3.PHI3,
    "gpt2": gpt2.GPT2,
    "olmo": olmo.OLMO,
    "olmo2": olmo2.OLMO2,
}


def read_settings(
    settings: Mapping[str, Any], where: str = "config.json", ignored: Sequence[str] = ()
) -> tuple[ModelConfig, tuple[str, ...]]:
    """The architecture that the settings of a ``config.json`` describe, and notes for the user.

    Args:
        settings: the content of the file.
        where: the file, for messages.
        ignored: settings that are not known here and that the user says change nothing.

    Raises:
        InputError: another architecture; a setting that is missing, of a wrong type or out of
            range, or one that may change the computation and is not known here; named.
    """
    family = settings.get("model_type", "gpt_neox")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"{where} is of a {family!r} model, expected one of {', '.join(FAMILIES)}",
            "use a checkpoint of one of these families",
        )
    reading = Settings(settings, where, ignored)
    config = ModelConfig(**({"family": family} | FAMILIES[family].read(reading)))
    reading.finish()
    return config, tuple(reading.notes)


def config_from_hf(settings: Mapping[str, Any]) -> ModelConfig:
    """The architecture that settings of Hugging Face's describe, in old and new spellings.

    Args:
        settings: content of a ``config.json``, or ``config.to_dict()`` of transformers.

    Raises:
        InputError: as ``read_settings``.
    """
    return read_settings(settings)[0]


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The settings as a Hugging Face ``config.json`` (the widely read, old spelling)."""
    return FAMILIES[config.family].write(config)
