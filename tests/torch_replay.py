"""A second witness: the heads study replayed in plain PyTorch, from the written definitions alone.

One prompt at a time, no padding, no batching, one head at a time: slow, and meant to be obviously
right. Nothing of jaxalign is imported. The forward pass is written out in torch operations over the
tensors of a Hugging Face GPT-NeoX checkpoint, so that it shares no code with transformers either.

Letters: `L` layers, `H` heads, `h` head width, `D = H · h`, `S` positions, `V` vocabulary. `W` is
the width of one head's contribution: `D` for true heads, `h` for Edge Align's blocks.

* True head (`head_mode="true"`): `c[l, i] = z[l, i] @ W_O[l, i]`, of shape `[S, D]`; the output
  bias belongs to no head. An edit adds `value - c` to the projected output.
* Edge Align's block (`head_mode="edge-align"`): coordinates `i·h … (i+1)·h` of the projected
  output, bias included, of shape `[S, h]`. An edit overwrites them.

Tensors are float32; `int8=True` adds the five rounding sites of simulated int8: embedding,
attention output (before the head edit), MLP output, each block's output, final norm's output. Cast
to float64, the same tensors show where two int8 runs part by a flipped code, not by a defect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

HEAD_MODES = ("true", "edge-align")
_ERF_GELU = ("gelu", "gelu_python")
_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate")

Params = dict[str, Tensor]
Config = dict[str, Any]
Edits = dict[tuple[int, int], Tensor]  # (layer, head) -> value, broadcast to [S, W]


@dataclass(frozen=True)
class Run:
    """One pass: logits `[V]` at the last position, contributions `[L, H, S, W]` unedited."""

    logits: Tensor
    heads: Tensor


@dataclass(frozen=True)
class Drift:
    """How far simulated int8 moves each head from f32; every field `[L, H]`, without unit.

    `relative` is `|c_q - c| / |c|` and `cosine` is `c_q · c / (|c_q| |c|)` at the last position, 0
    where a norm is 0. The `_all` fields take all positions of a head as one long vector.
    """

    relative: np.ndarray
    cosine: np.ndarray
    relative_all: np.ndarray
    cosine_all: np.ndarray


def load(folder: str | Path) -> tuple[Params, Config]:
    """Every tensor (f32) and the config of a local checkpoint, in one file or in shards."""
    files = [load_file(file) for file in sorted(Path(folder).glob("*.safetensors"))]
    params = {name: value for file in files for name, value in file.items()}
    return as_f32(params), json.loads((Path(folder) / "config.json").read_text())


def as_f32(state_dict: dict[str, Any]) -> Params:
    """Torch f32 tensors from torch or numpy ones, under the names of the files on disk."""
    tensors = {
        name: value.float() if isinstance(value, Tensor) else torch.tensor(np.float32(value))
        for name, value in state_dict.items()
    }
    if "lm_head.weight" in tensors:  # transformers 5 renames the unembedding in memory
        tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
    return tensors


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(var + eps) · weight + bias` over the last axis, population variance."""
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight + bias


def gelu(x: Tensor, name: str) -> Tensor:
    """`x · Φ(x)` exactly, or its tanh approximation where the config's `hidden_act` says so."""
    if name in _ERF_GELU:
        return 0.5 * x * (1.0 + torch.erf(x / 2.0**0.5))
    if name in _TANH_GELU:
        return 0.5 * x * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    raise ValueError(f"hidden_act: expected one of {_ERF_GELU + _TANH_GELU}; got {name!r}")


def rotate(x: Tensor, config: Config) -> Tensor:
    """Rotary position embedding of one head's queries or keys `[S, h]`, from position 0.

    The first `r = int(h · fraction)` coordinates turn; coordinate `j < r/2` is paired with
    `j + r/2` (the half-rotation convention), by the angle `position · base^(-2j / r)`.
    """
    rope = config.get("rope_parameters") or {}
    base = rope.get("rope_theta", config.get("rotary_emb_base", 10000.0))
    fraction = rope.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    turned = int(x.shape[-1] * fraction)
    half = turned // 2
    speed = 1.0 / base ** (torch.arange(0, turned, 2, dtype=torch.float32) / turned)
    angle = torch.arange(len(x), dtype=torch.float32)[:, None] * speed
    first, second, rest = x[:, :half], x[:, half:turned], x[:, turned:]
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


def fake_int8(x: Tensor) -> Tensor:
    """Symmetric int8 and back, one scale for all of `x` (one example, every real position).

    `scale = max(max|x| / 127, smallest normal f32)`, code = `x · (1 / scale)` rounded half away
    from zero and clamped to ±127. The identity where the maximum is 0 or not finite.
    """
    largest = x.abs().max()
    if largest == 0 or not torch.isfinite(largest):
        return x
    scale = torch.clamp(largest / 127.0, min=torch.finfo(torch.float32).tiny)
    scaled = x * (1.0 / scale)
    whole = torch.trunc(scaled)  # exact, where floor(|x| + 0.5) is not just below a half
    code = whole + torch.sign(scaled) * ((scaled - whole).abs() >= 0.5)
    return torch.clamp(code, -127, 127) * scale


