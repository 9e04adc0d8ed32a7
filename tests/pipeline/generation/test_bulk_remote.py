"""Many samples into a store: the same files as on a disk, whatever fails, however the work is shared."""

import io
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.object_store import ObjectStore, hurry
from support.tiny_export import content

from foundation.errors import ConfigError, DataError
from foundation.storage.remote.uploads import upload_bytes
from pipeline import ImageGenerator
from pipeline.generation import groups
from pipeline.generation.bulk import Batch, generate_to_folder
from pipeline.work_sharing import Part

SMALL = {"count": 22, "labels": (2, 0), "seed": 5, "batch_size": 4, "images_per_file": 8}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pauses; what is drawn is kept from one attempt to the next."""
    hurry(monkeypatch)
    draw, drawn = groups.draw_best, dict[str, Any]()

    def draw_once(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments[1:], options))
        return drawn[key] if key in drawn else drawn.setdefault(key, draw(*arguments, **options))

    monkeypatch.setattr(groups, "draw_best", draw_once)


@pytest.fixture(params=["png", "parquet"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(format=request.param, **SMALL)


def test_samples_in_a_store_equal_those_on_a_disk_through_faults_and_in_parts(
    object_store: ObjectStore, untrained: ImageGenerator, batch: Batch, tmp_path: Path
) -> None:
    assert generate_to_folder(untrained, tmp_path / "local", batch).n_missing == 0
    object_store.share = 0.15
    out = f"{object_store.address}/many"
    assert generate_to_folder(untrained, out, batch, Part(1, 2)).n_missing > 0
    assert "metadata.csv" not in object_store.hashes("many")
    assert generate_to_folder(untrained, out, batch, Part(0, 2)).n_missing == 0
    assert object_store.hashes("many") == content(tmp_path / "local")
    done = generate_to_folder(untrained, out, batch)
    assert (done.n_new, done.n_there, done.n_missing) == (0, 22, 0)
    last = [path for method, path in object_store.requests if method == "PUT"][-1]
    assert batch.format == "parquet" or last.endswith("metadata.csv")
    if batch.format == "parquet":
        table = pq.read_table(io.BytesIO(object_store.files()["many/data/part-00000008.parquet"]))
        assert table.num_rows == 8


def test_what_an_outage_stops_goes_on_where_it_was(
    object_store: ObjectStore, untrained: ImageGenerator, batch: Batch, tmp_path: Path
) -> None:
    assert generate_to_folder(untrained, tmp_path / "local", batch).n_missing == 0
    expected, stopped = content(tmp_path / "local"), 0
    for attempt in range(30):
        object_store.fail_from(len(object_store.requests) + 6 * (attempt + 1))
        try:
            generate_to_folder(untrained, f"{object_store.address}/many", batch)
            break
        except DataError:
            stopped += 1
        object_store.fail_from(None)
        assert object_store.hashes("many").items() <= expected.items()
    object_store.fail_from(None)
    assert object_store.hashes("many") == expected and stopped >= 2


def test_places_of_something_else_are_refused(
    object_store: ObjectStore, untrained: ImageGenerator, batch: Batch
) -> None:
    out = f"{object_store.address}/many"
    upload_bytes(b"mine", f"{out}/{'data/part-x.parquet' if batch.format == 'parquet' else 'images/00000001-a.png'}")
    with pytest.raises(ConfigError, match="holds files of something else"):
        generate_to_folder(untrained, out, batch)
    assert generate_to_folder(untrained, f"{object_store.address}/other", Batch(count=2, labels=(1,))).n_new == 2
    with pytest.raises(ConfigError, match="seed"):
        generate_to_folder(untrained, f"{object_store.address}/other", Batch(count=2, labels=(1,), seed=1))
    for address in ("s3://me:hidden@bucket/many", "https://host/many?sig=hidden"):
        with pytest.raises(ConfigError) as refused:
            generate_to_folder(untrained, address, batch)
        assert "hidden" not in str(refused.value)
