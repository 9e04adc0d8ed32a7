"""CSV and JSON tables: text stays the text that it is."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.image_tables import opened, png, reds

from foundation.errors import DataError
from foundation.images.tables.text import read_text_table

HOSTILE = ["010", "1e4", "null", "true", "2024-01-01", "12:30", "x #2", 'a "b"', "a,b;c", " a ", "日本", "NaN", "1.0"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_every_text_of_a_csv_file_stays_as_it_is(tmp_path: Path, delimiter: str) -> None:
    import csv

    for encoding in ("utf-8", "utf-8-sig"):
        with open(tmp_path / "x.csv", "w", newline="", encoding=encoding) as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [["image", "label"], *(["0.png", text] for text in HOSTILE)]
            )
        assert read_text_table(tmp_path / "x.csv", "f")["label"].to_pylist() == HOSTILE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_every_text_of_a_json_file_stays_as_it_is(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    import json

    folder = tmp_path_factory.mktemp("json")
    (folder / "x.jsonl").write_text("".join(json.dumps({"label": text}) + "\n" for text in texts))
    (folder / "x.json").write_text(json.dumps({"version": 1, "data": [{"label": text} for text in texts]}))
    for name in ("x.jsonl", "x.json"):
        assert read_text_table(folder / name, "f")["label"].to_pylist() == texts


def test_tables_of_paths_are_datasets(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for i in range(2):
        (tmp_path / f"img/{i}.png").write_bytes(png(i))
    (tmp_path / "x.csv").write_text("file_name;label\nimg/0.png;010\nimg/1.png;10\n")
    (tmp_path / "x.json").write_text('[{"file_name": "img/0.png"}, {"file_name": "img/1.png", "label": "a"}]')
    source = opened(tmp_path / "x.csv", image_column="file_name", label_column="label")
    assert reds(source) == [0, 1] and source.class_names == ("010", "10")
    with pytest.raises(DataError, match=r"has empty cells(.|\n)*1, the first in row 0"):
        opened(tmp_path / "x.json", image_column="file_name", label_column="label")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.csv", "", "does not name the columns"),
        ("x.csv", "a,a\n1,2\n", "does not name the columns(.|\n)*x.csv: a"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", "rows differ in length(.|\n)*3 cells in row 3"),
        ("x.csv", b"a\n\xff\n", "cannot be read"),
        ("x.jsonl", '{"a": 1}\n{"a"\n', "is no JSON(.|\n)*line 2"),
        ("x.json", "[1, 2]", "holds no table of images"),
        ("x.json", '{"images": [{"id": 1}], "annotations": [{"id": 1}]}', "with the lists images, annotations"),
        ("x.json", '[{"a": 1}, {"a": "x"}]', "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason):
        opened(tmp_path / name, image_column="a")
