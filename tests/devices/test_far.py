"""What runs on a CPU would run on a GPU: nothing stays behind on the wrong device, nothing is waited for too often."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("kind", ["cuda", pytest.param("mps", marks=pytest.mark.slow)])
def test_everything_runs_on_a_device_that_may_not_meet_the_cpu(kind: str) -> None:
    """With float64 and without.

    In a process of its own: autograd asks once what devices there are, and threads for them do not survive forks.
    """
    pytest.importorskip("torch.utils.backend_registration", reason="torch has no devices in Python")
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "test_devices.py")]
    done = subprocess.run(
        line,
        cwd=HERE.parent.parent,
        env={**os.environ, "TESSERA_TEST_FAR_DEVICE": kind},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
