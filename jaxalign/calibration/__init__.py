"""Schemes that choose weights, codes and scales by what linear layers read on some texts."""

from jaxalign.calibration.prepare import preparer
from jaxalign.calibration.texts import calibration_texts, read_texts, shipped_texts
from jaxalign.calibration.walk import calibrate

__all__ = ["calibrate", "calibration_texts", "preparer", "read_texts", "shipped_texts"]
