"""What studies make the machine do: matrix products of a heads study, programs compiled by each.

Seconds depend on the machine; these numbers do not, so a test compares them with those kept in
compiled_work.json. After a change that is meant to move them:

    python tests/compiled_work.py --keep

Run without ``--keep`` it prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

ROOT = Path(__file__).parent.parent
KEPT = Path(__file__).parent / "compiled_work.json"
COMPILED = "/jax/core/compile/backend_compile_duration"


class Later:
    """A value that is computed when it is asked for: what decides how often a loop runs is.

    A wave's loops end where its data say, so a program's operations are counted by following it;
    its large arrays are never computed.
    """

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.value = functools.cache(compute)


CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def matrix_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of the matrix products of a call; a multiply-add counts as two.

    Arguments that decide no loop may be ``jax.ShapeDtypeStruct``s.
    """
    program = jax.make_jaxpr(function)(*arguments)
    total, _ = _follow(program, [Later(lambda v=v: v) for v in jax.tree.leaves(arguments)])
    return total


def _follow(program: Any, inputs: Sequence[Later]) -> tuple[int, list[Later]]:
    """Operations of a closed program, and its results."""
    consts = [Later(lambda v=v: v) for v in program.consts]
    jaxpr = program.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Later:
        return Later(lambda: atom.val) if isinstance(atom, Literal) else known[atom]

    total = 0
    for equation in jaxpr.eqns:
        count, results = _step(equation, [read(atom) for atom in equation.invars])
        total += count
        known.update(zip(equation.outvars, results, strict=True))
    return total, [read(atom) for atom in jaxpr.outvars]


def _step(equation: Any, inputs: list[Later]) -> tuple[int, list[Later]]:
    """Operations of one equation, and its results."""
    name, settings = equation.primitive.name, equation.params
    if name == "while":
        return _while(settings, inputs)
    if name == "scan":
        return _scan(settings, inputs)
    if name == "cond":
        return _follow(settings["branches"][int(inputs[0].value())], inputs[1:])
    if name in CALLS:
        return _follow(settings[CALLS[name]], inputs)
    total = 0
    if name == "dot_general":
        (contracted, _), _ = settings["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        total = 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)

    def compute() -> Sequence[Any]:
        found = equation.primitive.bind(*(each.value() for each in inputs), **settings)
        return found if equation.primitive.multiple_results else [found]

    together = Later(compute)
    return total, [Later(lambda i=i: together.value()[i]) for i in range(len(equation.outvars))]


def _while(settings: dict[str, Any], inputs: list[Later]) -> tuple[int, list[Later]]:
    first = settings["cond_nconsts"]
    second = first + settings["body_nconsts"]
    total, carry = 0, inputs[second:]
    while True:
        count, [more] = _follow(settings["cond_jaxpr"], [*inputs[:first], *carry])
        total += count
        if not bool(more.value()):
            return total, carry
        count, carry = _follow(settings["body_jaxpr"], [*inputs[first:second], *carry])
        total += count


def _scan(settings: dict[str, Any], inputs: list[Later]) -> tuple[int, list[Later]]:
    fixed, carried = settings["num_consts"], settings["num_carry"]
    consts, carry, slices = np.split(np.array(inputs, object), (fixed, fixed + carried))
    total, columns = 0, []
    steps = range(settings["length"])
    for i in reversed(steps) if settings["reverse"] else steps:
        own = [Later(lambda a=a, i=i: a.value()[i]) for a in slices]
        count, results = _follow(settings["jaxpr"], [*consts, *carry, *own])
        total += count
        carry = results[:carried]
        columns.append(results[carried:])
    if settings["reverse"]:
        columns.reverse()

    def stacked(column: tuple[Later, ...]) -> Later:
        return Later(lambda: np.stack([np.asarray(each.value()) for each in column]))

    return total, [*carry, *(stacked(column) for column in zip(*columns, strict=True))]


# What each command is given, so small that compiling is all that takes time. The first one's count
# holds the programs of the canary, too, which a process compiles once.
COMMANDS = {
    "heads": "--schemes f16,int8-sim,int4-g32 --use-all-prompts --max-repair-k 2",
    "schemes": "--schemes f16,int4-g32",
    "plan": "--scheme int4-g32 --noise-draws 1",
}


def count() -> dict[str, Any]:
    """Run small studies of the shipped prompts, this process's first, and count their work.

    How many programs there are depends on the prompts' lengths and on the study, not on the model's
    size: the bundled model has as many.
    """
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **named: compiled.append(event) if event == COMPILED else None
    )
    sys.path.insert(0, str(ROOT))
    from pythia_shape import tiny_checkpoint
    from tiny_run import TOKENIZER

    from jaxalign.commands.main import main
    from jaxalign.runtime.compile import Program

    calls: dict[Any, tuple[str, Callable[..., Any], Any]] = {}
    call = Program.__call__

    def noted(self: Any, *args: Any, **named: Any) -> Any:
        shapes = tuple((a.shape, str(a.dtype)) for a in jax.tree.leaves(args))
        function = functools.partial(self.fun, **named)
        calls.setdefault(
            (self.fun, shapes, str(named)), (getattr(self, "__name__", ""), function, args)
        )
        return call(self, *args, **named)

    Program.__call__ = noted  # type: ignore[method-assign]
    programs: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        small = {"vocab_size": 4096, "num_hidden_layers": 3, "num_attention_heads": 2}
        model = tiny_checkpoint(Path(folder), tokenizer=TOKENIZER, dtype="float16", **small)
        everywhere = f"--model {model} --device cpu --no-figures --no-compilation-cache"
        for command, own in COMMANDS.items():
            before = len(compiled)
            output = f"--output {folder}/{command}/result.json"
            if code := main([command, *f"{own} {everywhere} {output}".split()]):
                raise SystemExit(code)
            programs[command] = len(compiled) - before
            Program.__call__ = call  # type: ignore[method-assign]  # heads alone is followed
    flops: Counter[str] = Counter()
    for name, function, args in calls.values():
        if name.endswith("_run"):
            flops[name] += matrix_flops(function, *args)
    return {"programs": programs, "matrix_flops": dict(sorted(flops.items())) | {"wave": wave()}}


def wave() -> int:
    """Matrix products of the wave that zero-ablates every head of Pythia-70M's shape."""
    from jaxalign import Edit, HeadEdit, head_ablation_masks, sweep
    from jaxalign.measures.metrics import Answer
    from jaxalign.model import ModelConfig
    from jaxalign.model.params import param_shapes

    config = ModelConfig(50304, 6, 8, 512, 2048)
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    edits = [Edit(HeadEdit(masks, np.zeros((config.num_layers, 1, 1, 1, 1), np.float32)))]

    def run(params: Any, tokens: Any, lengths: Any, target: Any) -> Any:
        return sweep(params, tokens, lengths, config, edits, Answer(target, target))

    shapes = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((64, 16), (64,), (64,)))
    return matrix_flops(run, param_shapes(config), *shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", action="store_true", help=f"write them to {KEPT.name}")
    keep = parser.parse_args().keep
    with contextlib.redirect_stdout(sys.stderr):  # the command's own table
        counted = count()
    text = json.dumps(counted, indent=1)
    print(text)
    if keep:
        KEPT.write_text(text + "\n")


if __name__ == "__main__":
    main()
