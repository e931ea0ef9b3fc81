"""The importance study the usual way: transformers in PyTorch, forward hooks, one pass an edit.

    python -m benchmarks.pytorch_baseline --model FOLDER --prompts prompts.json
        [--kinds zero,mean] [--batch one,batched] [--head-mode true|edge-align] [--unembed all|last]

For every prompt and head it reports `m(clean) - m(head replaced at all positions)`, with
`m = logit(target) - max(other logits)` at the last real position: `1 + L · H` passes a prompt
(`--batch one`) or a batch of prompts (`--batch batched`), in f32. The last line is one JSON object.

A head is hooked at the attention output projection `attention.dense`, whose input is `z` of all
heads side by side. True heads: `c[l, i] = z[l, i] @ W_O[l, i]`, without the output bias, and the
output becomes `out + (value - c)`. `edge-align`: `h` coordinates of the output are replaced.

`--unembed all` computes logits at every position, as `model(ids).logits` does; `last` meets the
unembedding at the last real position only, which is what a careful user of PyTorch would write.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

try:
    import torch
    import transformers
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

KINDS = ("zero", "mean")
BATCHES = ("one", "batched")
HEAD_MODES = ("true", "edge-align")
UNEMBED = ("all", "last")


class InputError(Exception):
    """A file or argument that the run cannot start from; the message is one line for the user."""


class Prompt(NamedTuple):
    """Token ids of a prompt, never padded, and the id of the token it should be followed by."""

    ids: list[int]
    target: int


def load(folder: str | Path) -> tuple[Any, Tokenizer]:
    """The f32 model, in evaluation mode on the CPU, and the tokenizer of a local checkpoint.

    Raises InputError where torch, transformers or a file is missing.
    """
    if MISSING is not None:
        raise InputError(f"{MISSING.name} is not installed: pip install jaxalign[bench]")
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"model: no folder {folder}: give a local checkpoint")
    for name in ("config.json", "tokenizer.json", "*.safetensors"):
        if not any(folder.glob(name)):
            raise InputError(f"model: {folder} has no {name}")
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    model = transformers.GPTNeoXForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def read_prompts(
    file: str | Path, tokenizer: Tokenizer, limit: int | None = None
) -> tuple[list[Prompt], list[list[int]]]:
    """All tasks' prompts in file order (at most `limit`), and the reference prompts' token ids.

    Nothing is added to a prompt; a target of several tokens uses its first one. Raises InputError
    for a file that is missing or malformed, and for a text without tokens.
    """
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"prompts: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"prompts: {file} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"prompts: {file}: expected an object of named lists")

    def encode(text: object, where: str) -> list[int]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids if isinstance(text, str) else []
        if not ids:
            raise InputError(f"prompts: {file}: {where}: expected text with tokens; got {text!r}")
        return ids

    if bad := [task for task, entries in data.items() if not isinstance(entries, list)]:
        raise InputError(f"prompts: {file}: {bad[0]}: expected a list; got {data[bad[0]]!r}")
    texts = data.pop("reference", [])
    prompts = []
    for task, entries in data.items():
        for index, entry in enumerate(entries):
            where = f"{task}[{index}]"
            if not isinstance(entry, dict):
                raise InputError(f"prompts: {file}: {where}: expected an object; got {entry!r}")
            ids = encode(entry.get("prompt"), f"{where}.prompt")
            prompts.append(Prompt(ids, encode(entry.get("target"), f"{where}.target")[0]))
    if not prompts:
        raise InputError(f"prompts: {file} has no prompts")
    return prompts[:limit], [encode(text, f"reference[{i}]") for i, text in enumerate(texts)]


def head_width(model: Any) -> int:
    """`h`, the width of one head."""
    return model.config.hidden_size // model.config.num_attention_heads


def contribution(dense: Any, z: Any, out: Any, head: int, width: int, head_mode: str) -> Any:
    """One head's `[B, S, D or h]`, from the projection's input `z` and output `[B, S, D]`."""
    columns = slice(head * width, (head + 1) * width)
    if head_mode == "true":
        return z[..., columns] @ dense.weight[:, columns].T
    return out[..., columns]


@contextmanager
def replaced(model: Any, layer: int, head: int, value: Any, head_mode: str) -> Iterator[None]:
    """While open, `value` stands at every position in place of the head's contribution."""
    width = head_width(model)

    def hook(module: Any, inputs: tuple[Any, ...], out: Any) -> Any:
        if head_mode == "true":
            return out + (value - contribution(module, inputs[0], out, head, width, head_mode))
        edited = out.clone()
        edited[..., head * width : (head + 1) * width] = value
        return edited

    handle = model.gpt_neox.layers[layer].attention.dense.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def reference_means(model: Any, prompts_ids: list[list[int]], head_mode: str = "true") -> Any:
    """Mean over reference prompts of each head's last-position contribution: `[L, H, D or h]`."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    width = head_width(model)
    size = model.config.hidden_size if head_mode == "true" else width
    total = torch.zeros(layers, heads, size, dtype=torch.float64)

    def recorder(layer: int) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], out: Any) -> None:
            for head in range(heads):
                c = contribution(module, inputs[0], out, head, width, head_mode)
                total[layer, head] += c[0, -1]

        return hook

    blocks = enumerate(model.gpt_neox.layers)
    handles = [b.attention.dense.register_forward_hook(recorder(i)) for i, b in blocks]
    try:
        with torch.inference_mode():
            for ids in prompts_ids:
                model.gpt_neox(torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return (total / len(prompts_ids)).float()


def make_batches(prompts: list[Prompt], batch: str, batch_size: int = 64) -> list[list[int]]:
    """Indices into `prompts` of each pass: one, or up to `batch_size` of about equal length."""
    if batch == "one":
        return [[index] for index in range(len(prompts))]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def metrics(model: Any, prompts: list[Prompt], unembed: str) -> Any:
    """`logit(target) - max(other logits)` at each prompt's last real position, `[rows]`.

    Rows are padded on the right and masked, as transformers users do.
    """
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.tensor([prompt.ids + [0] * (longest - len(prompt.ids)) for prompt in prompts])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    rows = torch.arange(len(prompts))
    if unembed == "all":
        logits = model(ids, attention_mask=mask, use_cache=False).logits[rows, lengths - 1]
    else:
        hidden = model.gpt_neox(ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[rows, lengths - 1])
    targets = torch.tensor([prompt.target for prompt in prompts])
    others = logits.clone()
    others[rows, targets] = -torch.inf
    return logits[rows, targets] - others.max(-1).values


def importance(
    model: Any,
    prompts: list[Prompt],
    kind: str,
    means: Any = None,
    head_mode: str = "true",
    batch: str = "one",
    *,
    batch_size: int = 64,
    unembed: str = "all",
) -> np.ndarray:
    """`m(clean) - m(head replaced at all positions)` for every prompt and head: `[P, L, H]`, f32.

    Args:
        model: `load`'s.
        prompts: token ids and target id of each prompt.
        kind: "zero", or "mean" with `means` from `reference_means` of the same `head_mode`.
        means: `[L, H, D or h]`; not read for "zero".
        head_mode: "true" heads or "edge-align" blocks.
        batch: "one" prompt a pass, or "batched".
        batch_size: most prompts in a batched pass.
        unembed: logits at "all" positions, or at the "last" real one only.
    """
    checks = (kind, KINDS), (head_mode, HEAD_MODES), (batch, BATCHES), (unembed, UNEMBED)
    for given, allowed in checks:
        if given not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}; got {given!r}")
    if kind == "mean" and means is None:
        raise ValueError("means: expected reference_means(…) for kind 'mean'; got None")
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    result = np.zeros((len(prompts), layers, heads), dtype=np.float32)
    batches = make_batches(prompts, batch, batch_size)
    passes = len(batches) * (1 + layers * heads)
    with torch.inference_mode(), tqdm(total=passes, desc=f"{kind}, {batch}", disable=None) as bar:
        for rows in batches:
            chosen = [prompts[row] for row in rows]
            clean = metrics(model, chosen, unembed)
            for layer, head in np.ndindex(layers, heads):
                value = 0.0 if kind == "zero" else means[layer, head]
                with replaced(model, layer, head, value, head_mode):
                    edited = metrics(model, chosen, unembed)
                result[rows, layer, head] = (clean - edited).numpy()
                bar.update()
            bar.update()
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; a wrong value ends the process with code 2 and one line."""

    def several(allowed: tuple[str, ...]) -> Any:
        def read(text: str) -> list[str]:
            names = text.split(",")
            if not set(names) <= set(allowed):
                raise argparse.ArgumentTypeError(f"expected some of {','.join(allowed)}: {text!r}")
            return names

        return read

    def positive(text: str) -> int:
        if not text.isdigit() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a whole number from 1: {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pytorch_baseline", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="FOLDER", help="a local checkpoint")
    add("--prompts", required=True, type=Path, metavar="FILE", help="tasks, targets, references")
    add("--kinds", type=several(KINDS), default=list(KINDS), help="default: zero,mean")
    add("--batch", type=several(BATCHES), default=list(BATCHES), help="default: one,batched")
    add("--batch-size", type=positive, default=64, help="prompts in a batched pass (default 64)")
    add("--head-mode", choices=HEAD_MODES, default="true")
    add("--unembed", choices=UNEMBED, default="all", help="positions that get logits")
    add("--limit", type=positive, metavar="N", help="the first N prompts only")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> tuple[Any, list[Prompt], list[list[int]]]:
    """Model, prompts and references; raises InputError where they do not fit one another."""
    model, tokenizer = load(options.model)
    prompts, references = read_prompts(options.prompts, tokenizer, options.limit)
    if "mean" in options.kinds and not references:
        raise InputError(f"prompts: {options.prompts} has no reference prompts for mean ablation")
    texts = [*(prompt.ids for prompt in prompts), *references]
    longest, context = max(map(len, texts)), model.config.max_position_embeddings
    if longest > context:
        raise InputError(f"prompts: {longest} tokens do not fit the model's context of {context}")
    largest = max(*(max(ids) for ids in texts), *(prompt.target for prompt in prompts))
    if largest >= (size := model.config.vocab_size):
        raise InputError(f"tokenizer: token {largest} is outside the model's vocabulary of {size}")
    return model, prompts, references


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every asked combination; the JSON record, times in seconds."""
    model, prompts, references = prepare(options)
    means = reference_means(model, references, options.head_mode) if references else None
    chosen = {"batch_size": options.batch_size, "unembed": options.unembed}
    edits = 1 + model.config.num_hidden_layers * model.config.num_attention_heads
    runs = []
    for batch, kind in itertools.product(options.batch, options.kinds):
        passes = edits * len(make_batches(prompts, batch, options.batch_size))
        start = time.perf_counter()
        importance(model, prompts, kind, means, options.head_mode, batch, **chosen)
        seconds = time.perf_counter() - start
        runs.append({"kind": kind, "batch": batch, "seconds": seconds, "passes": passes})
    return {
        "device": "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "model": str(options.model),
        "head_mode": options.head_mode,
        **chosen,
        "prompts": len(prompts),
        "references": len(references),
        "seconds": sum(run["seconds"] for run in runs),
        "passes": sum(run["passes"] for run in runs),
        "runs": runs,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for input that cannot be used."""
    options = parse(arguments)
    try:
        record = measure(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'replace by':<12}{'batch':<10}{'seconds':>9}{'passes':>9}{'ms a pass':>11}")
    for run in record["runs"]:
        seconds, passes = run["seconds"], run["passes"]
        row = f"{run['kind']:<12}{run['batch']:<10}{seconds:>9.2f}{passes:>9}"
        print(f"{row}{1000 * seconds / passes:>11.2f}")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
