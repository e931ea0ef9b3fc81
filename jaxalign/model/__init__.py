"""Decoders as pure functions of arrays: GPT-NeoX, GPT-2, the Llama line, OLMo, Gemma, Phi-3."""

from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import CAPTURES, Output, forward, head_contributions
from jaxalign.model.params import Params, cast, count, init_params, param_shapes

__all__ = [
    "CAPTURES",
    "ModelConfig",
    "Output",
    "Params",
    "cast",
    "count",
    "forward",
    "head_contributions",
    "init_params",
    "param_shapes",
]
