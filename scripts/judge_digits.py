"""Quality test of a ``digits`` run.

python scripts/judge_digits.py runs/digits

Measures everything again from the run folder. Exits with 1 if a figure falls short.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.dataset import TokenDataset
from foundation.training.log import read_metrics
from pipeline.generation.generator import ImageGenerator
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split
from stage1_tokenizer.evaluate import score_tokenizer
from stage2_prior.evaluate import score_prior

SAMPLES_PER_CLASS = 50


def judge(run: Path) -> dict[str, Any]:
    folder = RunFolder(run)
    generator = ImageGenerator.from_pretrained(run)
    train, validation = (open_run_split(folder, folder.load_recipe(), split)[0] for split in ("train", "validation"))
    codes = {split: TokenDataset(folder.codes, split) for split in ("train", "validation")}
    reconstruction = score_tokenizer(generator.tokenizer, validation).metrics()
    likelihood = score_prior(generator.prior, codes["validation"])
    history = [row["nats_per_code"] for row in read_metrics(folder.metrics, "prior", "held_out")]
    classes = list(range(10))
    samples = generator(classes, SAMPLES_PER_CLASS, seed=1_000_000, output_type="np")
    known = {row.tobytes() for row in codes["train"].codes_NT.astype(np.int64)}
    drawn = samples.codes.flatten(1).numpy()
    repeated = float(np.mean([row.tobytes() in known for row in drawn]))
    real, sampled = svc_accuracies(train, validation, samples.images, np.array(samples.labels))
    return {
        "validation PSNR, dB": (reconstruction["psnr"], ">=", 27.0),
        "share of codes in use, validation": (reconstruction["code_usage"], ">=", 0.8),
        "validation NLL below unigram entropy": (likelihood.metrics()["below_unigram"], ">=", 0.15),
        "validation NLL at the end over its best": (likelihood.nats_per_code / min(history) - 1, "<=", 0.03),
        "SVC accuracy on 500 samples": (sampled, ">=", 0.9),
        "SVC accuracy on real validation digits": (real, None, None),
        "share of samples that repeat a training grid": (repeated, "<", 0.02),
    }


def svc_accuracies(train: Any, validation: Any, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Shares of held-out images and of samples that an SVC of the training images reads as their class."""
    from sklearn.svm import SVC

    def features(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(len(pixels), -1)

    judge = SVC(gamma="scale", C=10.0)
    judge.fit(features(train.pixels(np.arange(len(train))) / 255), train.labels)
    real = judge.score(features(validation.pixels(np.arange(len(validation))) / 255), validation.labels)
    return real, judge.score(features(images), labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the digits recipe")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = judge(arguments.run)
    failed = 0
    for name, (value, relation, bound) in figures.items():
        holds = relation is None or {">=": value >= bound, "<=": value <= bound, "<": value < bound}[relation]
        failed += not holds
        wanted = "" if relation is None else f"  ({relation} {bound})"
        print(f"{'ok' if holds else 'SHORT':6} {name}: {value:.4f}{wanted}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({name: value for name, (value, _, _) in figures.items()}, indent=1), encoding="utf-8"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
