"""Every prior's fixture, through the command line: logits and greedy codes are the system's own, cached or not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.parity_fixtures import (
    LLAMAGEN,
    TAMING,
    Tessera,
    close,
    expected,
    imported,
    labels_of,
    prior_in,
)
from support.random_prior import decode_codes, decode_without_cache

from foundation.errors import ConfigError, ContractError
from pipeline.generation.generator import ImageGenerator
from pipeline.interop.llamagen_gpt import UNBOUND, upstream_sampling
from pipeline.interop.tokenizer_plan import UpstreamArguments
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decoding.decode import stream_uniforms
from stage2_prior.decoding.probs import probabilities
from stage2_prior.decoding.sampling import SamplingConfig, guidance_scales


def settings(name: str, n_codes: int) -> SamplingConfig:
    """How a fixture's greedy codes were drawn: ``greedy_cfg2p0_interval5`` and so on."""
    scale = 2.0 if "cfg2p0" in name else 1.0
    interval = 5 if "interval5" in name else -1
    guided = upstream_sampling(UpstreamArguments({"cfg_scale": scale, "cfg_interval": interval}), n_codes)
    return dataclasses.replace(guided, temperature=0.0)


@pytest.mark.parametrize("case", [*LLAMAGEN, *TAMING])
def test_logits_and_greedy_codes(case: str, parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    io = expected(parities / case)
    prior = prior_in(imported(case, parities, tmp_path, tessera))
    labels, codes = labels_of(prior, io), io["codes"]
    close(prior(codes, labels), io["logits"])
    if "logits_null" in io:
        close(prior(codes, torch.full_like(labels, prior.null_class)), io["logits_null"])
    greedy = [name for name in io if name.startswith("greedy")]
    assert len(greedy) == (3 if case in LLAMAGEN else 2)
    for name in greedy:
        length, known = io[name].shape[1], torch.full((len(labels), prior.n_codes), -1)
        if name == "greedy_continued":
            known[:, : length // 2] = codes[:, : length // 2]
        arguments = (prior, labels, stream_uniforms([0] * len(labels), prior.n_codes), settings(name, prior.n_codes))
        for found in (decode_codes(*arguments, known_BT=known), decode_without_cache(*arguments, known)):
            assert torch.equal(found[:, :length], io[name]), name


@pytest.mark.slow
def test_logits_of_a_published_size(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = "llamagen_gpt/gpt_b_256"
    io, at = expected(parity / case), json.loads((parity / case / "config.json").read_text())["logits_at"]
    prior = prior_in(imported(case, parity, tmp_path, tessera))
    nothing = torch.full_like(io["class_labels"], prior.null_class)
    with torch.no_grad():
        for name, labels in (("logits_at", io["class_labels"]), ("logits_null_at", nothing)):
            close(prior.head(prior.hidden(io["codes"], labels)[:, at]), io[name])


@pytest.mark.parametrize("case", LLAMAGEN)
def test_filters(case: str, parities: Path) -> None:
    io = expected(parities / case)
    names = [name for name in io if name.startswith("filter_probs")]
    assert len(names) == 3
    for name in names:
        temperature, k, p = (float(each[1:]) for each in name.split("_")[2:])
        found = probabilities(
            io["filter_logits"], SamplingConfig(temperature=temperature, top_k=int(k) or None, top_p=p)
        )
        assert torch.allclose(found, io[name], rtol=0, atol=1e-6) and torch.equal(found > 0, io[name] > 0)


def test_an_unrotated_class_would_give_other_logits(parities: Path, tmp_path: Path, tessera: Tessera) -> None:
    out = imported(LLAMAGEN[0], parities, tmp_path, tessera)
    values = json.loads((out / "config.json").read_text())
    values["prior"]["class_rotation"] = "identity"
    (out / "config.json").write_text(json.dumps(values))
    io, prior = expected(parities / LLAMAGEN[0]), prior_in(out)
    with torch.no_grad():
        assert float((prior(io["codes"], io["class_labels"]) - io["logits"]).abs().max()) > 4


@pytest.mark.parametrize("wrapped", ["model", "module", "state_dict", None, "the published file"])
def test_wrappers_and_the_stray_table(wrapped: str | None, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder, path = parity / LLAMAGEN[0], tmp_path / "c2i.pt"
    state = {**load_file(folder / "state.safetensors"), "freqs_cis": torch.zeros(17, 8, 2)}
    torch.save({wrapped: state, "steps": 3} if wrapped else state, path)
    if wrapped == "the published file":
        path = folder / "checkpoint.pt"
    config = ("--config", folder / "config.json")
    status, said = tessera("import", path, "-o", tmp_path / "wrapped", *config)
    assert status == 0 and ("freqs_cis" in said) == (wrapped != "the published file"), said
    plain = prior_in(imported(LLAMAGEN[0], parity, tmp_path, tessera)).state_dict()
    found = prior_in(tmp_path / "wrapped").state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


@pytest.mark.parametrize("case", TAMING)
def test_taming_s_file_gives_a_generator(case: str, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    """With the tokenizer that lies in the same file; codes that have no image are never drawn for one."""
    out = imported(case, parity, tmp_path, tessera)
    generator = ImageGenerator.from_pretrained(out)
    state = load_file(parity / case / "state.safetensors")
    assert torch.equal(
        generator.tokenizer.bottleneck.quantizer.codebook, state["first_stage_model.quantize.embedding.weight"]
    )
    knows_classes = case == TAMING[0]
    asked = {"class_labels": [0, 3, 10]} if knows_classes else {"num_images_per_label": 3}
    output = generator(**asked, seed=0, output_type="pt", temperature=5.0)
    assert output.images.shape == (3, 3, 8, 8) and int(output.codes.max()) < 32
    assert prior_in(out).vocab_size == (48 if knows_classes else 32)
    if knows_classes:
        with pytest.raises(ConfigError, match="guidance_scale: needs a prior that was trained on the null class"):
            generator(class_labels=3, guidance_scale=2.0)
        with pytest.raises(ConfigError, match="class_labels: is needed"):
            generator()
    labels = ("--class-labels", "3", "4") if knows_classes else ()
    status, said = tessera("sample", out, "--out", tmp_path / "images", "--seed", 0, *labels)
    assert status == 0 and (tmp_path / "images" / "grid.png").is_file(), said


def test_the_wrapped_file_of_taming(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder = parity / TAMING[1]
    config = ("--config", folder / "config.json")
    status, said = tessera("import", folder / "checkpoint.ckpt", "-o", tmp_path / "wrapped", *config)
    assert status == 0 and "attn.mask" in said, said
    plain = imported(TAMING[1], parity, tmp_path, tessera)
    assert prior_in(tmp_path / "wrapped").spec == prior_in(plain).spec
    assert prior_in(plain).spec.fingerprint == TokenizerModel.load(plain / "tokenizer").fingerprint


def test_an_imported_pair_draws_images(tokenizer: Path, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    names = [f"kind {i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    more = ("--tokenizer", tokenizer, "--class-names", tmp_path / "names.txt")
    out = imported(LLAMAGEN[0], parity, tmp_path, tessera, *more)
    assert {"tokenizer", "prior", "model_index.json", "origin.json"} == {each.name for each in out.iterdir()}
    status, said = tessera(
        "sample", out, "--class-labels", "kind 7", "--guidance-scale", 2.0, "--seed", 3, "--out", tmp_path / "images"
    )
    assert status == 0 and (tmp_path / "images" / "grid.png").is_file(), said
    generator, io = ImageGenerator.from_pretrained(out), expected(parity / LLAMAGEN[0])
    assert list(generator.labels) == names and generator.label_dropout == 0.1
    labels = [names[i] for i in io["class_labels"].tolist()]
    output = generator(class_labels=labels, temperature=0.0, guidance_scale=2.0, output_type="pt")
    assert torch.equal(output.codes.flatten(1), io["greedy_cfg2p0"])
    assert output.images.shape == (3, 3, 64, 64) and output.images.std() > 0.01
    interval = settings("greedy_cfg2p0_interval5", 16).guidance_interval
    output = generator(class_labels=labels, temperature=0.0, guidance_scale=2.0, guidance_interval=interval)
    assert torch.equal(output.codes.flatten(1), io["greedy_cfg2p0_interval5"])


def test_the_transformers_shell_opens_it(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    from stage2_prior import Prior

    out, io = imported(LLAMAGEN[0], parity, tmp_path, tessera), expected(parity / LLAMAGEN[0])
    close(Prior.from_pretrained(out)(io["codes"], io["class_labels"]).logits, io["logits"])


def test_without_its_tokenizer_it_is_bound_to_none(
    tokenizer: Path, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    prior = prior_in(imported(LLAMAGEN[0], parity, tmp_path, tessera))
    assert prior.spec.fingerprint == UNBOUND and prior.spec.class_names == tuple("0123456789")
    with pytest.raises(ContractError, match="do not belong together"):
        ImageGenerator(TokenizerModel.load(tokenizer), prior)


def test_a_tokenizer_with_other_codes_is_refused(
    tokenizer: Path, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    folder = parity / LLAMAGEN[1]
    arguments = (folder / "state.safetensors", "-o", tmp_path / "out", "--tokenizer", tokenizer)
    status, said = tessera("import", *arguments, "--config", folder / "config.json")
    assert status == 2 and "4 x 4 codes of 64" in said and "6 x 6 codes of 96" in said
    assert not (tmp_path / "out").exists()
    status, said = tessera(
        "import", parity / TAMING[0] / "state.safetensors", "-o", tmp_path / "out", "--tokenizer", tokenizer
    )
    assert status == 2 and "--tokenizer" in said and "has no use" in said


@pytest.mark.parametrize("n_codes", [16, 36, 256, 576])
def test_an_interval_of_k_guides_codes_0_to_k_plus_1(n_codes: int) -> None:
    for k in range(n_codes + 3):
        sampling = upstream_sampling(UpstreamArguments({"cfg_scale": 2.0, "cfg_interval": k}), n_codes)
        guided = np.flatnonzero(guidance_scales(sampling, n_codes) == 2.0)
        assert guided.tolist() == list(range(min(k + 2, n_codes)))


def test_the_peer_s_words_for_no_guidance_and_no_filter() -> None:
    none = {"cfg_scale": 0.5, "cfg_interval": -1, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    assert upstream_sampling(UpstreamArguments(none), 16) == SamplingConfig(top_p=1.0)
    some = {"cfg_scale": 4, "top_k": 2000, "temperature": 0.9}
    wanted = SamplingConfig(guidance_scale=4.0, top_k=2000, temperature=0.9)
    assert upstream_sampling(UpstreamArguments(some), 16) == wanted