def head_outputs(x: Tensor, params: Params, config: Config, layer: int) -> Tensor:
    """`z [H, S, h]`: what each head reads from its values, before the output projection."""
    heads = config["num_attention_heads"]
    width = config["hidden_size"] // heads
    prefix = f"gpt_neox.layers.{layer}.attention.query_key_value."
    qkv = x @ params[prefix + "weight"].T
    if prefix + "bias" in params:
        qkv = qkv + params[prefix + "bias"]
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    z = []
    for head in range(heads):  # query, key and value of one head lie side by side
        query, key, value = qkv[:, 3 * width * head : 3 * width * (head + 1)].split(width, -1)
        scores = rotate(query, config) @ rotate(key, config).T / width**0.5
        z.append(torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ value)
    return torch.stack(z)


def attention(
    x: Tensor, params: Params, config: Config, layer: int, head_mode: str, edits: Edits, int8: bool
) -> tuple[Tensor, Tensor]:
    """Edited attention output `[S, D]`, and the contributions `[H, S, W]` before the edit."""
    if head_mode not in HEAD_MODES:
        raise ValueError(f"head_mode: expected one of {HEAD_MODES}; got {head_mode!r}")
    z = head_outputs(x, params, config, layer)
    heads, _, width = z.shape
    prefix = f"gpt_neox.layers.{layer}.attention.dense."
    projection = params[prefix + "weight"]  # [D out, H · h in]
    output = torch.cat(list(z), -1) @ projection.T
    if prefix + "bias" in params:
        output = output + params[prefix + "bias"]
    if int8:
        output = fake_int8(output)
    columns = [slice(width * head, width * (head + 1)) for head in range(heads)]
    if head_mode == "true":
        parts = [z[head] @ projection[:, columns[head]].T for head in range(heads)]
    else:
        parts = [output[:, columns[head]] for head in range(heads)]
    edited = output.clone()
    here = {head: value for (where, head), value in edits.items() if where == layer}
    for head, value in here.items():
        if head_mode == "true":
            edited = edited + (value - parts[head])
        else:
            edited[:, columns[head]] = value
    return edited, torch.stack(parts)


def mlp(x: Tensor, params: Params, config: Config, layer: int) -> Tensor:
    """The MLP's output `[S, D]`."""
    prefix = f"gpt_neox.layers.{layer}.mlp."
    inner = x @ params[prefix + "dense_h_to_4h.weight"].T + params[prefix + "dense_h_to_4h.bias"]
    inner = gelu(inner, config.get("hidden_act", "gelu"))
    return inner @ params[prefix + "dense_4h_to_h.weight"].T + params[prefix + "dense_4h_to_h.bias"]


def forward(
    params: Params,
    config: Config,
    tokens: list[int],
    *,
    head_mode: str = "true",
    edits: Edits | None = None,
    int8: bool = False,
    probe: Tensor | None = None,
) -> Run:
    """One pass over one prompt, without padding.

    `params` and `config` are what `load` gave; `edits` maps (layer, head) to the value, `[S, W]` or
    broadcast to it, that replaces its contribution; `probe` is zeros `[L, S, D]` added to the
    attention outputs, to differentiate in them.
    """
    quantize = fake_int8 if int8 else lambda x: x

    def norm(x: Tensor, name: str) -> Tensor:
        scale, bias = params[f"gpt_neox.{name}.weight"], params[f"gpt_neox.{name}.bias"]
        return layer_norm(x, scale, bias, config.get("layer_norm_eps", 1e-5))

    x = quantize(params["gpt_neox.embed_in.weight"][torch.tensor(tokens)])
    heads = []
    for layer in range(config["num_hidden_layers"]):
        normed = norm(x, f"layers.{layer}.input_layernorm")
        attended, parts = attention(normed, params, config, layer, head_mode, edits or {}, int8)
        heads.append(parts)
        if probe is not None:
            attended = attended + probe[layer]
        after = x + attended
        # A parallel block's MLP reads the block's input; a sequential one's reads past attention.
        source = x if config.get("use_parallel_residual", True) else after
        source = norm(source, f"layers.{layer}.post_attention_layernorm")
        x = quantize(after + quantize(mlp(source, params, config, layer)))
    final = quantize(norm(x, "final_layer_norm"))[-1]  # the scale has seen every position
    tied = config.get("tie_word_embeddings", False)
    unembedding = params["gpt_neox.embed_in.weight" if tied else "embed_out.weight"]
    return Run(unembedding @ final, torch.stack(heads))


def metric(logits: Tensor, target: int) -> Tensor:
    """`m = logit(target) - max(other logits)`, from logits `[V]`."""
    others = torch.cat([logits[:target], logits[target + 1 :]])
    return logits[target] - others.max()


@torch.no_grad()
def clean_metric(
    params: Params, config: Config, tokens: list[int], target: int, *, int8: bool = False
) -> float:
    """The metric of the model with nothing edited, in logits."""
    return float(metric(forward(params, config, tokens, int8=int8).logits, target))


