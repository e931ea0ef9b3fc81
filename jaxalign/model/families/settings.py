"""A ``config.json`` while it is read: what is left of it is what nobody understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError
from jaxalign.model.rotary import RotaryScaling

if TYPE_CHECKING:  # config reads by the families
    from jaxalign.model.config import ModelConfig

# Settings that do not reach the forward pass of a trained model: bookkeeping, token numbers,
# initialisation, dropout (off outside training), and how transformers returns its results.
NEUTRAL = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "cache_implementation",
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
        "is_llama_config",
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

ROTARY = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        title: what people call it.
        read: from settings to the fields of ``ModelConfig``.
        write: from a configuration to the settings that ``read`` takes.
    """

    title: str
    read: Callable[[Settings], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


class Settings:
    """The settings of a ``config.json`` that may change what the model computes.

    Every reading takes its setting away; ``finish`` refuses what is left.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.left = {name: value for name, value in settings.items() if name not in NEUTRAL}

    def need(self, name: str) -> Any:
        """A setting that must be there.

        Raises:
            InputError: it is not; named.
        """
        value = self.left.pop(name, None)
        if value is None:
            raise InputError(f"config.json lacks {name!r}", "use a complete config.json")
        return value

    def take(self, name: str, default: Any) -> Any:
        """A setting, ``default`` where it is missing or null."""
        value = self.left.pop(name, None)
        return default if value is None else value

    def nullable(self, name: str, default: Any) -> Any:
        """A setting whose null says that the model lacks it; ``default`` where it is missing."""
        return self.left.pop(name, default)

    def only(self, name: str, *values: Any) -> None:
        """Take a setting away that the decoder can have in one way only.

        Raises:
            InputError: it has another value; names it.
        """
        value = self.left.pop(name, None)
        if value is not None and value not in values:
            raise InputError(
                f"config.json has {name} {value!r}, expected {' or '.join(map(repr, values))}",
                "use a model without it; it changes what the model computes",
            )

    def rotary(self) -> tuple[float, RotaryScaling | None]:
        """``rope_theta`` and scaling, in the spelling of transformers 5 or the one before.

        Raises:
            InputError: a kind of scaling, or a setting of one, that is not known; or both
                spellings at once.
        """
        given = {name: value for name in ROTARY if (value := self.take(name, {}))}
        if len(given) > 1:
            raise InputError(
                "config.json has both rope_parameters and rope_scaling", "keep one of the two"
            )
        [(name, found)] = given.items() or [("rope_parameters", {})]
        rope = dict(found)
        base = float(rope.pop("rope_theta", self.take("rope_theta", 10000.0)))
        self.left.pop("rope_theta", None)
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        rope.pop("type", None)
        if rope.pop("partial_rotary_factor", 1.0) != 1.0:
            raise InputError(
                f"{name} asks for a partial_rotary_factor, which this family does not have",
                "correct config.json",
            )
        fields = {"linear": ("factor",), "llama3": tuple(LLAMA3)}.get(kind, ())
        if kind not in ("default", "linear", "llama3") or set(rope) != set(fields):
            raise InputError(
                f"{name} asks for rotary scaling ({', '.join([str(kind), *sorted(rope)])}), "
                "expected default, linear (factor) or llama3 (" + ", ".join(LLAMA3) + ")",
                "use a model with one of these",
            )
        if kind == "default":
            return base, None
        values = {LLAMA3[field]: float(rope[field]) for field in fields}
        if kind == "llama3":
            values["original_positions"] = int(values["original_positions"])
        return base, RotaryScaling(kind, **values)  # type: ignore[arg-type]

    def windows(self, layers: int, size: int | None) -> tuple[int | None, ...] | None:
        """Each layer's window from ``layer_types``; None where ``layer_types`` is not given.

        Raises:
            InputError: not one known type a layer, or windows without a size.
        """
        kinds = self.take("layer_types", None)
        if kinds is None:
            return None
        known = ("full_attention", "sliding_attention")
        if len(kinds) != layers or not set(kinds) <= set(known):
            raise InputError(
                f"config.json has layer_types {list(kinds)}, expected one of "
                f"{' and '.join(known)} for each of {layers} layers",
                "use the config.json that belongs to these weights",
            )
        if known[1] in kinds and size is None:
            raise InputError(
                "config.json has sliding_attention layers, but no sliding_window",
                "use a complete config.json",
            )
        return tuple(size if kind == known[1] else None for kind in kinds)

    def finish(self) -> None:
        """Raise ``InputError`` where a setting is left that may change the computation."""
        left = sorted(name for name, value in self.left.items() if value is not None)
        if left:
            raise InputError(
                f"config.json has settings that are not known: {', '.join(left)}",
                "they may change what the model computes; remove them only if they do not",
            )


LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "original_positions",
}


def rotary_settings(config: ModelConfig) -> dict[str, Any]:
    """The rotary settings in the spelling that old and new versions of transformers read."""
    scaling = config.rotary_scaling
    settings: dict[str, Any] = {"rope_theta": config.rotary_base}
    if scaling is not None:
        fields = LLAMA3 if scaling.kind == "llama3" else {"factor": "factor"}
        stretched = {name: getattr(scaling, field) for name, field in fields.items()}
        settings["rope_scaling"] = {"rope_type": scaling.kind, **stretched}
    return settings


def layer_types(config: ModelConfig) -> list[str]:
    """Each layer's kind of attention, by its published name."""
    windows = config.windows or (None,) * config.num_layers
    return ["full_attention" if w is None else "sliding_attention" for w in windows]


def sizes(settings: Settings) -> dict[str, Any]:
    """The fields that every family spells alike."""
    return {
        "vocab_size": int(settings.need("vocab_size")),
        "num_layers": int(settings.need("num_hidden_layers")),
        "num_heads": int(settings.need("num_attention_heads")),
        "hidden_size": int(settings.need("hidden_size")),
        "intermediate_size": int(settings.need("intermediate_size")),
    }
