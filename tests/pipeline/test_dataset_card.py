import re

import numpy as np
import pytest

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.preprocess import Preprocess
from pipeline.dataset_card import dataset_card

COARSE, FINE = CodeLevel(height=2, width=4, codebook_size=512), CodeLevel(height=4, width=8, codebook_size=256)
DEEP = CodeLevel(height=2, width=4, codebook_size=1024, depth=3)


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ((FINE,), ["a grid of **4 x 8** codes, each one of **256**, row by row"]),
        ((DEEP,), ["**2 x 4 x 3** codes, each one of **1,024**", "one place of 3 codes"]),
        ((COARSE, FINE), ["2 grids", "1. **2 x 4** codes, each one of **512**", "2. **4 x 8** codes", "finest grid"]),
    ],
)
def test_the_card_describes_levels_and_depth(levels: tuple[CodeLevel, ...], said: list[str]) -> None:
    spec = CodeSpec(levels=levels, stride=4, preprocess=Preprocess(height=16, width=32), fingerprint="f" * 64)
    card = dataset_card(spec, {"splits": {"train": {"rows": 12, "failures": []}}})
    assert all(each in card for each in said), card
    (shown,) = re.findall(r"^codes = (.*)$", card, re.MULTILINE)
    codes = eval(shown, {"np": np, "rows": [{"codes": list(range(spec.n_codes))}]})
    assert codes.shape == spec.shape, "the snippet gives what tokenizer.decode takes"
