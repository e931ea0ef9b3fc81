"""The keys of a GGUF file that say what a model computes, read, and as an architecture has them.

A key is llama.cpp's name behind that of the architecture: ``qwen2.block_count``. What a family of
models shares is read once (``line``); what is its own stands in ``gguf_architectures``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.families.settings import MOST_LAYERS, NEEDED, Settings
from jaxalign.checkpoints.gguf_file import GGUFFile
from jaxalign.errors import InputError
from jaxalign.model.config import MOST, ModelConfig
from jaxalign.model.rotary import RotaryScaling, frequencies

# By how much Llama 3.1's way of stretching the rotation divides each of its frequencies.
STRETCHED = "rope_freqs.weight"
# f32 holds seven digits, and the converter computes these factors in more.
CLOSE = 1e-5
FOLDER = "use the model's folder with config.json and safetensors"
NO_EXPERTS = ("expert_count", "expert_used_count")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A file whose settings are being read.

    Attributes:
        file: its head.
        architecture: llama.cpp's name of the architecture.
        settings: of the file.
    """

    file: GGUFFile
    architecture: str
    settings: Settings

    def key(self, name: str) -> str:
        """A key of the architecture."""
        return f"{self.architecture}.{name}"

    def whole(self, name: str, default: Any = NEEDED, **bounds: int) -> int:
        """``Settings.whole`` of a key of the architecture."""
        return self.settings.whole(self.key(name), default, **bounds)

    def number(self, name: str, default: Any = NEEDED, zero: bool = False) -> float:
        """``Settings.number`` of a key of the architecture."""
        return self.settings.number(self.key(name), default, zero=zero)

    def only(self, name: str, *values: Any) -> None:
        """``Settings.only`` of a key of the architecture."""
        self.settings.only(self.key(name), *values)

    def has_tensor(self, name: str) -> bool:
        """Whether the file has a tensor."""
        return name in self.file.tensors

    def window(self, default: int = 0) -> int | None:
        """Positions that a query of a layer with a window sees; None where no layer has one."""
        return self.whole("attention.sliding_window", default, least=0) or None


