"""jaxalign: when a language model is quantized, does it still think the same way inside?

A model is a pure function of arrays, an edit is an array argument, so a whole study is one
compiled batch.
"""

from jaxalign.checkpoints import Model, load, locate, params_from_state_dict
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.edits import (
    AttentionAdd,
    Edit,
    HeadEdit,
    ResidualEdit,
    head_ablation_masks,
    residual_patch_masks,
    zero_ablation,
)
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer, logit_difference
from jaxalign.model import ModelConfig, Params, cast, forward, head_contributions, init_params
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, Scheme, jit
from jaxalign.prompts import read_prompts
from jaxalign.studies.heads import HeadsOptions, heads_study
from jaxalign.studies.registry import read
from jaxalign.version import VERSION

__version__ = VERSION

__all__ = [
    "BF16",
    "F16",
    "F32",
    "INT8_SIM",
    "Answer",
    "AttentionAdd",
    "Edit",
    "HeadEdit",
    "HeadsOptions",
    "InputError",
    "Model",
    "ModelConfig",
    "Params",
    "ResidualEdit",
    "Scheme",
    "cast",
    "config_from_hf",
    "forward",
    "head_ablation_masks",
    "head_contributions",
    "heads_study",
    "init_params",
    "jit",
    "load",
    "locate",
    "logit_difference",
    "params_from_state_dict",
    "read",
    "read_prompts",
    "residual_patch_masks",
    "sweep",
    "zero_ablation",
]
