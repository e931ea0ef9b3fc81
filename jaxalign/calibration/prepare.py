"""From f32 parameters to those of any scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxalign.calibration.walk import calibrate
from jaxalign.checkpoints import Model
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme


def preparer(
    model: Model, texts: Sequence[str], *, progress: bool = False, folder: Path | None = None
) -> Callable[[Params, Scheme], Params]:
    """What makes a scheme's parameters from f32 ones: rounding, or calibration on these texts.

    Args:
        model: whose tokenizer reads the texts.
        texts: ``shipped_texts()``, or those of a file (``read_texts``).
        progress: say how far it is, layer by layer.
        folder: where unfinished calibrations are kept, one folder a scheme.

    Example:
        >>> prepare = preparer(model, shipped_texts())
        >>> result = heads_study(model, prompts, options, prepare=prepare)
    """

    def prepare(params: Params, scheme: Scheme) -> Params:
        given = (
            model.encode(list(texts), special=True)
            if scheme.needs_texts and texts
            else (None, None)
        )
        own = folder / scheme.name if folder and scheme.method else None
        return calibrate(params, model.config, scheme, *given, progress=progress, folder=own)

    return prepare
