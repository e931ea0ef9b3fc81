"""What ``train-sae`` trains: its options."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from jaxalign.checkpoints.dictionaries import LAYOUTS
from jaxalign.commands.parser import numbers, path, real, whole
from jaxalign.commands.text_activations import SITES
from jaxalign.dictionaries.losses import TRAINED, Trained
from jaxalign.dictionaries.training import TrainingOptions
from jaxalign.errors import InputError
from jaxalign.runtime.memory import default_memory_gb
from jaxalign.study.option import MOST, check_options, memory_option, option
from jaxalign.study.text_options import texts_option, tokens_option, window_option

# What activations on disk say of themselves.
OF_TEXTS = ("site", "texts", "window", "tokens")


# Kinds of dictionaries that a layout can hold as they are trained; sae_lens holds all.
HOLDS: dict[str, tuple[str, ...]] = {
    "sparsify": ("topk",),
    "llama_scope": ("batchtopk",),  # one threshold for all features
    "gemma_scope": (),
}


@dataclass(frozen=True, kw_only=True)
class TrainSaeOptions:
    """What is trained, and on what.

    Attributes:
        site: where activations are read.
        layers: behind or in which blocks; None for every layer.
        activations: a folder that ``extract`` wrote, in place of texts.
        texts: a file, or a name of ``named_texts``.
        window: tokens of a window.
        tokens: at most so many are read.
        kind: of the dictionaries.
        features: how many; None: ``expansion`` times the width.
        expansion: features for each coordinate.
        k: features a token, of topk and batchtopk.
        penalties: of the sparsity of the other kinds; each is a dictionary of its own.
        seeds: each is a dictionary of its own.
        steps, batch, learning_rate, auxiliary, resample, dead_after, tolerance: of the training.
        layout: of the files.
        memory_gb: for activations, in 1e9 bytes.

    Raises:
        InputError: a value that cannot be used, or one that the kind has no use for.
    """

    site: str = field(
        default="resid",
        metadata=option("--site", choices=SITES, help="what is read: the stream behind a block, …"),
    )
    layers: tuple[int, ...] | None = field(
        default=None,
        metadata=option(
            "--layers",
            metavar="LIST",
            parse=numbers(whole),
            help="of these blocks, from 0 (default: all)",
        ),
    )
    activations: Path | None = field(
        default=None,
        metadata=option(
            "--activations",
            metavar="DIR",
            parse=path,
            help="a folder that extract wrote; in place of --site, --texts, --window and --tokens",
        ),
    )
    texts: str | None = field(
        default=None,
        metadata=texts_option(),
    )
    window: int = field(
        default=64,
        metadata=window_option(),
    )
    tokens: int = field(
        default=250_000,
        metadata=tokens_option(),
    )
    kind: Trained = field(
        default="topk", metadata=option("--kind", choices=TRAINED, help="of the dictionaries")
    )
    features: int | None = field(
        default=None,
        metadata=option("--features", metavar="N", least=2, help="how many; in place of expansion"),
    )
    expansion: int | None = field(
        default=None,
        metadata=option(
            "--expansion",
            metavar="N",
            least=1,
            help="features for each coordinate of what is read (default: 8)",
        ),
    )
    k: int | None = field(
        default=None,
        metadata=option(
            "--k", metavar="N", least=1, help="features a token, of topk, batchtopk (default: 64)"
        ),
    )
    penalties: tuple[float, ...] | None = field(
        default=None,
        metadata=option(
            "--penalties",
            metavar="LIST",
            parse=numbers(real),
            help="of what makes features sparse, of relu, gated, sigmoid and jumprelu; each is "
            "trained (default: 0.001)",
        ),
    )
    seeds: tuple[int, ...] = field(
        default=(0,),
        metadata=option("--seeds", metavar="LIST", parse=numbers(whole), help="each is trained"),
    )
    steps: int = field(
        default=5000, metadata=option("--steps", metavar="N", least=1, help="of the optimizer")
    )
    batch: int = field(
        default=1024, metadata=option("--batch", metavar="N", least=1, help="tokens a step")
    )
    learning_rate: float = field(
        default=1e-3, metadata=option("--learning-rate", metavar="X", help="Adam's, at its highest")
    )
    auxiliary: float | None = field(
        default=None,
        metadata=option(
            "--auxiliary",
            metavar="X",
            least=0,
            help="weight of a second reconstruction by dead features; 0 for none (default: 1/32 of "
            "topk and batchtopk, else 0)",
        ),
    )
    resample: int = field(
        default=0,
        metadata=option(
            "--resample",
            metavar="N",
            least=0,
            help="dead features begin anew about every N steps of the first half; 0: never",
        ),
    )
    dead_after: int = field(
        default=250_000,
        metadata=option(
            "--dead-after", metavar="N", least=1, help="tokens without a firing make a feature dead"
        ),
    )
    tolerance: float = field(
        default=0.0,
        metadata=option(
            "--tolerance",
            metavar="X",
            least=0,
            help="end early where the error falls by less than this share in a tenth of the steps",
        ),
    )
    layout: str = field(
        default="sae_lens",
        metadata=option("--layout", choices=tuple(LAYOUTS), help="of the files"),
    )
    memory_gb: float = field(default_factory=default_memory_gb, metadata=memory_option())

    def __post_init__(self) -> None:
        check_options(self)
        if self.kind not in HOLDS.get(self.layout, (self.kind,)):
            raise InputError(
                f"--layout {self.layout} cannot hold a {self.kind} dictionary as it is trained "
                "here, which takes the decoder's bias from its input",
                "leave out --layout"
                + "".join(f", or give --kind {kind}" for kind in HOLDS[self.layout]),
            )
        counts = self.kind in ("topk", "batchtopk")
        for flag, value, use in (
            ("--penalties", self.penalties, not counts),
            ("--k", self.k, counts),
            ("--expansion", self.expansion, self.features is None),
        ):
            if value is not None and not use:
                why = f"--kind {self.kind}" if flag != "--expansion" else "--features"
                raise InputError(f"{flag} has no use beside {why}", f"leave out {flag}")
        for flag, values in (("--seeds", self.seeds), ("--penalties", self.penalties)):
            if values is not None and (not values or len(set(values)) < len(values)):
                raise InputError(f"{flag}: expected numbers, each once", "name one or more")
            for one in values or ():
                if not 0 <= one <= MOST:  # NaN is neither
                    raise InputError(f"{flag}: {one} is not in 0 … {MOST}", "give such numbers")

    def training(self, width: int) -> TrainingOptions:
        """The training of one site.

        Args:
            width: of its activations.
        """
        counts = self.kind in ("topk", "batchtopk")
        features = self.features or (self.expansion or 8) * width
        penalties = (1e-3,) if self.penalties is None else self.penalties
        return TrainingOptions(
            kind=self.kind,
            features=features,
            k=min(64, features) if self.k is None else self.k,
            penalties=(0.0,) * len(self.seeds) if counts else penalties * len(self.seeds),
            seeds=tuple(s for s in self.seeds for _ in range(1 if counts else len(penalties))),
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            auxiliary=(1 / 32 if counts else 0.0) if self.auxiliary is None else self.auxiliary,
            resample=self.resample,
            dead_after=self.dead_after,
            tolerance=self.tolerance,
        )


def refuse_beside_activations(arguments: argparse.Namespace) -> None:
    """Refuse options that activations on disk have settled.

    Args:
        arguments: with ``activations``.

    Raises:
        InputError: names the option.
    """
    for name in OF_TEXTS:
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name} has no use beside --activations, whose folder says it",
                f"leave out --{name}, or extract other activations",
            )
