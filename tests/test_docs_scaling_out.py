"""docs/scaling_out.md says what is so: its code prints what it shows, its numbers are computed."""

import contextlib
import io
import re
from pathlib import Path

import jax
import pytest

from benchmarks.devices import counted
from jaxalign.commands.arguments import flags
from jaxalign.commands.one_study import ACTIVATIONS
from jaxalign.devices.mesh import choose_mesh, part_bytes
from jaxalign.model import ModelConfig
from jaxalign.processes.distributed import PATIENCE
from jaxalign.processes.peers import SILENCE

PAGE = (Path(__file__).parent.parent / "docs" / "scaling_out.md").read_text()
PYTHIA_12B = ModelConfig(50688, 36, 40, 5120, 20480, rotary_dims=32)
PYTHIA_70M = ModelConfig(50304, 6, 8, 512, 2048, rotary_dims=16)


def test_each_example_prints_what_is_shown_below_it():
    examples = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == PAGE.count("```python") == 2
    names = {}
    for code, shown in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "scaling_out.md", "exec"), names)
        assert printed.getvalue() == shown


# Slurm's own.
SLURM = {"--array", "--gres", "--parsable", "--dependency", "--wrap"} | {
    "--nodes", "--ntasks-per-node", "--gpus-per-node", "--pty",
}  # fmt: skip


def test_every_option_shown_exists():
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - SLURM
    assert shown <= flags("heads") | flags("schemes")


@pytest.mark.parametrize(("memory_gb", "groups", "spread"), [(72, 4, 2), (36, 2, 4)])
def test_the_groups_are_those_that_the_command_chooses(memory_gb, groups, spread):
    assert ACTIVATIONS == 0.25
    budget = memory_gb * 1e9
    mesh = choose_mesh(PYTHIA_12B, jax.devices(), budget, reserve=ACTIVATIONS * budget)
    assert dict(mesh.shape) == {"edits": groups, "model": spread}


def test_numbers_in_the_text_are_computed():
    assert f"host's memory ({part_bytes(PYTHIA_12B, 1) / 1e9:.1f} GB)" in PAGE
    for config, devices, words in (
        (PYTHIA_12B, 8, "to 8 devices leaves {:.0f} %"),
        (PYTHIA_12B, 16, "to 16 devices {:.0f} %"),
        (PYTHIA_70M, 8, "48 heads leave {:.0f} % on 8"),
    ):
        percent = 100 * counted(config, 16, 16, devices)["work_efficiency"]
        assert words.format(percent) in " ".join(PAGE.split())
    assert PATIENCE == 120
    assert f"given {SILENCE:.0f} seconds" in PAGE
