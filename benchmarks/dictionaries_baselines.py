"""Dictionaries in PyTorch, as a user would write them, and in SAELens in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from jaxalign.checkpoints.dictionaries import DictionaryFacts, TrainedDictionary, save_dictionary
from jaxalign.dictionaries import Dictionary
from jaxalign.errors import InputError

WORKER = Path(__file__).parent / "dictionaries_sae_lens.py"
FACTS = DictionaryFacts(
    layout="sae_lens", model="random", point="resid", step=1, prepend_bos=False, context_size=128
)
Tensors = dict[str, torch.Tensor]


def tensors(d: Dictionary) -> Tensors:
    """The arrays of a dictionary."""
    found = {name: getattr(d, name) for name in vars(d)}
    return {n: torch.from_numpy(np.array(v)) for n, v in found.items() if hasattr(v, "shape")}


def encode(t: Tensors, x: torch.Tensor, kind: str, k: int | None) -> torch.Tensor:
    """Features, dense."""
    pre = torch.addmm(t["encoder_bias"], x - t["decoder_bias"], t["encoder"])
    if kind == "topk":
        values, places = torch.topk(pre, k or 0, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, places, values.relu_())
    if kind == "jumprelu":
        return torch.where(pre > t["threshold"], pre.relu(), 0)
    return pre.relu_()


def decode(t: Tensors, f: torch.Tensor) -> torch.Tensor:
    """What features stand for."""
    return torch.addmm(t["decoder_bias"], f, t["decoder"])


def feature_sums(
    t: Tensors, x: torch.Tensor, y: torch.Tensor, kind: str, k: int | None, rows: int
) -> Tensors:
    """The sums of ``accumulate.feature_sums`` over all tokens, ``rows`` at a time."""
    total: Tensors = {}
    for start in range(0, len(x), rows):
        part, low = x[start : start + rows], y[start : start + rows]
        a, b = encode(t, part, kind, k), encode(t, low, kind, k)
        here, there = decode(t, a), decode(t, b)
        d, fires, low_fires = b - a, a > 0, b > 0
        found = {
            "a": a.sum(0), "d": d.sum(0), "aa": (a * a).sum(0), "dd": (d * d).sum(0),
            "ad": (a * d).sum(0), "fired": fires.sum(0), "low_fired": low_fires.sum(0),
            "both": (fires & low_fires).sum(0), "x": part.sum(0), "low_x": low.sum(0),
            "xx": (part**2).sum(), "low_xx": (low**2).sum(),
            "missed": ((part - here) ** 2).sum(), "low_missed": ((low - there) ** 2).sum(),
            "moved": ((there - here) ** 2).sum(),
        }  # fmt: skip
        largest = {"top": a.amax(0), "low_top": b.amax(0)}
        for name, value in found.items():
            total[name] = total[name] + value if name in total else value
        for name, value in largest.items():
            total[name] = torch.maximum(total[name], value) if name in total else value
    return total


def train(
    d: Dictionary, data: torch.Tensor, batches: np.ndarray, rates: list[float], k: int
) -> list[float]:
    """The error of every step of a TopK dictionary, as ``dictionaries.training`` trains it.

    Args:
        d: as it begins.
        data: scaled activations.
        batches: int ``[steps, B]``, the tokens of every step.
        rates: the learning rate of every step.
        k: features a token.
    """
    t = {name: value.requires_grad_() for name, value in tensors(d).items()}
    adam = torch.optim.Adam(t.values(), fused=True)
    chosen = torch.from_numpy(batches.astype(np.int64))
    fired, errors = torch.zeros(d.features, dtype=torch.long), []
    for step, (rows, rate) in enumerate(zip(chosen, rates, strict=True)):
        x = data[rows]
        pre = torch.addmm(t["encoder_bias"], x - t["decoder_bias"], t["encoder"])
        values, places = torch.topk(pre, k, dim=-1, sorted=False)
        f = torch.zeros_like(pre).scatter(-1, places, values.relu())
        error = ((x - decode(t, f)) ** 2).mean()
        adam.zero_grad()
        error.backward()
        adam.param_groups[0]["lr"] = rate
        adam.step()
        with torch.no_grad():
            t["decoder"].div_(t["decoder"].norm(dim=-1, keepdim=True).clamp_min(1e-8))
            fired[(f > 0).any(dim=0)] = step + 1  # for a second reconstruction by dead features
        errors.append(error.detach())
    return torch.stack(errors).tolist()


@contextmanager
def sae_lens(
    packages: str, d: Dictionary, x: np.ndarray, folder: Path
) -> Iterator[tuple[str, Callable[[], Path]]]:
    """SAELens's ``encode`` of the same activations in a process that waits between its calls.

    Args:
        packages: the folder that SAELens is installed in.
        d: written for it to read.
        x: activations.
        folder: an empty one.

    Yields:
        Its version, and what encodes once: it returns the file of the first tokens' features.
    """
    save_dictionary(TrainedDictionary(dictionary=d, facts=FACTS), folder / "sae")
    np.save(folder / "x.npy", x)
    with subprocess.Popen(
        [sys.executable, str(WORKER), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": packages}, text=True,
    ) as worker:  # fmt: skip
        assert worker.stdin
        assert worker.stdout

        def told() -> str:
            assert worker.stdout
            line = worker.stdout.readline().strip()
            if not line:
                raise InputError(
                    f"SAELens in {packages} does not run: its error stands above",
                    "install it as tests/test_sae_lens.py does, or leave out --sae-lens",
                )
            return line

        def call() -> Path:
            assert worker.stdin
            worker.stdin.write("encode\n")
            worker.stdin.flush()
            told()
            return folder / "features.npy"

        version = told()
        try:
            yield version, call
        finally:
            worker.stdin.close()
