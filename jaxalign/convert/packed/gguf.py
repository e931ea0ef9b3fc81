"""GGUF files of GPT-NeoX models, whose blocks the ``gguf`` package decodes.

Names are llama.cpp's; ``attn_qkv`` has all queries, then all keys, then all values, where the
published tensor has each head's three together. A tensor's dimensions are stored fastest first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.convert.checkpoint import StateDict
from jaxalign.convert.table import load_params
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params

ARCHITECTURE = "gptneox"
GLOBAL = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
REMEDY = "convert and quantize the original again"
TOKENS = "tokenizer.ggml.tokens"


def load_gguf(path: Path, config: ModelConfig, dtype: Any) -> tuple[Params, str, dict[str, str]]:
    """The parameters of a file in ``dtype``, a title, and the block type of each kind of matrix.

    Raises:
        InputError: the ``gguf`` package is missing, the file is damaged, of another architecture,
            or disagrees with ``config``.
    """
    reader = open_gguf(path)
    _check_architecture(path, reader, config)
    tensors = {}
    for tensor in reader.tensors:
        published = _published(tensor.name)
        if published is None or published in tensors:
            raise InputError(f"{path}: tensor {tensor.name!r} is not known", REMEDY)
        tensors[published] = tensor
    params = load_params(StateDict(_Decoded(tensors, config), str(path)), config, dtype)
    types: dict[str, Counter[str]] = {}
    for tensor in tensors.values():
        if len(tensor.shape) == 2:
            kind = re.sub(r"blk\.\d+\.", "", tensor.name)
            types.setdefault(kind, Counter())[tensor.tensor_type.name] += 1
    blocks = sum((count for kind, count in types.items() if kind not in _EMBEDDINGS), Counter())
    title = f"GGUF, mostly {blocks.most_common(1)[0][0]}"
    return params, title, {kind: " and ".join(sorted(count)) for kind, count in types.items()}


_EMBEDDINGS = ("token_embd.weight", "output.weight")


def open_gguf(path: Path) -> Any:
    """A ``gguf.GGUFReader`` of the file.

    Raises:
        InputError: the package is not installed, or the file is missing or damaged.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"{path} is a GGUF file, which needs the gguf package",
            "install it: pip install 'jaxalign[gguf]'",
        ) from error
    if not path.is_file():
        raise InputError(f"--quantized {path}: there is no such file", "check the path")
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader raises whatever its first wrong offset leads to
        raise InputError(
            f"{path} is damaged or no GGUF file ({type(error).__name__}: {error})",
            "download it again",
        ) from error


def tokens_of(path: Path) -> list[str] | None:
    """The vocabulary of a file in the order of the token numbers; None where it has none."""
    field = open_gguf(path).get_field(TOKENS)
    return None if field is None else list(field.contents())


@dataclass(frozen=True)
class _Decoded(Mapping[str, Any]):
    """Tensors under their published names, decoded when they are asked for."""

    tensors: Mapping[str, Any]
    config: ModelConfig

    def __getitem__(self, name: str) -> np.ndarray:
        import gguf

        tensor = self.tensors[name]
        try:
            decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which the gguf "
                "package does not decode",
                "update the package, or quantize to another type",
            ) from error
        decoded = decoded.astype(np.float32).reshape(tuple(int(n) for n in tensor.shape[::-1]))
        if "query_key_value" not in name or decoded.shape[0] % (3 * self.config.num_heads):
            return decoded  # a shape that does not fit is the table's to refuse
        heads = decoded.reshape(3, self.config.num_heads, -1, *decoded.shape[1:])
        return heads.swapaxes(0, 1).reshape(decoded.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def _published(name: str) -> str | None:
    """A tensor's name in the original."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    layer, part, kind = found.group("layer", "part", "kind")
    if layer is None:
        return f"{GLOBAL[part]}.{kind}" if part in GLOBAL else None
    return f"gpt_neox.layers.{int(layer)}.{IN_BLOCK[part]}.{kind}" if part in IN_BLOCK else None


def _check_architecture(path: Path, reader: Any, config: ModelConfig) -> None:
    found = _value(reader, "general.architecture")
    if found != ARCHITECTURE:
        raise InputError(
            f"{path} is of the architecture {found!r}, expected {ARCHITECTURE!r}",
            "GGUF is read for GPT-NeoX models only",
        )
    expected = {
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "rope.dimension_count": config.rotary_dims,
        "use_parallel_residual": config.parallel_residual,
        "context_length": config.max_positions,
        "attention.layer_norm_epsilon": float(np.float32(config.norm_eps)),
    }
    for key, value in expected.items():
        said = _value(reader, f"{ARCHITECTURE}.{key}")
        if said is not None and said != value:
            raise InputError(
                f"{path} says {key} {said}, but the original has {value}",
                "give the original that this file was made from to --model",
            )


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
