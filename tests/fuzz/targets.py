"""What is damaged, and the reader that must cope: one target a kind of file."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
from family_checkpoints import ONE_EACH, SIZES, VARIANTS, spelled
from llama_gguf import random_tensors, write_llama
from packed_files import (
    write_awq,
    write_bnb,
    write_ct,
    write_fp8,
    write_gguf,
    write_gptq,
    write_int8,
)
from pythia_shape import tiny_config
from synthetic_result import make_result
from tiny_run import write_model, write_prompts

import jaxalign
from fuzz.mutations import (
    Rng,
    damage_bytes,
    damage_gguf,
    damage_json,
    damage_safetensors,
    damage_text,
)
from jaxalign.calibration import read_texts
from jaxalign.checkpoints import Model
from jaxalign.checkpoints.families import config_to_hf, read_settings
from jaxalign.checkpoints.load import read_json
from jaxalign.checkpoints.quantized import load_beside
from jaxalign.model.params import param_shapes
from jaxalign.prompts import read_documents, read_prompts, tokenize
from jaxalign.runtime.resume import Resume
from jaxalign.studies.heads import HEADS
from jaxalign.studies.plan import PLAN
from jaxalign.studies.schemes import SCHEMES

Damage = Callable[[Rng, bytes], bytes]
DEMO_RESULTS = Path(__file__).parent.parent.parent / "results" / "demo"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of file.

    Attributes:
        write: fills an empty folder with honest files.
        damages: how a file is damaged, by its place in the folder, a pattern of ``Path.glob``.
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
    write_model(folder, hidden_size=16, intermediate_size=32, shards=2)


def _prompts(folder: Path) -> None:
    write_prompts(folder / "prompts.json")


@functools.cache
def _demo() -> Model:
    return jaxalign.load("demo")


def _read_prompts(folder: Path) -> Any:
    prompts = read_prompts(folder / "prompts.json")
    tokenized, reference, _ = tokenize(prompts, _demo().tokenizer, _demo().config)
    for tokens in (*(prompt.tokens for prompt in tokenized), *reference):
        assert max(tokens) < _demo().config.vocab_size, "a token outside the vocabulary was read"
    return tokenized


def _architectures(folder: Path) -> None:
    (folder / "neox.json").write_text(json.dumps(tiny_config()), encoding="utf-8")
    for variant in ONE_EACH:
        family, settings = VARIANTS[variant]
        content = {"model_type": family, **spelled(family, SIZES | settings)}
        (folder / f"{family}.json").write_text(json.dumps(content), encoding="utf-8")


def _read_architectures(folder: Path) -> Any:
    """An architecture that is read is written, and read again as the same one."""
    for path in sorted(folder.glob("*.json")):
        config, _ = read_settings(read_json(path))
        again, _ = read_settings(json.loads(json.dumps(config_to_hf(config))))
        assert again == config, f"{config} was read and written, and {again} was read"
        assert jax.tree.leaves(param_shapes(config))


def _texts(folder: Path) -> None:
    (folder / "texts.txt").write_text("The day was long\nIt was a good day\n", encoding="utf-8")


def _documents(folder: Path) -> None:
    lines = ('{"text": "The day was long"}\n', '{"text": "It was a good day"}\n')
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")


VALUES = {"first": np.arange(6.0), "second": np.full((2, 3), 7, np.int32)}
FACTS = {"seed": 0, "weights": "abc", "prompts": [1, 2, 3]}


def _resume(folder: Path) -> None:
    resume = Resume(folder / "kept", FACTS)
    for name, value in VALUES.items():
        resume.keep((name, 0), lambda value=value: value)
    resume.close()


def _read_resume(folder: Path) -> Any:
    """A damaged chunk is computed again: what is kept is never another value."""
    resume = Resume(folder / "kept", FACTS)
    for name, value in VALUES.items():
        found = resume.keep((name, 0), lambda value=value: value)
        np.testing.assert_array_equal(found, value)
        assert np.asarray(found).dtype == value.dtype
    resume.close()
    return VALUES


def _results(folder: Path) -> None:
    small = make_result(num_layers=2, num_heads=2, prompts_per_task=1, tasks=("IOI",))
    HEADS.write(small, folder / "heads.json")
    for name in ("schemes.json", "plan.json"):
        shutil.copy(DEMO_RESULTS / name, folder)


def _read_results(folder: Path) -> Any:
    """What is read can be printed."""
    for study in (HEADS, SCHEMES, PLAN):
        assert study.table(jaxalign.read(folder / f"{study.name}.json"))


@functools.cache
def _original() -> Model:
    """The model that is quantized: written and read once, since it is never damaged."""
    folder = Path(tempfile.mkdtemp(prefix="jaxalign-fuzz-"))
    atexit.register(shutil.rmtree, folder)
    write_model(folder, hidden_size=64, intermediate_size=128, dtype="float32")
    return jaxalign.load(folder)


def _read_beside(path: Path) -> Any:
    found = load_beside(path, _original())
    for leaf in jax.tree.leaves(found.params):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            assert np.isfinite(np.asarray(leaf, np.float32)).all(), "not finite, but read"
    return found


def _gguf(folder: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    write_gguf(folder / "quantized.gguf", _original().source.folder, kind)


def _gguf_model(folder: Path) -> None:
    write_llama(folder / "model.gguf", random_tensors(), "Q8_0")


WRITERS: dict[str, Callable[..., Any]] = {
    "gptq": write_gptq,
    "awq": write_awq,
    "bitsandbytes": write_bnb,
    "int8": write_int8,
    "fp8": write_fp8,
    "compressed-tensors": write_ct,
}


def _folder_of(write: Callable[..., Any]) -> Target:
    """A folder that a tool quantized."""
    return Target(
        write=lambda folder: write(folder, _original().source.folder),
        damages={"config.json": damage_json, "model.safetensors": damage_safetensors},
        read=_read_beside,
    )


TARGETS: dict[str, Target] = {
    "prompts": Target(write=_prompts, damages={"prompts.json": damage_json}, read=_read_prompts),
    "texts": Target(
        write=_texts,
        damages={"texts.txt": damage_text},
        read=lambda folder: read_texts(folder / "texts.txt"),
    ),
    "documents": Target(
        write=_documents,
        damages={"texts.jsonl": damage_text},
        read=lambda folder: read_documents(folder / "texts.jsonl"),
    ),
    "resume": Target(
        write=_resume,
        damages={"kept/*/facts.json": damage_json, "kept/*/*.npz": damage_bytes},
        read=_read_resume,
    ),
    "safetensors": Target(
        write=_model, damages={"model.safetensors": damage_safetensors}, read=_read_model
    ),
    "config": Target(write=_model, damages={"config.json": damage_json}, read=_read_model),
    "families": Target(
        write=_architectures, damages={"*.json": damage_json}, read=_read_architectures
    ),
    "index": Target(
        write=_sharded,
        damages={"model.safetensors.index.json": damage_json},
        read=_read_model,
    ),
    "tokenizer": Target(write=_model, damages={"tokenizer.json": damage_json}, read=_read_model),
    "result": Target(write=_results, damages={"*.json": damage_json}, read=_read_results),
    "gguf": Target(
        write=_gguf,
        damages={"quantized.gguf": damage_gguf},
        read=lambda folder: _read_beside(folder / "quantized.gguf"),
    ),
    "gguf-model": Target(
        write=_gguf_model,
        damages={"model.gguf": damage_gguf},
        read=lambda folder: _read_model(folder / "model.gguf"),
    ),
    **{name: _folder_of(write) for name, write in WRITERS.items()},
}
