"""A model ready to run: parameters, architecture, tokenizer, and where they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.families import read_settings
from jaxalign.checkpoints.files import Checkpoint, StateDict, open_checkpoint
from jaxalign.checkpoints.gguf_model import open_gguf_model
from jaxalign.checkpoints.hub import BUNDLED_NAME, Source, locate
from jaxalign.checkpoints.parameters import float_type, load_params, unembeddings
from jaxalign.checkpoints.tokenizer import check_vocabulary, encode, read_tokenizer
from jaxalign.edits.site import Edit
from jaxalign.engine.compiled import run_edits, run_once
from jaxalign.engine.readout import FromClean, check_readout
from jaxalign.errors import InputError, counted, require_type
from jaxalign.measures.metrics import Answer
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, cast, count, param_shapes
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.runtime import files
from jaxalign.runtime.memory import require_room
from jaxalign.shapes import Lengths, Tokens

# A text, some texts, or token ids ``[B, S]`` and lengths ``[B]``.
Texts = str | Sequence[str] | tuple[Tokens, Lengths]


@dataclass(frozen=True)
class Model:
    """What ``load`` returns: ``model.run("The capital of France is")`` runs it.

    Attributes:
        params: the weights, in the dtype asked for.
        config: the architecture.
        tokenizer: from ``tokenizer.json`` or the GGUF file.
        source: the folder, and how it was found.
        weights_sha256: hash of the weight files.
    """

    params: Params
    config: ModelConfig
    tokenizer: Tokenizer
    source: Source
    weights_sha256: str
    # The parameters in the last other precision that was run; a copy of the model begins without.
    _low: dict[Scheme, Params] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        shape = self.config
        return (
            f"<Model {self.source.model}: {shape.num_layers} layers of {shape.num_heads} heads, "
            f"width {shape.hidden_size}, {count(self.params):,} parameters in {self.params.dtype}>"
        )

    def run(
        self,
        texts: Texts,
        *,
        edit: Edit | None = None,
        edits: Edit | Sequence[Edit] | None = None,
        metric: Callable[[Any], Any] | FromClean | None = None,
        target: str | Sequence[str] | None = None,
        scheme: Scheme | str = F32,
        capture: str | Sequence[str] = (),
        every_position: bool = False,
    ) -> Any:
        """Run the model on texts: clean, under one edit, or under many at once.

        What is compiled for a shape is kept: texts whose lengths are alike, other edits of the same
        kind and other targets run without compiling again. For functions of your own that are
        compiled as a whole there are ``jaxalign.forward`` and ``jaxalign.sweep``.

        Args:
            texts: one text, a list of texts, or ``(tokens, lengths)`` as ``encode`` returns them.
            edit: one change of the run, arrays without the axis of rows.
            edits: a batch of edits or a list of batches; needs ``metric`` or ``target``.
            metric: from f32 logits ``[B, V]`` at each text's last position to any tree of
                ``[B, …]``; with ``edits`` also a ``FromClean``, which sees the clean run's beside
                them. It is compiled in, so give the same function again, not a new lambda.
            target: each text's answer with its space in front, or one for all: the metric then is
                its first token's lead over the best other token, in logits.
            scheme: the precision, or its name: ``"nf4"``. The weights are rounded to it once.
            capture: activations to return, a name of ``jaxalign.model.CAPTURES`` or several.
            every_position: logits of all positions, not of each text's last one alone.

        Returns:
            Without ``metric`` and ``target``: an ``Output`` with ``logits`` ``[B, V]`` (or
            ``[B, S, V]``) and ``activations``. With one of them: its values ``[B, …]``, and with
            ``edits`` ``[1 + M, B, …]``, the clean run first; a list of those for a list of batches.

        Raises:
            InputError: texts that the model cannot read, arguments that exclude each other, or one
                of another type.
            ValueError: an edit that does not fit the run, or no name of an activation.

        Example:
            >>> model = jaxalign.load("demo")
            >>> model.tokenizer.decode([int(model.run("The capital of France is").logits.argmax())])
            ' Paris'
            >>> heads = jaxalign.zero_ablation(6, 8)
            >>> m = model.run("The capital of France is", edits=heads, target=" Paris")  # [49, 1]
        """
        scheme = as_scheme(scheme)
        require_type("every_position", every_position, bool, "True or False")
        tokens, lengths = self._prompts(texts)
        readout = self._readout(metric, target, len(tokens))
        capture = (capture,) if isinstance(capture, str) else capture
        require_type("capture", capture, (list, tuple), "the name of an activation, or a list")
        params, config, run = self._in(scheme), self.config, scheme.run
        read_last = edits is not None or readout is not None
        if read_last and (capture or every_position):
            raise InputError(
                "edits, metric and target read the last position alone, and capture= or "
                "every_position= is given",
                "leave one of them out",
            )
        if edits is not None:
            if edit is not None or readout is None:
                raise InputError(
                    "edits= are many runs, read off by metric= or target=; edit= is one of another",
                    "give edits= and one of metric= and target=",
                )
            batches = [edits] if isinstance(edits, Edit) else edits
            require_type("edits", batches, (list, tuple), "a list of Edit")
            for number, batch in enumerate(batches):
                require_type(f"edits[{number}]", batch, Edit, "an Edit")
            found = run_edits(params, tokens, lengths, config, batches, readout, scheme=run)
            values = found if target is None else [one.logit_diff for one in found]
            return values[0] if isinstance(edits, Edit) else values
        require_type("edit", edit, (Edit, type(None)), "an Edit")
        if isinstance(readout, FromClean):
            raise InputError(
                "metric is a FromClean, which compares edited runs with the clean one, and edits= "
                "is not given",
                "give edits=, or a function of logits [B, V]",
            )
        out = run_once(
            params, tokens, lengths, config, scheme=run, edit=edit, capture=capture,
            last_only=not every_position,
        )  # fmt: skip
        if readout is None:
            return out
        return readout(out.logits) if target is None else readout(out.logits).logit_diff

    def _prompts(self, texts: Texts) -> tuple[Tokens, Lengths]:
        if isinstance(texts, str):
            texts = [texts]
        require_type("texts", texts, (list, tuple), "a text, a list of texts, or tokens, lengths")
        if all(isinstance(text, str) for text in texts):
            return self.encode([str(text) for text in texts], special=True)
        if len(texts) != 2 or any(isinstance(text, str) for text in texts):
            raise InputError(
                "texts are neither all texts nor (tokens, lengths)", "give one or the other"
            )
        tokens, lengths = map(jnp.asarray, texts)
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise InputError(
                f"tokens and lengths have shapes {tokens.shape} and {lengths.shape}, expected "
                "[B, S] and [B]",
                "give them as encode returns them",
            )
        if tokens.shape[1] > self.config.max_positions:
            raise InputError(
                f"tokens have {tokens.shape[1]} positions, more than the model's context of "
                f"{self.config.max_positions}",
                "shorten them",
            )
        return tokens, lengths

    def _readout(
        self,
        metric: Callable[[Any], Any] | FromClean | None,
        target: str | Sequence[str] | None,
        count: int,
    ) -> Callable[[Any], Any] | FromClean | None:
        if target is None:
            if metric is not None:
                check_readout("metric", metric, count, self.config)
            return metric
        if metric is not None:
            raise InputError("metric and target are both given", "leave one of them out")
        require_type("target", target, (str, list, tuple), "a text, or one for each text")
        answers = [target] * count if isinstance(target, str) else list(target)
        for number, answer in enumerate(answers):
            require_type(f"target[{number}]", answer, str, "a text")
        if len(answers) != count:
            raise InputError(
                f"target names {counted(len(answers), 'answer')} of {counted(count, 'text')}",
                "give one for each text",
            )
        first = self._encoded("target", answers)[0][:, 0]
        return Answer(first, first)

    def _in(self, scheme: Scheme) -> Params:
        """The parameters as a scheme has them, made once."""
        if scheme.weights is None and self.params.dtype == jnp.dtype(scheme.compute_dtype):
            return self.params
        if scheme not in self._low:
            self._low.clear()  # not two at a time
            self._low[scheme] = cast(self.params, scheme)
        return self._low[scheme]

    def encode(self, texts: Sequence[str], special: bool = False) -> tuple[Tokens, Lengths]:
        """Token ids of some texts as ``forward`` and ``sweep`` take them.

        ``encode(answers)[0][:, 0]`` are the first tokens of answers.

        Args:
            texts: to encode.
            special: with the special tokens that the tokenizer puts around a text, as studies
                have them around prompts; answers have none.

        Returns:
            tokens: int32 ``[B, S]``, padded on the right with 0 to the longest text.
            lengths: int32 ``[B]``, real tokens of each text.

        Raises:
            InputError: no text, one without tokens, one longer than the model's context, or one
                with a token that the model has no row for.
        """
        return self._encoded("texts", texts, special)

    def _encoded(
        self, name: str, texts: Sequence[str], special: bool = False
    ) -> tuple[Tokens, Lengths]:
        """``encode`` of the texts of an argument, whose name errors have."""
        if isinstance(texts, str) or not texts:
            raise InputError(f"{name} are {texts!r}", "give a list of one text or more")
        rows = [
            encode(text, f"{name}[{i}]", self.tokenizer, self.config, special)
            for i, text in enumerate(texts)
        ]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), lengths.max()), np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = row
        return jnp.asarray(tokens), jnp.asarray(lengths)


def load(
    model: str | Path | Source | None = BUNDLED_NAME,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    memory_gb: float | None = None,
    ignore_settings: Sequence[str] = (),
) -> Model:
    """Load a checkpoint of one of ``checkpoints.families``.

    Args:
        model: folder, ``.gguf`` file (dequantized), hub repository, "demo", "smollm2" (the file of
            an installed package), None (the default model or the bundled one in its place), or a
            ``Source`` already located.
        revision: of the hub repository.
        dtype: of the parameters in memory, whatever it is on disk: float32, float16 or bfloat16.
        memory_gb: what they may take, in 1e9 bytes; the memory that is available by default.
        ignore_settings: settings of ``config.json``, or keys of the GGUF file, that are not known
            here and that you know to change nothing of what the model computes; ``Model.source``
            records them.

    Raises:
        InputError: anything about it that cannot be used, named; parameters that do not fit into
            memory, before one is read.

    Example:
        >>> jaxalign.load("demo").config.num_layers
        6
    """
    require_type("model", model, (str, Path, Source, type(None)), 'a name, a folder or "demo"')
    require_type("revision", revision, (str, type(None)), "the name of a revision")
    require_type("memory_gb", memory_gb, (int, float, type(None)), "a number of 1e9 bytes")
    source = model if isinstance(model, Source) else locate(model, revision)
    dtype = float_type(dtype)
    opened = _opened(source, tuple(ignore_settings))
    check_vocabulary(opened.tokenizer, opened.config)
    require_room(count(param_shapes(opened.config)), dtype, memory_gb)
    checkpoint, digest = opened.tensors()
    params = load_params(checkpoint, opened.config, dtype)
    source = replace(
        source,
        note="; ".join(filter(None, (source.note, *opened.notes))),
        ignored_settings=tuple(sorted(set(ignore_settings))),
    )
    return Model(params, opened.config, opened.tokenizer, source, digest())


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A model of which no tensor has been read; ``tensors`` gives them, and the files' hash."""

    config: ModelConfig
    notes: tuple[str, ...]
    tokenizer: Tokenizer
    tensors: Callable[[], tuple[Checkpoint | StateDict, Callable[[], str]]]


