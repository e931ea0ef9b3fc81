"""What a user would run instead: transformers in PyTorch, one hook and one pass an edit.

A head is edited where users edit it, at ``z``, the input of the attention output projection
``attention.dense``, which holds all heads side by side: a hook that replaces some columns costs
next to nothing, so nearly all of the time is the forward passes'. All prompts of a pass have the
same length, so nothing is padded and no attention mask is built.

``unembed="all"`` computes logits at every position, as ``model(ids).logits`` does; ``"last"`` meets
the unembedding at the last position only, which is what a careful user would write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.timing import repeated
from jaxalign.errors import InputError

try:
    import torch
    import transformers
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

UNEMBED = ("all", "last")


def load(folder: Path, **settings: Any) -> Any:
    """The f32 model of a local checkpoint, in evaluation mode, on the device that JAX computes on.

    Raises:
        InputError: torch or transformers is not installed.
    """
    if MISSING is not None:
        raise InputError(f"{MISSING.name} is not installed", "pip install 'jaxalign[bench]'")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.GPTNeoXForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, **settings
    )
    return model.eval().requires_grad_(False).to(device())


def device() -> str:
    """PyTorch's name of the device that JAX computes on."""
    return "cuda" if record.device().platform == "gpu" else "cpu"


def on_device(array: np.ndarray) -> Any:
    """A tensor where the model is; whole numbers as PyTorch indexes."""
    tensor = torch.as_tensor(array).to(device())
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()


def finish() -> None:
    """Wait for the GPU, so that a clock read afterwards is right."""
    if device() == "cuda":
        torch.cuda.synchronize()


def matrix_peak(products: Sequence[tuple[int, int, int]]) -> float:
    """``timing.matrix_peak`` through PyTorch, whose products come from another library."""
    rates = []
    for rows, inputs, outputs in products:
        x, w = (
            torch.randn(shape, device=device()) for shape in ((rows, inputs), (inputs, outputs))
        )

        def product(x: Any = x, w: Any = w) -> None:
            torch.mm(x, w)
            finish()

        rates.append(2 * rows * inputs * outputs / repeated(product, 7)[1].best)
    return max(rates)


@contextmanager
def replaced(model: Any, edits: Mapping[int, tuple[Any, Any]]) -> Iterator[None]:
    """While open, ``value`` stands in the masked columns of ``z`` in each layer of ``edits``.

    Args:
        edits: layer to ``(mask, value)``: bool ``[H·h]`` or ``[B, 1, H·h]``, and a number or what
            broadcasts to ``[B, S, H·h]``.
    """

    def hook_with(mask: Any, value: Any) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (torch.where(mask, value, inputs[0]),)

        return hook

    handles = [
        model.gpt_neox.layers[layer].attention.dense.register_forward_pre_hook(hook_with(*edit))
        for layer, edit in edits.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def head_columns(model: Any, head: int) -> Any:
    """Which columns of ``z`` are one head's: bool ``[H·h]``."""
    config = model.config
    mask = np.zeros((config.num_attention_heads, config.hidden_size // config.num_attention_heads))
    mask[head] = 1
    return on_device(mask.astype(bool).ravel())


def margins(model: Any, ids: Any, target: Any, unembed: str) -> Any:
    """``logit(target) − best other`` at the last position, ``[B]``, of prompts of one length."""
    return margin_of(last_logits(model, ids, unembed), target)


def last_logits(model: Any, ids: Any, unembed: str, **cached: Any) -> Any:
    """Logits at the last position, ``[B, V]``, of prompts of one length.

    Args:
        model: ``load``'s.
        ids: ``[B, S]``.
        unembed: at "all" positions, of which the last is taken, or at the "last" alone.
        cached: keys and values of positions before these, as the model takes them.
    """
    how: dict[str, Any] = cached or {"use_cache": False}
    if unembed == "all":
        return model(ids, **how).logits[:, -1]
    hidden = model.gpt_neox(ids, **how).last_hidden_state
    return model.get_output_embeddings()(hidden[:, -1])


def margin_of(logits: Any, target: Any) -> Any:
    """``logit(target) − best other``, ``[B]``, from logits ``[B, V]``."""
    rows = torch.arange(len(target), device=logits.device)
    others = logits.clone()
    others[rows, target] = -torch.inf
    return logits[rows, target] - others.max(-1).values


def all_heads(layers: int, heads: int) -> list[tuple[int, int]]:
    """``(layer, head)`` of every head, layer by layer."""
    return [(layer, head) for layer in range(layers) for head in range(heads)]


def importance(
    model: Any,
    tokens: np.ndarray,
    target: np.ndarray,
    batch_size: int,
    unembed: str = "all",
    first: int | None = None,
) -> np.ndarray:
    """``m(clean) − m(head zeroed)``, ``[P, L·H]``: ``1 + L·H`` passes a batch of prompts.

    Args:
        model: ``load``'s.
        tokens: int ``[P, S]``.
        target: int ``[P]``.
        batch_size: prompts of one pass.
        unembed: logits at "all" positions or at the "last".
        first: only the first so many heads, to try a batch size out.
    """
    config = model.config
    heads = all_heads(config.num_hidden_layers, config.num_attention_heads)[:first]
    found = []
    with torch.inference_mode():
        for start in range(0, len(tokens), batch_size):
            ids, answer = (on_device(a[start : start + batch_size]) for a in (tokens, target))
            clean = margins(model, ids, answer, unembed)
            effects = []
            for layer, head in heads:
                with replaced(model, {layer: (head_columns(model, head), 0.0)}):
                    effects.append(clean - margins(model, ids, answer, unembed))
            found.append(torch.stack(effects, dim=1).cpu().numpy())
    return np.concatenate(found)


def importance_by_edits(
    model: Any,
    tokens: np.ndarray,
    target: np.ndarray,
    edits: int,
    first: int | None = None,
) -> np.ndarray:
    """``m(clean) − m(head zeroed)``, ``[P, L·H]``: several edits of all prompts in one pass.

    Every row of a pass has its own mask, and logits are computed at the last position only: the
    least that hooks can do without sharing work between edits.

    Args:
        model: ``load``'s.
        tokens: int ``[P, S]``.
        target: int ``[P]``.
        edits: heads zeroed in one pass, each on all prompts.
        first: only the first so many heads, to try a number of edits out.
    """
    config = model.config
    heads = all_heads(config.num_hidden_layers, config.num_attention_heads)[:first]
    columns = torch.stack([head_columns(model, head) for _, head in heads])
    layer_of = on_device(np.array([layer for layer, _ in heads]))
    ids, answer = on_device(tokens), on_device(target)
    with torch.inference_mode():
        clean = margins(model, ids, answer, "last")
        effects = []
        for start in range(0, len(heads), edits):
            layer, masks = layer_of[start : start + edits], columns[start : start + edits]
            count = len(masks)
            own = {
                int(one): ((masks & (layer == one)[:, None]).repeat_interleave(len(ids), 0), 0.0)
                for one in layer.unique()
            }
            changes = {one: (mask[:, None], value) for one, (mask, value) in own.items()}
            with replaced(model, changes):
                found = margins(model, ids.repeat(count, 1), answer.repeat(count), "last")
            effects.append(clean - found.reshape(count, -1))
        return torch.cat(effects).T.cpu().numpy()
