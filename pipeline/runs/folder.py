"""The folder that a recipe produces: where each part lives, and what is done already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundation.config import differences
from foundation.errors import CheckpointError
from foundation.storage import durable
from pipeline.runs.recipe import Recipe, determining, load_recipe, recipe_text


@dataclass(frozen=True)
class RunFolder:
    """Paths below ``root``; the existence of a part says that it is complete."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def tokenizer(self) -> Path:
        """The frozen tokenizer, a model folder."""
        return self.root / "tokenizer"

    @property
    def codes(self) -> Path:
        """The token dataset."""
        return self.root / "codes"

    @property
    def prior(self) -> Path:
        """The prior, a model folder."""
        return self.root / "prior"

    @property
    def samples(self) -> Path:
        """Sample grid, single images and their codes."""
        return self.root / "samples"

    @property
    def uses(self) -> Path:
        """Pictures of what the generator can do with given images."""
        return self.root / "uses"

    @property
    def metrics(self) -> Path:
        """Metrics of both stages, JSON lines."""
        return self.root / "metrics.jsonl"

    @property
    def model_index(self) -> Path:
        """What ``ImageGenerator.from_pretrained`` reads first."""
        return self.root / "model_index.json"

    @property
    def failures(self) -> Path:
        """Images that could not be used, one JSON object per line."""
        return self.root / "failed_images.jsonl"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    def checkpoints(self, stage: str) -> Path:
        """Checkpoints of ``tokenizer`` or ``prior``."""
        return self.root / "checkpoints" / stage

    def claim(self, recipe: Recipe) -> None:
        """Make the folder this recipe's, or check that nothing that has begun in it was made by another.

        Raises:
            CheckpointError: what was made by another recipe; the message names what differs.
        """
        rows = []
        if self.recipe.exists():
            rows = differences(determining(self.load_recipe()), determining(recipe))
        wrong = [row for row in rows if row[0].split(".")[0] in self._settled()]
        if wrong:
            shown = "".join(f"\n    {name}: the folder has {one!r}, the recipe {other!r}" for name, one, other in wrong)
            raise CheckpointError(
                f"the run folder belongs to another recipe; they differ in:{shown}",
                field=str(self.root),
                fix="give another --run_dir, or remove the folder to start over",
            )
        if rows or not self.recipe.exists():
            durable.replace_file(self.recipe, recipe_text(recipe).encode())

    def has_samples(self) -> bool:
        """Whether the sample grid is complete."""
        return all((self.samples / name).is_file() for name in ("grid.png", "codes.npy", "samples.json"))

    def sweep(self) -> None:
        """Remove what crashed processes left behind; only under the run's lock."""
        splits = (self.codes / "data").glob("*")
        for folder in (self.root, self.checkpoints("tokenizer"), self.checkpoints("prior"), self.codes, *splits):
            durable.sweep(folder)

    def _settled(self) -> set[str]:
        """Parts of the recipe that can no longer change, since something was made with them."""
        begun = {
            "encode": self.codes.exists(),
            "prior": self.prior.exists() or self.checkpoints("prior").exists(),
            "samples": self.samples.exists(),
        }
        settled = {part for part, exists in begun.items() if exists}
        if settled or self.tokenizer.exists() or self.checkpoints("tokenizer").exists():
            settled |= {"seed", "data", "tokenizer"}
        return settled

    def load_recipe(self) -> Recipe:
        """The recipe of this run.

        Raises:
            CheckpointError: the folder is not a run.
        """
        if not self.recipe.is_file():
            found = "a folder without recipe.yaml" if self.root.is_dir() else "no such folder"
            raise CheckpointError("is not a run folder", field=str(self.root), found=found,
                                  fix="give the folder that tessera run printed, e.g. runs/digits")  # fmt: skip
        return load_recipe(str(self.recipe))
