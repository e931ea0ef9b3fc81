"""transformers' models with something changed at any point, by hooks: independent of our code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from family_checkpoints import SIZES, theirs, torch_and_transformers

NEOX = {"gpt_neox, parallel": True, "gpt_neox, sequential": False}
MODELS = (
    *NEOX,
    "llama, scaled like 3.1",
    "gemma2",
    "gemma3",
    "phi3, longrope",
    "gpt2",
    "olmo, clipped, biases",
    "olmo2",
)
PROBE = "probe"  # the attention whose scores and pattern can be changed
Change = Callable[[Any], Any]  # from a tensor to what stands in its place


def build(variant: str) -> Any:
    """A model of ``MODELS``, every parameter random, in f32; its attention is the one below."""
    torch, transformers = torch_and_transformers()
    if variant not in NEOX:
        model = theirs(variant)
    else:
        sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
        more = {"use_parallel_residual": NEOX[variant], "rotary_pct": 0.5}
        config = transformers.AutoConfig.for_model("gpt_neox", **sizes, **more)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=draw)
                one = "norm" in name and name.endswith("weight")
                parameter.copy_(0.3 * noise + one if parameter.ndim == 1 else 0.25 * noise)
    _register(transformers)
    model.config._attn_implementation = PROBE
    return model


def write(folder: Path, variant: str) -> Any:
    """Write a model's checkpoint as transformers publishes it; the model."""
    model = build(variant)
    model.save_pretrained(folder)
    return model


def _register(transformers: Any) -> None:
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    transformers.AttentionInterface.register(PROBE, attention)
    AttentionMaskInterface.register(PROBE, eager_mask)


def attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **how: Any
) -> tuple[Any, None]:
    """Attention by its definition, with the module's ``scores`` and ``pattern`` changed."""
    torch, _ = torch_and_transformers()
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if cap := how.get("softcap"):
        scores = cap * torch.tanh(scores / cap)
    hidden = mask[..., : key.shape[2]] < 0
    changes = getattr(module, "changes", {})

    def changed(point: str, x: Any) -> Any:
        return changes[point](x) if point in changes else x

    scores = changed("scores", scores.masked_fill(hidden, -torch.inf))
    pattern = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    pattern = changed("pattern", pattern).masked_fill(hidden, 0.0)  # no edit lets one see ahead
    return (pattern @ value).transpose(1, 2).contiguous(), None


def _fused(model: Any) -> bool:
    """Whether query, key and value are one linear layer, and gate and up another (Phi-3)."""
    return bool(model.config.model_type == "phi3")


def _named(model: Any, layer: int) -> dict[str, tuple[Any, str]]:
    """For each point of a block that a module has: the module, and which end of it."""
    if hasattr(model, "gpt_neox"):
        block = model.gpt_neox.layers[layer]
        wide, norm = block.attention, block.post_attention_layernorm
        out, up, gate, down = wide.dense, block.mlp.dense_h_to_4h, None, block.mlp.dense_4h_to_h
    elif hasattr(model, "transformer"):
        block = model.transformer.h[layer]
        wide, norm = block.attn, block.ln_2
        out, up, gate, down = wide.c_proj, block.mlp.c_fc, None, block.mlp.c_proj
    else:
        block = model.model.layers[layer]
        wide, norm = block.self_attn, block.post_attention_layernorm
        norm = getattr(block, "pre_feedforward_layernorm", norm)
        if model.config.model_type == "olmo2":
            norm = block.mlp  # no norm before it: it reads the stream itself
        out, down = wide.o_proj, block.mlp.down_proj
        if _fused(model):
            up = gate = block.mlp.gate_up_proj
        else:
            up, gate = block.mlp.up_proj, block.mlp.gate_proj
    return {
        "z": (out, "in"),
        "attn_out": (out, "out"),
        "resid_mid": (norm, "in place"),
        "mlp_in": (block.mlp, "in"),
        "mlp_gate": (gate, "first half" if _fused(model) else "out"),
        "mlp_up": (up, "second half" if _fused(model) else "out"),
        "mlp_hidden": (down, "in"),
        "mlp_out": (block.mlp, "out"),
        "resid": (block, "out"),
        "before": (block, "in"),
        "attention": (wide, ""),
    }


def _within(change: Change, start: int, width: int) -> Change:
    """``change`` of some of the last axis, from ``start`` on."""

    def some(x: Any) -> Any:
        x = x.clone()
        x[..., start : start + width] = change(x[..., start : start + width].clone())
        return x

    return some


def _hook(module: Any, end: str, change: Change) -> Any:
    if "half" in end:
        width = module.out_features // 2
        change = _within(change, width if end == "second half" else 0, width)
    if end == "out" or "half" in end:

        def after(module: Any, given: Any, out: Any) -> Any:
            return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

        return module.register_forward_hook(after)

    def before(module: Any, given: Any) -> Any:
        if end == "in place":  # what is added to the stream later is this same tensor
            given[0].copy_(change(given[0].clone()))
            return None
        return (change(given[0]), *given[1:])

    return module.register_forward_pre_hook(before)


def _starts(model: Any) -> tuple[int, int, int]:
    """Where queries, keys and values begin in Phi-3's one layer."""
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    return 0, queries, queries + keys


