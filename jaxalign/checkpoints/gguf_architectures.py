"""One table of the architectures that are read from GGUF files: a new one is an entry here.

llama.cpp rotates neighbouring rows of a Llama's query or key head, (0, 1), (2, 3), …, where the
published layout rotates (0, d/2), (1, d/2 + 1), …, so its converter reorders the rows; they are put
back. GPT-NeoX's ``attn_qkv`` has all queries, then all keys, then all values, where the published
tensor has each head's three together. Gemma's norms, which scale by ``1 + w``, are stored as
``1 + w``. Source: llama.cpp, ``convert_hf_to_gguf.py`` and ``llama-model.cpp``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.gguf_file import GGUFFile
from jaxalign.checkpoints.gguf_names import Spelling
from jaxalign.checkpoints.gguf_settings import FOLDER, STRETCHED, Reading, line, sizes
from jaxalign.errors import InputError, shown
from jaxalign.model.config import ModelConfig

# From the part of a tensor's name in the file (``attn_q``), its rows and the configuration to where
# each published row stands in it; None where they stand alike.
RowOrder = Callable[[str, int, ModelConfig], np.ndarray | None]


def as_published(part: str, rows: int, config: ModelConfig) -> None:
    """The order of rows of most architectures."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp writes a family of models.

    Attributes:
        families: of ``checkpoints.families``, whose models are written so; a file on its own is
            read as one of the first.
        fields: from the file's settings to the fields of ``ModelConfig``.
        spelling: names of tensors.
        order: of the rows of tensors.
        norms_add: what the converter adds to the weights of norms.
    """

    families: tuple[str, ...]
    fields: Callable[[Reading], dict[str, Any]]
    spelling: Spelling
    order: RowOrder = as_published
    norms_add: float = 0.0

    def config(self, reading: Reading) -> ModelConfig:
        """The architecture that a file describes.

        Args:
            reading: of the file; what is read of its settings is taken away.

        Raises:
            InputError: a setting is missing, or out of range.
        """
        return ModelConfig(**{"family": self.families[0]} | self.fields(reading))


def architecture_of(file: GGUFFile) -> tuple[str, Architecture]:
    """llama.cpp's name of a file's architecture, and its entry.

    Args:
        file: its head.

    Raises:
        InputError: it has none of the table.
    """
    found = file.settings.get("general.architecture")
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise InputError(
            f"{file.path} is of the architecture {shown(found)}, expected one of "
            f"{', '.join(ARCHITECTURES)}",
            f"{FOLDER}, or a GGUF file of one of these",
        )
    return found, ARCHITECTURES[found]


def _neox(reading: Reading) -> dict[str, Any]:
    reading.settings.only(reading.key("rope.scaling.type"), "none")
    fields = sizes(reading)
    return fields | {
        "rotary_dims": reading.whole("rope.dimension_count", fields["head_size"], least=0),
        "parallel_residual": reading.settings.flag(reading.key("use_parallel_residual"), True),
        "attention_bias": reading.has_tensor("blk.0.attn_qkv.bias"),
        "norm_eps": reading.number("attention.layer_norm_epsilon", zero=True),
    }


def _llama(reading: Reading) -> dict[str, Any]:
    fields, window = line(reading), reading.window()
    return fields | ({"family": "mistral", **_everywhere(window, fields)} if window else {})


def _phi3(reading: Reading) -> dict[str, Any]:
    # What a longrope would start from; without one nothing reads it.
    reading.whole("rope.scaling.original_context_length", 4096)
    fields = line(reading)
    return fields | _everywhere(reading.window(), fields)


def _everywhere(window: int | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"windows": () if window is None else (window,) * fields["num_layers"]}


# Gemma 2's largest model divides its scores by another number than the others, and llama.cpp knows
# it by its layers: no key says so.
GEMMA2_27B_LAYERS = 46


def _gemma2(reading: Reading) -> dict[str, Any]:
    fields = line(reading)
    layers, window = fields["num_layers"], reading.window(4096)
    scalar = fields["head_size"]
    if layers == GEMMA2_27B_LAYERS:
        scalar = fields["hidden_size"] // fields["num_heads"]
    return fields | {
        "activation": "gelu_pytorch_tanh",
        "norm": "rms+1",
        "post_norms": True,
        "scaled_embedding": True,
        "query_scalar": float(scalar),
        "attention_cap": reading.number("attn_logit_softcapping", 50.0),
        "logit_cap": reading.number("final_logit_softcapping", 30.0),
        "windows": tuple(window if layer % 2 == 0 else None for layer in range(layers))
        if window
        else (),
    }


def _pairs(part: str, rows: int, config: ModelConfig) -> np.ndarray | None:
    """Where the rows of a Llama's queries and keys stand, which the converter has interleaved."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(part)
    if heads is None or rows % (2 * heads):
        return None  # a shape that does not fit is the table's to refuse
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _by_head(part: str, rows: int, config: ModelConfig) -> np.ndarray | None:
    """Where each head's query, key and value stand in GPT-NeoX's fused tensor."""
    if part != "attn_qkv" or rows % (3 * config.num_heads):
        return None
    return np.arange(rows).reshape(3, config.num_heads, -1).swapaxes(0, 1).reshape(-1)


_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SEPARATE = ("attn_q", "attn_k", "attn_v", "ffn_gate")


def _spelling(
    inside: Mapping[str, str] = _INSIDE, passed_over: tuple[str, ...] = (), **more: str
) -> Spelling:
    return Spelling(
        outside=_OUTSIDE,
        layer="model.layers.{layer}.",
        inside={**inside, **more},
        passed_over=passed_over,
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    "gptneox": Architecture(
        families=("gpt_neox",),
        fields=_neox,
        spelling=Spelling(
            outside={
                "token_embd": "gpt_neox.embed_in",
                "output_norm": "gpt_neox.final_layer_norm",
                "output": "embed_out",
            },
            layer="gpt_neox.layers.{layer}.",
            inside={
                "attn_norm": "input_layernorm",
                "attn_qkv": "attention.query_key_value",
                "attn_output": "attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
        ),
        order=_by_head,
    ),
    "llama": Architecture(
        families=("llama", "mistral"),
        fields=_llama,
        spelling=_spelling(passed_over=(STRETCHED,)),
        order=_pairs,
    ),
    "qwen2": Architecture(families=("qwen2",), fields=line, spelling=_spelling()),
    "qwen3": Architecture(
        families=("qwen3",),
        fields=line,
        spelling=_spelling(attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm"),
    ),
    "gemma2": Architecture(
        families=("gemma2",),
        fields=_gemma2,
        spelling=_spelling(
            post_attention_norm="post_attention_layernorm",
            ffn_norm="pre_feedforward_layernorm",
            post_ffw_norm="post_feedforward_layernorm",
        ),
        norms_add=1.0,
    ),
    "phi3": Architecture(
        families=("phi3",),
        fields=_phi3,
        spelling=_spelling(
            {part: name for part, name in _INSIDE.items() if part not in _SEPARATE},
            attn_qkv="self_attn.qkv_proj",
            ffn_up="mlp.gate_up_proj",
        ),
    ),
}
