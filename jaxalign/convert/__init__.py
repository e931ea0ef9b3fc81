"""Published checkpoints to parameters."""

from jaxalign.convert.checkpoint import open_checkpoint
from jaxalign.convert.hub import ModelUnavailable, Source, locate
from jaxalign.convert.model import Model, load
from jaxalign.convert.packed import Quantized, load_beside, load_quantized
from jaxalign.convert.table import load_params, params_from_state_dict, save_checkpoint

__all__ = [
    "Model",
    "ModelUnavailable",
    "Quantized",
    "Source",
    "load",
    "load_beside",
    "load_params",
    "load_quantized",
    "locate",
    "open_checkpoint",
    "params_from_state_dict",
    "save_checkpoint",
]
