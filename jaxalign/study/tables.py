"""Results as text: an estimate in words, a table of rows, the label of a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxalign.errors import counted, printable, shortened
from jaxalign.measures.estimates import Estimate
from jaxalign.study.provenance import Provenance

COMMIT = 40  # digits of one
LONGEST_CELL = 80  # characters; a name from a file may be longer


def head_label(layer: Any, head: Any) -> str:
    """``L0H3``: the name of an attention head.

    Args:
        layer: number of the layer, from 0.
        head: number of the head in its layer, from 0.
    """
    return f"L{layer}H{head}"


def one_line(text: str, longest: int = LONGEST_CELL) -> str:
    """Text from a file as one line that a terminal prints as it is, at most ``longest`` long."""
    return shortened(printable(text).replace("\n", "\\n"), longest)


def p_text(p: float) -> str:
    """``p = 0.012``; never ``p = 0.000``."""
    return f"p {'<' if p < 1e-3 else '='} {max(p, 1e-3):.3f}"


def estimate_text(
    estimate: Estimate,
    write: Callable[[float], str],
    *,
    ends: Callable[[float], str] | None = None,
    p: Callable[[float], str] | None = p_text,
    missing: str = "–",
) -> str:
    """An estimate in words, with the parts that it has: ``+0.41 [+0.10, +0.65], p = 0.003``.

    Args:
        estimate: value, interval and p-value.
        write: the value as text, for example ``"{:+.2f}".format``.
        ends: an end of the interval as text; by default as ``write`` has it.
        p: the p-value as text; None leaves it out.
        missing: what stands for an estimate without a value.
    """
    if estimate.value is None:
        return missing
    text, ends = write(estimate.value), ends or write
    if estimate.low is not None and estimate.high is not None:
        text += f" [{ends(estimate.low)}, {ends(estimate.high)}]"
    return text if p is None or estimate.p is None else f"{text}, {p(estimate.p)}"


def header(study: str, provenance: Provenance, noun: str = "prompt") -> str:
    """The first line of a screen: study, model, device, prompts, seconds.

    Args:
        study: its name.
        provenance: of the result.
        noun: what a prompt of this study is called.
    """
    origin, machine, prompts = provenance.model, provenance.environment, provenance.prompts
    revision = origin.revision or ""
    revision = f" at {revision[:12] if len(revision) == COMMIT else one_line(revision, 20)}"
    revision = revision if origin.revision else ""
    device = machine.device_kind or machine.device
    kept = counted(prompts.given, noun)
    kept = f"{prompts.kept} of {kept}" if prompts.kept < prompts.given else kept
    return (
        f"{study}: {one_line(origin.name, 40)}{revision} · {device} · {kept} · "
        f"{provenance.total_seconds:.0f} s"
    )


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under their header, the first column to the left, the others to the right.

    A cell is one line of at most ``LONGEST_CELL`` characters, control characters escaped.

    Args:
        header: a name a column.
        rows: as many cells each.
    """
    lines = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join([first.strip().ljust(widths[0]), *rest]).rstrip()

    head, *body = map(line, lines)
    return "\n".join([head, "  ".join("-" * width for width in widths), *body])
