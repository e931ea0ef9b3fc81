"""A plan as files that other tools read: which modules to leave unquantized."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jaxalign.checkpoints.linear_layers import output_modules
from jaxalign.model.config import ModelConfig
from jaxalign.numerics.scheme import Scheme, WeightFormat
from jaxalign.runtime.files import replace_file
from jaxalign.studies.plan.options import PlanOptions
from jaxalign.studies.plan.result import PlanResult
from jaxalign.study.session import Session

# A list given to these tools replaces their own, which spares the unembedding; so it stands in
# every recipe, under the names that versions of transformers gave it.
RECIPE_FILES = ("bitsandbytes.json", "awq.json", "llmcompressor.yaml")


def write_recipes(
    modules: Sequence[str], config: ModelConfig, scheme: Scheme, output: Path
) -> list[Path]:
    """Write the recipes beside ``output``, each whole or not at all.

    Args:
        modules: published names of the linear layers to keep.
        config: the architecture.
        scheme: of the others.
        output: ``plan.json`` gives ``plan.bitsandbytes.json`` and so on.

    Raises:
        InputError: a file cannot be written.
    """
    skipped = [*modules, *output_modules(config)]
    texts = (
        _json({"quantization_config": bitsandbytes(skipped, scheme)}),
        _json({"quantization_config": awq(skipped, scheme)}),
        llm_compressor(skipped, scheme),
    )
    paths = [output.with_name(f"{output.stem}.{kind}") for kind in RECIPE_FILES]
    for path, text in zip(paths, texts, strict=True):
        replace_file(path, text.encode())
    return paths


def recipes_beside(session: Session, result: PlanResult, output: Path) -> list[Path]:
    """Write the recipes of a plan beside its result.

    Args:
        session: of the study.
        result: with the plan.
        output: the result's file.

    Raises:
        InputError: a file cannot be written.
    """
    modules = [name for unit in result.plan.kept for name in unit.modules]
    scheme = cast(PlanOptions, session.options).scheme
    return write_recipes(modules, session.config, scheme, output)


def bitsandbytes(skipped: Sequence[str], scheme: Scheme) -> dict[str, Any]:
    """Settings of transformers' ``BitsAndBytesConfig``; ``llm_int8_skip_modules`` in any case."""
    form, settings = scheme.weights, {"llm_int8_skip_modules": list(skipped)}
    if form is None or form.codes not in ("nf4", "fp4"):
        return settings
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": form.codes,
        "bnb_4bit_use_double_quant": form.double,
        **settings,
    }


def awq(skipped: Sequence[str], scheme: Scheme) -> dict[str, Any]:
    """Settings of transformers' ``AwqConfig``; its list alone for schemes that are not AWQ."""
    form, settings = scheme.weights, {"modules_to_not_convert": list(skipped)}
    if form is None or scheme.method != "awq":
        return settings
    return {
        "quant_method": "awq",
        "bits": form.bits,
        "group_size": form.group or -1,
        "zero_point": form.zero,
        **settings,
    }


def llm_compressor(skipped: Sequence[str], scheme: Scheme) -> str:
    """A recipe with one ``QuantizationModifier`` whose ``ignore`` lists the modules."""
    lines = ["quant_stage:", "  quant_modifiers:", "    QuantizationModifier:"]
    lines += ["      ignore:", *(f"        - {json.dumps(name)}" for name in skipped)]
    form = scheme.weights
    if form is not None and (form.codes.startswith("int") or form.codes == "e2m1" or form.block):
        weights = _llm_compressor_weights(form)
        lines += ["      config_groups:", "        group_0:", '          targets: ["Linear"]']
        lines += ["          weights:"]
        lines += [f"            {name}: {json.dumps(value)}" for name, value in weights.items()]
    return "\n".join(lines) + "\n"


def _llm_compressor_weights(form: WeightFormat) -> dict[str, Any]:
    """The format in the words of compressed-tensors' ``QuantizationArgs``."""
    kind = "int" if form.codes.startswith("int") else "float"
    weights = {"num_bits": form.bits, "type": kind, "symmetric": not form.zero}
    if form.block:
        return weights | {"strategy": "block", "block_structure": [form.block, form.group]}
    if form.group is None:
        return weights | {"strategy": "channel"}
    beside = {"e4m3": "torch.float8_e4m3fn", "e8m0": "torch.uint8"}.get(form.scales)
    weights |= {"strategy": "tensor_group" if form.scales == "e4m3" else "group"}
    return weights | {"group_size": form.group} | ({"scale_dtype": beside} if beside else {})


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"
