"""The packages that CONTRIBUTING.md shows are installed from another folder, and train."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from foundation.config import from_dict, to_dict, variants
from foundation.errors import ConfigError
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import QuantizerConfig
from stage2_prior.config import kinds

ROOT = next(each for each in Path(__file__).resolve().parents if (each / "CONTRIBUTING.md").exists())
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
SMALL = """
extends: {base}
data:
  source: {{type: folder, path: {images}}}
  preprocess: {{height: 8, width: 8, mode: L}}
tokenizer:
  training:
    fit: {{steps: 4, batch_size: 8, evaluate_every: 2, checkpoint_every: 2}}
"""
SMALL_PRIOR = """
prior:
  training:
    fit: {{steps: 4, batch_size: 8, evaluate_every: 2, checkpoint_every: 2}}
samples: {{unconditional_images: 4}}
"""


def block(heading: str, language: str, number: int = 0) -> str:
    section = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]


def installed(tmp_path: Path, module: str, files: dict[str, str]) -> Path:
    pytest.importorskip("hatchling", reason="pip install hatchling builds the package")
    source, target = tmp_path / "package", tmp_path / "site"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert (target / f"{module}.py").exists()
    return target


def finished(tmp_path: Path, site: Path, recipe: str, command: str, small: str = SMALL) -> Path:
    """The run that a process of its own made in ``tmp_path``, of a recipe made small."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(images / f"{i}.png")
    (tmp_path / "base.yaml").write_text(recipe)
    (tmp_path / "small.yaml").write_text(small.format(base="base", images=images))
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "pipeline.cli", command, "small.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/*")
    return run


def trained(tmp_path: Path, site: Path, recipe: str) -> dict:
    """The settings of a tokenizer that was trained."""
    run = finished(tmp_path, site, recipe, "train-tokenizer")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any(row["kind"] == "held_out" and row["step"] == 4 for row in rows)
    return json.loads((run / "tokenizer" / "config.json").read_text())["tokenizer"]


def written_package(site: Path, entry_points: str) -> None:
    """Write what pip leaves of an installed package, without its code."""
    folder = site / "broken-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(entry_points)


def test_a_quantizer_of_another_package_trains_by_a_recipe(tmp_path: Path) -> None:
    heading = "Add a quantizer"
    files = {"tessera_ternary.py": block(heading, "python"), "pyproject.toml": block(heading, "toml")}
    site = installed(tmp_path, "tessera_ternary", files)
    config = trained(tmp_path, site, block(heading, "yaml"))
    assert config["quantizer"] == {"type": "ternary", "width": 5}


def test_networks_of_another_package_train_by_a_recipe(tmp_path: Path) -> None:
    project = block("Add a quantizer", "toml").split("\n[project.entry-points")[0]
    project = project.replace("tessera-ternary", "tessera-patches")
    entry = block("Add networks", "toml")
    files = {"tessera_patches.py": block("Add networks", "python"), "pyproject.toml": f"{project}\n{entry}"}
    site = installed(tmp_path, "tessera_patches", files)
    config = trained(tmp_path, site, block("Add networks", "yaml"))
    assert config["networks"] == {"type": "patches", "stride": 2}


def test_a_term_of_another_package_is_part_of_the_loss_by_a_recipe(tmp_path: Path) -> None:
    heading = "Add a term to the loss"
    project = block("Add a quantizer", "toml").split("\n[project.entry-points")[0]
    project = project.replace("tessera-ternary", "tessera-gradients")
    files = {"tessera_gradients.py": block(heading, "python"), "pyproject.toml": f"{project}\n{block(heading, 'toml')}"}
    trained(tmp_path, installed(tmp_path, "tessera_gradients", files), block(heading, "yaml"))
    (log,) = tmp_path.glob("runs/*/metrics.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(row.get("loss_gradients", 0) > 0 for row in rows)


def test_a_prior_of_another_package_ends_in_images(tmp_path: Path) -> None:
    heading = "Add a prior"
    project = block("Add a quantizer", "toml").split("\n[project.entry-points")[0]
    project = project.replace("tessera-ternary", "tessera-recurrent")
    files = {"tessera_recurrent.py": block(heading, "python"), "pyproject.toml": f"{project}\n{block(heading, 'toml')}"}
    site = installed(tmp_path, "tessera_recurrent", files)
    run = finished(tmp_path, site, block(heading, "yaml"), "run", small=SMALL + SMALL_PRIOR)
    config = json.loads((run / "prior" / "config.json").read_text())["prior"]
    assert config["block"] == "recurrent" and list((run / "samples").glob("*.png"))


def test_a_package_that_takes_the_name_of_our_prior_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_package(tmp_path, "[tessera.priors]\ngpt = somewhere:TheirPrior\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"tessera\.priors: somewhere:TheirPrior(.|\n)*found: +gpt, the name"):
        kinds()


def test_a_class_that_a_notebook_defines_is_known_and_may_be_defined_again() -> None:
    defined: list[type[QuantizerConfig]] = []
    try:
        for default in (3, 4):

            @dataclass(frozen=True, kw_only=True)
            class Own(QuantizerConfig):
                type_name: ClassVar[str] = "of-a-notebook"
                width: int = default

            defined.append(Own)
            config = from_dict(TokenizerConfig, {"quantizer": {"type": "of-a-notebook"}})
            assert isinstance(config.quantizer, Own) and config.quantizer.width == default
            assert variants(QuantizerConfig)["of-a-notebook"] is Own
            assert from_dict(TokenizerConfig, to_dict(config)) == config
    finally:
        for each in defined:
            del each.type_name
    assert "of-a-notebook" not in variants(QuantizerConfig)


def test_two_classes_of_one_name_are_refused() -> None:
    twin = type("Twin", (QuantizerConfig,), {"type_name": "fsq"})
    try:
        with pytest.raises(ConfigError, match=r"Twin\.type_name: has a value that cannot work"):
            variants(QuantizerConfig)
    finally:
        del twin.type_name
    assert "fsq" in variants(QuantizerConfig)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"quantizer\.type: names no known alternative(.|\n)*did you mean 'bsq'"):
        from_dict(TokenizerConfig, {"quantizer": {"type": "bsqq"}})
    with pytest.raises(ConfigError, match=r"networks\.type: names no known alternative(.|\n)*vqgan"):
        from_dict(TokenizerConfig, {"networks": {"type": "vqgn"}})


def test_a_plug_in_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_package(tmp_path, "[tessera.quantizers]\nbroken = no_such_module:Config\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from_dict(TokenizerConfig, {"quantizer": {"type": "fsq"}})  # built in: no plug-in is imported
    with pytest.raises(ConfigError, match=r"tessera\.quantizers: broken: a plug-in cannot be imported"):
        from_dict(TokenizerConfig, {"quantizer": {"type": "broken"}})
