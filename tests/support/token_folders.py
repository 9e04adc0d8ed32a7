"""Token datasets of random codes on disk."""

from pathlib import Path

import numpy as np

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import write_manifest
from foundation.codes.shards import Shard, shard_path, write_shard
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import TokenAccess
from foundation.images.config import Preprocess

PACKED = TokenAccess(form="packed")


def token_spec(codebook_size: int = 1000, *, labelled: bool = True) -> CodeSpec:
    """2 x 3 codes of one level."""
    return CodeSpec(
        levels=(CodeLevel(height=2, width=3, codebook_size=codebook_size),),
        stride=4,
        preprocess=Preprocess(height=8, width=12),
        fingerprint="f" * 64,
        class_names=("cat", "dog") if labelled else (),
    )


def write_tokens(
    folder: Path,
    images: tuple[int, ...] = (40, 41, 13),
    *,
    spec: CodeSpec | None = None,
    n_views: int = 2,
    seed: int = 0,
) -> Path:
    """A split ``train``: one shard for each number in ``images``, view by view as an export writes them."""
    spec = spec or token_spec()
    rng = np.random.default_rng(seed)
    for index, n in enumerate(images):
        labels = np.tile(rng.integers(0, 2, n), n_views) if spec.class_names else None
        shard = Shard(
            codes_BT=rng.integers(0, spec.codebook_size, (n * n_views, spec.n_codes)),
            image_ids=[f"{index}/{i}.png" for i in range(n)] * n_views,
            views=np.repeat(np.arange(n_views, dtype=np.uint8), n),
            labels=labels,
        )
        write_shard(shard_path(folder, "train", index), shard, spec)
    write_manifest(folder, spec)
    return folder


def require_right(folder: Path, access: TokenAccess = PACKED) -> TokenDataset:
    """Open a dataset with ``access`` and require what the shards hold."""
    ours, truth = TokenDataset(folder, "train", access), TokenDataset(folder, "train", TokenAccess(form="memory"))
    assert np.array_equal(ours.codes_NT, truth.codes_NT) and np.array_equal(ours.views_N, truth.views_N)
    assert (ours.labels_N is None) == (truth.labels_N is None)
    assert truth.labels_N is None or np.array_equal(ours.labels_N, truth.labels_N)
    assert list(ours.image_ids) == truth.image_ids
    return ours


def copy_of(folder: Path) -> Path:
    """The folder of the one packed copy."""
    (found,) = (each for each in (folder / ".packed" / "train").iterdir() if each.is_dir())
    return found
