"""Quality of a run and of the installation: ``reconstruct``, ``evaluate``, ``score``, ``doctor``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pipeline.commands.options import (
    ClassLabel,
    Device,
    EngineGroup,
    GeneratorName,
    Images,
    RunName,
    TokenizerName,
    group,
    out_option,
    output_file,
    output_folder,
    report_unusable,
)
from pipeline.engines.config import EngineConfig
from pipeline.evaluation.config import Judges, Part, SampleOptions, Split

if TYPE_CHECKING:
    from pipeline.generation.likelihood import ScoredImage


def reconstruct(
    run: TokenizerName,
    images: Images,
    /,
    *,
    keep_size: bool = False,
    out: Annotated[str | None, out_option("folder for the pictures; default reconstructions, or with a number")] = None,
    device: Device = "auto",
) -> None:
    """Write images beside their reconstructions by the tokenizer, with the PSNR of each.

    Args:
        keep_size: crop images to multiples of the stride instead of resizing them to the tokenizer's own size
    """
    from pipeline.evaluation.reconstruction import reconstruct_files
    from pipeline.image_files import file_name, files_below
    from pipeline.runs.models import open_tokenizer

    tokenizer = open_tokenizer(run, device)
    paths = files_below(images, tokenizer.preprocess)
    stems = [file_name(path.stem) for path in paths]
    settings = {"command": "reconstruct", "keep_size": keep_size, "images": [str(path.resolve()) for path in paths]}
    settings |= {"tokenizer": tokenizer.fingerprint}
    ends = (".png", "-decoded.png", "-decoded.npy")
    patterns = [f"[0-9]*-{stem}{end}" for stem in set(stems) for end in ends]
    outputs = output_folder(out, "reconstructions", settings, patterns=patterns)
    done, failed = reconstruct_files(tokenizer, paths, keep_size=keep_size)
    for i, each in enumerate(done):
        stem = f"{i:04d}-{file_name(Path(each.image_id).stem)}"
        path = outputs.write_image(f"{stem}.png", each.pair, overview=True)
        if not tokenizer.preprocess.is_plain:
            outputs.write_pixels(f"{stem}-decoded", each.pixels_YXC, tokenizer.preview)
        print(f"{each.psnr:6.2f} dB  {each.image_id}  ->  {path}")
    report_unusable(failed, done)
    print(f"mean PSNR {sum(each.psnr for each in done) / len(done):.2f} dB over {len(done)} images")


def evaluate(
    run: RunName,
    /,
    *,
    stage: Part = "all",
    split: Split = "validation",
    out: Annotated[str | None, out_option("also write all figures to this JSON file")] = None,
    device: Device = "auto",
    probe: bool = False,
    samples: Annotated[
        SampleOptions, group("Samples: scored with --stage samples, --samples, --images, --reference or --npz")
    ] = (SampleOptions()),
    judges: Annotated[Judges, group("Networks")] = Judges(),
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Evaluate a run: the tokenizer on its images, the prior on its codes (bits), samples beside real images.

    Args:
        stage: what to evaluate; all is tokenizer and prior, and samples if they are asked for
        split: the images that tokenizer and prior are evaluated on
        probe: also train a tiny prior on the codes, which says how learnable they are
    """
    from pipeline.engines.open import open_engine
    from pipeline.evaluation.run import evaluate_run

    with open_engine(engine) as found:
        how = {"judges": judges, "samples": samples, "probe": probe}
        evaluate_run(run, part=stage, split=split, device=device, json_file=out, engine=found, **how)  # type: ignore[arg-type]