def _projection(model: Any, layer: int, point: str, heads: int, width: int, change: Change) -> Any:
    """A hook on queries, keys or values, ``[B, S, heads, width]``."""

    def apart(x: Any) -> Any:
        return change(x.reshape(*x.shape[:2], heads, width)).reshape(x.shape)

    place = "qkv".index(point)
    if hasattr(model, "transformer"):
        third = _within(apart, place * heads * width, heads * width)
        return _hook(model.transformer.h[layer].attn.c_attn, "out", third)
    if _fused(model):
        start = _starts(model)[place]
        fused = model.model.layers[layer].self_attn.qkv_proj
        return _hook(fused, "out", _within(apart, start, heads * width))
    if not hasattr(model, "gpt_neox"):
        return _hook(getattr(model.model.layers[layer].self_attn, f"{point}_proj"), "out", apart)

    def each_head(x: Any) -> Any:
        parts = x.reshape(*x.shape[:2], heads, 3, width).clone()
        parts[..., place, :] = change(parts[..., place, :].clone())
        return parts.reshape(x.shape)

    return _hook(model.gpt_neox.layers[layer].attention.query_key_value, "out", each_head)


@contextlib.contextmanager
def changed(model: Any, point: str, step: int, shape: tuple[int, ...], change: Change) -> Iterator:
    """The model with a value changed at one point and step, ``change`` from ``[B, *shape]``.

    ``step`` is the layer; of ``resid`` 0 is the stream before the first block.
    """
    handle = None
    if point == "logits":

        def last(module: Any, given: Any, out: Any) -> Any:
            out.logits = change(out.logits)
            return out

        handle = model.register_forward_hook(last)
    elif point == "final_norm":
        if hasattr(model, "transformer"):
            norm = model.transformer.ln_f
        else:
            neox = hasattr(model, "gpt_neox")
            norm = model.gpt_neox.final_layer_norm if neox else model.model.norm
        handle = _hook(norm, "out", change)
    elif point in ("scores", "pattern"):
        module, _ = _named(model, step)["attention"]
        module.changes = {point: change}
    elif point in ("q", "k", "v"):
        handle = _projection(model, step, point, *shape[-2:], change)
    else:
        before = point == "resid" and step == 0
        layer = max(step - 1, 0) if point == "resid" else step
        module, end = _named(model, layer)["before" if before else point]

        def apart(x: Any) -> Any:
            return change(x.reshape(x.shape[0], *shape)).reshape(x.shape)

        handle = _hook(module, end, apart)
    try:
        yield
    finally:
        if handle is None:
            del module.changes
        else:
            handle.remove()


def _linear(model: Any, layer: int, matrix: str) -> tuple[Any, Callable[[int], int]]:
    """The module that holds a matrix of a block, and the place of its rows there."""
    named = _named(model, layer)
    wide = named["attention"][0]
    if matrix in ("out", "down"):
        return named[{"out": "z", "down": "mlp_hidden"}[matrix]][0], int
    if matrix in ("up", "gate"):
        module, end = named[f"mlp_{matrix}"]
        start = module.out_features // 2 if end == "second half" else 0
        return module, lambda row: start + row
    place = "qkv".index(matrix[0])
    if hasattr(model, "transformer"):
        return wide.c_attn, lambda row: place * model.config.hidden_size + row
    if _fused(model):
        return wide.qkv_proj, lambda row: _starts(model)[place] + row
    if not hasattr(model, "gpt_neox"):
        return getattr(wide, f"{matrix[0]}_proj"), int
    width = model.config.hidden_size // model.config.num_attention_heads
    return wide.query_key_value, lambda row: (3 * (row // width) + place) * width + row % width


@contextlib.contextmanager
def weighed(model: Any, matrix: str, layer: int, scaled: dict[tuple[int, int], float]) -> Iterator:
    """The model with some weights, ``(output, input)``, of one matrix multiplied."""
    torch, _ = torch_and_transformers()
    module, place = _linear(model, layer, matrix)
    kept = module.weight.detach().clone()
    weight = module.weight.T if hasattr(model, "transformer") else module.weight  # Conv1D
    with torch.no_grad():
        for (row, column), factor in scaled.items():
            weight[place(row), column] *= factor
    try:
        yield
    finally:
        with torch.no_grad():
            module.weight.copy_(kept)


@contextlib.contextmanager
def spliced(
    model: Any, point: str, step: int, width: int, reads: str, change: Callable[[Any, Any], Any]
) -> Iterator:
    """The model with ``change(x, read)`` at a point, ``[B, S, width]``, where ``read`` stands at
    another of the same layer, or at the same one."""
    seen: list[Any] = []

    def keep(x: Any) -> Any:
        seen.append(x)
        return x

    def given(x: Any) -> Any:
        return change(x, x if reads == point else seen.pop())

    with contextlib.ExitStack() as stack:
        if reads != point:
            stack.enter_context(changed(model, reads, step, (-1, width), keep))
        stack.enter_context(changed(model, point, step, (-1, width), given))
        yield


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """All logits of a pass."""
    torch, _ = torch_and_transformers()
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()
    return found
