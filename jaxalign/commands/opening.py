"""What commands open before they compute: a device, compiled programs, the model, its devices."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxalign.calibration import read_texts, shipped_texts
from jaxalign.checkpoints import Model, Quantized, Source, load, load_beside, locate
from jaxalign.devices.mesh import usable_devices
from jaxalign.errors import InputError
from jaxalign.prompts import SINGLE, PromptKind, PromptSet, one_prompt
from jaxalign.runtime.compilation_cache import enable_compilation_cache
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.files import read_bytes
from jaxalign.study.option import listed


def opened(arguments: argparse.Namespace, job: str, memory_gb: float | None = None) -> Model:
    """The model of a command that uses one device, after a line that says what runs.

    Args:
        arguments: from ``parse``, of a command that takes a model, a device and programs.
        job: what is done, with ``{}`` for the model: "speed of {}".
        memory_gb: what the parameters may take, in 1e9 bytes; by default what is available.

    Raises:
        InputError: no such model or device, or one that cannot be used.
    """
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    print(job.format(described(source, device.platform)), flush=True)
    keep_programs(arguments)
    return load(source, memory_gb=memory_gb, **ignoring(arguments))


def quantized_beside(arguments: argparse.Namespace, original: Model) -> Quantized:
    """The checkpoint of ``--quantized``, whose scheme says that its codes are a file's.

    Args:
        arguments: with ``quantized`` and ``model``.
        original: the model that was quantized, in f32.

    Raises:
        InputError: ``--model`` names no original, or the checkpoint is of another model.
    """
    if arguments.model is None:
        raise InputError(
            "--quantized needs the original beside it, and --model names none",
            "give --model, the model that was quantized",
        )
    found = load_beside(arguments.quantized, original)
    return replace(found, scheme=replace(found.scheme, from_file=True))


def described(source: Source, platform: str) -> str:
    """Model, revision and platform for people."""
    revision = f" at {source.revision}" if source.revision else ""
    note = f" ({source.note})" if source.note else ""
    return f"{source.model}{revision} on {platform}{note}"


def keep_programs(arguments: argparse.Namespace) -> None:
    """Keep compiled programs where the arguments say."""
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)


def ignoring(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that ``load`` may ignore, as its argument."""
    return {"ignore_settings": tuple(arguments.ignore_setting)} if arguments.ignore_setting else {}


def asked_prompts(
    arguments: argparse.Namespace, kind: PromptKind = SINGLE
) -> tuple[PromptSet, dict[str, str]]:
    """The prompts that the arguments ask for, and how the result names their file.

    Args:
        arguments: ``prompts``, a file or None; a namespace may also have one prompt and its target
            and distractor, or tasks and a limit.
        kind: of the prompts.

    Raises:
        InputError: the file cannot be used, or options exclude each other.
    """

    def asked(name: str) -> Any:
        return getattr(arguments, name, None)

    prompt, target, distractor = map(asked, ("prompt", "target", "distractor"))
    tasks, limit = asked("tasks"), asked("limit")
    if prompt is None:
        if target is not None or distractor is not None:
            flag = "--target" if target is not None else "--distractor"
            raise InputError(f"{flag} is of one prompt, and --prompt is missing", "give --prompt")
        prompts = kind.read(arguments.prompts)
        file = kind.shipped if arguments.prompts is None else arguments.prompts
        name = "shipped" if arguments.prompts is None else str(arguments.prompts)
        if tasks is not None or limit is not None:
            prompts = prompts.only(None if tasks is None else listed(tasks), limit)
            name += "".join(
                f", --{flag} {value}"
                for flag, value in (("tasks", tasks), ("limit", limit))
                if value is not None
            )
        return prompts, {"file": name, "file_sha256": _sha256(read_bytes(file))}
    others = {"--prompts": arguments.prompts, "--tasks": tasks, "--limit": limit}
    for flag, value in others.items():
        if value is not None:
            raise InputError(f"--prompt is in place of a file, and {flag} is given", "leave it out")
    if target is None:
        raise InputError("--prompt has no --target", 'give its answer: --target " Paris"')
    given = json.dumps([prompt, target, distractor]).encode(errors="surrogatepass")
    named = {"file": "--prompt", "file_sha256": _sha256(given)}
    return one_prompt(prompt, target, distractor), named


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def calibration_texts(path: Path | None) -> tuple[str, ...]:
    """The texts that schemes are calibrated on: a file's, or the shipped ones.

    Args:
        path: of ``--calibration``, or None.

    Raises:
        InputError: the file cannot be used.
    """
    return shipped_texts() if path is None else read_texts(path)


def shared_devices(count: int | None, device: jax.Device) -> list[jax.Device]:
    """The devices that share the work: all GPUs by default, one CPU.

    Args:
        count: of ``--devices``, or None.
        device: the one that was selected, of the same platform.

    Raises:
        InputError: there are not so many.
    """
    if count is None and device.platform == "cpu":
        count = 1
    return usable_devices(device.platform, count)


def load_for(
    devices: Sequence[jax.Device], source: Source, memory_gb: float | None = None, **more: Any
) -> Model:
    """The model; in the host's memory where several devices take their parts from it.

    Args:
        devices: that share the work.
        source: from ``locate``.
        memory_gb: what the parameters may take on one device, in 1e9 bytes.
        more: other arguments of ``load``.

    Raises:
        InputError: as ``load``, or JAX leaves the host's CPU out.
    """
    if len(devices) == 1:
        return load(source, memory_gb=memory_gb, **more)
    try:
        [host, *_] = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise InputError(
            "several devices take their parts of the model from the host's memory, and "
            "JAX_PLATFORMS leaves the host's CPU out",
            "add it, for example JAX_PLATFORMS=cuda,cpu",
        ) from error
    with jax.default_device(host):
        return load(source, **more)
