"""Published checkpoints to parameters."""

from jaxalign.convert.checkpoint import open_checkpoint
from jaxalign.convert.hub import ModelUnavailable, Source, locate
from jaxalign.convert.model import Model, load
from jaxalign.convert.table import load_params, params_from_state_dict, save_checkpoint

__all__ = [
    "Model",
    "ModelUnavailable",
    "Source",
    "load",
    "load_params",
    "locate",
    "open_checkpoint",
    "params_from_state_dict",
    "save_checkpoint",
]
