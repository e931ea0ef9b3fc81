"""``verify``: are numbers that others published reproduced, with the real weights?

The numbers and their sources are in ``published.json``. Texts that are not ours to ship (LAMBADA,
WikiText-2) are read from files that the user gives.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints import Model, ModelUnavailable, load, locate
from jaxalign.checkpoints.tokenizer import check_known, token_ids
from jaxalign.commands.opening import ignoring, keep_programs
from jaxalign.errors import InputError
from jaxalign.model import ModelConfig, Params, cast, forward
from jaxalign.numerics.scheme import F16
from jaxalign.prompts import Batch, batches
from jaxalign.runtime.compile import jit
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.files import read_json, read_text
from jaxalign.runtime.progress import Progress
from jaxalign.shapes import Array, Float, Lengths, Tokens

PUBLISHED = Path(__file__).parent / "published.json"
MISMATCH = 1
NOT_CHECKED = 3


@dataclass(frozen=True)
class Check:
    """One published number against ours.

    ``found`` is None where the number could not be computed, and ``remark`` says why; ``passed``
    is then None too.
    """

    name: str
    source: str
    expected: float
    found: float | None
    tolerance: float
    passed: bool | None
    remark: str = ""


def published() -> dict[str, Any]:
    """The published numbers."""
    return read_json(PUBLISHED)


def verify(
    model: Model | None,
    lambada: Path | None = None,
    wikitext: Path | None = None,
    missing: str = "",
) -> list[Check]:
    """Check every published number.

    Args:
        model: with the published weights, or None where they could not be had.
        lambada: OpenAI's LAMBADA test file, one JSON object with "text" a line.
        wikitext: WikiText-2's raw test file.
        missing: why there is no model.

    Raises:
        InputError: a file cannot be read.
    """
    numbers = published()
    for flag, path in (("--lambada", lambada), ("--wikitext", wikitext)):
        if path is not None and not os.path.isfile(path):
            raise InputError(f"{flag}: {path} is missing or no file", "give the path of the text")
    if model is None:
        return [_unchecked(*known, missing) for known in _expected(numbers)]
    checks = [_f16_logits(model, numbers["f16_logits"]), _loss(model, numbers["loss"])]
    checks += _lambada(model, numbers["lambada"], lambada)
    checks += _wikitext(model, numbers["wikitext"], wikitext)
    return checks


def _expected(numbers: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    f16, loss, lambada, wiki = (
        numbers[name] for name in ("f16_logits", "loss", "lambada", "wikitext")
    )
    return [
        (f16["what"], f16["source"], 0.0, f16["tolerance"]),
        (loss["what"], loss["source"], loss["value"], loss["tolerance"]),
        *(
            (f"LAMBADA {kind}", lambada["source"], lambada[kind], lambada[f"{kind}_tolerance"])
            for kind in ("accuracy", "perplexity")
        ),
        *(
            (f"WikiText-2 perplexity, {n} tokens", wiki["source"], value, _relative(wiki, value))
            for n, value in wiki["perplexity"].items()
        ),
    ]


def _relative(wiki: dict[str, Any], value: float) -> float:
    return value * wiki["relative_tolerance"]


def _unchecked(name: str, source: str, expected: float, tolerance: float, why: str) -> Check:
    return Check(name, source, expected, None, tolerance, None, why)


def _compare(name: str, source: str, expected: float, tolerance: float, found: float) -> Check:
    passed = math.isfinite(found) and abs(found - expected) <= tolerance
    return Check(name, source, expected, found, tolerance, passed)


def _f16_logits(model: Model, known: dict[str, Any]) -> Check:
    """Largest distance from the published f16 logits, in steps between neighbouring f16 numbers."""
    name = f"{known['what']}: largest distance in {known['tolerance_unit']}"
    if max(known["input_ids"]) >= model.config.vocab_size:
        remark = "the model's vocabulary is smaller"
        return _unchecked(name, known["source"], 0.0, known["tolerance"], remark)
    run = jit(functools.partial(forward, config=model.config, scheme=F16, last_only=True))
    logits = run(cast(model.params, F16), jnp.array([known["input_ids"]])).logits[0]
    expected = np.array(known["logits"], np.float16)
    ours = np.asarray(logits[: len(expected)]).astype(np.float16)
    steps = np.abs(ours.astype(np.float64) - expected) / np.spacing(np.abs(expected))
    return _compare(name, known["source"], 0.0, known["tolerance"], float(steps.max()))


def _loss(model: Model, known: dict[str, Any]) -> Check:
    bos = model.tokenizer.token_to_id(known["bos"])
    if bos is None:
        remark = f"the tokenizer has no {known['bos']}"
        return _unchecked(
            known["what"], known["source"], known["value"], known["tolerance"], remark
        )
    tokens = [bos, *_ids(model, known["text"])]
    found = -float(np.mean(_log_likelihoods(model, [tokens])[0]))
    return _compare(known["what"], known["source"], known["value"], known["tolerance"], found)


@functools.partial(jit, static_argnames=("config",))
def _next_token_scores(
    params: Params, tokens: Tokens, lengths: Lengths, *, config: ModelConfig
) -> tuple[Float[Array, "B S-1"], Float[Array, "B S-1"]]:
    """For each next token its log-likelihood, and whether it is the greedy choice."""
    logits = forward(params, tokens, config, lengths=lengths).logits[:, :-1]
    following = tokens[:, 1:]
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), following[..., None], axis=-1)[..., 0]
    greedy = logits.argmax(axis=-1) == following
    return scores, greedy.astype(jnp.float32)


def _score(model: Model, texts: Sequence[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    places: list[Any] = [None] * len(texts)
    work: list[Batch] = list(batches(texts, 8, model.config.max_positions))
    for batch in Progress().track(work, "scoring texts", "batch"):
        out = jax.device_get(
            _next_token_scores(model.params, batch.tokens, batch.lengths, config=model.config)
        )
        for row, i in enumerate(batch.index):
            places[i] = tuple(a[row, : batch.lengths[row] - 1] for a in out)
    return places


def _log_likelihoods(model: Model, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [scores for scores, _ in _score(model, texts)]


def _ids(model: Model, text: str) -> tuple[int, ...]:
    """Token ids of a text, without special tokens, each a row of the model's embedding."""
    return check_known(token_ids(model.tokenizer, text), text, "a text", model.config)


