import os

import pytest
import torch

from stage1_tokenizer.quantizers import EMAVQ, EMAVQConfig
from stage1_tokenizer.quantizers.kmeans import kmeans
from stage1_tokenizer.quantizers.nearest import nearest_codes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nearest_codes_agree_with_all_distances_and_take_the_lowest_on_ties() -> None:
    vectors, codebook = torch.randn(3000, 8), torch.randn(1500, 8)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook), expected)
    twice = torch.cat([codebook, codebook])
    assert torch.equal(nearest_codes(vectors, twice), expected)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_codes_survive_decode_and_encode_at_the_edges_of_16_bits(size: int) -> None:
    vq = EMAVQ(EMAVQConfig(codebook_size=size, width=4)).eval()
    codes = torch.tensor([[[0, 1, size // 2, size - 2, size - 1]]])
    assert torch.equal(vq.encode(vq.decode(codes)), codes)


def test_the_gradient_is_straight_through_and_the_commitment_s_own() -> None:
    vq = EMAVQ(EMAVQConfig(codebook_size=16, width=3, commitment=0.25))
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = vq(latents)
    weights = torch.randn_like(latents)
    (grad,) = torch.autograd.grad((out.latents_BCHW * weights).sum(), latents, retain_graph=True)
    assert torch.equal(grad, weights)
    (pull,) = torch.autograd.grad(out.losses["commitment"], latents)
    expected = 0.25 * 2 * (latents - vq.decode(out.codes_BHW)) / latents.numel()
    assert torch.allclose(pull, expected, atol=1e-7)
    assert torch.equal(out.latents_BCHW, vq.decode(out.codes_BHW)), "bit for bit"


def test_the_codebook_moves_to_the_mean_of_its_vectors() -> None:
    vq = EMAVQ(EMAVQConfig(codebook_size=2, width=1, decay=0.9, revive_below=0))
    vq.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    vq.code_sums.copy_(vq.codebook)
    latents = torch.tensor([1.0, 1.0, 3.0, 12.0]).view(1, 1, 2, 2)
    for step in range(300):
        vq(latents)
        vq.update(step, generator())
    assert torch.allclose(vq.codebook.flatten(), torch.tensor([5 / 3, 12.0]), atol=1e-3)


def test_one_step_follows_the_formula() -> None:
    vq = EMAVQ(EMAVQConfig(codebook_size=2, width=1, decay=0.75, revive_below=0))
    vq.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    vq.code_sums.copy_(vq.codebook)
    vq(torch.tensor([2.0, 4.0]).view(1, 1, 1, 2))
    vq.update(0, generator())
    # counts 0.75 * 1 + 0.25 * 2, sums 0.75 * 0 + 0.25 * 6; the unused code keeps its place
    assert torch.allclose(vq.codebook.flatten(), torch.tensor([1.5 / 1.25, 10.0]))


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_a_code_that_is_never_used_stays_where_it_is(decay: float) -> None:
    vq = EMAVQ(EMAVQConfig(codebook_size=2, width=2, decay=decay, revive_below=0))
    vq.codebook.copy_(torch.tensor([[0.0, 0.0], [30.0, -40.0]]))
    vq.code_sums.copy_(vq.codebook)
    for step in range(20 if decay == 0 else 4000):
        vq(torch.ones(1, 2, 1, 1))
        vq.update(step, generator())
    assert torch.allclose(vq.codebook[1], torch.tensor([30.0, -40.0]), rtol=1e-3)


def test_initialization_is_the_same_inside_autocast() -> None:
    latents = torch.randn(4, 8, 16, 16)
    plain, inside = (EMAVQ(EMAVQConfig(codebook_size=64, width=8)) for _ in range(2))
    plain.initialize(latents, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.initialize(latents, generator())
    assert torch.equal(plain.codebook, inside.codebook)


def test_unused_codes_are_revived_with_averages_that_belong_to_them() -> None:
    torch.manual_seed(0)
    vq = EMAVQ(EMAVQConfig(codebook_size=64, width=4, revive_below=0.1, revive_every=1, decay=0.5))
    vq.codebook.copy_(torch.cat([torch.zeros(1, 4), torch.full((63, 4), 100.0)]))
    vq.code_sums.copy_(vq.codebook)
    for step in range(30):
        latents = torch.randn(8, 4, 8, 8)
        vq(latents)
        vq.update(step, generator(step))
    used = vq.encode(torch.randn(8, 4, 8, 8)).unique().numel()
    assert used > 58
    assert torch.allclose(vq.codebook, vq.code_sums / vq.code_counts.unsqueeze(1))


def test_a_step_that_was_not_taken_leaves_no_trace() -> None:
    vq = EMAVQ(EMAVQConfig(codebook_size=8, width=2))
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(torch.randn(1, 2, 4, 4))
    vq.forget()
    assert not vq._seen
    vq.eval()
    vq(torch.randn(1, 2, 4, 4))
    assert not vq._seen, "evaluation is not training"
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_kmeans_finds_separate_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    vectors = (centres.repeat_interleave(200, 0) + torch.randn(600, 2))[torch.randperm(600)]
    vq = EMAVQ(EMAVQConfig(codebook_size=24, width=2, kmeans_iterations=20))
    vq.initialize(vectors.T.reshape(1, 2, 20, 30), generator())
    assert (torch.cdist(centres, vq.codebook).min(1).values < 2).all()
    assert kmeans(vectors[:5], 12, 3, generator()).shape == (12, 2), "fewer vectors than codes"


def _two_processes() -> None:
    from accelerate import PartialState

    state = PartialState(cpu=True)
    torch.manual_seed(state.process_index)
    vq = EMAVQ(EMAVQConfig(codebook_size=32, width=4, revive_every=2, revive_below=0.2, decay=0.8))
    vq.initialize(torch.randn(2, 4, 4, 4) + state.process_index, generator(7))
    for step in range(20):
        vq(torch.randn(2, 4, 4, 4) * (1 + state.process_index) + 3 * state.process_index)
        vq.update(step, generator(step))
    mine = torch.cat([value.flatten() for value in vq.state_dict().values()])
    both = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(both, mine)
    assert torch.equal(both[0], both[1])
    assert torch.isfinite(mine).all()


def test_two_processes_with_other_data_hold_the_same_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(_two_processes, num_processes=2)
