"""The loss in groups of rows is the cross entropy of the whole logits, in value and in every gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from foundation.codes.spec import CodeLevel, CodeSpec, code_positions
from foundation.images.config import Preprocess
from stage2_prior import head_loss as module
from stage2_prior.config import PriorConfig
from stage2_prior.head_loss import head_loss, nll_per_code
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

ONE = (CodeLevel(height=3, width=4, codebook_size=50),)
UNEQUAL = (CodeLevel(height=1, width=2, codebook_size=9, depth=2), CodeLevel(height=2, width=2, codebook_size=30))


def examples(
    levels: tuple[CodeLevel, ...], batch: int = 5, dropout: float = 0.0
) -> tuple[PriorModel, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    spec = CodeSpec(
        levels=levels,
        stride=8,
        preprocess=Preprocess(height=8 * levels[-1].height, width=8 * levels[-1].width),
        fingerprint="f",
        class_names=("a", "b"),
    )
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=2, dropout=dropout), spec)
    torch.nn.init.normal_(prior.head.weight, std=0.3)
    sizes = torch.from_numpy(code_positions(spec).codebook_size_T)
    return prior, (torch.rand(batch, prior.n_codes) * sizes).long(), torch.randint(3, (batch,))


def gradients(prior: PriorModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    prior.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in prior.named_parameters()}  # type: ignore[union-attr]


@pytest.fixture(params=["one group", "groups of 7", "groups of 7 in blocks of 3"])
def _grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "one group":
        monkeypatch.setattr(module, "_groups", lambda h, _: [slice(i, min(i + 7, len(h))) for i in range(0, len(h), 7)])
    if request.param.endswith("blocks of 3"):
        monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 3 * 4 * 50)


@pytest.mark.usefixtures("_grouped")
@pytest.mark.parametrize("levels", [ONE, UNEQUAL])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_the_loss_and_its_gradients_are_those_of_cross_entropy(levels: tuple[CodeLevel, ...], z_loss: float) -> None:
    prior, tokens, labels = examples(levels)
    loss, metrics = PriorLoss(prior, z_loss)(tokens, labels)
    logits = prior(tokens, labels).flatten(0, 1)
    nll = F.cross_entropy(logits, tokens.flatten())
    expected = nll + z_loss * logits.logsumexp(1).square().mean()
    assert loss.dtype == torch.float32 and not metrics["nll"].requires_grad
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["nll"].item() == pytest.approx(nll.item(), abs=1e-5)
    assert metrics["bits_per_code"].item() == pytest.approx(nll.item() / math.log(2), abs=1e-5)
    assert ("logsumexp" in metrics) == (z_loss > 0)
    found, wanted = gradients(prior, loss), gradients(prior, expected)
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], atol=1e-5), name


@pytest.mark.usefixtures("_grouped")
@pytest.mark.parametrize("levels", [ONE, UNEQUAL])
def test_each_code_s_likelihood(levels: tuple[CodeLevel, ...]) -> None:
    prior, tokens, labels = examples(levels)
    found = prior.nll(tokens, labels)
    expected = F.cross_entropy(prior(tokens, labels).flatten(0, 1), tokens.flatten(), reduction="none")
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found, expected.view_as(tokens), atol=1e-5)
    assert torch.allclose(prior.nll(tokens[:, :3], labels), found[:, :3], atol=1e-5), "the first codes alone"


def test_gradients_in_double_precision() -> None:
    hidden, weight = torch.randn(6, 3).double().requires_grad_(True), torch.randn(5, 3).double().requires_grad_(True)
    tokens, sizes = torch.randint(4, (6,)), torch.tensor([4, 4, 5, 5, 4, 5])
    logits = (hidden @ weight.T).masked_fill(torch.arange(5) >= sizes.unsqueeze(1), -torch.inf)
    expected = 3 * (F.cross_entropy(logits, tokens) + 0.1 * logits.logsumexp(1).square().mean())
    found = 3 * head_loss(hidden, weight, tokens, sizes, 0.1).loss
    assert found.item() == pytest.approx(expected.item(), abs=1e-12)
    pairs = zip(*(torch.autograd.grad(each, (hidden, weight)) for each in (found, expected)), strict=True)
    for one, other in pairs:
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_a_smoothed_loss_has_torchs_value_and_the_gradients_of_finite_differences(
    unequal: bool, z_loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 2 * 4 * 5)
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 3).double().requires_grad_(True), torch.randn(5, 3).double().requires_grad_(True)
    tokens, sizes = torch.randint(4, (6,)), torch.tensor([4, 4, 5, 5, 4, 5]) if unequal else None

    def loss() -> torch.Tensor:
        return 3 * head_loss(hidden, weight, tokens, sizes, z_loss, 0.2).loss

    rows = []
    for i, row in enumerate(hidden @ weight.T):
        possible = row[: 5 if sizes is None else int(sizes[i])].unsqueeze(0)
        smoothed = F.cross_entropy(possible, tokens[i : i + 1], label_smoothing=0.2)
        rows.append(smoothed + z_loss * possible.logsumexp(1).square().squeeze())
    expected = 3 * torch.stack(rows).mean()
    assert loss().item() == pytest.approx(expected.item(), abs=1e-12)
    found, wanted = (torch.autograd.grad(each, (hidden, weight)) for each in (loss(), expected))
    for tensor, one, other in zip((hidden, weight), found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
        for value, slope in zip(tensor.detach().view(-1).split(1), one.view(-1), strict=True):
            with torch.no_grad():
                value.add_(1e-6)
                high = loss()
                value.sub_(2e-6)
                low = loss()
                value.add_(1e-6)
            assert slope.item() == pytest.approx((high - low).item() / 2e-6, abs=1e-7)
    plain, smooth = (
        head_loss(hidden, weight, tokens, sizes, z_loss),
        head_loss(hidden, weight, tokens, sizes, z_loss, 0.2),
    )
    assert smooth.nll == plain.nll and smooth.squared_lse == plain.squared_lse and smooth.loss != plain.loss


def test_a_smoothing_of_zero_is_none_to_the_bit() -> None:
    prior, tokens, labels = examples(UNEQUAL)
    one, other = (gradients(prior, loss(tokens, labels)[0]) for loss in (PriorLoss(prior), PriorLoss(prior, 0.0, 0.0)))
    assert all(torch.equal(gradient, other[name]) for name, gradient in one.items())


def test_gradients_are_handed_over_once() -> None:
    """Scaling them in place a second time would be wrong, so that a second backward pass is refused."""
    weight = torch.randn(5, 3, requires_grad=True)
    loss = head_loss(torch.randn(4, 3), weight, torch.tensor([0, 1, 2, 3])).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="take them once"):
        loss.backward()


def test_under_autocast_products_are_bf16_and_the_loss_is_float32() -> None:
    hidden = torch.randn(200, 64).requires_grad_(True)
    weight = (0.3 * torch.randn(500, 64)).requires_grad_(True)
    tokens = torch.randint(500, (200,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_loss(hidden, weight, tokens).loss
        nll = nll_per_code(hidden, weight, tokens)
    rounded = F.linear(hidden.bfloat16(), weight.bfloat16()).float()
    assert loss.dtype == nll.dtype == torch.float32
    assert loss.item() == pytest.approx(F.cross_entropy(rounded, tokens).item(), abs=1e-5)
    assert nll.mean().item() == pytest.approx(loss.item(), abs=1e-5)
    found = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.autograd.grad(F.cross_entropy(F.linear(hidden, weight), tokens), (hidden, weight))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


def test_extreme_logits_neither_overflow_nor_vanish() -> None:
    """One code at 300, the drawn one at -300: the loss is 600 and its gradient whole."""
    weight = torch.zeros(4, 1)
    weight[1], weight[2] = 300, -300
    hidden = torch.ones(1, 1, requires_grad=True)
    loss = head_loss(hidden, weight, torch.tensor([2])).loss
    loss.backward()
    assert loss.item() == 600
    assert hidden.grad.item() == 600  # type: ignore[union-attr]


def test_logits_of_all_codes_never_exist_at_once() -> None:
    """64 MiB of logits in a group where all would take 512 MiB: the largest tensor that is made says so."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        n_bytes = 0

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            for each in result if isinstance(result, tuple) else (result,):
                if isinstance(each, torch.Tensor):
                    self.n_bytes = max(self.n_bytes, each.numel() * each.element_size())
            return result

    hidden, weight = torch.randn(2048, 2, requires_grad=True), torch.randn(65536, 2, requires_grad=True)
    with Largest() as largest:
        head_loss(hidden, weight, torch.zeros(2048, dtype=torch.int64)).loss.backward()
    assert largest.n_bytes <= 64 << 20


def test_without_gradients_none_are_computed() -> None:
    prior, tokens, labels = examples(ONE)
    with torch.no_grad():
        loss, _ = PriorLoss(prior)(tokens, labels)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(prior.nll(tokens, labels).mean().item(), abs=1e-5)


def test_a_fresh_prior_learns_from_its_zero_head() -> None:
    """The loss starts at ln(V) and falls under a quarter of it on four grids."""
    torch.manual_seed(0)
    prior, tokens, labels = examples(ONE, batch=4)
    torch.nn.init.zeros_(prior.head.weight)
    objective, optimizer = PriorLoss(prior), torch.optim.AdamW(prior.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = objective(tokens, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(50), abs=1e-5)
    assert losses[-1] < 0.25 * losses[0]


def test_one_seed_gives_one_step_to_the_bit() -> None:
    prior, tokens, labels = examples(ONE, dropout=0.3)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = PriorLoss(prior)(tokens, labels)
        results.append((loss, gradients(prior, loss)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())
