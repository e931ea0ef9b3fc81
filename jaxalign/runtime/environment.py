"""What a result was computed with, and the device it is computed on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import jax

from jaxalign.errors import InputError
from jaxalign.runtime.compile import compiler_options
from jaxalign.version import VERSION

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "tokenizers", "safetensors")
DEVICES = ("auto", "cpu", "gpu", "cuda")


def select_device(name: str) -> jax.Device:
    """Make ``name`` the default device of this process.

    Args:
        name: "auto" takes a GPU where there is one; "gpu" and "cuda" insist on it.

    Raises:
        InputError: unknown name, or no such device with a working driver.
    """
    if name not in DEVICES:
        raise InputError(f"--device {name} is unknown", f"use one of {', '.join(DEVICES)}")
    try:
        device = jax.local_devices(backend=None if name == "auto" else name)[0]
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX_PLATFORMS leaves none
        first = (str(error).splitlines() or ["JAX found none"])[0]
        asked = os.environ.get("JAX_PLATFORMS")
        raise InputError(
            f"--device {name}: no such device with a working driver ({first})"
            + (f"; JAX_PLATFORMS is {asked}" if asked else ""),
            "use --device cpu, or install the driver and: pip install 'jaxalign[cuda]' "
            "('jaxalign[cuda12]' for a driver older than 580)",
        ) from error
    jax.config.update("jax_default_device", device)
    return device


def describe(device: jax.Device) -> dict[str, Any]:
    """Versions, flags and device, as results record them."""
    versions = {"jaxalign": VERSION}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device.platform,
        "device_kind": device.device_kind,
        "device_count": jax.local_device_count(device.platform),
        "python": platform.python_version(),
        "versions": versions,
        "compiler_options": dict(compiler_options(device.platform)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
