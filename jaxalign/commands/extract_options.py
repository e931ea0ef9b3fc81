"""What ``extract`` reads and writes: its options."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.commands.parser import numbers, whole
from jaxalign.commands.text_activations import EMBEDDING, SITES
from jaxalign.errors import InputError
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.memory import default_memory_gb
from jaxalign.study.option import check_options, memory_option, option, scheme_option
from jaxalign.study.text_options import (
    positions_option,
    stride_option,
    texts_option,
    tokens_option,
    window_option,
)

EVERY, LAST = 4, 2  # layers by default: every fourth and the last two


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Which activations are written to disk.

    Attributes:
        site: where they are read; "embed" for what the first block reads.
        layers: behind or in which blocks; None for every fourth and the last two.
        scheme: the precision.
        texts: a file, or a name of ``named_texts``.
        window: tokens of a window.
        stride: tokens from the beginning of a window to that of the next; None: no overlap.
        tokens: at most so many of the texts are read.
        positions: "all" but the first of each window, or its "last" alone.
        shard_tokens: rows of a shard.
        estimate: say what would be written, and write nothing.
        memory_gb: for weights and activations, in 1e9 bytes.

    Raises:
        InputError: a value that cannot be used.
    """

    site: str = field(
        default="resid",
        metadata=option(
            "--site",
            choices=(*SITES, EMBEDDING),
            help="what is read: the stream behind a block, …, or the embedding",
        ),
    )
    layers: tuple[int, ...] | None = field(
        default=None,
        metadata=option(
            "--layers",
            metavar="LIST",
            parse=numbers(whole),
            help="of these blocks, from 0 (default: every fourth and the last two)",
        ),
    )
    scheme: Scheme = field(
        default=F32, metadata=scheme_option("the precision that is read; docs/schemes.md has all")
    )
    texts: str | None = field(
        default=None,
        metadata=texts_option(),
    )
    window: int = field(
        default=64,
        metadata=window_option(),
    )
    stride: int | None = field(
        default=None,
        metadata=stride_option(),
    )
    tokens: int = field(
        default=250_000,
        metadata=tokens_option(),
    )
    positions: str = field(
        default="all",
        metadata=positions_option(),
    )
    shard_tokens: int = field(
        default=1 << 15,
        metadata=option("--shard-tokens", metavar="N", least=1, help="rows of a file"),
    )
    estimate: bool = field(
        default=False,
        metadata=option(
            "--estimate",
            help="say how many rows, files and bytes it would be, and end",
            group="what runs",
        ),
    )
    memory_gb: float = field(default_factory=default_memory_gb, metadata=memory_option())

    def __post_init__(self) -> None:
        check_options(self)
        if self.site == EMBEDDING and self.layers is not None:
            raise InputError(f"--layers has no use beside --site {EMBEDDING}", "leave out --layers")
        if self.layers is not None and (not self.layers or len({*self.layers}) < len(self.layers)):
            raise InputError("--layers: expected numbers, each once", "name one or more")
        if self.layers is not None and min(self.layers) < 0:
            raise InputError(
                f"--layers: {min(self.layers)} is no block",
                "count from 0; --site embed is before it",
            )

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The layers that are read, rising.

        Args:
            count: layers of the model.

        Example:
            >>> ExtractOptions().layers_of(12)
            (0, 4, 8, 10, 11)
        """
        if self.site == EMBEDDING:
            return (0,)
        if self.layers is not None:
            return tuple(sorted(self.layers))
        return tuple(sorted({*range(0, count, EVERY), *range(max(0, count - LAST), count)}))