def sizes(reading: Reading) -> dict[str, Any]:
    """What every architecture has, as fields of ``ModelConfig``."""
    embedding = reading.file.tensors.get("token_embd.weight")
    if embedding is None:
        raise InputError(f"{reading.file.path}: tensor 'token_embd.weight' is missing",
                         "download it again")  # fmt: skip
    heads = reading.whole("attention.head_count")
    hidden = reading.whole("embedding_length")
    width = reading.whole("attention.key_length", max(1, hidden // heads))
    reading.only("attention.value_length", width)
    for name in NO_EXPERTS:  # a mixture of experts has some
        reading.only(name, 0)
    reading.only("attention.causal", True)
    reading.only("tensor_data_layout", "reference", "Meta AI original pth")
    return {
        "vocab_size": reading.whole("vocab_size", embedding.shape[0]),
        "num_layers": reading.whole("block_count", most=MOST_LAYERS),
        "num_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": reading.whole("feed_forward_length"),
        "max_positions": reading.whole("context_length"),
        "num_kv_heads": reading.whole("attention.head_count_kv", heads),
        "head_size": width,
        "rotary_base": reading.number("rope.freq_base", 10000.0),
        "tied_embeddings": not reading.has_tensor("output.weight"),
    }


def line(reading: Reading) -> dict[str, Any]:
    """What Llama, Qwen, Gemma and Phi-3 share, as fields of ``ModelConfig``.

    Biases and norms of queries and keys are there where the file has tensors of them.
    """
    fields = sizes(reading)
    width = fields["head_size"]
    reading.only("rope.dimension_count", width)
    return fields | {
        "rotary_dims": width,
        "rotary_scaling": _scaling(reading, width, fields["rotary_base"]),
        "parallel_residual": False,
        "attention_bias": reading.has_tensor("blk.0.attn_q.bias"),
        "out_bias": reading.has_tensor("blk.0.attn_output.bias"),
        "mlp_bias": reading.has_tensor("blk.0.ffn_up.bias"),
        "query_key_norms": reading.has_tensor("blk.0.attn_q_norm.weight"),
        "norm": "rms",
        "norm_eps": reading.number("attention.layer_norm_rms_epsilon", zero=True),
        "gated": True,
        "activation": "silu",
    }


def expected(config: ModelConfig) -> dict[str, Any]:
    """What the keys of a file say that was made from a model, without the architecture's name.

    Args:
        config: of the model.
    """
    scaling = config.rotary_scaling
    linear = scaling is not None and scaling.kind == "linear"
    windows = [window for window in config.windows if window is not None]
    kind = "layer_norm" if config.norm == "layer" else "layer_norm_rms"
    values: dict[str, Any] = {
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        f"attention.{kind}_epsilon": config.norm_eps,
        "attention.causal": True,
        "attention.sliding_window": windows[0] if windows else 0,
        "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.logit_cap,
        "rope.dimension_count": config.rotary_dims,
        "rope.freq_base": config.rotary_base,
        "rope.scaling.type": "linear" if linear else "none",
        "rope.scaling.factor": scaling.factor if scaling is not None and linear else None,
        "use_parallel_residual": config.parallel_residual if config.norm == "layer" else None,
        "vocab_size": config.vocab_size,
        **dict.fromkeys(NO_EXPERTS, 0),
    }
    return {
        name: float(np.float32(value)) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }


def _scaling(reading: Reading, width: int, base: float) -> RotaryScaling | None:
    """How the rotation is stretched: linearly, as Llama 3.1's or not at all."""
    key = reading.key("rope.scaling.type")
    kind = reading.settings.word(key, "none")
    stretched = reading.has_tensor(STRETCHED)
    if kind == "linear" and not stretched:
        return RotaryScaling("linear", factor=reading.number("rope.scaling.factor"))
    if kind != "none":
        raise reading.settings.wrong(key, kind, "'none' or 'linear'")
    return llama3_scaling(reading.file, width, base) if stretched else None


def llama3_scaling(file: GGUFFile, dims: int, base: float) -> RotaryScaling:
    """The Llama 3.1 scaling whose factors a file has, one a frequency.

    A frequency that turns ``t`` times within the context of pretraining is divided by ``f`` where
    ``t < low``, by 1 where ``t > high``, and by ``1 / ((1 − s) / f + s)`` between them, with
    ``s = (t − low) / (high − low)``. ``s`` is linear in the frequency, so its slope and intercept
    give the context and ``high`` where ``low`` is 1, as in every published model.

    Args:
        file: with the tensor ``STRETCHED``.
        dims: how many coordinates are rotated.
        base: ``rope_theta``.

    Raises:
        InputError: no such scaling has these factors.
    """
    refusal = InputError(
        f"{file.path}: tensor {STRETCHED!r} stretches the rotation in another way than Llama 3.1's",
        FOLDER,
    )
    if file.tensors[STRETCHED].shape != (dims // 2,):
        raise refusal
    factors = file.decoded(STRETCHED).astype(np.float64)
    plain = base ** (-np.arange(dims // 2) / (dims // 2))
    largest = float(factors.max())
    if not (np.isfinite(factors).all() and (factors > 0).all() and largest > 1):
        raise refusal
    between = (factors > 1 + CLOSE) & (factors < largest * (1 - CLOSE))
    if between.sum() < 2:
        raise refusal
    share = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
    slope, intercept = np.polyfit(plain[between], share, 1)
    if not (slope > 0 and intercept < 0):
        raise refusal
    high = _near_whole(1 - 1 / intercept)
    context = slope * 2 * math.pi * (high - 1)
    if not 1 <= context <= MOST:
        raise refusal
    scaling = RotaryScaling(
        "llama3", factor=_near_whole(largest), high=high, original_positions=round(context)
    )
    check_stretch(file, dims, base, scaling, refusal)
    return scaling


def check_stretch(
    file: GGUFFile, dims: int, base: float, scaling: RotaryScaling | None, refusal: InputError
) -> None:
    """Refuse a file whose frequencies are not divided as a scaling divides them.

    Args:
        file: its head.
        dims: how many coordinates are rotated.
        base: ``rope_theta``.
        scaling: of the model; a linear one stands in the file's settings, not in its tensor.
        refusal: raised where they are not.

    Raises:
        InputError: ``refusal``.
    """
    if STRETCHED not in file.tensors:
        if scaling is not None and scaling.kind == "llama3":
            raise refusal
        return
    factors = file.decoded(STRETCHED)
    kept = scaling if scaling is not None and scaling.kind == "llama3" else None
    wanted = np.asarray(frequencies(dims, base) / frequencies(dims, base, kept))
    if factors.shape != wanted.shape or not np.allclose(factors, wanted, rtol=10 * CLOSE, atol=0):
        raise refusal


def _near_whole(value: float) -> float:
    """A number that rounding to f32 has moved off a whole one, back on it."""
    whole = float(round(value))
    return whole if abs(value - whole) <= 1e-3 * value else float(value)
