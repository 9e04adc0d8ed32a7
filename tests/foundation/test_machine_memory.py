import os
from pathlib import Path

import pytest

from foundation import machine_memory
from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.token_dataset import TokenAccess


def test_the_container_s_limit_goes_before_the_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tmp_path / "memory.max", tmp_path / "absent"
    monkeypatch.setattr(machine_memory, "_LIMITS", limits)
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for content, expected in (("max\n", whole), (f"{2**63 - 4096}\n", whole), ("8388608\n", 8388608)):
        limits[0].write_text(content)
        assert machine_memory.machine_memory() == expected


def test_a_quarter_of_the_memory_is_shared_by_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = TokenAccess().memory_limit
    assert alone == machine_memory.machine_memory() // 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert TokenAccess().memory_limit == machine_memory.machine_memory() // 32
    assert TokenAccess(memory_limit_mib=3).memory_limit == 3 << 20


def test_it_is_set_by_a_recipe() -> None:
    values = {"form": "packed", "memory_limit_mib": 5, "packed_folder": "/scratch"}
    assert from_dict(TokenAccess, values) == TokenAccess(form="packed", memory_limit_mib=5, packed_folder="/scratch")
    for wrong in ({"form": "mapped"}, {"memory_limit_mib": 0}, {"memory_limit": 5}):
        with pytest.raises(ConfigError):
            from_dict(TokenAccess, wrong)