def _opened(source: Source, ignored: tuple[str, ...]) -> _Opened:
    if source.file is not None:
        found = open_gguf_model(source.file, ignored)
        return _Opened(
            config=found.config,
            notes=found.notes,
            tokenizer=found.tokenizer,
            tensors=lambda: (found.tensors, found.file.sha256),
        )
    path = source.folder / "config.json"
    config, notes = read_settings(read_json(path), str(path), ignored)
    tokenizer = read_tokenizer(source.folder / "tokenizer.json")

    def tensors() -> tuple[Checkpoint, Callable[[], str]]:
        tied = unembeddings(config) if config.tied_embeddings else ()
        checkpoint = open_checkpoint(source.folder, tied)
        return checkpoint, checkpoint.sha256

    return _Opened(config=config, notes=notes, tokenizer=tokenizer, tensors=tensors)


def config_from(settings: dict[str, Any], path: Path) -> ModelConfig:
    """The architecture that a ``config.json`` describes.

    Args:
        settings: its content.
        path: the file, for messages.

    Raises:
        InputError: see ``read_settings``.
    """
    return read_settings(settings, str(path))[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, cannot be read, or holds something else.
    """
    remedy = "point --model at a complete checkpoint, or download it again"
    content = files.read_json(path, remedy)
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object", remedy)
    return content
