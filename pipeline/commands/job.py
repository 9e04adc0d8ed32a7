"""A run of the command line: its stages in order, with messages and the time of each part."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType

from foundation.codes.dataset import TokenDataset
from foundation.training.log import read_metrics
from pipeline.planning.budget import Fitted
from pipeline.planning.fit_run import fit_run_prior
from pipeline.planning.fits import require_fits
from pipeline.planning.ledger import Ledger, time_rows
from pipeline.planning.times import ENCODE, READ, REPORT, SAMPLE, START
from pipeline.report.gallery import draw_run_gallery
from pipeline.report.report import write_report
from pipeline.runs.duration import Budget
from pipeline.runs.folder import RunFolder
from pipeline.runs.mirror import RunMirror
from pipeline.runs.stages import Run


@dataclass
class Job:
    """A run of the command line, with its messages and the time of its parts.

    In its context the run is mirrored, if it has a mirror.

    Attributes:
        run: started.
        ledger: times of its parts.
        given: dotted names of fields that the user has set.
        fitted: to its budget, in this process; None without one, or where the run had begun.
        mirror: claimed by this run; None without one.
    """

    run: Run
    ledger: Ledger
    given: Collection[str] = ()
    fitted: Fitted | None = None
    mirror: RunMirror | None = None

    def __post_init__(self) -> None:
        self._mirrored = contextlib.ExitStack()
        self.run.words = functools.partial(progress_words, self.ledger, self.run.recipe.budget)

    def __enter__(self) -> Job:
        if self.mirror is not None:
            self._mirrored.enter_context(self.mirror.beside(self.run.accelerator))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mirrored.__exit__(kind, error, trace)

    def all(self) -> None:
        """Everything, in order."""
        began = time.perf_counter()
        if self.run.recipe.codes is None or self.run.recipe.tokenizer.pretrained is not None:
            self.train_tokenizer()
        self.encode()
        self.train_prior()
        with self.ledger.part(SAMPLE):
            self.run.sample()
        with self.ledger.part(REPORT):
            self._draw_gallery()
        self.report()
        self._say(f"done in {time.perf_counter() - began:.0f} s")
        self._say_times()
        self.say_where()

    def _say_times(self) -> None:
        """Print what each part was expected to take, and what it took."""
        if self.ledger.expected:
            self._say(f"  {'time':20} {'expected':>10} {'taken':>10}")
            for part, expected, taken in time_rows(vars(self.ledger)):
                self._say(f"  {part:20} {expected:>10} {taken:>10}")

    def say_where(self) -> None:
        """Print where the results are."""
        folder = self.run.folder
        self._say(f"  look at   {folder.report}")
        self._say(f"  samples   {folder.samples / 'grid.png'}")
        latent = "" if folder.tokenizer.is_dir() else " --output-type latent"
        self._say(f"  more      tessera sample {folder.root}{latent}")

    def train_tokenizer(self) -> None:
        """Stage 1."""
        with self.ledger.part("tokenizer"):
            self.run.train_tokenizer()
        self.ledger.move("tokenizer", READ, self.run.reading_seconds)
        self._say(f"tokenizer: {self.run.folder.tokenizer}{_last(self.run.folder, 'tokenizer')}")

    def encode(self) -> None:
        """Export."""
        with self.ledger.part(ENCODE):
            self.run.encode()
        self._say(f"codes: {self.run.folder.codes}")

    def train_prior(self) -> None:
        """Stage 2; of a run with a budget, fitted to what is left of it."""
        if self.run.recipe.codes is not None:
            self._require_prior_fits()
        elif self.fitted is not None:
            self._fit_prior(self.fitted)
        with self.ledger.part("prior"):
            self.run.train_prior()
        self._say(f"prior: {self.run.folder.prior}{_last(self.run.folder, 'prior')}", *poor_prior(self.run.folder))

    def report(self) -> None:
        """The report."""
        if self.run.accelerator.is_main_process:
            with self.ledger.part(REPORT):
                write_report(self.run.folder)

    def _fit_prior(self, fitted: Fitted) -> None:
        began, before = time.perf_counter(), self.ledger.spent

        def spent() -> float:
            return before + time.perf_counter() - began

        with self.ledger.part(START):
            again = fit_run_prior(self.run, self.given, spent, fitted.speeds.tokenizer)
        if again is not None:
            self.run.claim_again()
            steps = self.run.recipe.prior.training.fit.steps
            self._say(f"prior: {steps:,} steps fit what is left of {self.run.recipe.budget}", *again.notes)

    def _require_prior_fits(self) -> None:
        """Of codes of one's own, whose shape is known when they have been read.

        Raises:
            ConfigError: the training exceeds the free memory.
        """
        run = self.run
        run.encode()
        if not run.folder.prior.exists():
            layout = TokenDataset(run.folder.codes, "train", run.recipe.machine.tokens).spec
            processes = run.accelerator.num_processes
            require_fits(run.recipe, run.accelerator.device, ["prior"], n_processes=processes, layout=layout)

    def _draw_gallery(self) -> None:
        if self.run.accelerator.is_main_process:
            draw_run_gallery(self.run.folder, self.run.recipe.seed, self.run.accelerator.device)

    def _say(self, text: str, *notes: str) -> None:
        self.run.accelerator.print("\n  note: ".join([text, *notes]), flush=True)


_BITS = ("bits_per_code", "unigram_bits_per_code")


def _last(folder: RunFolder, stage: str) -> str:
    rows = read_metrics(folder.metrics, stage, "held_out")
    if not rows:
        return ""
    row = {name: math.nan if value is None else value for name, value in rows[-1].items()}
    if stage == "tokenizer":
        use = f", {row['code_usage']:.1%} of the codes in use" if "code_usage" in row else ""
        return f" (validation PSNR {row['psnr']:.2f} dB{use})"
    return (
        f" (validation {row['bits_per_code']:.3f} bits per code, {row['bits_per_image']:.1f} bits per image;"
        f" {row['nats_per_code']:.3f} nats beside ln(V) = {row['uniform_nats_per_code']:.3f};"
        f" code frequencies alone need {row['unigram_bits_per_code']:.3f} bits)"
    )


def poor_prior(folder: RunFolder) -> list[str]:
    """What to do about a prior that predicts held-out codes no better than their frequencies do, or latents no better
    than a Gaussian of each channel; nothing if it does.
    """
    rows = read_metrics(folder.metrics, "prior", "held_out")
    bits, frequencies = (rows[-1].get(name) for name in _BITS) if rows else (None, None)
    if bits is None or frequencies is None or bits < frequencies:
        return []
    best = min(row[_BITS[0]] for row in rows if row.get(_BITS[0]) is not None)
    fix = "more images, a smaller prior or fewer steps" if bits > best else "more steps"
    return [f"it predicts no better than frequencies alone, so that its samples are random; it needs {fix}"]


def progress_words(ledger: Ledger, budget: str | None, stage: str) -> dict[str, str]:
    """For the progress bar of a stage: the share of the budget that is gone, and what comes next."""
    following = {"then": "encoding" if stage == "tokenizer" else "sampling"}
    if budget is None:
        return following
    return {"budget": f"{ledger.spent_now / Budget.parse(budget).total:.0%}", **following}