def _lambada(model: Model, known: dict[str, Any], path: Path | None) -> list[Check]:
    """Accuracy of the whole last word under greedy choice, and perplexity per last word."""
    kinds = ("accuracy", "perplexity")
    if path is None:
        remark = "give --lambada FILE"
        return [
            _unchecked(
                f"LAMBADA {kind}", known["source"], known[kind], known[f"{kind}_tolerance"], remark
            )
            for kind in kinds
        ]
    pairs = _read_lambada(path)
    contexts = [_ids(model, before) for before, _ in pairs]
    # The context and the word are tokenized apart, as lm-eval does.
    words = [_ids(model, f" {word}") for _, word in pairs]
    joined = [context + word for context, word in zip(contexts, words, strict=True)]
    likelihood, right = [], []
    for (scores, greedy), word in zip(_score(model, joined), words, strict=True):
        likelihood.append(scores[-len(word) :].sum())
        right.append(greedy[-len(word) :].all())
    found = {"accuracy": float(np.mean(right)), "perplexity": float(np.exp(-np.mean(likelihood)))}
    return [
        _compare(
            f"LAMBADA {kind}, {len(pairs)} examples",
            known["source"],
            known[kind],
            known[f"{kind}_tolerance"],
            found[kind],
        )
        for kind in kinds
    ]


def _read_lambada(path: Path) -> list[tuple[str, str]]:
    """Each text up to its last space, and the word after it."""
    pairs = []
    for number, line in enumerate(read_text(path, "check its path").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            before, word = json.loads(line)["text"].rsplit(" ", 1)
            if not (before and word):
                raise ValueError("no word before the last one")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{path} is not a LAMBADA file: line {number} is {line[:40]!r}",
                'expected a JSON object with "text" of several words on each line',
            ) from error
        pairs.append((before, word))
    if not pairs:
        raise InputError(f"{path} is empty", "expected LAMBADA's test set, JSON lines")
    return pairs


def _wikitext(model: Model, known: dict[str, Any], path: Path | None) -> list[Check]:
    """Perplexity of the text's first tokens in one window from position 0."""
    text = None if path is None else read_text(path, "check its path")
    ids = [] if text is None else _ids(model, text)
    checks = []
    for size, value in known["perplexity"].items():
        name, tolerance = f"WikiText-2 perplexity, {size} tokens", _relative(known, value)
        if path is None or len(ids) < int(size) or int(size) > model.config.max_positions:
            remark = "give --wikitext FILE" if path is None else "text or context is too short"
            checks.append(_unchecked(name, known["source"], value, tolerance, remark))
            continue
        [scores] = _log_likelihoods(model, [ids[: int(size)]])
        found = math.exp(-float(np.mean(scores.astype(np.float64))))
        checks.append(_compare(name, known["source"], value, tolerance, found))
    return checks


def run(arguments: argparse.Namespace) -> int:
    """Check and print; returns the exit code."""
    select_device(arguments.device)
    keep_programs(arguments)
    try:
        source = locate(arguments.model or published()["model"], arguments.revision)
        model, missing = load(source, **ignoring(arguments)), ""
    except ModelUnavailable as unavailable:
        model, missing = None, f"the weights could not be had: {unavailable.problem}"
    remark = "no weights" if missing else ""
    checks = verify(model, arguments.lambada, arguments.wikitext, remark)
    for check in checks:
        print(_check_line(check))
    if all(check.passed is None for check in checks):
        print(f"nothing was checked: {missing or 'see above'}")
        return NOT_CHECKED
    return MISMATCH if any(check.passed is False for check in checks) else 0


def _check_line(check: Check) -> str:
    verdict = {True: "matches", False: "DIFFERS", None: "not checked"}[check.passed]
    found = check.remark if check.found is None else f"found {check.found:.6g}"
    wanted = f"published {check.expected:.6g} ± {check.tolerance:.2g}"
    return f"{verdict:>11}  {check.name}: {wanted}, {found}  [{check.source}]"
