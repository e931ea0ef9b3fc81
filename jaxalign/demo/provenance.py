"""``provenance.json``: where the bundled weights come from and how good they are."""

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.families import config_from_hf
from jaxalign.demo.entities import HELD_OUT_PAIRS
from jaxalign.demo.evaluate import correct_answers, unseen_loss
from jaxalign.demo.fact_documents import FACTS
from jaxalign.demo.ioi import held_out_prompts
from jaxalign.model import ModelConfig, Params
from jaxalign.runtime.files import read_json

FILE_NAME = "provenance.json"
PROMPTS = Path(__file__).parents[1] / "prompts" / "shipped.json"
FRESH_IOI = 1024


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped_prompts(task: str) -> list[tuple[str, str]]:
    """Return (prompt, target) of a task of the package's ``prompts/shipped.json``."""
    items = read_json(PROMPTS)[task]
    return [(item["prompt"], item["target"]) for item in items]


def evaluation(params: Params, config: ModelConfig, tokenizer: Tokenizer) -> dict[str, float]:
    """Return accuracies (top-1 over the whole vocabulary, bare prompts) and unseen loss.

    Args:
      params: the weights.
      config: of the model.
      tokenizer: of the model.
    """
    clozes = [cloze for fact in FACTS for cloze in fact.clozes()]
    fresh = [(item.prompt, item.target) for item in held_out_prompts(FRESH_IOI)]
    prompt_sets = {
        "accuracy on shipped factual prompts": shipped_prompts("factual"),
        "accuracy on shipped IOI prompts": shipped_prompts("ioi"),
        f"accuracy on {FRESH_IOI} fresh IOI prompts of held-out pairs": fresh,
        f"accuracy on all {len(clozes)} cloze sentences of the fact table": clozes,
    }
    scores = {
        name: round(float(correct_answers(params, config, tokenizer, prompts).mean()), 4)
        for name, prompts in prompt_sets.items()
    }
    nats, bits = unseen_loss(params, config, tokenizer)
    return scores | {
        "loss on unseen filler (nats per token)": round(nats, 4),
        "loss on unseen filler (bits per byte)": round(bits, 4),
    }


def record(
    params: Params,
    tokenizer: Tokenizer,
    settings: dict[str, Any],
    losses: np.ndarray,
    folder: Path,
    seconds: float,
) -> dict[str, Any]:
    """Return the record of a finished training run.

    Args:
      params: the f32 values of the weights as stored.
      tokenizer: of the model.
      settings: of the run.
      losses: of every step, ``[steps]``.
      folder: holds config.json and model.safetensors.
      seconds: wall-clock time of this invocation.
    """
    config = config_from_hf(read_json(folder / "config.json"))
    return {
        "command": "python -m jaxalign.demo.train "
        f"--steps {settings['steps']} --seed {settings['seed']}",
        "settings": settings,
        "tokens_seen": settings["steps"] * settings["rows"] * settings["context"],
        "final_loss": round(float(losses[-100:].mean()), 4),
        "final_loss_is": "mean over the last 100 steps, nats per token, weights before rounding",
        "held_out_name_pairs": len(HELD_OUT_PAIRS),
        "evaluation": evaluation(params, config, tokenizer),
        "largest_weight": round(_largest(params), 4),
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "flax", "optax", "tokenizers", "numpy")},
        },
        "machine": f"{platform.machine()}, {jax.default_backend()}",
        "sha256": {
            name: sha256_of(folder / name)
            for name in ("model.safetensors", "config.json", "tokenizer.json")
        },
    }


def _largest(params: Params) -> float:
    return max(float(np.abs(np.asarray(leaf)).max()) for leaf in jax.tree.leaves(params))


def write(record: dict[str, Any], folder: Path) -> None:
    """Write the record into the model's folder."""
    (folder / FILE_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
