"""The README's table of benchmarks, from the files in results/benchmarks.

    python -m benchmarks table

Rewrites what stands in README.md between the two comments; a test fails when the files say
something else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import heads, patching, study
from benchmarks.record import RESULTS, ROOT
from jaxalign.runtime.files import replace_file

README = ROOT / "README.md"
BEGIN = "<!-- benchmarks: written by `python -m benchmarks table`, do not edit -->"
END = "<!-- benchmarks: end -->"

GPU = "gpu"
Record = Mapping[str, Any]


def where(record: Record) -> str:
    """Machine, versions and commit of a record, in a sentence's end."""
    versions = record["versions"]
    machine = f"{record['processor']}, {record['cores']} cores"
    if record["platform"] != "cpu":
        machine = f"{record['device']}; {machine}"
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch"))
    return f"{machine}; {libraries}; commit {record['commit']}"


def heads_section(record: Record) -> str:
    """Importance of every head beside the baselines."""
    wave = record["wave"]
    lines = [
        f"Zero-ablating each of {record['heads']} heads of {_shape(record['model'])}, "
        f"{record['prompts']} prompts of {record['tokens']} tokens, f32 ({where(record)}):",
        "",
        "| | seconds | the wave is faster by | largest difference, logits |",
        "|---|---|---|---|",
        *(
            f"| {heads.BASELINES[row['name']]}{_batch(row)} | {row['seconds']:.1f} "
            f"| {row['seconds'] / wave['median']:.1f}× | {row['largest_difference']:.0e} |"
            for row in record["rows"]
        ),
        f"| **the wave**, repeated: median of {wave['runs']} (best) | "
        f"**{wave['median']:.2f}** ({wave['best']:.2f}) | | |",
        f"| the wave, first run, compilation included | {wave['first']:.1f} | | |",
        "",
        f"An exact wave needs at least {sum(record['least_gflop'].values()):.0f} GFLOP here, and "
        f"this machine's best f32 matrix product ran at {record['peak_gflops']:.0f} GFLOP/s in the "
        f"same run: the wave's best time used **{100 * record['utilisation']:.0f} %** of that "
        f"peak.{_lost(record)}",
    ]
    return "\n".join(lines)


def _lost(record: Record) -> str:
    if not record["account"]:
        return ""
    whole = record["wave"]["best"]
    shares = {e["term"]: 100 * (e["seconds"] - e["at_peak"]) / whole for e in record["account"]}
    slow = sum(share for term, share in shares.items() if term.startswith("product"))
    rest = {term: share for term, share in shares.items() if not term.startswith("product")}
    named = {"large products below the peak": slow, **rest}
    said = ", ".join(f"{term} {share:.0f}" for term, share in named.items())
    return f" The rest, in per cent of the time, each term measured alone: {said}."


