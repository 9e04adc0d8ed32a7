"""Errors on the command line name what was typed."""

from __future__ import annotations

import pytest

from foundation.errors import ConfigError, DataError
from pipeline.cli import COMMANDS
from pipeline.commands.edit import vary
from pipeline.commands.generate import sample
from pipeline.commands.mistakes import as_typed, option_names


def test_the_options_of_a_command_and_of_its_groups() -> None:
    assert {"class_labels", "seed", "top_p", "best_of", "part", "precision"} <= set(option_names(sample))
    assert {"share", "class_label", "num_images", "guidance_scale"} <= set(option_names(vary))


@pytest.mark.parametrize(
    ("command", "field", "shown"),
    [
        ("sample RUN", "class_labels", "--class-labels: "),
        ("sample RUN", "top_p", "--top-p: "),
        ("edit vary RUN a.png", "class_labels", "--class-label: "),
        ("score RUN a.png", "class_labels", "--class-label: "),
        ("evaluate RUN", "class_labels", "class_labels: "),
        ("run digits", "prior.model.d_model", "prior.model.d_model: "),
        ("", "field", "field: "),
    ],
)
def test_an_argument_of_python_is_named_as_the_option_that_gave_it(command: str, field: str, shown: str) -> None:
    error = DataError("is wrong", field=field, found="class_labels")
    assert as_typed(error, command.split(), COMMANDS) == f"{shown}is wrong; found: class_labels"


def test_a_remedy_names_options_too_and_a_list_keeps_its_lines() -> None:
    error = ConfigError("needs a class", field="guidance_scale", fix="give guidance_scale=1, or label_dropout")
    typed = as_typed(error, ["sample", "RUN"], COMMANDS)
    assert typed == "--guidance-scale: needs a class; fix: give --guidance-scale 1, or label_dropout"
    listed = ConfigError("differences:\n    a: 1\n    b: 2", field="x")
    assert as_typed(listed, ["sample"], COMMANDS).count("\n") == 2
