import pytest
import torch

from stage1_tokenizer.quantizers import codebook as codebook_module
from stage1_tokenizer.quantizers.codebook import best_codes, draw_vectors, kmeans, nearest_codes


def test_nearest_codes_agree_with_all_distances_and_take_the_lowest_on_ties() -> None:
    vectors, codebook = torch.randn(3000, 8), torch.randn(1500, 8)
    expected = torch.cdist(vectors.double(), codebook.double()).argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook), expected)
    twice = torch.cat([codebook, codebook])
    assert torch.equal(nearest_codes(vectors, twice), expected)


@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
def test_latents_far_from_the_origin_have_the_same_nearest_codes(offset: float) -> None:
    vectors, codebook = torch.randn(3000, 8) + offset, torch.randn(1000, 8) + offset
    expected = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_codes(vectors, codebook), expected)
    assert torch.equal(nearest_codes(codebook, codebook), torch.arange(1000))


def test_no_block_holds_more_scores_than_it_should(monkeypatch) -> None:
    vectors, codebook = torch.randn(100, 4), torch.randn(50, 4)
    whole = best_codes(vectors, codebook)
    assert torch.equal(whole, (vectors @ codebook.T).argmax(1))
    monkeypatch.setattr(codebook_module, "CPU_BLOCK", 150)
    assert torch.equal(best_codes(vectors, codebook), whole), "three rows at a time"
    monkeypatch.setattr(codebook_module, "CPU_BLOCK", 1)
    assert torch.equal(best_codes(vectors, codebook), whole), "one row at a time"


def test_no_vectors_give_no_codes() -> None:
    assert nearest_codes(torch.empty(0, 4), torch.randn(5, 4)).shape == (0,)


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    vectors = (centres.repeat_interleave(200, 0) + torch.randn(600, 2))[torch.randperm(600)]
    found = kmeans(vectors, 24, 20, torch.Generator().manual_seed(0))
    assert (torch.cdist(centres, found).min(1).values < 2).all()


def test_fewer_vectors_than_codes_are_all_used_and_never_twice_the_same() -> None:
    vectors = torch.randn(50, 3)
    drawn = draw_vectors(vectors, 120, torch.Generator().manual_seed(0))
    assert drawn.unique(dim=0).shape == (120, 3)
    assert {tuple(row) for row in vectors.tolist()} <= {tuple(row) for row in drawn.tolist()}
    assert torch.cdist(drawn, vectors).min(1).values.max() < 0.1
    constant = draw_vectors(torch.ones(4, 3), 9, torch.Generator().manual_seed(0))
    assert constant.isfinite().all()
