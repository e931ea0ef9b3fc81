"""The quantities that results hold, as every table and figure names them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measured quantity: its name and its unit, in one place for table and figure.

    Attributes:
        name: one or two words, lower case where the field allows.
        unit: short, for a table's head or the title of a panel.
        of: what the unit refers to; empty where the unit says all.
    """

    name: str
    unit: str
    of: str = ""

    @property
    def short(self) -> str:
        """Name and unit: ``drift (%)``."""
        return f"{self.name} ({self.unit})"

    @property
    def long_unit(self) -> str:
        """The unit with what it refers to: ``% of the norm of the head's f32 output``."""
        return f"{self.unit} {self.of}".rstrip()

    @property
    def label(self) -> str:
        """Name and long unit, for an axis: ``drift (% of the norm of the head's f32 output)``."""
        return f"{self.name} ({self.long_unit})"


IMPORTANCE = Measure(name="importance", unit="logits")
DRIFT = Measure(name="drift", unit="%", of="of the norm of the head's f32 output")
KL = Measure(name="KL", unit="nats")
# m: the logit of the target minus the largest other logit.
MARGIN = Measure(name="m", unit="logits")
MARGIN_CHANGE = Measure(name="Δm", unit="logits")
