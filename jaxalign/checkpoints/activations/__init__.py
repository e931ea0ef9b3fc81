"""Activations of a model on disk: shards of rows, and a manifest that says what they are.

A folder has ``manifest.json`` and safetensors files of a fixed number of rows, the last one of
what is left. A row is one token of the texts. A shard has a tensor ``layer.N`` ``[rows, D]`` for
each layer, and ``document`` and ``position`` ``[rows]``, the token's place in the texts. Folders of
the same texts and windows, in two precisions, have the same token in each row.
"""

from jaxalign.checkpoints.activations.manifest import (
    ActivationFacts,
    Shard,
    read_manifest,
    write_manifest,
)
from jaxalign.checkpoints.activations.read import Activations, LayerRows, open_activations
from jaxalign.checkpoints.activations.shards import is_whole, write_shard

__all__ = [
    "ActivationFacts",
    "Activations",
    "LayerRows",
    "Shard",
    "is_whole",
    "open_activations",
    "read_manifest",
    "write_manifest",
    "write_shard",
]
