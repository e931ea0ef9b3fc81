"""Architecture as data: what a decoder computes, whatever a family's files call it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from jaxalign.errors import InputError, shown
from jaxalign.model.rotary import RotaryScaling

Activation = Literal[
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_fast",
    "quick_gelu",
    "relu",
    "silu",
]
NormKind = Literal["layer", "nonparametric", "rms", "rms+0", "rms+1"]
ACTIVATIONS, NORMS = get_args(Activation), get_args(NormKind)
CENTRED = ("layer", "nonparametric")  # norms that take the mean away first
if not TYPE_CHECKING:
    # Another word is refused below, by an error that a user reads.
    Activation = NormKind = str
# Sizes are indices for JAX: 32-bit, with a sign.
MOST = 2**31 - 1


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of any family; the defaults are GPT-NeoX's.

    What follows from other fields by default (``num_kv_heads``, ``head_size``, ``out_bias``,
    ``query_scalar``) is filled in when a configuration is made: ``dataclasses.replace`` keeps those
    values, so name them, too, where the fields that they follow from change.

    Attributes:
        vocab_size: ``V``.
        num_layers: ``L``.
        num_heads: ``H``, query heads: those that studies edit.
        hidden_size: ``D``, the width of the residual stream.
        intermediate_size: ``F``, the width of the MLP.
        max_positions: longest sequence the model was trained on.
        learned_positions: a learned vector of each position is added to its embedding.
        rotary_dims: how many of a head's ``h`` coordinates are rotated (even).
        rotary_base: base of the rotary frequencies.
        local_rotary_base: that of layers with a window, which no ``rotary_scaling`` slows;
            ``rotary_base`` with its scaling by default.
        parallel_residual: attention and MLP both read the block's input and are added together.
        tied_embeddings: the unembedding is the embedding.
        attention_bias: whether queries, keys and values have biases.
        activation: the MLP's nonlinearity, by its Hugging Face name.
        norm_eps: epsilon of the norms.
        family: its name in ``checkpoints.families``, which says how files spell it.
        num_kv_heads: ``K``, heads of keys and values, each serving ``H / K`` query heads; ``H`` by
            default.
        head_size: ``h``, the width of a head; ``D / H`` by default.
        norm: "layer", "nonparametric" (a layer norm without scale and bias), "rms" (Zhang and
            Sennrich 2019, arXiv 1910.07467), or "rms+0" and "rms+1" (scaled by ``w`` and by
            ``1 + w`` before the result is rounded, not after).
        gated: the MLP multiplies its activation of one projection with another (Shazeer 2020,
            arXiv 2002.05202).
        mlp_bias: whether the MLP has biases.
        out_bias: whether ``W_O`` has one; as ``attention_bias`` by default.
        query_key_norms: queries and keys are normed before they are rotated, each head's alone.
        norms_over_heads: those norms are taken over all heads together.
        qkv_clip: queries, keys and values are kept within plus and minus this number.
        pre_norms: attention and MLP read the stream through a norm.
        post_norms: norms behind attention and MLP, before they are added to the stream.
        windows: of each layer, how many positions up to its own a query sees, None for all; empty
            where no layer has one.
        rotary_scaling: slower rotations for longer contexts.
        query_scalar: scores are divided by the root of this number; ``h`` by default.
        attention_cap: scores are ``c · tanh(score / c)``.
        logit_cap: so are logits.
        scaled_embedding: the stream begins with embeddings times ``sqrt(D)``.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int
    max_positions: int = 2048
    rotary_dims: int = 16
    rotary_base: float = 10000.0
    parallel_residual: bool = True
    tied_embeddings: bool = False
    attention_bias: bool = True
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    family: str = "gpt_neox"
    num_kv_heads: int = None  # type: ignore[assignment] # None until ``_fill`` has run
    head_size: int = None  # type: ignore[assignment]
    norm: NormKind = "layer"
    gated: bool = False
    mlp_bias: bool = True
    out_bias: bool = None  # type: ignore[assignment]
    query_key_norms: bool = False
    post_norms: bool = False
    windows: tuple[int | None, ...] = ()
    rotary_scaling: RotaryScaling | None = None
    query_scalar: float = None  # type: ignore[assignment]
    attention_cap: float | None = None
    logit_cap: float | None = None
    scaled_embedding: bool = False
    learned_positions: bool = False
    local_rotary_base: float | None = None
    norms_over_heads: bool = False
    qkv_clip: float | None = None
    pre_norms: bool = True

    def __post_init__(self) -> None:
        self._check_sizes("vocab_size", "num_layers", "num_heads", "hidden_size",
                          "intermediate_size", "max_positions")  # fmt: skip
        self._fill()
        self._check_sizes("num_kv_heads", "head_size")
        self._check_groups()
        if self.rotary_dims % 2 or not 0 <= self.rotary_dims <= self.head_size:
            raise InputError(
                f"rotary embeddings turn {self.rotary_dims} of {self.head_size} coordinates, "
                "expected an even number within the head",
                "correct rotary_pct in config.json",
            )
        for what, value, known in (
            ("hidden_act", self.activation, ACTIVATIONS),
            ("norm", self.norm, NORMS),
        ):
            if value not in known:
                raise InputError(
                    f"{what} {value!r} is not implemented",
                    f"use a model with one of {', '.join(known)}",
                )
        if self.windows and len(self.windows) != self.num_layers:
            raise InputError(
                f"there are {len(self.windows)} windows for {self.num_layers} layers",
                "give one for each layer, or none",
            )
        self._check_numbers()

    def _fill(self) -> None:
        """Put in the defaults that depend on other fields."""
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_heads}",
                "correct config.json",
            )
        self._default("num_kv_heads", self.num_heads)
        self._default("head_size", self.hidden_size // self.num_heads)
        self._default("out_bias", self.attention_bias)
        self._default("query_scalar", float(self.head_size))

    def _default(self, field: str, value: Any) -> None:
        if getattr(self, field) is None:
            object.__setattr__(self, field, value)  # the class is frozen

    def _check_numbers(self) -> None:
        numbers = (
            "rotary_base",
            "local_rotary_base",
            "query_scalar",
            "attention_cap",
            "logit_cap",
            "qkv_clip",
        )
        positive = [(name, getattr(self, name)) for name in numbers]
        positive += [("sliding_window", window) for window in self.windows]
        for name, number in positive:
            if number is not None and not 0 < number < math.inf:
                raise InputError(f"{name} is {number}", "give a positive, finite number")
        if not 0 <= self.norm_eps < math.inf:
            raise InputError(f"norm_eps is {self.norm_eps}", "give a finite number from 0 up")

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            size = getattr(self, name)
            if not 1 <= size <= MOST:
                raise InputError(
                    f"{name} is {shown(size)}", f"give a whole number from 1 to {MOST}"
                )

    def _check_groups(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"num_attention_heads {self.num_heads} is not a multiple of num_key_value_heads "
                f"{self.num_kv_heads}",
                "correct config.json",
            )

    @property
    def attention_width(self) -> int:
        """``H · h``, the width of all heads' ``z`` together."""
        return self.num_heads * self.head_size

    @property
    def bounded(self) -> bool:
        """Whether runs longer than ``max_positions`` are refused: their positions were not learned,
        or the model would rotate all of them in another way (longrope)."""
        scaling = self.rotary_scaling
        return self.learned_positions or (scaling is not None and scaling.kind == "longrope")

    @property
    def edge_size(self) -> int:
        """``D / H``, the width of one of edge-align's blocks of the projected output.

        Raises:
            InputError: the heads do not divide the stream.
        """
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"edge-align cuts the stream of {self.hidden_size} coordinates into "
                f"{self.num_heads} equal blocks, which is not possible",
                "use head mode true",
            )
        return self.hidden_size // self.num_heads