@torch.no_grad()
def contributions(
    params: Params, config: Config, tokens: list[int], *, head_mode: str, int8: bool = False
) -> np.ndarray:
    """Every head's contribution at every position, `[L, H, S, W]`."""
    return forward(params, config, tokens, head_mode=head_mode, int8=int8).heads.numpy()


def reference_means(
    params: Params,
    config: Config,
    references: list[list[int]],
    *,
    head_mode: str,
    int8: bool = False,
) -> np.ndarray:
    """Mean over reference prompts of every head's last-position contribution, `[L, H, W]`."""
    how = {"head_mode": head_mode, "int8": int8}
    last = [contributions(params, config, r, **how)[:, :, -1] for r in references]
    return np.mean(last, axis=0, dtype=np.float64).astype(np.float32)


@torch.no_grad()
def importance(
    params: Params,
    config: Config,
    tokens: list[int],
    target: int,
    values: np.ndarray | None,
    *,
    head_mode: str,
    int8: bool = False,
) -> np.ndarray:
    """`m(clean) - m(head replaced at all positions)` for every head, `[L, H]`, in logits.

    `values` is None for zero ablation, `reference_means`'s `[L, H, W]` for mean ablation, or a
    donor prompt's `contributions`, `[L, H, S, W]` with the same `S`, for resampling.
    """
    clean = forward(params, config, tokens, head_mode=head_mode, int8=int8)
    baseline = metric(clean.logits, target)
    result = np.zeros(clean.heads.shape[:2], dtype=np.float32)
    for layer, head in np.ndindex(*result.shape):
        value = torch.zeros(()) if values is None else torch.as_tensor(values[layer, head])
        edits = {(layer, head): value.expand(clean.heads.shape[2:])}
        run = forward(params, config, tokens, head_mode=head_mode, edits=edits, int8=int8)
        result[layer, head] = baseline - metric(run.logits, target)
    return result


def _relative_and_cosine(exact: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative error and cosine over the last axis, in f64; 0 where a norm is 0."""
    exact, moved = exact.astype(np.float64), moved.astype(np.float64)
    norm, moved_norm = np.linalg.norm(exact, axis=-1), np.linalg.norm(moved, axis=-1)
    error = np.linalg.norm(moved - exact, axis=-1)
    product, norms = (exact * moved).sum(-1), norm * moved_norm
    relative = np.where(norm == 0, 0, error / np.where(norm == 0, 1, norm))
    return relative, np.where(norms == 0, 0, product / np.where(norms == 0, 1, norms))


def drift(params: Params, config: Config, tokens: list[int], *, head_mode: str) -> Drift:
    """Drift of simulated int8 against f32 for every head.

    A true head's int8 contribution is `z_int8 @ W_O`, itself unrounded; an Edge Align block is cut
    from the rounded attention output.
    """
    exact = contributions(params, config, tokens, head_mode=head_mode)
    moved = contributions(params, config, tokens, head_mode=head_mode, int8=True)
    flat = (*exact.shape[:2], -1)
    last = _relative_and_cosine(exact[:, :, -1], moved[:, :, -1])
    return Drift(*last, *_relative_and_cosine(exact.reshape(flat), moved.reshape(flat)))


@torch.no_grad()
def repair_curve(
    params: Params,
    config: Config,
    tokens: list[int],
    target: int,
    ranking: list[tuple[int, int]],
    *,
    head_mode: str,
) -> np.ndarray:
    """Metric of the int8 run with the first `k` heads of `ranking` given back, `k = 1 … K`, `[K]`.

    Given back: at every position the contribution is the f32 run's.
    """
    exact = forward(params, config, tokens, head_mode=head_mode).heads
    curve = []
    for k in range(1, len(ranking) + 1):
        edits = {(layer, head): exact[layer, head] for layer, head in ranking[:k]}
        run = forward(params, config, tokens, head_mode=head_mode, edits=edits, int8=True)
        curve.append(float(metric(run.logits, target)))
    return np.asarray(curve, dtype=np.float32)


def first_order(
    params: Params, config: Config, tokens: list[int], target: int, *, head_mode: str
) -> np.ndarray:
    """First-order change of the metric through each head, f32 to int8: `Σ_s g · (c_q - c)`.

    `g = ∂m/∂(attention output of the layer)` in the f32 run, which is also the gradient in a true
    head's contribution; an Edge Align block takes its `h` coordinates of it. Returns `[L, H]`, in
    logits; the effect of giving a head back is predicted as minus this number.
    """
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    probe = torch.zeros(layers, len(tokens), width, requires_grad=True)
    exact = forward(params, config, tokens, head_mode=head_mode, probe=probe)
    (gradient,) = torch.autograd.grad(metric(exact.logits, target), probe)
    with torch.no_grad():
        moved = forward(params, config, tokens, head_mode=head_mode, int8=True)
        delta = moved.heads - exact.heads  # [L, H, S, W]
        per_head = gradient[:, None]  # [L, 1, S, D]: the same for every true head of a layer
        if head_mode == "edge-align":
            per_head = gradient.reshape(layers, len(tokens), -1, delta.shape[-1]).transpose(1, 2)
        return (per_head * delta).sum((-1, -2)).numpy()