def score(
    run: GeneratorName,
    images: Images,
    /,
    *,
    class_label: ClassLabel = None,
    out: Annotated[str | None, out_option("also write the list to this file, .csv or .json")] = None,
    device: Device = "auto",
    engine: EngineGroup = EngineConfig(),
) -> None:
    """List images from the least to the most likely under a run's prior."""
    from pipeline.engines.open import open_engine
    from pipeline.generation.likelihood import score_files
    from pipeline.image_files import files_below
    from pipeline.output_files import output_at
    from pipeline.runs.folder import RunFolder
    from pipeline.runs.images import run_listing, trained_on
    from pipeline.runs.models import open_generator

    path = None if out is None else output_file(out, (".csv", ".json"))
    about = {"command": "score", "run": str(Path(run).resolve()), "images": images, "class": class_label}
    outputs = None if path is None else output_at(path, about)
    generator = open_generator(run, device)
    paths = files_below(images, generator.spec.preprocess)
    folder = RunFolder(Path(run))
    listing = run_listing(folder) if folder.recipe.is_file() else None
    seen = None if listing is None else trained_on(folder, listing) or None
    with open_engine(engine) as found:
        scored, failed = score_files(generator, paths, class_label, trained_on=seen, engine=found)
    report_unusable(failed, scored)
    print(f"{'bits':>10}  {'per code':>8}  image, the least likely first")
    for each in scored:
        print(f"{each.bits:10.1f}  {each.bits_per_code:8.3f}  {each.image_id}")
    print(f"mean {sum(each.bits for each in scored) / len(scored):.1f} bits over {len(scored)} images")
    n_seen = sum(bool(each.trained_on) for each in scored)
    if n_seen:
        print(f"{n_seen} of these images were trained on: their bits measure memory, not prediction")
    if path is not None and outputs is not None:
        outputs.write(path.name, _list(scored, failed, path.suffix.lower()).encode())
        print(f"also in {path}")


def _list(scored: list[ScoredImage], failed: list[str], suffix: str) -> str:
    import csv
    import io
    import json

    rows = [asdict(each) for each in scored]
    if suffix == ".json":
        return json.dumps({"images": rows, "unusable": failed}, indent=1)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image_id", "bits", "bits_per_code", "trained_on"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def doctor() -> int:
    """Check the installation and say what to do about each problem."""
    findings = diagnose()
    for finding in findings:
        print(f"{'PROBLEM' if finding.cure else 'ok':8} {finding.subject}: {finding.state}")
        if finding.cure:
            print(f"         cure: {finding.cure}")
    return int(any(finding.cure for finding in findings))


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``cure`` is set where something is wrong."""

    subject: str
    state: str
    cure: str | None = None


def diagnose() -> list[Finding]:
    """Check versions, torch with torchvision, transformers, devices, threads and disk."""
    import shutil

    import torch

    from foundation.hardware import usable_cores
    from foundation.threads import waiting_text
    from pipeline.runs.recipe import versions

    findings = [
        Finding(name, version, f"pip install {name}" if version == "not installed" else None)
        for name, version in versions().items()
    ]
    threads = f"{torch.get_num_threads()} compute, {usable_cores()} cores may be used; they wait with {waiting_text()}"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    disk_cure = "free some space: a run needs a few GiB" if free < 2 else None
    disk = Finding("disk", f"{free:.1f} GiB free in {Path.cwd()}", disk_cure)
    return [*findings, _torchvision(), _transformers(), _device(), Finding("threads", threads), disk]


def _device() -> Finding:
    import torch

    from foundation.hardware import best_device

    device = best_device()
    if device == "cpu":
        return Finding("device", "cpu")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device == "cuda" else []
    return Finding("device", f"auto is {device}" + (f": {', '.join(names)}" if names else ""))


def _torchvision() -> Finding:
    import sys

    from foundation.hardware import CURE, torchvision_problem

    problem = torchvision_problem()
    if problem is not None:
        return Finding("torchvision", problem, CURE)
    if "torchvision" not in sys.modules:
        return Finding("torchvision", "not installed; the lpips package needs it, nothing else does")
    return Finding("torchvision", f"{sys.modules['torchvision'].__version__}, matches torch")


def _transformers() -> Finding:
    from foundation.hardware import CURE

    try:
        from stage1_tokenizer.hub import Tokenizer  # noqa: F401
    except Exception as error:  # whatever stops the import is the finding
        return Finding("transformers models", f"do not import: {error}", CURE)
    return Finding("transformers models", "import")
