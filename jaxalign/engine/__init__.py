"""Many edited runs in one compiled batch."""

from jaxalign.engine.sweep import ENGINES, Engine, Readout, sweep

__all__ = ["ENGINES", "Engine", "Readout", "sweep"]
