"""Claim: no damaged file ends in a traceback, a hang, or a message that drives the terminal."""

import pytest
from fuzz.run import sweep
from fuzz.targets import TARGETS

FEW, MANY = 3, 100
NEED_TORCH = ("bitsandbytes", "fp8")  # and seconds to import it: in the slow tier alone


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in NEED_TORCH])
def test_a_damaged_file_is_read_or_refused_in_one_line(target):
    verdicts, faults = sweep(target, 0, FEW)
    assert not faults, next(iter(faults.values()))
    assert verdicts.total() == FEW


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_damaged_files_are_read_or_refused_in_one_line(target):
    _, faults = sweep(target, FEW, MANY)
    assert not faults, next(iter(faults.values()))
