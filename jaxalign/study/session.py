"""What a study is given, opened and checked once: model, prompts, devices, resume folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.checkpoints import Model
from jaxalign.devices.mesh import EDITS, shard_packed, shard_params
from jaxalign.errors import InputError, require_type
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, cast, compiled_cast
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.processes.distributed import require_same
from jaxalign.prompts import SINGLE, Batch, Prompt, PromptKind, PromptSet
from jaxalign.runtime.canary import require_exact_compilation
from jaxalign.runtime.products import use_products
from jaxalign.runtime.resume import Resume
from jaxalign.study.batching import dealt_batches
from jaxalign.study.call_log import CallLog
from jaxalign.study.calls import Call, Late, shapes_of, spec_of
from jaxalign.study.estimate import Estimate, Estimated, nearest
from jaxalign.study.options import Common
from jaxalign.study.provenance import Inputs, Provenance, inputs_of
from jaxalign.study.shards import Shard, ShardFinished

T = TypeVar("T")
# How a scheme's parameters are made from the f32 ones.
Prepare = Callable[[Params, Scheme], Params]
# Two at once would only delay the one that is waited for.
COMPILERS = 1


@dataclass
class Session:
    """One run of one study. Use it as a context manager, which ends its compilations.

    Attributes:
        model: f32, laid out on the mesh.
        prompts: tokenized.
        reference: token ids of the reference texts.
        options: the study's.
        inputs: everything that decides the numbers.
        mesh: devices that share the work; None for one.
        resume: finished calls on disk.
        log: what was computed.
        prepare: makes a scheme's parameters from the f32 ones.
        shard: the share of the calls that this worker computes; None for all.
        notes: what a reader of the result has to know; a study appends.
        estimate: what the calls would take, where they are not to be computed; None otherwise.
    """

    model: Model
    prompts: tuple[Prompt, ...]
    reference: tuple[tuple[int, ...], ...]
    options: Common
    inputs: Inputs
    mesh: Mesh | None
    resume: Resume
    log: CallLog
    prepare: Prepare
    shard: Shard | None
    notes: list[str]
    estimate: Estimate | None = None
    _last: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)
    _numbered: int = 0
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(COMPILERS))
    _products: ExitStack = field(default_factory=ExitStack)
    _start: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(
        cls,
        study: str,
        model: Model,
        prompts: PromptSet,
        options: Common,
        *,
        kind: PromptKind = SINGLE,
        mesh: Mesh | None = None,
        folder: Path | None = None,
        shard: Shard | None = None,
        prepare: Prepare = compiled_cast,
        progress: bool = True,
        estimate: bool = False,
        source: Mapping[str, Any] = {},
    ) -> Session:
        """Open everything, and refuse what cannot be used before any work.

        Args:
            study: its format, "jaxalign.schemes/2".
            model: from ``jaxalign.load``, in f32.
            prompts: from ``jaxalign.read_prompts``, or what else ``kind`` reads.
            options: the study's.
            kind: of the prompts: how they are tokenized.
            mesh: devices to share the work (``devices.mesh.choose_mesh``).
            folder: where finished calls are kept; None keeps nothing.
            shard: the share of the calls that this worker computes; needs a folder.
            prepare: ``calibration.preparer`` for schemes that are chosen by activations; rounding
                to the nearest by default.
            progress: say on stderr how long the work will take and how far it is: bars on a
                terminal and in a notebook, lines elsewhere (``runtime.progress``).
            estimate: make the calls and compute none but the clean f32 ones; the study ends with
                ``Estimated`` where its results would be assembled (``study.estimate``).
            source: what else ``inputs_of`` takes: the prompts' file, calibration texts.

        Raises:
            InputError: model or prompts cannot be used, or processes were given different ones.
            PrecisionError: this installation does not keep 16-bit roundings, or its f32 products
                are not what the options say.
        """
        require_type("model", model, Model, "a model, from jaxalign.load")
        require_type("prompts", prompts, PromptSet, "prompts, from jaxalign.read_prompts")
        require_type("options", options, Common, "options of the study")
        if shard and folder is None:
            raise InputError(f"shard {shard} has no folder", "give one for finished calls")
        if model.params.dtype != jnp.float32:
            raise InputError(f"the model was loaded in {model.params.dtype}", "load it in float32")
        require_exact_compilation(options.products)
        tokenized, reference, notes = kind.tokenize(prompts, model.tokenizer, model.config)
        inputs = inputs_of(study, model, tokenized, reference, options, mesh, **source)
        require_same(inputs.facts())
        model = replace(model, params=shard_params(model.params, mesh, model.config))
        return cls(
            model=model,
            prompts=tuple(tokenized),
            reference=tuple(reference),
            options=options,
            inputs=inputs,
            mesh=mesh,
            resume=Resume(folder, inputs.facts()),
            log=CallLog(progress),
            prepare=nearest if estimate else prepare,
            # Nothing is assembled, as in a shard that has every call.
            shard=Shard(index=0, count=1) if estimate else shard,
            notes=notes,
            estimate=Estimate(model.config, mesh.size if mesh else 1) if estimate else None,
        )

    def __enter__(self) -> Session:
        self._products.enter_context(use_products(self.options.products))
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._products.close()
            self._pool.shutdown(cancel_futures=True)
        finally:  # whoever is in a hurry interrupts twice
            self.resume.close()

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.model.config

    @property
    def devices(self) -> int:
        """How many devices, or groups of them, share the rows or prompts of a call."""
        return self.mesh.shape[EDITS] if self.mesh else 1

    def low(self, scheme: Scheme) -> Params:
        """The parameters as ``scheme`` has them; those of the last scheme are kept."""
        if scheme == F32:
            return self.model.params

        def make() -> Params:
            with self.log.phase(f"parameters {scheme.name}"):
                return shard_packed(self.prepare(self.model.params, scheme), self.mesh)

        return self.last("low", scheme, make)

    def last(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, or what it returned before, if that was for the same ``key``.

        Args:
            kind: of thing; one of each kind is kept.
            key: which one is wanted.
            make: makes it.
        """
        if kind not in self._last or self._last[kind][0] != key:
            self._last.pop(kind, None)  # not two at a time
            self._last[kind] = key, make()
        return self._last[kind][1]

    def late_low(self, scheme: Scheme) -> Any:
        """The parameters of a scheme as the argument of a call: made when the first call runs."""
        params = self.model.params
        if scheme == F32:
            return params
        # What calibration adds to packed matrices, and where a mesh puts them, is not known before.
        spec = None
        if scheme.weights is None or (scheme.to_nearest and not self.mesh):
            shapes = jax.eval_shape(lambda p: cast(p, scheme), params)
            places = {leaf.sharding for leaf in jax.tree.leaves(spec_of(params))}
            if scheme.weights is None:
                spec = jax.tree.map(lambda s, p: _placed(s, p.sharding), shapes, spec_of(params))
            elif len(places) == 1:
                spec = jax.tree.map(lambda s: _placed(s, *places), shapes)
        return Late(make=lambda: self.low(scheme), spec=spec)

    def free(self, *trees: Any) -> float:
        """Bytes of the memory budget that are left beside the arrays of these pytrees.

        Args:
            trees: of arrays, or ``Late`` ones.
        """
        shapes = [shapes_of(tree) for tree in trees]
        used = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
        return self.options.memory_gb * 1e9 - used

    def batches(
        self,
        most: Callable[[int], int],
        prompts: Sequence[Prompt] | None = None,
        dealt: bool = False,
    ) -> list[Batch]:
        """Prompts of similar length in batches that a call can hold.

        Args:
            most: how many prompts of a padded length fit into a call; raises ``InputError``
                (``batching.too_small``) where none does.
            prompts: the study's by default.
            dealt: the prompts of a call are dealt to the devices (``calls.deal_prompts``), each
                of which holds ``most``.
        """
        chosen = self.prompts if prompts is None else prompts
        devices = self.devices if dealt else 1
        return dealt_batches(chosen, most, self.config.max_positions, devices)

    def run(self, name: str, calls: Sequence[Call[T]], *, needed: bool = True) -> Iterator[
        tuple[Call[T], T]
    ]:  # fmt: skip
        """Every call with its result, computed now or read from the resume folder.

        Args:
            name: of the work, for the progress bar.
            calls: those whose results are there are not computed again.
            needed: whether later calls depend on the results. In a shard, calls of other workers
                are then computed here, too, unless they are there by now; otherwise they are left
                out.

        Yields:
            The call and its result, in the order of ``calls``.
        """
        if self.estimate:
            yield from self.estimate.pretend(calls, self.log)
            return
        own = range(self._numbered, self._numbered + len(calls))
        self._numbered += len(calls)
        share = [not self.shard or self.shard.has(number) for number in own]
        mine = [call for call, own in zip(calls, share, strict=True) if own]
        wanted = calls if needed else mine
        missing = [call for call in wanted if not self.resume.has(call.key)]
        self.log.announce(name, missing, self.config)
        self.ahead(missing)
        if self.shard:
            # Others' calls come last. Workers that need the same ones begin at different places.
            others = [c for c, own in zip(calls, share, strict=True) if needed and not own]
            turn = len(others) * self.shard.index // self.shard.count
            for call in self.log.track([*mine, *others[turn:], *others[:turn]], name):
                self._finish(call)
        for call in self.log.track(wanted, name):
            yield call, self._result(call)
            self.log.count(call)

    def ahead(self, calls: Sequence[Call[Any]]) -> None:
        """Compile programs while others run.

        Args:
            calls: in the order in which they will run; those that are finished are left out.
        """
        if self.estimate:
            return
        for call in calls:
            if not self.resume.has(call.key):
                call.ahead(self._pool)

    def _finish(self, call: Call[Any]) -> None:
        """See to it that a call's result is in the resume folder."""
        if self.resume.has(call.key):
            return
        self.resume.keep(call.key, call.compute, call.like())
        if not self.resume.has(call.key):
            raise InputError(
                f"the calls of shard {self.shard} do not stay in {self.resume.folder}: it cannot "
                "be written, or another run has finished the study and removed it",
                "give --output in a folder that every worker can write to, and assemble last",
            )

    def _result(self, call: Call[T]) -> T:
        like = call.like()
        if self.shard:
            found = self.resume.found(call.key, like)
            return call.compute() if found is None else found
        return self.resume.keep(call.key, call.compute, like)

    def observed(self, notes: Iterable[str]) -> None:
        """Add notes on what calls returned; none in an estimate, where that is zeros."""
        if not self.estimate:
            self.notes += notes

    def end_of_calls(self) -> None:
        """Say that every call was made; a shard ends here.

        Raises:
            ShardFinished: this worker computes a share, so there is nothing to assemble.
            Estimated: the calls were not computed; it has what they would take.
        """
        if self.estimate:
            raise Estimated(self.estimate.taken(self.model.params))
        if self.shard:
            raise ShardFinished

    def provenance(self, kept: int | None = None) -> Provenance:
        """Where the result comes from.

        Args:
            kept: prompts that the result is about; all by default.
        """
        given, all_given = self.inputs, self.inputs.prompts
        prompts = replace(all_given, kept=all_given.given if kept is None else kept)
        return Provenance(
            model=given.model,
            prompts=prompts,
            environment=given.environment,
            options=given.options,
            calibration=given.calibration,
            quantized=given.quantized,
            devices=given.devices,
            processes=given.processes,
            notes=tuple(self.notes),
            timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
            total_seconds=time.perf_counter() - self._start + self.resume.spent,
            seconds=dict(self.log.seconds),
            calls=self.log.counts(),
            layer_rows=self.log.layer_rows,
        )


def _placed(spec: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)
