"""Runs and commands on a device that may not meet the CPU; a file of its own, which another process can take."""

import pytest
from support.far_tests import KINDS, require_far_tests_pass


@pytest.mark.parametrize("kind", KINDS)
def test_runs_and_commands_work_on_a_device_that_may_not_meet_the_cpu(kind: str) -> None:
    require_far_tests_pass(kind, "whole_run or every_command")
