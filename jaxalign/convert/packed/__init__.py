"""Checkpoints that other tools quantized, read into packed tensors."""

from jaxalign.convert.packed.compare import check_weights
from jaxalign.convert.packed.original import load_beside
from jaxalign.convert.packed.read import Quantized, format_of, load_quantized

__all__ = ["Quantized", "check_weights", "format_of", "load_beside", "load_quantized"]
