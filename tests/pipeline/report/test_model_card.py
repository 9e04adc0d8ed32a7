"""A run as a model repository: a card that says the truth, and a folder that opens."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from foundation.errors import ConfigError, StorageError
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.report.model_card import push_run, write_model, write_space
from pipeline.report.summary import RunSummary
from pipeline.runs.folder import RunFolder

REPOSITORY = "somebody/digits"


def test_the_folder_opens_and_its_card_has_samples_figures_and_recipe(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    assert main(["push", str(finished_run), REPOSITORY, "--license", "cc-by-4.0", "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    generator = ImageGenerator.from_pretrained(out)
    expected = ImageGenerator.from_pretrained(finished_run)("3", 1, seed=0, output_type="latent").codes
    assert generator("3", 1, seed=0, output_type="latent").codes.equal(expected)
    text = (out / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    assert "![New images, a row for each class](samples.png)" in body and (out / "samples.png").is_file()
    assert f'ImageGenerator.from_pretrained("{REPOSITORY}")' in body and "name: digits" in body
    psnr = RunSummary(RunFolder(finished_run)).figures["tokenizer.psnr"]
    assert f"| reconstruction, PSNR | {psnr:.2f} dB |" in body
    code = body.split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {}
    exec(code.replace(REPOSITORY, str(out)), namespace)
    assert len(namespace["images"]) == 4


def test_a_path_of_the_machine_is_in_no_card(run_copy: Path, finished_run: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((run_copy / "recipe.yaml").read_text())
    recipe["data"]["source"] = {"type": "folder", "path": str(Path.home() / "secret" / "cats")}
    (run_copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_model(RunFolder(run_copy), REPOSITORY, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "path: cats" in text and "secret" not in text and "Data: folder, cats." in text
    assert "license:" not in text and str(finished_run) not in text and str(Path.home()) not in text


def test_a_space_serves_the_repository(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="pip install 'tessera-images[app]' serves the page")
    write_space(REPOSITORY, tmp_path / "space")
    code = (tmp_path / "space" / "app.py").read_text()
    assert f'serve("{REPOSITORY}", host="0.0.0.0", port=7860)' in code and compile(code, "app.py", "exec")
    head = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---\n")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py" and head["models"] == [REPOSITORY]


@pytest.mark.parametrize(
    ("options", "field"),
    [({"repository": "digits"}, "REPOSITORY"), ({"license": "My own!"}, "--license"), ({"space": "x"}, "--space")],
)
def test_names_are_checked_before_any_work(finished_run: Path, tmp_path: Path, options: dict, field: str) -> None:
    given: dict[str, Any] = {"repository": REPOSITORY, "license": None, "private": False, "space": None, **options}
    with pytest.raises(ConfigError, match=field):
        push_run(RunFolder(finished_run), given.pop("repository"), out=tmp_path / "model", **given)
    assert not (tmp_path / "model").exists()


def test_without_a_network_the_refusal_has_words(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    how: dict[str, Any] = {"license": None, "private": True, "space": None}
    with pytest.raises(StorageError, match=REPOSITORY):
        push_run(RunFolder(finished_run), REPOSITORY, out=tmp_path / "model", **how)
