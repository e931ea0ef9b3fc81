"""jaxalign: when a language model is quantized, does it still think the same way inside?

A model is a pure function of arrays, an edit is an array argument, so a whole study is one
compiled batch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from jaxalign.version import VERSION

if TYPE_CHECKING:
    from jaxalign.checkpoints import Model, load, locate, params_from_state_dict
    from jaxalign.checkpoints.families import config_from_hf
    from jaxalign.edits import (
        Add,
        Edit,
        HeadEdit,
        Replace,
        Scale,
        Splice,
        WeightEdit,
        head_ablation_masks,
        knock_out,
        residual_patch_masks,
        zero_ablation,
    )
    from jaxalign.engine import sweep
    from jaxalign.engine.knockouts import attention_knockout
    from jaxalign.engine.lens import direct_logit_attribution, head_scores, logit_lens
    from jaxalign.engine.patching import activation_patching, attribution_patching
    from jaxalign.engine.paths import path_patching
    from jaxalign.engine.readout import FromClean
    from jaxalign.engine.steering import steer
    from jaxalign.errors import InputError
    from jaxalign.measures.metrics import (
        Answer,
        AnswersDifference,
        continuation_loss,
        kl_divergence,
        logit_difference,
        probability_of,
    )
    from jaxalign.model import ModelConfig, Params, cast, forward, head_contributions, init_params
    from jaxalign.numerics import BF16, F16, F32, INT8_SIM, Scheme, jit
    from jaxalign.prompts import one_prompt, read_pairs, read_prompts
    from jaxalign.runtime.compilation_cache import enable_compilation_cache
    from jaxalign.studies.heads import HeadsOptions, heads_study
    from jaxalign.studies.registry import read

__version__ = VERSION

# Where each public name lives. A name is imported when it is first used: JAX takes seconds, which
# ``jaxalign --help`` need not wait for.
_HOMES = {
    "jaxalign.checkpoints": "Model load locate params_from_state_dict",
    "jaxalign.checkpoints.families": "config_from_hf",
    "jaxalign.edits": "Add Edit HeadEdit Replace Scale Splice WeightEdit",
    "jaxalign.edits.ready": "head_ablation_masks knock_out residual_patch_masks zero_ablation",
    "jaxalign.engine": "sweep",
    "jaxalign.engine.lens": "direct_logit_attribution head_scores logit_lens",
    "jaxalign.engine.knockouts": "attention_knockout",
    "jaxalign.engine.patching": "activation_patching attribution_patching",
    "jaxalign.engine.paths": "path_patching",
    "jaxalign.engine.steering": "steer",
    "jaxalign.errors": "InputError",
    "jaxalign.engine.readout": "FromClean",
    "jaxalign.measures.metrics": "Answer AnswersDifference continuation_loss kl_divergence "
    "logit_difference probability_of",
    "jaxalign.model": "ModelConfig Params cast forward head_contributions init_params",
    "jaxalign.numerics": "BF16 F16 F32 INT8_SIM Scheme jit",
    "jaxalign.prompts": "one_prompt read_pairs read_prompts",
    "jaxalign.runtime.compilation_cache": "enable_compilation_cache",
    "jaxalign.studies.heads": "HeadsOptions heads_study",
    "jaxalign.studies.registry": "read",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """The public name, or the room of the package, that is asked for first."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif importlib.util.find_spec(f"{__name__}.{name}"):
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


__all__ = [
    "BF16",
    "F16",
    "F32",
    "INT8_SIM",
    "Add",
    "Answer",
    "AnswersDifference",
    "Edit",
    "FromClean",
    "HeadEdit",
    "HeadsOptions",
    "InputError",
    "Model",
    "ModelConfig",
    "Params",
    "Replace",
    "Scale",
    "Scheme",
    "Splice",
    "WeightEdit",
    "activation_patching",
    "attention_knockout",
    "attribution_patching",
    "cast",
    "config_from_hf",
    "continuation_loss",
    "direct_logit_attribution",
    "enable_compilation_cache",
    "forward",
    "head_ablation_masks",
    "head_contributions",
    "head_scores",
    "heads_study",
    "init_params",
    "jit",
    "kl_divergence",
    "knock_out",
    "load",
    "locate",
    "logit_difference",
    "logit_lens",
    "one_prompt",
    "params_from_state_dict",
    "path_patching",
    "probability_of",
    "read",
    "read_pairs",
    "read_prompts",
    "residual_patch_masks",
    "steer",
    "sweep",
    "zero_ablation",
]