def patching_section(record: Record) -> str:
    """Patching of every place, last-position edits and the screen beside their baselines."""
    rows = [row for case in record["cases"] for row in _patching_rows(case)]
    return "\n".join(
        [
            f"Patching every place of {_shape(record['model'])}, f32, peak of matrix products "
            f"{record['peak_gflops']:.0f} GFLOP/s ({where(record)}). The score is the fewest "
            "operations of an exact wave in layer and position over what the peak does in that "
            "time; first-order estimates, which the screen makes, are no exact values:",
            "",
            "| | seconds | ours is faster by | largest difference, logits |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _patching_rows(case: Record) -> Iterator[str]:
    ours = case["ours"]
    score = "" if case["score"] is None else f", score {case['score']:.2f}"
    yield (
        f"| **{patching.title(case)}**, median of {ours['runs']} (first){score} "
        f"| **{ours['median']:.2f}** ({ours['first']:.1f}) | | |"
    )
    for row in case["rows"]:
        yield (
            f"| {patching.described(row, case)} | {row['seconds']:.1f} | {row['ratio']:.1f}× "
            f"| {row['largest_difference']:.0e} |"
        )


def study_section(record: Record) -> str:
    """The whole study beside the same passes in PyTorch."""
    ours = record["study"]
    rows = [
        f"| {study.described(row)} | {row['seconds']:.0f} "
        f"| {row['seconds'] / ours['median']:.0f}× |"
        for row in record["rows"]
    ]
    counts = " + ".join(map(str, record["prompts"]))
    lengths = " and ".join(map(str, record["tokens"]))
    return "\n".join(
        [
            f"The whole study (three precisions, three kinds of ablation, repair, first-order "
            f"effects, statistics) of {_shape(record['model'])}, {counts} prompts of {lengths} "
            f"tokens, {ours['model_evaluations']:,} model evaluations ({where(record)}):",
            "",
            "| | seconds | the study is faster by |",
            "|---|---|---|",
            *rows,
            f"| **the study**, repeated: median of {ours['runs']} (best) | "
            f"**{ours['median']:.1f}** ({ours['best']:.1f}) | |",
            f"| the study, first run, compilation included | {ours['first']:.1f} | |",
        ]
    )


def command_section(record: Record) -> str:
    """Wall time of the whole command."""
    cold, again = (record[kind]["median"] for kind in ("cold", "repeated"))
    return (
        f"`python cli.py {record['arguments']}`, the whole command in a fresh process: "
        f"**{cold:.1f} s** cold, **{again:.1f} s** repeated (median of {record['runs']}; "
        f"{where(record)})."
    )


def scaling_section(record: Record) -> str:
    """Exponents, memory and chunks."""
    points = [point for axis in record["axes"].values() for point in axis]
    measured = [point for point in points if "seconds" in point]
    skipped = len({_place(p) for p in points} - {_place(p) for p in measured})
    over = len({_place(p) for p in measured if not p["inside"]})
    said = [_exponent(name, fit) for name, fit in record["fits"].items() if fit["exponent"]]
    equal = [chunk for chunk in record["chunks"] if chunk["equal"]]
    worst = max(chunk["largest_difference"] for chunk in record["chunks"])
    return (
        f"Time grows as operations to the power of {', '.join(said)}; "
        f"{len({_place(p) for p in measured})} sizes, {over} of them over the memory budget"
        f"{f', {skipped} left out as too long' if skipped else ''}. In chunks, importance has the "
        f"bits of one call in {len(equal)} of {len(record['chunks'])} ways to cut it; the largest "
        f"difference is {worst:.0e} ({where(record)}). "
        f"[Plot](results/benchmarks/figures/scaling.png)."
    )


def gpu_section(record: Record) -> str:
    """What ``benchmarks/gpu.sh`` has measured, step by step."""
    found = {name: step["record"] for name, step in record["steps"].items() if "record" in step}
    lost = [name for name, step in record["steps"].items() if step["exit"]]
    rows = [
        *(row for name, one in found.items() if name.startswith("heads") for row in _gpu_wave(one)),
        *(
            ("the command, cold; repeated", f"{one['cold']['median']:.1f} s", _repeated(one))
            for name, one in found.items()
            if name == "command"
        ),
        *(row for name, one in found.items() if name == "products" for row in _gpu_products(one)),
        *(
            (f"blocks of {row['positions']} positions", f"{row['seconds']['best']:.4f} s",
             f"{row['computed_positions'] / row['needed_positions']:.2f}× the positions needed")
            for name, one in found.items()
            if name == "blocks"
            for row in one["rows"]
        ),
    ]  # fmt: skip
    return "\n".join(
        [
            f"On a GPU, by `bash benchmarks/gpu.sh` ({where(record)})"
            f"{'; without a result: ' + ', '.join(lost) if lost else ''}:",
            "",
            "| | | |",
            "|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def _gpu_wave(one: Record) -> Iterator[tuple[str, str, str]]:
    wave = one["wave"]
    yield (
        f"the wave, {one['heads']} heads of {_shape(one['model'])}",
        f"{wave['median']:.4f} s (first {wave['first']:.1f})",
        f"{100 * one['utilisation']:.0f} % of {one['peak_gflops'] / 1000:.1f} TFLOP/s",
    )
    for row in one["rows"]:
        times = f"{row['seconds'] / wave['median']:.1f}× the wave's time"
        yield f"{heads.BASELINES[row['name']]}{_batch(row)}", f"{row['seconds']:.3f} s", times


def _gpu_products(one: Record) -> Iterator[tuple[str, str, str]]:
    for row in one["rows"]:
        error = f"error of importance {row['largest_error']:.1e} logits"
        yield f"f32 products by `{row['products']}`", f"{row['seconds']['best']:.4f} s", error


def _repeated(one: Record) -> str:
    return f"{one['repeated']['median']:.1f} s"


def _exponent(name: str, fit: Record) -> str:
    reach = "" if fit["low"] is None else f" [{fit['low']:.2f}, {fit['high']:.2f}]"
    return f"{fit['exponent']:.2f}{reach} ({name})"


def devices_section(record: Record) -> str:
    """What sharing costs, and what of the added devices can be used."""
    one, *more = record["rows"]
    said = "cores' time of an operation" if record["virtual"] else "efficiency measured"
    key = "cost_of_an_operation" if record["virtual"] else "efficiency"
    shared = (
        "The devices are virtual ones of one CPU, which share its cores, so no speed-up can be "
        "seen: 1.00 would say that sharing costs nothing beside the clean run of every device."
        if record["virtual"]
        else "Efficiency is the speed-up over one device, by their number."
    )
    return "\n".join(
        [
            f"A sweep of {record['heads']} heads of {_shape(record['model'])}, "
            f"{record['prompts']} prompts of {record['tokens']} tokens, shared over devices "
            f"({where(record)}). {shared}",
            "",
            f"| devices | processes | work efficiency, at the most | {said} | largest difference "
            "from one device, logits |",
            "|---|---|---|---|---|",
            *(
                f"| {row['devices']} | {row['processes']} | {row['work_efficiency']:.2f} "
                f"| {row[key]:.2f} | {row['largest_difference']:.0e} |"
                for row in more
            ),
            f"| {one['devices']} | {one['processes']} | 1 | {one['median']:.2f} s | |",
        ]
    )


def _place(point: Record) -> tuple[Any, ...]:
    return point["size"], point["prompts"], point["tokens"]


def _batch(row: Record) -> str:
    return "" if row["batch"] == 1 else f" ({row['batch']} a batch)"


def _shape(model: str) -> str:
    return f"Pythia-{model.upper()}'s shape" if model[0].isdigit() else f"the model {model}"


SECTIONS: dict[str, Callable[[Record], str]] = {
    heads.NAME: heads_section,
    patching.NAME: patching_section,
    study.NAME: study_section,
    "command": command_section,
    "scaling": scaling_section,
    "devices": devices_section,
    GPU: gpu_section,
}


def region(folder: Path = RESULTS) -> str:
    """The README's region, comments included, from the files that there are."""
    parts = [BEGIN]
    for name, section in SECTIONS.items():
        file = folder / f"{name}.json"
        if file.exists():
            parts.append(section(json.loads(file.read_text())))
        elif name == GPU:
            continue  # few have one
        else:
            parts.append(f"`python -m benchmarks {name} --save` has not been run for this table.")
    return "\n\n".join([*parts, END])


def rewritten(text: str, new: str) -> str:
    """``text`` with ``new`` in place of its region."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + new + after


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the README; the exit code is 0."""
    argparse.ArgumentParser(prog="python -m benchmarks table").parse_args(arguments)
    text = rewritten(README.read_text(encoding="utf-8"), region())
    replace_file(README, text.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
