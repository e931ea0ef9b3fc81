"""Checkpoints that other tools quantized, read into packed tensors."""

from jaxalign.checkpoints.quantized.compare import check_weights
from jaxalign.checkpoints.quantized.original import load_beside
from jaxalign.checkpoints.quantized.read import Quantized, format_of, load_quantized

__all__ = ["Quantized", "check_weights", "format_of", "load_beside", "load_quantized"]
