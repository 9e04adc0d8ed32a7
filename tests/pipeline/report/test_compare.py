"""Runs side by side: what differs, figures, curves, samples of equal seeds."""

from pathlib import Path

import pytest

from foundation.errors import ConfigError
from pipeline.cli import main
from pipeline.report.compare import run_names, write_comparison


def test_two_runs_on_a_page(finished_run: Path, run_copy: Path, tmp_path: Path) -> None:
    recipe = run_copy / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 7", 1))
    page = tmp_path / "page.html"
    write_comparison([finished_run, run_copy], page)
    text = page.read_text()
    for title in ("What differs", "Figures", "Samples of equal seeds", "Curves"):
        assert f">{title}</h2>" in text
    differing = text.split(">What differs</h2>")[1].split("</section>")[0]
    assert '<th scope="row">seed</th><td>0</td><td>7</td>' in differing and differing.count("<tr>") == 2
    samples = text.split(">Samples of equal seeds</h2>")[1].split("</section>")[0]
    first, second = (part.split('"')[0] for part in samples.split('src="')[1:])
    assert first == second, "the same weights and seeds make the same pictures"


def test_runs_that_are_the_same_but_for_their_place_differ_in_nothing(
    finished_run: Path, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["compare", str(finished_run), str(run_copy), "-o", str(page)]) == 0
    assert "The recipes are the same." in page.read_text() and str(page) in capsys.readouterr().out


def test_names_have_as_much_of_the_path_as_tells_them_apart() -> None:
    assert run_names([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert run_names([Path("/a/x"), Path("/b/x")]) == ["a/x", "b/x"]
    with pytest.raises(ConfigError, match="is there twice"):
        run_names([Path("/a/x"), Path("/a/../a/x")])


def test_one_run_or_another_file_is_refused(finished_run: Path, run_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs two runs or more"):
        write_comparison([finished_run], tmp_path / "page.html")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ConfigError, match="is another file"):
        write_comparison([finished_run, run_copy], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "mine"
