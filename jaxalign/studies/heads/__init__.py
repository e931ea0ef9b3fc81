"""Attention heads: importance, drift between precisions, repair."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.checkpoints import Model
from jaxalign.prompts import PromptSet
from jaxalign.studies.heads.details import details
from jaxalign.studies.heads.edge_align import FORMAT_1, FORMAT_2, FORMAT_3, read_1, read_2, read_3
from jaxalign.studies.heads.options import HeadsOptions
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.studies.heads.study import run
from jaxalign.studies.heads.table import screen
from jaxalign.study.study import Study


def _figures() -> Mapping[str, Callable[[HeadsResult], Any]]:
    from jaxalign.studies.heads import figures

    return {**figures.FIGURES, **figures.OF_A_SCREEN}


HEADS = Study(
    name="heads",
    question="Which attention heads matter, which ones lower precision moves, what repair buys.",
    options=HeadsOptions,
    result=HeadsResult,
    run=run,
    table=screen,
    details=details,
    figures=_figures,
    examples=(
        "--model EleutherAI/pythia-160m --revision step3000",
        "--model EleutherAI/pythia-70m --revisions step1000,step10000,step143000",
        "--model ./my-checkpoint --prompts my-prompts.json --use-all-prompts",
        "--schemes nf4,awq-g128,llm-int8 --repair all",
        "--model ./original --quantized ./original-awq",
        "--model smollm2 --screen 16    exact where it matters, for a fifth of the sweep",
        "--device gpu --memory-gb 40    on all GPUs of this machine",
    ),
    version=4,
    older={FORMAT_1: read_1, FORMAT_2: read_2, FORMAT_3: read_3},
)


def heads_study(
    model: Model, prompts: PromptSet, options: HeadsOptions | None = None, **session: Any
) -> HeadsResult:
    """Run the heads study.

    Args:
        model: from ``jaxalign.load``, in f32.
        prompts: from ``jaxalign.read_prompts``.
        options: precisions, head mode, repairs.
        session: what else ``study.session.Session.open`` takes: devices, a resume folder,
            calibration, progress.

    Raises:
        InputError: prompts or model cannot be used, or the memory budget is too small.
        PrecisionError: this installation does not keep 16-bit roundings.

    Example:
        >>> result = heads_study(jaxalign.load("demo"), jaxalign.read_prompts())
        >>> result.prompts[0].zero_importance.shape
        (6, 8)
    """
    return HEADS(model, prompts, options, **session)


__all__ = ["HEADS", "HeadsOptions", "heads_study"]
