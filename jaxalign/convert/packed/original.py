"""Does a quantized checkpoint belong to an original? Settings, vocabulary, and the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.convert.model import Model, config_from, read_json, read_tokenizer
from jaxalign.convert.packed.gguf import tokens_of
from jaxalign.convert.packed.read import Quantized, load_quantized
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor
from jaxalign.shapes import Float

# Four bits leave a relative error near 0.1, two bits near 0.4; codes in a wrong order leave 1.4.
ABSURD = 0.5
# Zero points that are off by one move every weight by a whole step, which is 90 % of the error;
# rounding to the nearest moves as many weights up as down.
VISIBLE, SHIFTED = 0.02, 0.7
REMEDY = "give the original that this checkpoint was made from to --model"


def load_beside(path: Path | str, original: Model, **options: Any) -> Quantized:
    """Load a quantized checkpoint that was made from ``original``, or say why it was not.

    Compared are the architecture, the tokenizer's vocabulary, and every matrix with the original's
    (``relative_errors``). A tokenizer that is missing is noted: the original's is used.

    Args:
        path: see ``load_quantized``.
        original: the model that was quantized.
        options: ``load_quantized``'s.

    Raises:
        InputError: they do not belong together, or the checkpoint cannot be used.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        check_settings(path, original.config)
    note = check_vocabularies(path, original)
    quantized = load_quantized(path, original.config, **options)
    errors = check_weights(path, quantized, original)
    worst = max(errors, key=lambda name: errors[name].max())
    layer = int(errors[worst].argmax())
    shown = (
        f"largest relative error of a matrix: {errors[worst][layer]:.3g} ({worst}, layer {layer})"
    )
    notes = (*quantized.notes, *([note] if note else []), shown)
    return dataclasses.replace(quantized, notes=notes)


def check_settings(folder: Path, config: ModelConfig) -> None:
    """Raise ``InputError`` unless the folder's architecture is the original's, naming a field."""
    settings = read_json(folder / "config.json")
    settings.pop("quantization_config", None)
    found = config_from(settings, folder / "config.json")
    for field in dataclasses.fields(ModelConfig):
        said, expected = getattr(found, field.name), getattr(config, field.name)
        if said != expected:
            raise InputError(
                f"{folder / 'config.json'} says {field.name} {said}, but the original has "
                f"{expected}",
                REMEDY,
            )


def check_vocabularies(path: Path, original: Model) -> str:
    """Compare the tokenizers' vocabularies; a note where the checkpoint brings none.

    Raises:
        InputError: a token has another number, or is in one of them only; named.
    """
    if path.suffix == ".gguf":
        tokens = tokens_of(path)
        found = None if tokens is None else {token: i for i, token in enumerate(tokens)}
    elif (path / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(path / "tokenizer.json")
        found = tokenizer.get_vocab(with_added_tokens=True)
    else:
        found = None
    if found is None:
        return "the quantized checkpoint brings no tokenizer: the original's is used"
    expected = original.tokenizer.get_vocab(with_added_tokens=True)
    # llama.cpp pads the vocabulary to the embedding's rows with tokens of its own.
    compared = found.keys() | expected.keys() if path.suffix != ".gguf" else expected.keys()
    for token in sorted(compared):
        if found.get(token) != expected.get(token):
            raise InputError(
                f"{path}: its tokenizer has {token!r} as {found.get(token, 'no token')}, the "
                f"original's as {expected.get(token, 'no token')}",
                REMEDY,
            )
    return ""


def check_weights(path: Path, quantized: Quantized, original: Model) -> dict[str, np.ndarray]:
    """Every matrix's relative error to the original's, by dotted name, a number a layer.

    ``‖found − wanted‖ / ‖wanted‖``. Tools that move scales between weights, norms and activations
    (AWQ, SmoothQuant) leave a matrix that is the original's but for a scale an input and an output;
    theirs are compared after the best such scales.

    Raises:
        InputError: an error is absurd, as from codes in a wrong order, or all of it is one shift,
            as from zero points that are off by one; the matrix is named.
    """
    errors = {}
    exact, found = _matrices(original.params), _matrices(quantized.params)
    for name, reference in exact.items():
        layers = range(len(reference)) if name.startswith("blocks.") else [None]
        of_layers = []
        for layer in layers:
            got, want = (
                x if layer is None else jax.tree.map(lambda leaf, i=layer: leaf[i], x)
                for x in (found[name], reference)
            )
            where = f"{path}: {name}" + ("" if layer is None else f" of layer {layer}")
            of_layers.append(_error(_as_multiplied(got), want, quantized.rescaled, where))
        errors[name] = np.array(of_layers)
    return errors


def _matrices(params: Any) -> dict[str, Any]:
    """Parameters of two and more axes a layer, by dotted name."""
    paths, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: isinstance(x, QTensor)
    )
    named: Mapping[str, Any] = {".".join(key.name for key in path): x for path, x in paths}
    return {
        name: x
        for name, x in named.items()
        if len(x.shape) >= (3 if name.startswith("blocks.") else 2) and "bias" not in name
    }


def _as_multiplied(w: Any) -> Any:
    """A matrix as an undivided input meets it."""
    matrix = dense(w, jnp.float32)
    if not isinstance(w, QTensor) or w.input_divisor is None:
        return matrix
    return matrix / w.input_divisor.reshape(-1, *[1] * w.outputs)


def _error(
    found: Float[Any, "A *out"], wanted: Float[Any, "A *out"], rescaled: bool, where: str
) -> float:
    """The relative error of one matrix, if it is one that rounding leaves."""
    got = np.asarray(found, np.float32).reshape(len(found), -1)
    want = np.asarray(wanted, np.float32).reshape(len(wanted), -1)
    if rescaled:
        inputs, outputs = best_scales(got, want)
        want = inputs[:, None] * want * outputs
    norm = float(np.linalg.norm(want))
    error = float(np.linalg.norm(got - want)) / (norm or 1.0)
    if not error <= ABSURD:
        raise InputError(
            f"{where} is off by {error:.2f} of its norm from the original's, expected less than "
            f"{ABSURD}",
            "its codes stand in another order than this format's, or it was made from another "
            "model",
        )
    shift = abs(float((got - want).mean())) * got.size**0.5 / (norm or 1.0)
    if error > VISIBLE and shift > SHIFTED * error:
        raise InputError(
            f"{where} is off by {error:.2f} of its norm from the original's, and "
            f"{shift / error:.0%} of that is one shift of all weights, which rounding does not "
            "leave",
            "its zero points are stored in another way; for GPTQ, correct checkpoint_format",
        )
    return error


def best_scales(
    found: np.ndarray, wanted: np.ndarray, rounds: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Scales ``s [A]``, ``t [out]`` so that ``s · wanted · t`` is near ``found`` in squares.

    Each in turn is the least-squares answer given the other.
    """
    outputs = np.ones(wanted.shape[1], np.float32)
    for _ in range(rounds):
        inputs = _ratio(found, wanted * outputs, 1)
        outputs = _ratio(found, wanted * inputs[:, None], 0)
    return inputs, outputs


def _ratio(found: np.ndarray, wanted: np.ndarray, axis: int) -> np.ndarray:
    square = (wanted * wanted).sum(axis=axis)
    return (found * wanted).sum(axis=axis) / np.where(square > 0, square, 1)
