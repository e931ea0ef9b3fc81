"""How long does a whole heads study take, beside the same passes in PyTorch with hooks?

Three precisions, three kinds of ablation, repair curves, each head restored alone, first-order
effects and statistics, on one of Pythia's shapes with random weights and two tasks of random
prompts, each of one length. The baseline makes as many passes of each kind, one prompt at a time or
batched, all of them in f32, and computes no statistics. Where it would take too long, a share of
every kind is timed, which the row and the record say.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import jaxalign
from benchmarks import pytorch_baseline as pytorch
from benchmarks import workload
from benchmarks.record import answer, grammar
from benchmarks.study_baseline import Counts, Pass, Task, passes, states
from benchmarks.timing import once, peak_bytes, repeated
from benchmarks.workload import SIZES, TINY
from jaxalign.checkpoints import Model
from jaxalign.numerics.scheme import F16, INT8_SIM
from jaxalign.prompts import PromptSet, PromptText, tokenize
from jaxalign.studies.heads.calls import Runner
from jaxalign.studies.heads.edge_align import forward_passes
from jaxalign.studies.heads.findings import RANKINGS
from jaxalign.studies.heads.rankings import ORDERS_BESIDE, VECTORS, choose_donors
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.tables import text_table

NAME = "study"
TASKS = ("factual", "ioi")
REFERENCES = 8
BATCH_SIZES = (16, 32, 64)
ROWS = {
    "one": "PyTorch + hooks, one prompt at a time, f32 alone",
    "all": "PyTorch + hooks, batched, f32 alone",
    "last": "PyTorch + hooks, batched, f32 alone, logits at the last position only",
}
COMPARED = ("zero", "mean")  # what the study gives head by head and the baseline computes, too


def prompt_set(model: Model, count: int, lengths: Sequence[int]) -> PromptSet:
    """Two tasks of random prompts, one of each length, and reference texts."""
    tasks = {}
    for seed, (task, length) in enumerate(zip(TASKS, lengths, strict=True)):
        prompts = workload.random_prompts(model.config, count, length, seed)
        tasks[task] = tuple(
            PromptText(workload.words(ids), workload.words([target]))
            for ids, target in zip(prompts.tokens, prompts.target, strict=True)
        )
    reference = workload.random_prompts(model.config, REFERENCES, max(lengths), len(TASKS))
    return PromptSet(tasks, tuple(map(workload.words, reference.tokens)))


def baseline_tasks(net: Any, model: Model, prompts: PromptSet, seed: int) -> list[Task]:
    """The study's prompts, donors and reference means as the baseline takes them."""
    tokenized, reference, _ = tokenize(prompts, model.tokenizer, model.config)
    donors = choose_donors(tokenized, seed).draws
    means = states(net, pytorch.on_device(np.array(reference)))[:, :, -1].mean(dim=1)
    tasks, start = [], 0
    for texts in prompts.tasks.values():
        part = slice(start, start + len(texts))
        ids = pytorch.on_device(np.array([p.tokens for p in tokenized[part]]))
        target = pytorch.on_device(np.array([p.target for p in tokenized[part]]))
        own_donors = donors[part] - start  # prompts of the same task
        tasks.append(Task(start, ids, target, states(net, ids), means, own_donors))
        start += len(texts)
    return tasks


def all_passes(
    net: Any, tasks: Sequence[Task], sizes: Sequence[int], counts: Counts, unembed: str
) -> Iterator[Pass]:
    """Every pass of the study, task by task, ``sizes`` prompts a pass."""
    for task, size in zip(tasks, sizes, strict=True):
        for start in range(0, len(task.ids), size):
            rows = slice(start, min(start + size, len(task.ids)))
            yield from passes(net, task, rows, counts, unembed)


def clean(net: Any, task: Task, rows: slice, unembed: str) -> np.ndarray:
    """``m`` of a clean pass over the prompts ``rows``."""
    one = next(passes(net, task, rows, Counts(), unembed))
    found: np.ndarray = one.run().cpu().numpy()
    return found


def batch_size(net: Any, task: Task, unembed: str) -> int:
    """The size of ``BATCH_SIZES`` with the fewest seconds a prompt in a clean pass."""
    seconds = {}
    for size in sorted({min(size, len(task.ids)) for size in BATCH_SIZES}):
        call = lambda size=size: clean(net, task, slice(0, size), unembed)  # noqa: E731
        seconds[size] = repeated(call, 3)[1].best / size
    return min(seconds, key=lambda size: seconds[size])


def run_baseline(
    net: Any,
    tasks: Sequence[Task],
    counts: Counts,
    name: str,
    most_seconds: float,
    result: HeadsResult,
) -> dict[str, Any]:
    """A row: all passes timed, or as large a share of each kind as ``most_seconds`` allow."""
    unembed = "last" if name == "last" else "all"
    sizes = [1 if name == "one" else batch_size(net, task, unembed) for task in tasks]
    kinds: dict[tuple[int, str], list[Pass]] = defaultdict(list)
    for one in all_passes(net, tasks, sizes, counts, unembed):
        kinds[one.task.start, one.kind].append(one)

    def seconds(one: Pass) -> float:
        return once(lambda: one.run().cpu())[1]

    expected = sum(len(every) * min(map(seconds, every[:1] * 2)) for every in kinds.values())
    share = min(1.0, most_seconds / expected)
    total, worst = 0.0, 0.0
    timed: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for (_, kind), every in kinds.items():
        count = max(1, round(share * len(every)))
        chosen = [every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int)]
        total += len(every) * float(np.mean([seconds(one) for one in chosen]))
        timed[kind] += count
        whole[kind] += len(every)
        if kind in COMPARED:
            worst = max(worst, difference(net, chosen[0], unembed, result))
    return {
        "name": name,
        "seconds": round(total, 3),
        "batch": sizes,
        "passes": dict(whole),
        "timed_passes": dict(timed),
        "estimated": timed != whole,
        "largest_difference": worst,
    }


