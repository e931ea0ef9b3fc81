"""What a result of the heads study says about where its numbers come from."""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class PromptsOrigin(TypedDict):
    """``file`` "shipped" or a path, and its hash; how many prompts it gave, how many were kept."""

    file: str
    sha256: str
    given: int
    kept: int


class ModelOrigin(TypedDict):
    """``revision`` None and a hash of the weights where no hub knows the model."""

    name: str
    revision: str | None
    note: str
    weights_sha256: str


class Computed(TypedDict):
    """What was really computed; ``description`` says what a layer row is."""

    calls: int
    layer_rows: int
    layer_rows_without_wave: int
    description: str


class CallsOfOneShape(TypedDict):
    """Calls of the same shape: ``prompts`` and ``rows`` of one, and how many ``times``."""

    phase: str
    precision: str
    plan: str
    prompts: int
    positions: int
    rows: int
    times: int


class Mesh(TypedDict):
    """Devices that shared the rows, times devices over which the parameters were sharded."""

    edits: int
    model: int


class _Calls(TypedDict):
    engine: str
    memory_gb: float
    calls: list[CallsOfOneShape]


class Calls(_Calls, total=False):
    """In which calls. ``processes`` and ``mesh`` (None: one device) are not in the oldest files."""

    processes: int
    mesh: Mesh | None


class Environment(TypedDict):
    """See ``environment.describe``."""

    platform: str
    device_kind: str
    device_count: int
    python: str
    versions: dict[str, str]
    compiler_options: dict[str, Any]
    xla_flags: str


class Metadata(TypedDict):
    """Times are in seconds; ``total_forward_passes`` counts as the original program did."""

    timestamp: str
    device: str
    int8_mode: Literal["simulated", "disabled"]
    total_forward_passes: int
    total_runtime_seconds: float
    seconds: dict[str, float]
    precisions: list[str]
    mean_positions: Literal["last", "all"]
    resample_draws: int
    max_repair_k: int
    random_orders: int
    bootstrap_samples: int
    permutations: int
    use_all_prompts: bool
    seed: int
    notes: list[str]
    prompts: PromptsOrigin
    model: ModelOrigin
    computed: Computed
    plan: Calls
    environment: Environment
