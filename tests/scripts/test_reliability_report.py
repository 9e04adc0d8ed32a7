"""The page says what the tests found, and nothing else."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from support.tiny_run import ROOT

RESULTS = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" time="12.5" timestamp="2026-01-02T03:04:05">
<testcase classname="tests.reliability.test_a" name="test_one[a]"><properties>
<property name="promise" value="hostile images"/>
<property name="figures" value="{&quot;images&quot;: 600, &quot;crashes&quot;: 0, &quot;how&quot;: &quot;first&quot;}"/>
</properties></testcase>
<testcase classname="tests.reliability.test_a" name="test_one[b]"><properties>
<property name="promise" value="hostile images"/>
<property name="figures" value="{&quot;images&quot;: 400, &quot;crashes&quot;: 0, &quot;how&quot;: &quot;last&quot;}"/>
</properties></testcase>
<testcase classname="tests.reliability.test_b" name="test_two"><failure message="x"/><properties>
<property name="promise" value="sweeping"/><property name="figures" value="{&quot;robbed&quot;: 1}"/>
</properties></testcase>
<testcase classname="tests.reliability.test_b" name="test_three">
<skipped type="pytest.xfail" message="moons"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reliability_report", ROOT / "scripts" / "reliability_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_figures_are_summed_and_failures_shown(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results.xml").write_text(RESULTS)
    page = tmp_path / "page.md"
    assert script.main([str(tmp_path / "results.xml"), "--out", str(page)]) == 1, "promises failed or were not run"
    text = page.read_text()
    assert "images: 1,000; crashes: 0; how: last | `test_a::test_one` |" in text
    assert "**FAILED**; robbed: 1" in text and "**not run**" in text
    assert "- Moons; its test is expected to fail." in text
    assert "1 expected to fail, 1 failure, 2 passed" in text and "2026-01-02" in text


def test_a_promise_that_nobody_made_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "results.xml").write_text(RESULTS.replace("sweeping", "eternal life"))
    with pytest.raises(SystemExit, match="eternal life"):
        script.main([str(tmp_path / "results.xml"), "--out", str(tmp_path / "page.md")])


def test_the_tests_that_it_names_are_there(script: ModuleType) -> None:
    assert script.missing_tests() == []
    for name in script.PROMISES:
        found = [path for path in (ROOT / "tests" / "reliability").glob("test_*.py") if f'"{name}"' in path.read_text()]
        assert found, f"no test keeps figures of {name}"


def test_the_document_has_every_promise_and_gap(script: ModuleType) -> None:
    page = (ROOT / "docs" / "RELIABILITY.md").read_text()
    assert all(f"| {sentence} |" in page for sentence in script.PROMISES.values())
    assert all(f"- {gap}\n" in page for gap in script.GAPS)
    assert all(f"`{test}`" in page for test in script.ELSEWHERE)