def difference(net: Any, one: Pass, unembed: str, result: HeadsResult) -> float:
    """Largest difference between the study's importance and that of a pass."""
    effect = clean(net, one.task, one.rows, unembed) - one.run().cpu().numpy()
    prompts = result.prompts[one.task.start :][one.rows]
    ours = [getattr(prompt, f"{one.kind}_importance").ravel()[one.number] for prompt in prompts]
    return float(np.abs(effect - ours).max())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The study and the baselines, on one checkpoint."""
    repaired = ("f16", "int8-sim")
    # Noise in the weights is other models, which the baseline does not make.
    settings = jaxalign.HeadsOptions(
        schemes=(F16, INT8_SIM),
        use_all_prompts=True,
        repaired=repaired,
        noise_draws=0,
        memory_gb=options.memory_gb,
    )
    with workload.checkpoint(options.model) as folder:
        model = jaxalign.load(str(folder))
        prompts = prompt_set(model, options.prompts, options.lengths)
        result, timing = repeated(
            lambda: jaxalign.heads_study(model, prompts, settings), options.runs
        )
        memory = peak_bytes()
        counts = Counts(
            low_precisions=len(settings.schemes),
            repaired=len(repaired),
            orders=len(RANKINGS),
            controls=ORDERS_BESIDE + VECTORS * len(RANKINGS),
            most_restored=Runner(model, settings).repaired_heads,
        )
        rows = []
        net = pytorch.load(folder) if options.baselines else None
        for name in options.baselines:
            tasks = baseline_tasks(net, model, prompts, settings.seed)
            seconds = 60 * options.most_minutes
            rows.append(run_baseline(net, tasks, counts, name, seconds, result))
    return {
        "model": options.model,
        "prompts": [options.prompts] * len(TASKS),
        "tokens": options.lengths,
        "precisions": ["f32", *(scheme.name for scheme in settings.schemes)],
        "repaired": repaired,
        "memory_gb": options.memory_gb,
        "study": {
            **timing.record(),
            "phases": result.provenance.seconds,
            "model_evaluations": forward_passes(result),
            "peak_gb": round(memory / 1e9, 3),
        },
        "rows": rows,
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    study = record["study"]
    rows = [_row(row, study) for row in record["rows"]]
    rows += [
        (f"the study, median of {study['runs']}", f"{study['median']:.2f}", "", "", ""),
        ("the study, best", f"{study['best']:.2f}", "", "", ""),
        ("the study, first run with compilation", f"{study['first']:.2f}", "", "", ""),
    ]
    phases = [(name, f"{seconds:.2f}") for name, seconds in study["phases"].items()]
    counts = " + ".join(map(str, record["prompts"]))
    lengths = " and ".join(map(str, record["tokens"]))
    return "\n\n".join(
        (
            f"{record['model']}: {counts} prompts of {lengths} tokens, "
            f"{', '.join(record['precisions'])}, {study['model_evaluations']} model evaluations, "
            f"peak memory {study['peak_gb']:.2f} GB, {record['processor']}, "
            f"{record['cores']} cores, {record['device']}",
            text_table(("", "seconds", "batch", "study is faster by", "largest difference"), rows),
            text_table(("phase of the last run", "seconds"), phases),
        )
    )


def described(row: dict[str, Any]) -> str:
    """A row's name, with what was timed of it."""
    if not row["estimated"]:
        return ROWS[row["name"]]
    timed, whole = sum(row["timed_passes"].values()), sum(row["passes"].values())
    return f"{ROWS[row['name']]}, estimated from {timed} of {whole} passes"


def _row(row: dict[str, Any], study: dict[str, Any]) -> tuple[str, ...]:
    ratio = f"{row['seconds'] / study['median']:.1f}"
    batch = ", ".join(map(str, row["batch"]))
    return described(row), f"{row['seconds']:.1f}", batch, ratio, f"{row['largest_difference']:.1e}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="70m", choices=SIZES, help="whose shape; default: 70m")
    add("--prompts", type=int, default=64, metavar="N", help="of each of two tasks")
    add("--lengths", type=int, nargs=2, default=[8, 16], metavar="N", help="tokens, task by task")
    add("--memory-gb", type=float, default=4.0, metavar="GB")
    add("--runs", type=int, default=3, metavar="N", help="of the study, after the first")
    add("--most-minutes", type=float, default=10.0, metavar="N", help="of a baseline")
    add("--baselines", nargs="*", choices=tuple(ROWS), default=list(ROWS))
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.prompts, options.lengths, options.runs = TINY, 3, [5, 7], 1
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
