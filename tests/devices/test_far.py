"""What computes on a CPU would compute on a GPU: nothing stays behind on the wrong device, nothing waits too often."""

import pytest
from support.far_tests import KINDS, require_far_tests_pass


@pytest.mark.parametrize("kind", KINDS)
def test_both_stages_compute_on_a_device_that_may_not_meet_the_cpu(kind: str) -> None:
    require_far_tests_pass(kind, "not whole_run and not every_command")
