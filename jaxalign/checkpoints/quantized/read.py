"""A quantized checkpoint as parameters whose matrices stay packed."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.checkpoints.families import FAMILIES
from jaxalign.checkpoints.files import SINGLE, Checkpoint, open_checkpoint
from jaxalign.checkpoints.load import read_json
from jaxalign.checkpoints.parameters import leaf_shapes
from jaxalign.checkpoints.quantized.autoawq import AutoAWQ
from jaxalign.checkpoints.quantized.bitsandbytes import BitsAndBytes
from jaxalign.checkpoints.quantized.compressed_tensors import CompressedTensors
from jaxalign.checkpoints.quantized.fine_grained_fp8 import FineGrainedFP8
from jaxalign.checkpoints.quantized.gptq import GPTQ
from jaxalign.checkpoints.quantized.settings import Format, shown, text
from jaxalign.checkpoints.quantized.stack import Leaf, Piece, leaf, params_of
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.checkpoints.tables import Table, TensorRule
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, param_shapes
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import Scheme

FORMATS: dict[str, Any] = {
    "awq": AutoAWQ,
    "gptq": GPTQ,
    "bitsandbytes": BitsAndBytes,
    "compressed-tensors": CompressedTensors,
    "fp8": FineGrainedFP8,
}
SCHEME_NAME = "quantized"
# Files of settings that older tools wrote, and the format that they are of.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A checkpoint that another tool quantized.

    Attributes:
        params: matrices that came quantized are ``QTensor``s, the rest is in ``scheme``'s dtype.
        scheme: what runs them; ``params`` stand where ``cast(original, scheme)`` would.
        title: format, bits and groups, for people.
        matrices: how each parameter of linear layers is stored, by its dotted name.
        inputs: how the tool rounds a layer's input when it runs, of ``scheme.INPUTS``; None where
            it does not, "other" where in a way that this package does not compute.
        rescaled: whether the tool may have moved scales between weights, norms and activations.
        disk_bytes: of the weight files.
        weights_sha256: hash of the weight files.
        notes: what a reader of a result has to know.
    """

    params: Params
    scheme: Scheme
    title: str
    matrices: dict[str, str]
    inputs: str | None
    rescaled: bool
    disk_bytes: int
    weights_sha256: str
    notes: tuple[str, ...]


def load_quantized(
    path: Path | str,
    config: ModelConfig,
    compute_dtype: str = "float32",
    deployed_inputs: bool = False,
) -> Quantized:
    """Read a folder of AutoAWQ, GPTQ, bitsandbytes, compressed-tensors or FP8, or a ``.gguf`` file.

    Weights stay packed as they are on disk, but for GGUF's block types that ``gguf_blocks`` lacks.
    Layers that the tool left in floating point stay so. Layers stand in one array for all of a
    kind, so a kind that is quantized in some layers only, or not alike in all, is unpacked to
    ``compute_dtype`` with the values it was quantized to, which ``notes`` says.

    Args:
        path: what the tool wrote.
        config: the architecture of the original.
        compute_dtype: of activations and of what is not packed.
        deployed_inputs: round the inputs of linear layers as the tool does when it runs, too. By
            default activations are not rounded: what is audited are the weights.

    Raises:
        InputError: a format that is not read here, or a file that is not what it says, named.

    Example:
        >>> quantized = load_quantized("pythia-70m-awq", config)
        >>> quantized.title
        'AWQ (gemm), 4 bits, groups of 128'
    """
    path = existing(path)
    if path.is_file():
        from jaxalign.checkpoints.quantized.gguf import load_gguf

        found = load_gguf(path, config, jnp.dtype(compute_dtype))
        scheme = _scheme(found.leaves, compute_dtype, None)
        return Quantized(
            params=params_of(found.leaves, param_shapes(config)),
            scheme=replace(scheme, matrix_bits=found.matrix_bits),
            title=found.title,
            matrices=found.types,
            inputs=None,
            rescaled=False,
            disk_bytes=found.file.state[2],
            weights_sha256=found.file.sha256(),
            notes=(*_notes(found.leaves), *found.notes),
        )
    form = format_of(path)
    if _table(config).inputs_first:
        raise InputError(
            f"{path} is a quantized {FAMILIES[config.family].title}, whose linear layers are "
            "published [in, out]; quantized checkpoints are read [out, in]",
            "quantize the original here, by one of the schemes",
        )
    tensors = Tensors(_weights(path))
    leaves = _leaves(tensors, form, config, jnp.dtype(compute_dtype))
    _check_left_over(tensors, config)
    notes = _notes(leaves)
    params = params_of(leaves, param_shapes(config))
    if deployed_inputs and form.inputs is not None:
        params = _with_inputs(params, form)
    elif form.inputs is not None:
        notes.append(
            f"the checkpoint's tool rounds the inputs of linear layers, too ({form.inputs}); here "
            "they are not rounded, so that what is compared are the weights"
        )
    return Quantized(
        params=params,
        scheme=_scheme(leaves, compute_dtype, form.inputs if deployed_inputs else None),
        title=form.title,
        matrices={name: _stored(one.value) for name, one in leaves.items() if any(one.quantized)},
        inputs=form.inputs,
        rescaled=form.rescales,
        disk_bytes=tensors.checkpoint.size,
        weights_sha256=tensors.checkpoint.sha256(),
        notes=tuple(notes),
    )


