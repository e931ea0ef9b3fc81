"""Architecture as data, read from a published ``config.json``; what is not handled is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import InputError

# Settings that do not reach the forward pass of a trained model: bookkeeping, token numbers,
# initialisation, dropout (off outside training), and how transformers returns its results.
NEUTRAL = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)

ACTIVATIONS = (
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_fast",
    "quick_gelu",
    "relu",
    "silu",
)


@dataclass(frozen=True)
class ModelConfig:
    """A GPT-NeoX decoder (Black et al. 2022, arXiv 2204.06745; Pythia: arXiv 2304.01373).

    Attributes:
        vocab_size: ``V``.
        num_layers: ``L``.
        num_heads: ``H``.
        hidden_size: ``D``, the width of the residual stream.
        intermediate_size: ``F``, the width of the MLP.
        max_positions: longest sequence the model was trained on.
        rotary_dims: how many of a head's ``h`` coordinates are rotated (even).
        rotary_base: base of the rotary frequencies.
        parallel_residual: attention and MLP both read the block's input and are added together.
        tied_embeddings: the unembedding is the embedding.
        attention_bias: whether the attention projections have biases.
        activation: the MLP's nonlinearity, by its Hugging Face name.
        norm_eps: epsilon of the layer norms.
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
    activation: str = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "num_layers", "num_heads", "hidden_size", "intermediate_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}", "give a positive number")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_heads}",
                "correct config.json",
            )
        if self.rotary_dims % 2 or not 0 <= self.rotary_dims <= self.head_size:
            raise InputError(
                f"rotary embeddings turn {self.rotary_dims} of {self.head_size} coordinates, "
                "expected an even number within the head",
                "correct rotary_pct in config.json",
            )
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"hidden_act {self.activation!r} is not implemented",
                f"use a model with one of {', '.join(ACTIVATIONS)}",
            )

    @property
    def head_size(self) -> int:
        """``h = D / H``."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_hf(cls, settings: Mapping[str, Any]) -> ModelConfig:
        """Read the settings of a Hugging Face ``config.json``, old and new spellings.

        Raises:
            InputError: another architecture, a missing setting, or one that may change the
                computation and is not known here, named.
        """
        left = {k: v for k, v in settings.items() if k not in NEUTRAL and v is not None}
        if settings.get("model_type", "gpt_neox") != "gpt_neox":
            raise InputError(
                f"config.json is of a {settings['model_type']!r} model, expected 'gpt_neox'",
                "use a GPT-NeoX checkpoint such as one of the Pythia family",
            )

        def need(name: str) -> Any:
            if name not in left:
                raise InputError(f"config.json lacks {name!r}", "use a complete config.json")
            return left.pop(name)

        hidden, heads = int(need("hidden_size")), int(need("num_attention_heads"))
        fraction, base = _rotary(left)
        config = cls(
            vocab_size=int(need("vocab_size")),
            num_layers=int(need("num_hidden_layers")),
            num_heads=heads,
            hidden_size=hidden,
            intermediate_size=int(need("intermediate_size")),
            max_positions=int(left.pop("max_position_embeddings", 2048)),
            rotary_dims=int(hidden // max(heads, 1) * fraction),
            rotary_base=base,
            parallel_residual=bool(left.pop("use_parallel_residual", True)),
            tied_embeddings=bool(left.pop("tie_word_embeddings", False)),
            attention_bias=bool(left.pop("attention_bias", True)),
            activation=str(left.pop("hidden_act", "gelu")),
            norm_eps=float(left.pop("layer_norm_eps", 1e-5)),
        )
        if left:
            raise InputError(
                f"config.json has settings that are not known: {', '.join(sorted(left))}",
                "they may change what the model computes; remove them only if they do not",
            )
        return config

    def to_hf(self) -> dict[str, Any]:
        """The settings as a Hugging Face ``config.json`` (the widely read, old spelling)."""
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "vocab_size": self.vocab_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "rotary_pct": self.rotary_dims / self.head_size,
            "rotary_emb_base": self.rotary_base,
            "use_parallel_residual": self.parallel_residual,
            "tie_word_embeddings": self.tied_embeddings,
            "attention_bias": self.attention_bias,
            "hidden_act": self.activation,
            "layer_norm_eps": self.norm_eps,
        }


def _rotary(left: dict[str, Any]) -> tuple[float, float]:
    """Take the rotary fraction and base out of ``left``, from whichever spelling holds them."""
    new = left.pop("rope_parameters", None) or {}
    scaling = left.pop("rope_scaling", None) or {}
    for name, given in (("rope_parameters", new), ("rope_scaling", scaling)):
        kind = given.get("rope_type", given.get("type", "default"))
        unknown = set(given) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if kind != "default" or unknown:
            raise InputError(
                f"{name} asks for rotary scaling ({kind}{''.join(f', {u}' for u in unknown)})",
                "use a model with plain rotary embeddings; scaling is not implemented",
            )
    old_base = left.pop("rotary_emb_base", left.pop("rope_theta", 10000.0))
    old_fraction = left.pop("rotary_pct", left.pop("partial_rotary_factor", 0.25))
    left.pop("rope_theta", None), left.pop("partial_rotary_factor", None)
    fraction = new.get("partial_rotary_factor", old_fraction)
    return float(fraction), float(new.get("rope_theta", old_base))
