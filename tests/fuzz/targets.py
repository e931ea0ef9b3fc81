"""What is damaged, and the reader that must cope: one target a kind of file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxalign.convert.packed import load_beside
from jaxalign.journal import Journal
from packed_files import write_awq, write_gguf, write_gptq
from tiny_run import write_model, write_prompts

import jaxalign
from fuzz.mutations import (
    Rng,
    damage_bytes,
    damage_json,
    damage_safetensors,
    damage_text,
)
from jaxalign.calibration import read_texts
from jaxalign.prompts import read_prompts, tokenize

Damage = Callable[[Rng, bytes], bytes]
DEMO_RESULT = Path(__file__).parent.parent.parent / "results" / "demo" / "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of file.

    Attributes:
        write: fills an empty folder with honest files.
        damages: how each file that may be damaged is, by its name in the folder.
        read: reads the folder; returns what was read, or raises ``InputError``.
    """

    write: Callable[[Path], None]
    damages: Mapping[str, Damage]
    read: Callable[[Path], Any]


def _model(folder: Path) -> None:
    write_model(folder, hidden_size=16, intermediate_size=32, max_position_embeddings=32)


def _read_model(folder: Path) -> Any:
    model = jaxalign.load(folder)
    for leaf in jax.tree.leaves(model.params):
        assert np.isfinite(np.asarray(leaf)).all(), "parameters that are not finite were read"
    for name, value in vars(model.config).items():
        assert not isinstance(value, float) or np.isfinite(value), f"{name} is {value}"
    tokens, _ = model.encode(["The capital of France is", "日本語 and \t more"])
    assert int(tokens.max()) < model.config.vocab_size, "a token outside the vocabulary was read"
    return model


def _sharded(folder: Path) -> None:
    write_model(folder, hidden_size=16, intermediate_size=32, shards=3)


def _prompts(folder: Path) -> None:
    write_prompts(folder / "prompts.json")


def _read_prompts(folder: Path) -> Any:
    model = jaxalign.load("demo")
    return tokenize(read_prompts(folder / "prompts.json"), model.tokenizer, model.config)


def _texts(folder: Path) -> None:
    (folder / "texts.txt").write_text("The day was long\nIt was a good day\n", encoding="utf-8")


VALUES = {"first": np.arange(6.0), "second": np.full((2, 3), 7, np.int32)}
FACTS = {"seed": 0, "weights": "abc", "prompts": [1, 2, 3]}


def _journal(folder: Path) -> None:
    journal = Journal(folder / "kept", FACTS, patience=0.0)
    for name, value in VALUES.items():
        journal.keep((name, 0), lambda value=value: value)


def _read_journal(folder: Path) -> Any:
    """A damaged chunk is computed again: what is kept is never another value."""
    journal = Journal(folder / "kept", FACTS, patience=0.0)
    for name, value in VALUES.items():
        found = journal.keep((name, 0), lambda value=value: value)
        np.testing.assert_array_equal(found, value)
        assert np.asarray(found).dtype == value.dtype
    return VALUES


def _result(folder: Path) -> None:
    content = json.loads(DEMO_RESULT.read_text(encoding="utf-8"))
    content["prompts"] = content["prompts"][:2]
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")


def _quantized(write: Callable[..., Any]) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        write_model(folder / "original", **SMALL)
        write(folder / "quantized", folder / "original")

    return fill


SMALL = {"hidden_size": 64, "intermediate_size": 128, "dtype": "float32"}


def _read_beside(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        found = load_beside(folder / name, jaxalign.load(folder / "original"))
        for leaf in jax.tree.leaves(found.params):
            if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
                assert np.isfinite(np.asarray(leaf, np.float32)).all(), "not finite, but read"
        return found

    return read


def _gguf(folder: Path) -> None:
    write_model(folder / "original", **SMALL)
    write_gguf(folder / "quantized.gguf", folder / "original")


TARGETS: dict[str, Target] = {
    "prompts": Target(write=_prompts, damages={"prompts.json": damage_json}, read=_read_prompts),
    "texts": Target(
        write=_texts,
        damages={"texts.txt": damage_text},
        read=lambda folder: read_texts(folder / "texts.txt"),
    ),
    "journal": Target(
        write=_journal,
        damages={"kept/facts.json": damage_json, "kept/first-0.npz": damage_bytes},
        read=_read_journal,
    ),
    "safetensors": Target(
        write=_model, damages={"model.safetensors": damage_safetensors}, read=_read_model
    ),
    "config": Target(write=_model, damages={"config.json": damage_json}, read=_read_model),
    "index": Target(
        write=_sharded,
        damages={"model.safetensors.index.json": damage_json},
        read=_read_model,
    ),
    "tokenizer": Target(write=_model, damages={"tokenizer.json": damage_json}, read=_read_model),
    "result": Target(
        write=_result,
        damages={"result.json": damage_json},
        read=lambda folder: jaxalign.results.read(folder / "result.json"),
    ),
    "gguf": Target(
        write=_gguf, damages={"quantized.gguf": damage_bytes}, read=_read_beside("quantized.gguf")
    ),
    "gptq": Target(
        write=_quantized(write_gptq),
        damages={
            "quantized/config.json": damage_json,
            "quantized/model.safetensors": damage_safetensors,
        },
        read=_read_beside("quantized"),
    ),
    "awq": Target(
        write=_quantized(write_awq),
        damages={
            "quantized/config.json": damage_json,
            "quantized/model.safetensors": damage_safetensors,
        },
        read=_read_beside("quantized"),
    ),
}
