"""jaxalign: when a language model is quantized, does it still think the same way inside?

A model is a pure function of arrays, an edit is an array argument, so a whole study is one
compiled batch.
"""

from jaxalign.convert import Model, load, locate
from jaxalign.edit import Edit, HeadEdit, ResidualEdit, head_ablation_masks
from jaxalign.errors import InputError
from jaxalign.experiments.heads import Options, heads_study
from jaxalign.model import ModelConfig, forward
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, Scheme, jit
from jaxalign.prompts import read_prompts
from jaxalign.sweep import sweep
from jaxalign.version import VERSION

__version__ = VERSION

__all__ = [
    "BF16",
    "F16",
    "F32",
    "INT8_SIM",
    "Edit",
    "HeadEdit",
    "InputError",
    "Model",
    "ModelConfig",
    "Options",
    "ResidualEdit",
    "Scheme",
    "forward",
    "head_ablation_masks",
    "heads_study",
    "jit",
    "load",
    "locate",
    "read_prompts",
    "sweep",
]
