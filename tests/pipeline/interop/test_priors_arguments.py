"""What an importer of priors must be told, and what it refuses; nothing is written unless all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.parity_fixtures import (
    LLAMAGEN,
    TAMING,
    Tessera,
    close,
    expected,
    labels_of,
    prior_in,
)

from foundation.errors import ConfigError, DataError
from pipeline.generation.generator import ImageGenerator
from pipeline.interop.priors import class_names


def test_the_grid_is_found_or_asked_for(tokenizer: Path, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    state = parity / LLAMAGEN[0] / "state.safetensors"
    (tmp_path / "heads.json").write_text('{"n_head": 4}')
    heads = ("--config", tmp_path / "heads.json")
    named = tmp_path / "my c2i_L_384 copy.safetensors"
    save_file(load_file(state), named)
    for path, options, source, side in (
        (state, ("--image-size", 80), "--image-size", 5),
        (named, (), "the name c2i_L_384", 24),
        (named, ("--image-size", 256), "--image-size", 16),
        (state, ("--tokenizer", tokenizer), "the tokenizer", 4),
    ):
        out = tmp_path / f"out {source} {side}"
        status, said = tessera("import", path, "-o", out, *heads, *options)
        assert status == 0 and f"grid of {side} x {side} codes, from {source}" in said, said
        assert prior_in(out).spec.levels[0].shape == (side, side)
    config = ("--config", parity / LLAMAGEN[0] / "config.json")
    for options, told in (
        (heads, "block_size: is needed"),
        ((*heads, "--image-size", "100"), "a multiple of 16"),
        ((*config, "--image-size", "80"), "a size of 16 codes, the block_size"),
        (("--image-size", "64"), "n_head: is needed"),
    ):
        status, said = tessera("import", state, "-o", tmp_path / "none", *options)
        assert status == 2 and told in said, said
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("case", "changes", "told"),
    [
        (LLAMAGEN[0], {"n_head": 5}, "n_heads"),
        (LLAMAGEN[0], {"n_head": "four"}, "n_heads"),
        (LLAMAGEN[0], {"num_classes": 11}, "num_classes"),
        (LLAMAGEN[0], {"dim": 128}, "dim"),
        (LLAMAGEN[0], {"block_size": 17}, "block_size"),
        (LLAMAGEN[0], {"model_type": "t2i"}, "model_type"),
        (LLAMAGEN[0], {"norm_eps": 1e-6}, "norm_eps"),
        (LLAMAGEN[0], {"rope_base": "many"}, "rope_base"),
        (TAMING[0], {"n_classes": None}, "n_classes: is needed"),
        (TAMING[0], {"n_classes": 49}, "n_classes"),
        (TAMING[1], {"sos_token": 32}, "sos_token"),
        (TAMING[1], {"cond_stage_config": {"target": "coord.CoordStage"}}, "a condition on coordinates"),
        (TAMING[0], {"transformer": {"n_head": 4, "vocab_size": 32}}, "vocab_size"),
        (TAMING[0], {"transformer": {"block_size": 17}}, "n_head: is needed"),
        (TAMING[0], {"transformer": {"n_head": 4, "n_unmasked": 4}}, "n_unmasked"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    case: str, changes: dict, told: str, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    values = json.loads((parity / case / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps({key: each for key, each in values.items() if each is not None}))
    arguments = (parity / case / "state.safetensors", "-o", tmp_path / "out", "--config", tmp_path / "config.json")
    status, said = tessera("import", *arguments)
    assert status == 2 and told in said, said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", [LLAMAGEN[0], TAMING[0]])
def test_damage_is_refused(case: str, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    source, path, out = parity / case / "state.safetensors", tmp_path / "changed.safetensors", tmp_path / "out"
    config, state = ("--config", parity / case / "config.json"), load_file(source)
    prefix = "transformer." if case == TAMING[0] else ""
    key = f"{prefix}blocks.1.mlp.2.bias" if prefix else "layers.1.attention.wo.weight"
    for changes, told in (
        ({key: None}, f"missing: {key}"),
        ({f"{prefix}stray": torch.zeros(3)}, f"left over: {prefix}stray"),
        ({key: torch.zeros(7, 7)}, "of another shape"),
        ({key: torch.full_like(state[key], torch.inf)}, "not finite"),
    ):
        save_file({name: each for name, each in {**state, **changes}.items() if each is not None}, path)
        status, said = tessera("import", path, "-o", out, *config)
        assert status == 2 and told in said, said
    status, said = tessera("import", source, "--format", "rqvae", "-o", out)
    assert status == 2 and f"the nearest is {case.split('/')[0]}" in said
    path.write_bytes(source.read_bytes()[:5000])
    status, said = tessera("import", path, "-o", out, *config)
    assert status == 2 and "changed.safetensors" in said and not out.exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cond_stage_model.encoder.conv_in.weight": torch.zeros(1)}, "conditioned on images"),
        ({"first_stage_model.quantize.embedding.weight": torch.zeros(64, 16)}, "n_embed"),
        ({"transformer.pos_emb": torch.zeros(1, 15, 64)}, "block_size"),
    ],
)
def test_priors_of_taming_that_have_no_place_here(
    changes: dict, told: str, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    save_file({**load_file(parity / TAMING[0] / "state.safetensors"), **changes}, tmp_path / "changed.safetensors")
    status, said = tessera(
        "import",
        tmp_path / "changed.safetensors",
        "-o",
        tmp_path / "out",
        "--config",
        parity / TAMING[0] / "config.json",
    )
    assert status == 2 and told in said, said


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (TAMING[1], "params: {cond_stage_config: __is_unconditional__, transformer_config: {params: {n_head: 4}}}"),
        (TAMING[1], "params: {be_unconditional: true, transformer_config: {params: {n_head: 4}}}"),
        (
            TAMING[0],
            "params: {cond_stage_config: {params: {n_classes: 11}}, transformer_config: {params: {n_head: 4}}}",
        ),
    ],
)
def test_the_condition_as_taming_s_own_files_say_it(
    case: str, said: str, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    (tmp_path / "model.yaml").write_text(f"model:\n  {said[:-1]}, first_stage_config: {{params: {{n_embed: 32}}}}}}\n")
    status, told = tessera(
        "import",
        parity / case / "state.safetensors",
        "-o",
        tmp_path / "out",
        "--config",
        tmp_path / "model.yaml",
        "--image-size",
        8,
    )
    assert status == 0, told
    io, prior = expected(parity / case), prior_in(tmp_path / "out")
    close(prior(io["codes"], labels_of(prior, io)), io["logits"])


def test_a_transformer_with_fewer_places_than_codes_is_refused(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    source = parity / TAMING[0]
    arguments = (source / "state.safetensors", "-o", tmp_path / "out", "--config", source / "config.json")
    status, said = tessera("import", *arguments, "--image-size", 10)
    assert status == 2 and "48 indices, 17 positions" in said and "32 and 25" in said, said


def test_a_table_of_classes_without_a_null_class(
    tokenizer: Path, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    values = json.loads((parity / LLAMAGEN[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "class_dropout_prob": 0.0, "num_classes": 11}))
    arguments = (parity / LLAMAGEN[0] / "state.safetensors", "-o", tmp_path / "out", "--tokenizer", tokenizer)
    status, said = tessera("import", *arguments, "--config", tmp_path / "config.json")
    assert status == 0, said
    generator = ImageGenerator.from_pretrained(tmp_path / "out")
    assert len(generator.labels) == 11
    with pytest.raises(ConfigError, match="trained on the null class"):
        generator(class_labels=10, guidance_scale=1.5)


@pytest.mark.parametrize("names", ["a\nb\n", "\n".join("abcdefghij"[:9]) + "\na", None])
def test_class_names_that_do_not_name_the_classes(
    names: str | None, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    path = tmp_path / "names.txt"
    if names is not None:
        path.write_text(names)
    folder = parity / LLAMAGEN[0]
    status, said = tessera(
        "import",
        folder / "state.safetensors",
        "-o",
        tmp_path / "out",
        "--class-names",
        path,
        "--config",
        folder / "config.json",
    )
    assert status == 2 and "names.txt" in said and "--class-names" in said


def test_class_names_are_the_lines_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeff010\nyes\r\na  b\na\u2028b\n", encoding="utf-8", newline="")
    assert class_names(path, 4) == ("010", "yes", "a  b", "a\u2028b")
    path.write_text("a\nb \n")
    with pytest.raises(DataError, match=r"names.txt: has white space(.|\n)*'b ', line 2"):
        class_names(path, 2)


def test_raw_weights_of_files_that_hold_one_set_are_refused(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder = parity / LLAMAGEN[0]
    arguments = (folder / "state.safetensors", "-o", tmp_path / "out", "--config", folder / "config.json")
    status, said = tessera("import", *arguments, "--raw-weights")
    assert status == 2 and "--raw-weights: has no use for llamagen_gpt" in said
