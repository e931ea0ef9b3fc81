"""A tiny model, a few prompts, and the command run on them inside the test's own process.

Every study of the same shapes shares its compiled programs, so only the first one is slow.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pythia_shape import tiny_checkpoint
from safetensors.numpy import load_file, save_file

from jaxalign.commands.main import main

TOKENIZER = Path(__file__).parent.parent / "jaxalign" / "demo" / "model" / "tokenizer.json"
WEIGHTS = "model.safetensors"
SIZES = {"vocab_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPTS = {
    "factual": [
        {"prompt": "The capital of France is", "target": " Paris", "distractor": " Rome"},
        {"prompt": "The capital of Germany is", "target": " Berlin"},
        {"prompt": "The capital of Japan is", "target": " Tokyo"},
    ],
    "rivers": [
        {"prompt": "The capital of Egypt is", "target": " Cairo"},
        {"prompt": "The capital of Spain is", "target": " Madrid"},
    ],
    "reference": ["The day was long", "It was a good day"],
}


TIMES = ("timestamp", "total_seconds", "seconds")


def without_progress(err: str) -> str:
    """What a process said on stderr but for progress, which hangs on how busy the machine is."""
    return re.sub(r"^jaxalign: (?!error|note).*\n", "", err, flags=re.MULTILINE)


class Ran(NamedTuple):
    """What the command left on the terminal."""

    code: int
    out: str
    err: str


def write_model(folder: Path, **overrides: Any) -> Path:
    """A random 2-layer, 2-head checkpoint with the demo's tokenizer, f16 on disk."""
    settings = {"tokenizer": TOKENIZER, "dtype": "float16", **SIZES} | overrides
    return tiny_checkpoint(folder, **settings)


def edit_weights(folder: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """Write a checkpoint's tensors again after ``edit`` changed the dict of them."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **settings: Any) -> Path:
    """Write a checkpoint's config.json again with other settings."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def write_loud_model(folder: Path) -> Path:
    """The model with head L0H1's values a hundred thousand times as large: beyond f16, not f32."""

    def scale(tensors: dict[str, np.ndarray]) -> None:
        values = tensors["gpt_neox.layers.0.attention.query_key_value.weight"]
        values[48 + 32 : 96] *= np.float16(1e5**0.5)
        values[48 + 32 : 96] *= np.float16(1e5**0.5)

    return edit_weights(write_model(folder), scale)


def write_prompts(path: Path, content: Any = PROMPTS) -> Path:
    """A prompts file; a text is written as it is, anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run(*arguments: Any) -> Ran:
    """The command's exit code and output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def study(model: Path, prompts: Path, output: Path, *more: Any) -> Ran:
    """A small study on the CPU."""
    few = () if {"none", "--max-repair-k"} & {*map(str, more)} else ("--max-repair-k", 2)
    named = {"--schemes", "--quantized"} & {*map(str, more)}
    # Its width holds no group of 64.
    schemes = () if named else ("--schemes", "f16,int8-sim")
    small = ("--device", "cpu", *few, *schemes)
    return run("--model", model, "--prompts", prompts, "--output", output, *small, *more)


def without_times(path: Path) -> str:
    """A result file's content but for when it was made and how long it took."""
    content = json.loads(path.read_text())
    for name in TIMES:
        del content["provenance"][name]
    return json.dumps(content)


def refusal(*arguments: Any) -> str:
    """Run the command, which must refuse its input with one line on stderr; the line."""
    ran = run(*arguments)
    assert ran.code == 2
    assert ran.err.startswith("jaxalign: error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith(".\n")
    assert "Traceback" not in ran.out
    return ran.err
