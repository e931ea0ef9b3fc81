"""Families of models: how each spells its architecture in ``config.json``.

A family is a reader and a writer over one set of fields, those of ``ModelConfig``; all families
run through one decoder.
"""

from jaxalign.model.families import gemma2, llama, neox
from jaxalign.model.families.settings import Family, Settings

FAMILIES: dict[str, Family] = {
    "gpt_neox": neox.NEOX,
    "llama": llama.LLAMA,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "mistral": llama.MISTRAL,
    "gemma2": gemma2.GEMMA2,
}

__all__ = ["FAMILIES", "Family", "Settings"]
