"""A whole study of somebody else's: by how much does a precision move the answers' margins?

This is all that a study is beside its science: options, calls, a result, a table, a figure.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from jaxalign.measures.metrics import logit_difference
from jaxalign.model.decoder import forward
from jaxalign.numerics.scheme import F16, F32, Scheme
from jaxalign.plots.page import new_page
from jaxalign.runtime.compile import jit
from jaxalign.study.calls import Call, Late
from jaxalign.study.options import Common
from jaxalign.study.provenance import Provenance
from jaxalign.study.session import Session
from jaxalign.study.study import Study


@dataclass(frozen=True, kw_only=True)
class MarginsOptions(Common):
    scheme: Scheme = F16


@dataclass(frozen=True, kw_only=True)
class MarginsResult:
    margins: Float[np.ndarray, " P"]
    moved: Float[np.ndarray, " P"]
    provenance: Provenance


def _clean(params, tokens, lengths, target, *, config, scheme):
    out = forward(params, tokens, config, lengths=lengths, scheme=scheme, last_only=True)
    return logit_difference(out.logits, target)


def _moved(params, tokens, lengths, target, before, *, config, scheme):
    return _clean(params, tokens, lengths, target, config=config, scheme=scheme) - before


clean = jit(_clean, static_argnames=("config", "scheme"))
moved = jit(_moved, static_argnames=("config", "scheme"))


def calls(session, phase, program, scheme, *more):
    for number, batch in enumerate(session.batches(lambda length: 2)):
        target = batch.fill([np.int32(prompt.target) for prompt in session.prompts])
        params = session.late_low(scheme)
        yield Call(
            key=(phase, scheme.name, number),
            program=program,
            arguments=(params, batch.tokens, batch.lengths, target, *(m(batch) for m in more)),
            static={"config": session.config, "scheme": scheme.run},
            batch=batch,
            layer_rows=session.config.num_layers * batch.shape[0],
        )


def run(session: Session, options: MarginsOptions) -> MarginsResult:
    margins, differences = np.zeros((2, len(session.prompts)), np.float32)
    for call, values in session.run("margins", [*calls(session, "clean", clean, F32)]):
        call.scatter(margins, values)

    def before(batch):
        spec = jax.ShapeDtypeStruct(batch.shape[:1], np.float32)
        return Late(make=lambda: batch.fill(list(margins)), spec=spec)

    second = [*calls(session, "moved", moved, options.scheme, before)]
    for call, values in session.run("moved margins", second, needed=False):
        call.scatter(differences, values)
    session.end_of_calls()
    return MarginsResult(margins=margins, moved=differences, provenance=session.provenance())


def page(result: MarginsResult):
    drawn = new_page(result.provenance.of_model, "margins", "", width=4.0, body=2.0)
    assert isinstance(drawn.figure, Figure)
    drawn.figure.subplots().plot(result.margins, result.moved, "o")
    return drawn


MARGINS = Study(
    name="margins",
    question="by how much does a precision move the answers' margins?",
    options=MarginsOptions,
    result=MarginsResult,
    run=run,
    table=lambda result: f"mean margin {result.margins.mean():.3f}",
    figures=lambda: {"margins": page},
)
