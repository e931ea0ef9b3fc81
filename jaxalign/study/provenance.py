"""Where a result comes from: typed, the same in every result, and the facts that decide its bits.

``Inputs`` is what a study is given. It is known before the first call, it decides the numbers, and
a resume folder is known by it. ``Provenance`` adds what happened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.checkpoints import Model
from jaxalign.errors import counted
from jaxalign.measures import stats
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Prompt
from jaxalign.runtime.environment import describe
from jaxalign.study.call_log import CallCount


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """The model.

    Attributes:
        name: hub repository, folder or "demo".
        revision: the commit; None where there is none.
        note: what was given in its place.
        weights_sha256: of the weight files.
    """

    name: str
    revision: str | None = None
    note: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptsOrigin:
    """The prompts.

    Attributes:
        file: "shipped" or the path; sha256: of the file.
        tokens_sha256: of the token ids that the model was given.
        given: prompts in the file; kept: prompts that the result is about.
        positions: tokens of the prompts given.
    """

    file: str = ""
    sha256: str = ""
    tokens_sha256: str = ""
    given: int = 0
    kept: int = 0
    positions: int = 0


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What computed: machine, versions, flags.

    Attributes:
        platform: operating system and processor.
        device: "cpu", "gpu" or "tpu", as JAX calls it; device_kind: which.
        device_count: of this process.
        python: its version; versions: of packages.
        compiler_options: that every program is compiled with; xla_flags: of the environment.
    """

    platform: str = ""
    device: str = ""
    device_kind: str = ""
    device_count: int = 1
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    compiler_options: dict[str, Any] = field(default_factory=dict)
    xla_flags: str = ""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that decides the numbers of a study.

    Attributes:
        study: its format, "jaxalign.heads/2".
        model, prompts, environment: what they are called.
        config: the architecture.
        options: of the study, schemes by name.
        schemes: those of the options, in full.
        calibration: sha256 of the texts that schemes are calibrated on; "" without.
        quantized: sha256 of an audited checkpoint; "" without.
        devices: axes of the mesh; None for one device. How many prompts and rows make a call
            depends on it.
        processes: how many share the work.
    """

    study: str
    model: ModelOrigin
    prompts: PromptsOrigin
    environment: Environment
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    schemes: tuple[dict[str, Any], ...] = ()
    calibration: str = ""
    quantized: str = ""
    devices: dict[str, int] | None = None
    processes: int = 1

    def facts(self) -> dict[str, Any]:
        """What two runs must have in common to share their calls, by the names of an error."""
        return {
            "study": self.study,
            "weights": self.model.weights_sha256,
            "config": self.config,
            "token ids": self.prompts.tokens_sha256,
            **self.options,
            "schemes in full": list(self.schemes),
            "calibration": self.calibration,
            "quantized": self.quantized,
            "device": self.environment.device_kind,
            "devices": self.devices,
            "versions": self.environment.versions,
            "compiler options": self.environment.compiler_options,
        }


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from.

    Attributes:
        model, prompts, environment, options, calibration, quantized, devices, processes: as
            ``Inputs`` has them.
        notes: what a reader of the result has to know.
        timestamp: when the study ended, UTC.
        total_seconds: of all, with the calls that runs before had finished; seconds: of this
            run, by phase, compilation included.
        calls: what was computed.
        layer_rows: passes of one run of one prompt through one block.
        bootstrap_samples, permutations: behind every interval and p-value.
    """

    model: ModelOrigin
    prompts: PromptsOrigin
    environment: Environment
    options: dict[str, Any] = field(default_factory=dict)
    calibration: str = ""
    quantized: str = ""
    devices: dict[str, int] | None = None
    processes: int = 1
    notes: tuple[str, ...] = ()
    timestamp: str = ""
    total_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    calls: tuple[CallCount, ...] = ()
    layer_rows: int = 0
    bootstrap_samples: int = stats.BOOTSTRAP_SAMPLES
    permutations: int = stats.PERMUTATIONS

    @property
    def subject(self) -> str:
        """What the result is of, in a few words."""
        return f"{self.model.name}, {counted(self.prompts.kept, 'prompt')}"

    @property
    def headline(self) -> dict[str, Any]:
        """What the result is of, as ``--json`` has it."""
        return {
            "model": self.model.name,
            "revision": self.model.revision,
            "prompts": self.prompts.kept,
            "prompts_given": self.prompts.given,
        }

    @property
    def of_model(self) -> str:
        """The model and its revision, or its weights, for the foot of a figure."""
        model = self.model
        return f"{model.name}; revision " + (
            model.revision or f"none (weights sha256 {model.weights_sha256[:12]})"
        )


def inputs_of(
    study: str,
    model: Model,
    prompts: Sequence[Prompt],
    reference: Sequence[Sequence[int]],
    options: Any,
    mesh: Mesh | None,
    *,
    file: str = "",
    file_sha256: str = "",
    calibration: Sequence[str] = (),
    quantized: str = "",
) -> Inputs:
    """What a study is given.

    Args:
        study: its format.
        model: with its weights' hash.
        prompts: tokenized.
        reference: token ids of the reference texts.
        options: the study's.
        mesh: of devices.
        file, file_sha256: of the prompts.
        calibration: texts.
        quantized: hash of an audited checkpoint's weights.
    """
    source = model.source
    device, *_ = jax.tree.leaves(model.params)[0].devices()  # all are of one kind
    tokens = [prompt.facts for prompt in prompts]
    return Inputs(
        study=study,
        model=ModelOrigin(
            name=source.model,
            revision=source.revision,
            note=source.note,
            weights_sha256=model.weights_sha256,
        ),
        prompts=PromptsOrigin(
            file=file,
            sha256=file_sha256,
            tokens_sha256=_sha256([tokens, list(reference)]),
            given=len(prompts),
            kept=len(prompts),
            positions=sum(len(prompt.tokens) for prompt in prompts),
        ),
        environment=Environment(**describe(device)),
        config=_plain(dataclasses.asdict(model.config)),
        options={f.name: _plain(getattr(options, f.name)) for f in dataclasses.fields(options)},
        schemes=tuple(_plain(dataclasses.asdict(scheme)) for scheme in _schemes(options)),
        calibration=_sha256(list(calibration)) if calibration else "",
        quantized=quantized,
        devices=dict(mesh.shape) if mesh else None,
        processes=jax.process_count(),
    )


def _schemes(options: Any) -> list[Scheme]:
    values = [getattr(options, f.name) for f in dataclasses.fields(options)]
    parts = [part for v in values for part in (v if isinstance(v, tuple) else (v,))]
    return [part for part in parts if isinstance(part, Scheme)]


def _plain(value: Any) -> Any:
    """A value as JSON has it; a scheme by its name."""
    if isinstance(value, Scheme):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
