"""Configurations load none of the heavy libraries, so that a recipe is read in a fraction of a second."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "PIL", "pyarrow", "datasets", "accelerate", "transformers"}


@pytest.mark.parametrize("module", ["foundation.training.config", "foundation.images.config", "foundation.config"])
def test_a_configuration_module_loads_no_heavy_library(module):
    code = f"import sys, {module}; print(*sorted(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)
