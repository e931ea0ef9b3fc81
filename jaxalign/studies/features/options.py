"""How a features study runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.errors import InputError
from jaxalign.numerics.scheme import F32, Scheme, scheme_named
from jaxalign.study.option import listed, option, refuse_repeated, schemes_option
from jaxalign.study.options import Common
from jaxalign.study.text_options import (
    positions_option,
    stride_option,
    tokens_option,
    window_option,
)

SCHEMES = tuple(map(scheme_named, ("int8-g64", "nf4", "int4-g64", "int3-g64", "int2-g64")))
Positions = Literal["all", "last"]
Mismatch = Literal["refuse", "allow"]


def _folders(names: str) -> tuple[str, ...]:
    found = listed(names)
    if not found:
        raise InputError(f"--sae {names!r} names no dictionary", "leave it out, or name one")
    return found


@dataclass(frozen=True, kw_only=True)
class FeaturesOptions(Common):
    """How the study runs.

    Attributes:
        schemes: compared with f32.
        sae: folders of dictionaries, or folders of repositories of the hub; none for the bundled
            one, of the bundled model.
        window: tokens that are read together.
        stride: tokens from the beginning of a window to that of the next; None: no overlap.
        tokens: at most so many of the texts.
        positions: "all" but the first of each window, or its "last" alone.
        noise_draws: draws of random weights beside each scheme, of each kind of noise.
        group_noise: whether noise of each group's norm is drawn beside noise of each matrix's.
        pruning: whether pruned weights of the same perplexity are compared.
        effects: features that are taken away and steered with in every precision, spread over how
            well they survive; 0 for none.
        effect_tokens: tokens on which; None: 1000.
        cards: features whose activations and texts are kept, of them; 0 for none.
        labels: a file of features and their labels; None for none.
        least_firings: tokens on which a feature has to be active in f32 to be judged.
        survives, destroyed: correlations from which a feature survives, and below which it is
            destroyed.
        valid: explained variance below which a dictionary is marked.
        sae_model_mismatch: whether a dictionary of another model is refused.

    Raises:
        InputError: a value that cannot be used.
    """

    schemes: tuple[Scheme, ...] = field(
        default=SCHEMES, metadata=schemes_option("precisions compared with f32")
    )
    sae: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--sae",
            metavar="LIST",
            parse=_folders,
            help="folders of dictionaries, or REPOSITORY:FOLDER of the hub, with commas (default: "
            "the bundled model's own; for others train one: jaxalign train-sae)",
        ),
    )
    window: int = field(default=64, metadata=window_option())
    stride: int | None = field(
        default=None,
        metadata=stride_option(),
    )
    tokens: int = field(
        default=10_000,
        metadata=tokens_option(),
    )
    positions: Positions = field(
        default="all",
        metadata=positions_option(),
    )
    noise_draws: int = field(
        default=5,
        metadata=option(
            "--noise-draws",
            metavar="N",
            least=0,
            most=1000,
            help="draws of random weights as far from f32 as each scheme's; 0 for none",
        ),
    )
    group_noise: bool = field(
        default=False,
        metadata=option(
            "--group-noise",
            help="beside noise as large as the scheme's error in each matrix, noise as large as "
            "its error in each group of weights that share a scale",
        ),
    )
    pruning: bool = field(
        default=False,
        metadata=option(
            "--pruning",
            help="beside each scheme the same model with its smallest weights removed, as many as "
            "cost the same perplexity",
        ),
    )
    effects: int = field(
        default=16,
        metadata=option(
            "--effects",
            metavar="N",
            least=0,
            most=1000,
            help="features that are taken away and steered with in every precision, and the shift "
            "along those that lose most; 0 for none",
        ),
    )
    effect_tokens: int | None = field(
        default=None,
        metadata=option(
            "--effect-tokens",
            metavar="N",
            least=1,
            help="tokens on which that is done (default: 1000)",
        ),
    )
    cards: int = field(
        default=4,
        metadata=option(
            "--cards",
            metavar="N",
            least=0,
            most=100,
            help="features whose activations and texts are shown, f32 beside each precision",
        ),
    )
    labels: str | None = field(
        default=None,
        metadata=option(
            "--labels",
            metavar="F",
            help="CSV with the columns feature,label, or JSON lines: groups of features, each "
            "beside random features that fire as often",
        ),
    )
    least_firings: int = field(
        default=20,
        metadata=option(
            "--least-firings",
            metavar="N",
            least=2,
            help="tokens on which a feature is active in f32, for its correlation to be read",
        ),
    )
    survives: float = field(
        default=0.9,
        metadata=option(
            "--survives", metavar="R", most=1, help="correlation from which a feature survives"
        ),
    )
    destroyed: float = field(
        default=0.3,
        metadata=option(
            "--destroyed", metavar="R", most=1, help="correlation below which it is destroyed"
        ),
    )
    valid: float = field(
        default=0.7,
        metadata=option(
            "--valid",
            metavar="X",
            most=1,
            help="explained variance below which a dictionary is marked",
        ),
    )
    sae_model_mismatch: Mismatch = field(
        default="refuse",
        metadata=option(
            "--sae-model-mismatch",
            choices=("refuse", "allow"),
            help="what to do with a dictionary of another model",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_repeated(self.schemes, F32)
        if self.destroyed >= self.survives:
            raise InputError(
                f"--destroyed {self.destroyed:g} is not below --survives {self.survives:g}",
                "give a lower correlation for features that are destroyed",
            )
        if twice := [name for name in dict.fromkeys(self.sae) if self.sae.count(name) > 1]:
            raise InputError(f"--sae names {twice[0]} more than once", "name each once")
        if self.group_noise and not self.noise_draws:
            raise InputError("--group-noise has no use without draws", "give --noise-draws 5")
        if self.effect_tokens is not None and not self.effects:
            raise InputError("--effect-tokens has no use without --effects", "leave it out")
        if self.labels is not None and len(self.sae) > 1:
            raise InputError(
                f"--labels {self.labels} are of one dictionary, and --sae names {len(self.sae)}",
                "study them apart",
            )
