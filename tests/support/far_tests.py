"""Runs ``tests/devices/test_devices.py`` on the device that exists in name only."""

import os
import subprocess
import sys

import pytest
from support.tiny_run import ROOT

KINDS = ["cuda", pytest.param("mps", marks=pytest.mark.slow)]
"""with float64 and without"""


def require_far_tests_pass(kind: str, selection: str) -> None:
    """Run the tests that pytest's ``-k`` selects.

    In a process of its own: autograd asks once what devices there are, and threads for them do not survive forks.
    """
    pytest.importorskip("torch.utils.backend_registration", reason="torch has no devices in Python")
    tests = str(ROOT / "tests" / "devices" / "test_devices.py")
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", selection, tests]
    environment = {**os.environ, "TESSERA_TEST_FAR_DEVICE": kind}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
