import os

import pytest
import torch
from torch.nn import functional as F

from foundation.errors import ConfigError
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.quantizers.vq import VQ

GRADIENT = {"learning": "gradient"}
PROJECTION = {"learning": "gradient", "projection": True, "revive_below": 0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def placed(vq: VQ, rows: list[list[float]]) -> VQ:
    """The quantizer with its codebook, and the averages that belong to it, at ``rows``."""
    vq.codebook.data.copy_(torch.tensor(rows))
    if vq.config.learning == "ema":
        vq.code_sums.copy_(vq.codebook)
    return vq


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
@pytest.mark.parametrize("options", [{}, {"normalize": True}, GRADIENT, PROJECTION])
def test_codes_survive_decode_and_encode_at_the_edges_of_16_bits(size: int, options: dict) -> None:
    vq = VQ(VQConfig(codebook_size=size, width=4, **options)).eval()
    codes = torch.tensor([[[0, 1, size // 2, size - 2, size - 1]]])
    assert torch.equal(vq.encode(vq.decode(codes)), codes)


def test_all_codes_survive_decode_and_encode() -> None:
    vq = VQ(VQConfig(codebook_size=2000, width=8, normalize=True)).eval()
    codes = torch.arange(2000).view(2, 25, 40)
    assert torch.equal(vq.encode(vq.decode(codes)), codes)


@pytest.mark.parametrize("options", [{}, GRADIENT, {"rotation": True}, {"normalize": True}, PROJECTION])
def test_what_the_decoder_gets_is_the_decoded_code_to_the_last_bit(options: dict) -> None:
    vq = VQ(VQConfig(codebook_size=50, width=6, **options))
    for mode in (True, False):
        out = vq.train(mode)(torch.randn(2, 6, 5, 3))
        assert torch.equal(out.latents_BCHW, vq.decode(out.codes_BHW))
        assert out.codes_BHW.shape == (2, 5, 3) and out.codes_BHW.dtype == torch.int64


def test_the_gradient_is_straight_through_and_the_commitment_s_own() -> None:
    vq = VQ(VQConfig(codebook_size=16, width=3, commitment=0.25))
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = vq(latents)
    weights = torch.randn_like(latents)
    (grad,) = torch.autograd.grad((out.latents_BCHW * weights).sum(), latents, retain_graph=True)
    assert torch.equal(grad, weights)
    (pull,) = torch.autograd.grad(out.losses["commitment"], latents)
    expected = 0.25 * 2 * (latents - vq.decode(out.codes_BHW)) / latents.numel()
    assert torch.allclose(pull, expected, atol=1e-7)


def test_commitment_reaches_only_latents_and_the_codebook_loss_only_chosen_codes() -> None:
    vq = VQ(VQConfig(codebook_size=16, width=3, codebook_weight=0.5, learning="gradient"))
    latents = torch.randn(1, 3, 2, 2, requires_grad=True)
    out = vq(latents)
    both = (latents, vq.codebook)
    to_latents, to_codes = torch.autograd.grad(out.losses["commitment"], both, allow_unused=True, retain_graph=True)
    assert to_latents.abs().sum() > 0 and to_codes is None
    to_latents, to_codes = torch.autograd.grad(out.losses["codebook"], both, allow_unused=True)
    assert to_latents is None
    chosen = out.codes_BHW.unique()
    assert torch.equal(to_codes.abs().sum(1).nonzero().flatten(), chosen)
    first = chosen[0]
    members = latents.permute(0, 2, 3, 1)[out.codes_BHW == first]
    expected = 0.5 * 2 * (vq.codebook[first] - members).sum(0) / latents.numel()
    assert torch.allclose(to_codes[first], expected, atol=1e-7)


def test_only_the_projection_learns_when_the_codebook_is_frozen() -> None:
    vq = VQ(VQConfig(codebook_size=32, width=4, **PROJECTION))
    assert [name for name, _ in vq.named_parameters()] == ["projection"]
    vq.initialize(torch.randn(2, 4, 8, 8), generator())
    before, vectors = vq.codebook.clone(), vq.code_vectors().detach().clone()
    optimizer = torch.optim.SGD(vq.parameters(), lr=1.0)
    vq(torch.randn(1, 4, 1, 1)).losses["codebook"].backward()
    optimizer.step()
    vq.update(0, generator())
    assert torch.equal(vq.codebook, before)
    assert ((vq.code_vectors() - vectors).abs().sum(1) > 0).all(), "one chosen code moves them all"


def test_normalized_latents_and_codes_are_on_the_unit_sphere_and_the_largest_cosine_wins() -> None:
    for learning in ("ema", "gradient"):
        vq = VQ(VQConfig(codebook_size=40, width=5, normalize=True, learning=learning))
        latents = torch.randn(2, 5, 6, 6) * 30
        vq.initialize(latents, generator())
        out = vq(latents)
        vq.update(0, generator())
        assert torch.allclose(vq.decode(out.codes_BHW).norm(dim=1), torch.ones(2, 6, 6))
        rows = latents.permute(0, 2, 3, 1).reshape(-1, 5)
        cosine = F.cosine_similarity(rows[:, None], vq.code_vectors()[None], dim=2)
        assert torch.equal(vq.encode(latents).flatten(), cosine.argmax(1))


def test_the_codebook_moves_to_the_mean_of_its_vectors() -> None:
    vq = placed(VQ(VQConfig(codebook_size=2, width=1, decay=0.9, revive_below=0)), [[0.0], [10.0]])
    latents = torch.tensor([1.0, 1.0, 3.0, 12.0]).view(1, 1, 2, 2)
    for step in range(300):
        vq(latents)
        vq.update(step, generator())
    assert torch.allclose(vq.codebook.flatten(), torch.tensor([5 / 3, 12.0]), atol=1e-3)


def test_one_step_follows_the_formula() -> None:
    vq = placed(VQ(VQConfig(codebook_size=2, width=1, decay=0.75, revive_below=0)), [[0.0], [10.0]])
    vq(torch.tensor([2.0, 4.0]).view(1, 1, 1, 2))
    vq.update(0, generator())
    # counts 0.75 * 1 + 0.25 * 2, sums 0.75 * 0 + 0.25 * 6; the unused code keeps its place
    assert torch.allclose(vq.codebook.flatten(), torch.tensor([1.5 / 1.25, 10.0]))


@pytest.mark.parametrize("decay", [0.0, 0.99])
def test_a_code_that_is_never_used_stays_where_it_is(decay: float) -> None:
    vq = VQ(VQConfig(codebook_size=2, width=2, decay=decay, revive_below=0))
    placed(vq, [[0.0, 0.0], [30.0, -40.0]])
    for step in range(20 if decay == 0 else 4000):
        vq(torch.ones(1, 2, 1, 1))
        vq.update(step, generator())
    assert torch.allclose(vq.codebook[1], torch.tensor([30.0, -40.0]), rtol=1e-3)


@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_unused_codes_are_revived_with_averages_that_belong_to_them(learning: str) -> None:
    vq = VQ(VQConfig(codebook_size=64, width=4, revive_below=0.1, revive_every=1, decay=0.5, learning=learning))
    placed(vq, [[0.0] * 4] + [[100.0] * 4] * 63)
    for step in range(30):
        vq(torch.randn(8, 4, 8, 8))
        vq.update(step, generator(step))
    assert vq.encode(torch.randn(8, 4, 8, 8)).unique().numel() > 58
    if learning == "ema":
        assert torch.allclose(vq.codebook, vq.code_sums / vq.code_counts.unsqueeze(1))


def test_a_revived_code_is_still_there_after_the_next_step() -> None:
    vq = placed(VQ(VQConfig(codebook_size=2, width=1, revive_every=1, decay=0.99)), [[0.0], [1000.0]])
    for step in range(2):
        vq(torch.tensor([-1.0, 1.0] * 50).view(1, 1, 10, 10))
        vq.update(step, generator())
        assert vq.codebook[1].abs() < 1.1


def test_codes_wait_for_their_turn_when_there_are_more_of_them_than_latents() -> None:
    vq = VQ(VQConfig(codebook_size=400, width=4, revive_every=1))
    vq.initialize(torch.randn(4, 4, 10, 10), generator())
    before = vq.codebook.clone()
    uses = []
    for step in range(45):
        vq(torch.randn(1, 4, 6, 7))  # 42 latents: an even share of 4 uses takes 39 steps
        vq.update(step, generator(step))
        uses.append(vq.code_uses.sum().item())
    assert uses[:38] == [42.0 * (step + 1) for step in range(38)]
    assert uses[38] == 0 and uses[39] == 42
    assert not torch.equal(vq.codebook, before)


def test_many_more_codes_than_latents_in_a_batch_end_up_used() -> None:
    vq = VQ(VQConfig(codebook_size=1024, width=4))
    drift = torch.randn(4).view(1, 4, 1, 1)
    for step in range(200):
        latents = torch.randn(4, 4, 8, 8) * (1 + step / 50) + drift * min(step, 50) / 10
        if step == 0:
            vq.initialize(latents, generator())
        vq(latents)
        vq.update(step, generator(step))
    held_out = torch.randn(320, 4, 8, 8) * 5 + drift * 5
    assert vq.encode(held_out).unique().numel() > 0.95 * 1024


def test_the_classic_start_collapses_where_the_default_does_not() -> None:
    def used(**options) -> int:
        vq = VQ(VQConfig(codebook_size=256, width=4, **options))
        latents = torch.randn(16, 4, 8, 8) + 3
        vq.initialize(latents, generator())
        for step in range(50):
            vq(latents)
            vq.update(step, generator(step))
        return vq.encode(latents).unique().numel()

    assert used(initial="uniform", revive_below=0) < 64
    assert used(initial="normal", revive_below=0) < 128
    assert used() > 240


def test_a_step_that_was_not_taken_leaves_no_trace() -> None:
    vq = VQ(VQConfig(codebook_size=8, width=2))
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(torch.randn(1, 2, 4, 4))
    vq.forget()
    vq.eval()
    vq(torch.randn(1, 2, 4, 4))
    vq.update(9, generator())
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def test_initialization_is_the_same_inside_autocast() -> None:
    latents = torch.randn(4, 8, 16, 16)
    plain, inside = (VQ(VQConfig(codebook_size=64, width=8)) for _ in range(2))
    plain.initialize(latents, generator())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.initialize(latents, generator())
    assert torch.equal(plain.codebook, inside.codebook)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"projection": True}, "learning"),
        ({"projection": True, "learning": "gradient"}, "revive_below"),
        ({**PROJECTION, "rotation": True}, "rotation"),
        ({"normalize": True, "width": 1}, "width"),
        ({"codebook_size": 1}, "codebook_size"),
        ({"entropy_temperature": 0.0}, "entropy_temperature"),
        ({"decay": 1.0}, "decay"),
    ],
)
def test_combinations_that_cannot_work_are_refused(options: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}:"):
        VQConfig(**options)


def _two_processes() -> None:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process keeps its parent's
    torch.set_num_threads(1)  # nor can it use the parent's OpenMP threads
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    torch.manual_seed(state.process_index)
    vq = VQ(VQConfig(codebook_size=32, width=4, revive_every=2, revive_below=0.2, decay=0.8))
    vq.initialize(torch.randn(2, 4, 4, 4) + 9 * state.process_index, generator(7))
    start = vq.codebook.clone()
    from_second = (start.mean(1) > 4.5).sum()
    assert 8 <= from_second <= 24, "codes start at latents of both processes"
    for step in range(50):
        vq(torch.randn(2, 4, 4, 4) * (1 + state.process_index) + 3 * state.process_index)
        vq.update(step, generator(step))
    mine = torch.cat([value.flatten() for value in vq.state_dict().values()])
    both = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(both, mine)
    assert torch.equal(both[0], both[1])
    assert torch.isfinite(mine).all()
    assert not torch.equal(start, vq.codebook)
    with torch.no_grad():  # all codes far from everything: the next look replaces every one
        vq.code_sums.fill_(1e3)
        vq.code_counts.fill_(1.0)
        vq.codebook.fill_(1e3)
        vq.codebook[0] = 0.0
        vq.code_uses.zero_()
    for step in range(1, 9, 2):
        vq(torch.randn(2, 4, 4, 4) + 9 * state.process_index)
        vq.update(step, generator(step))
    revived = vq.codebook.mean(1)
    assert (revived < 4.5).sum() > 4 and ((revived > 4.5) & (revived < 100)).sum() > 4, "of both processes"


def test_two_processes_with_other_data_hold_the_same_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    debug_launcher(_two_processes, num_processes=2)


def test_averages_move_in_a_training_loop_that_never_calls_update() -> None:
    latents = [torch.randn(2, 4, 4, 4) for _ in range(3)]
    ours, foreign = (VQ(VQConfig(codebook_size=8, width=4, revive_below=0.0)).train() for _ in range(2))
    foreign.load_state_dict(ours.state_dict())
    for step, batch in enumerate(latents):
        ours(batch)
        ours.update(step, torch.Generator().manual_seed(step))
        foreign(batch)
    before = foreign.codebook.clone()
    foreign(latents[0])
    assert not torch.equal(before, foreign.codebook) and torch.equal(ours.codebook, foreign.codebook)
