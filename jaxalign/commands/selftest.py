"""``selftest``: does this installation compute what it should? A minute, no other package."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints import Model, load
from jaxalign.commands.opening import keep_programs
from jaxalign.edits.ready import zero_ablation
from jaxalign.engine import ENGINES, sweep
from jaxalign.measures.metrics import logit_difference
from jaxalign.numerics.codebooks import E2M1, NF4
from jaxalign.numerics.qtensor import unpack
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import as_scheme
from jaxalign.prompts import read_prompts
from jaxalign.runtime.canary import check_canary
from jaxalign.runtime.compile import jit
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.files import read_json
from jaxalign.studies.registry import STUDIES
from jaxalign.study import codec

KEPT = Path(__file__).parent / "selftest.json"
FAILED = 1
CLOSE = 1e-4  # of the largest logit: other processors add in another order
TEXTS = ["The capital of France is", "When Mary and John went to the shop, John gave a book to"]


class Differs(Exception):
    """Something is not what it should be; says what."""


def _near(found: Any, expected: Any, what: str, close: float = CLOSE) -> float:
    """How far two arrays are apart, relative to the largest entry; ``Differs`` beyond ``close``."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    apart = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not apart <= close:  # NaN, too
        raise Differs(f"{what} are {apart:.1e} of the largest apart, expected at most {close:.0e}")
    return apart


def roundings(model: Model) -> str:
    """16-bit roundings are kept by the compiler, and f32 products are f32."""
    check_canary()
    return "every rounding is kept"


def logits(model: Model) -> str:
    """The bundled model's logits are those that PyTorch computes."""
    kept = read_json(KEPT)
    apart = 0.0
    for text, tokens, expected in zip(kept["texts"], kept["tokens"], kept["logits"], strict=True):
        found = model.run(text).logits[0][np.array(tokens)]
        apart = max(apart, _near(found, expected, f"logits behind {text!r}"))
    return f"{len(kept['texts'])} texts, at most {apart:.0e} of the largest apart"


def engines(model: Model) -> str:
    """All heads ablated at once equal the plain path, one after the other."""
    heads = zero_ablation(model.config.num_layers, model.config.num_heads)
    tokens, lengths = model.encode(TEXTS)
    target = model.encode([" Paris", " Mary"])[0][:, 0]

    def ablated(engine: Any) -> Any:
        def run(params: Any) -> Any:
            given = params, tokens, lengths, model.config, [heads]
            return sweep(*given, lambda out: logit_difference(out, target), engine=engine)

        return jit(run)(model.params)[0]

    wave, plain = map(ablated, ENGINES)
    return f"{wave.size} runs, {_near(wave, plain, 'the two engines'):.0e} of the largest apart"


def formats(model: Model) -> str:
    """Weights rounded to every kind of format equal NumPy's own arithmetic."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((128, 24)).astype(np.float32)
    for name, plain in PLAIN.items():
        form = as_scheme(name).weights
        assert form is not None
        found = unpack(quantize(jnp.asarray(w), form))
        _near(found, plain(w, form.group or len(w)), f"weights in {name}", 1e-6)
    return ", ".join(PLAIN)


def _grouped(w: np.ndarray, group: int) -> np.ndarray:
    return w.astype(np.float64).reshape(len(w) // group, group, -1)


def _symmetric(levels: float, low: int, high: int) -> Callable[[np.ndarray, int], np.ndarray]:
    def plain(w: np.ndarray, group: int) -> np.ndarray:
        x = _grouped(w, group)
        scale = np.abs(x).max(axis=1, keepdims=True) / levels
        return (np.clip(np.round(x / scale), low, high) * scale).reshape(w.shape)

    return plain


def _with_zero(w: np.ndarray, group: int) -> np.ndarray:
    x = _grouped(w, group)
    least, most = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    scale = (most - least) / 15
    zero = np.clip(-np.round(least / scale), 0, 15)
    codes = np.clip(np.round(x / scale) + zero, 0, 15)
    return ((codes - zero) * scale).reshape(w.shape)


def _nf4(w: np.ndarray, group: int) -> np.ndarray:
    x = _grouped(w, group)
    largest = np.abs(x).max(axis=1, keepdims=True)
    nearest = np.abs((x / largest)[..., None] - NF4.astype(np.float64)).argmin(axis=-1)
    return (NF4.astype(np.float64)[nearest] * largest).reshape(w.shape)


def _mxfp4(w: np.ndarray, group: int) -> np.ndarray:
    x = _grouped(w, group)
    # Rounded up where 7 of 8 would round to 8.
    power = np.floor(np.log2(np.abs(x).max(axis=1, keepdims=True) * 8 / 7))
    scale = np.exp2(power - 2)
    nearest = np.abs((x / scale)[..., None] - E2M1.astype(np.float64)).argmin(axis=-1)
    return (E2M1.astype(np.float64)[nearest] * scale).reshape(w.shape)


PLAIN: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "int8": _symmetric(127, -127, 127),
    "int4-g32": _with_zero,
    "int4-sym-g64": _symmetric(7, -8, 7),
    "nf4": _nf4,
    "mxfp4": _mxfp4,
}


def files(model: Model) -> str:
    """A small study runs, and its file is read as it was written."""
    study = STUDIES["schemes"]
    options = study.options(schemes=("f16",))
    result = study(model, read_prompts().only(["factual"], 3), options, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        study.write(result, path)
        again = study.read(path)
    if codec.encode(again) != codec.encode(result):
        raise Differs("the file that was read holds something else than the result")
    if not study.table(again).strip():
        raise Differs("the table of the result is empty")
    return f"schemes, {result.provenance.prompts.kept} prompts, {len(result.rows)} precisions"


CHECKS: tuple[Callable[[Model], str], ...] = (roundings, logits, engines, formats, files)


def run(arguments: argparse.Namespace) -> int:
    """Check and print; returns the exit code.

    Args:
        arguments: from ``parse``: device, compilation cache.

    Raises:
        InputError: there is no such device.
    """
    device = select_device(arguments.device)
    keep_programs(arguments)
    print(
        f"selftest on {device.platform} ({device.device_kind}), jax {jax.__version__}", flush=True
    )
    model, failed = load("demo"), 0
    for check in CHECKS:
        claim = (check.__doc__ or "").strip().rstrip(".")
        start = time.perf_counter()
        try:
            verdict, detail = "passed", check(model)
        except Exception as error:  # whatever is broken, the other checks still run
            verdict, detail, failed = "FAILED", f"{type(error).__name__}: {error}", failed + 1
        seconds = time.perf_counter() - start
        print(f"{verdict}  {claim} ({detail}; {seconds:.0f} s)", flush=True)
    print(f"{failed} of {len(CHECKS)} failed" if failed else "all passed")
    return FAILED if failed else 0
