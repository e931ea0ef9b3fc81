"""What the files of a published model hold: to parameters and back."""

from jaxalign.checkpoints.files import open_checkpoint
from jaxalign.checkpoints.hub import ModelUnavailable, Source, locate
from jaxalign.checkpoints.load import Model, load
from jaxalign.checkpoints.parameters import load_params, params_from_state_dict, save_checkpoint
from jaxalign.checkpoints.quantized import Quantized, load_beside, load_quantized

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