def existing(path: Path | str) -> Path:
    """The path of a folder or of a ``.gguf`` file, with ``~`` expanded.

    Raises:
        InputError: there is neither, or it may not be looked at.
    """
    path = Path(os.path.expanduser(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise InputError(
            f"--quantized {path}: there is no such folder or .gguf file", "check the path"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        why = getattr(error, "strerror", None) or error
        raise InputError(f"--quantized {path} cannot be read ({why})", "check the path") from error
    if not stat.S_ISDIR(mode) and not (stat.S_ISREG(mode) and path.suffix == ".gguf"):
        raise InputError(
            f"--quantized {path} is neither a folder nor a .gguf file",
            "give the folder that the quantizing tool wrote, or a .gguf file",
        )
    return path


def format_of(folder: Path) -> Format:
    """The format that a folder's ``config.json`` names.

    Raises:
        InputError: it is not quantized, or in a format that is not read here.
    """
    settings = _settings(existing(folder))
    method = text(settings, "quant_method")
    if method not in FORMATS:
        raise InputError(
            f"{folder} is quantized by {shown(method)}, expected one of {', '.join(FORMATS)} or a "
            ".gguf file",
            "quantize the model in one of these formats",
        )
    return FORMATS[method].of(settings)


def _settings(folder: Path) -> Mapping[str, Any]:
    """The quantization settings of a folder.

    AutoGPTQ and AutoAWQ wrote them beside ``config.json`` before transformers knew these formats.
    """
    settings = read_json(folder / "config.json").get("quantization_config")
    beside = [name for name in BESIDE if (folder / name).is_file()]
    if settings is None and beside:
        return {"quant_method": BESIDE[beside[0]]} | read_json(folder / beside[0])
    if not isinstance(settings, Mapping):
        raise InputError(
            f"{folder / 'config.json'} has no quantization_config, so nothing in it is quantized",
            "give a quantized checkpoint to --quantized, and the original to --model",
        )
    return settings


def _weights(folder: Path) -> Checkpoint:
    """The tensors of a folder.

    They stand in the file that AutoGPTQ's ``model_file_base_name`` names, in transformers'
    ``model.safetensors``, or in the only safetensors file of the folder.
    """
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    named = f"{text(_settings(folder), 'model_file_base_name') or 'model'}.safetensors"
    indexed = [path.name.removesuffix(".index.json") for path in folder.glob("*.index.json")]
    if named in (*there, *indexed):
        return open_checkpoint(folder, single=named)
    alone = len(there) == 1 and SINGLE not in indexed
    return open_checkpoint(folder, single=there[0] if alone else SINGLE)


def _table(config: ModelConfig) -> Table:
    """The conversion table of the model's family."""
    return FAMILIES[config.family].table


def _leaves(tensors: Tensors, form: Format, config: ModelConfig, dtype: Any) -> dict[str, Leaf]:
    shapes = leaf_shapes(config)
    rules = _table(config).rules_for(shapes)
    read = functools.partial(_read, tensors, form, config, shapes)
    return {name: leaf(name, shapes[name], rules, config, read, dtype) for name in shapes}


def _read(
    tensors: Tensors,
    form: Format,
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    rule: TensorRule,
    name: str,
) -> Piece:
    """One published tensor, quantized or not, of the shape that the table expects."""
    shape = rule.shape(shapes, config)
    # Tools that save a model from memory write the names that it has there.
    if name not in tensors:
        name = next((other for other in _table(config).others(name) if other in tensors), name)
    base = name.removesuffix(".weight")
    if len(shape) == 2 and base != name:
        outputs, inputs = shape
        if (layer := form.read(tensors, base, (outputs, inputs))) is not None:
            return layer
    return tensors.floats(name, shape)


def _check_left_over(tensors: Tensors, config: ModelConfig) -> None:
    """Every tensor was used, but for buffers and biases of zeros that some tools add."""
    table = _table(config)
    for name in sorted(set(tensors.checkpoint.files) - tensors.used):
        if table.buffers.fullmatch(name) or (
            config.tied_embeddings and table.usual(name) == table.unembed
        ):
            continue
        if name.endswith(".bias") and not tensors.checkpoint.read(name).any():
            continue
        raise tensors.wrong(name, "is not known, or belongs to no layer that is quantized")


def _notes(leaves: Mapping[str, Leaf]) -> list[str]:
    notes = []
    for name, one in leaves.items():
        if not one.mixed:
            continue
        count, layers = sum(one.quantized), len(one.quantized)
        if not name.startswith("blocks."):
            how = "is quantized"
        elif count < layers:
            how = f"is quantized in {count} of {layers} layers"
        else:
            how = "is not quantized alike in all layers and parts"
        notes.append(f"{name} {how}: unpacked, with the values it was quantized to")
    return notes


def _stored(value: Any) -> str:
    """How a parameter is kept, in a word."""
    if not isinstance(value, QTensor):
        return str(value.dtype)
    form, groups = value.format, value.scale.shape[value.axis]
    suffix = f"-g{form.group}" if groups > 1 else "-channel"
    suffix = f", blocks of {form.block} × {form.group}" if form.block else suffix
    suffix += "" if form.scales == "float" else f", {form.scales} scales"
    return form.codes + suffix + ("" if value.zero is None else ", zero points")


def _scheme(leaves: Mapping[str, Leaf], compute_dtype: str, inputs: str | None) -> Scheme:
    packed = [one.value.format for one in leaves.values() if isinstance(one.value, QTensor)]
    weights = packed[0] if packed else None
    return Scheme(SCHEME_NAME, compute_dtype, weights=weights, inputs=inputs)


def _with_inputs(params: Params, form: Format) -> Params:
    if form.inputs == "other":
        raise InputError(
            f"{form.title}: its inputs are rounded in a way that is not computed here",
            "audit its weights alone",
        )

    def leaf(value: Any) -> Any:
        return replace(value, inputs=form.inputs) if isinstance(value, QTensor) else value

    return jax.tree.map(leaf, params, is_leaf=lambda x: isinstance(x, QTensor))
