"""Every public function works or raises a ``TesseraError``, whatever it is given."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.wrong_calls import Function, functions, values, wrong_calls

from foundation.errors import TesseraError

N_CALLS = 500


@pytest.fixture(scope="module")
def table(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Function], dict[str, Any]]:
    scratch = tmp_path_factory.mktemp("calls")
    run = Path(shutil.copytree(finished_run, scratch / "run"))
    return functions(run, scratch), values(run, scratch)


def outcome(call: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """Empty for success or a ``TesseraError``; else the exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**arguments)
    except TesseraError:
        return ""
    except Exception as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"[:300]
    return ""


def test_each_function_works_with_the_arguments_of_the_table(
    table: tuple[list[Function], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    offline = {"push_to_hub", "Tokenizer.push_to_hub", "from_pretrained revision"}
    refused = offline | {"Tokenizer.pixel_values", "Prior.input_ids", "open_image_sets", "FolderData"}
    for function in table[0]:
        if function.name not in refused:
            function.call(**function.arguments)
    for function in table[0]:
        if function.name in refused:
            with pytest.raises(TesseraError):
                function.call(**function.arguments)


def test_wrong_arguments_are_refused_or_work(
    table: tuple[list[Function], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = {
        name: reason
        for name, function, arguments in wrong_calls(*table, N_CALLS)
        if (reason := outcome(function.call, arguments))
    }
    assert not found, f"{len(found)} of {N_CALLS}:\n" + "\n".join(f"{name}: {why}" for name, why in found.items())
