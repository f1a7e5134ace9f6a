"""Hub data sets, read from local folders of the same form, as a machine without network does."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lmforge.corpus.sources.kinds import expected_bytes, fingerprint, iter_documents, parts, read_part
from lmforge.errors import InputError
from lmforge.recipe import Source, load_recipe

pytest.importorskip("datasets", reason="the extra `hub` is not installed")


def data_set(root: Path) -> Path:
    root.mkdir()
    for shard in range(3):
        rows = [{"text": f"text {shard} {row}", "id": f"{shard}-{row}", "label": row} for row in range(4)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / f"train-{shard:05}-of-00003.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["held out"]}), root / "test-00000-of-00001.parquet")
    return root


def test_splits_and_shards(tmp_path: Path) -> None:
    source = Source(kind="hub", path=data_set(tmp_path / "set"))
    pieces = parts(source)
    assert [part.name for part in pieces] == ["train[0]", "train[1]", "train[2]"]
    documents = list(iter_documents(source))
    assert [document["id"] for document in documents] == [f"{shard}-{row}" for shard in range(3) for row in range(4)]
    assert documents[5]["text"] == "text 1 1"
    assert documents[5]["meta"] == {"columns": {"label": 1}}
    assert list(read_part(source, pieces[1])) == documents[4:8]
    assert [
        document["text"] for document in iter_documents(Source(kind="hub", path=tmp_path / "set", split="test"))
    ] == ["held out"]
    assert expected_bytes(source) is None
    first = fingerprint(source)
    assert first == fingerprint(source) != fingerprint(Source(kind="hub", path=tmp_path / "set", split="test"))


def test_json_lines_with_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"content": f"c{number}"}) + "\n" for number in range(3)))
    documents = list(iter_documents(Source(kind="hub", path=tmp_path, text_field="content")))
    assert [(document["id"], document["text"]) for document in documents] == [
        (f"train[0]:{n + 1}", f"c{n}") for n in range(3)
    ]
    notices: Counter[str] = Counter()
    assert list(iter_documents(Source(kind="hub", path=tmp_path), notices)) == []
    assert notices == {"skipped: broken row": 3}
    with pytest.raises(InputError, match=r"row 1: no field 'text'; did you mean 'content'\?"):
        list(iter_documents(Source(kind="hub", path=tmp_path, damaged="refuse")))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_damaged_shards_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(
            pyarrow.table({"text": [str(number) * 50 for number in range(5000)]}), path, row_group_size=500
        )
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] + bytes(500) + whole[len(whole) // 2 + 500 :])
    else:
        path.write_text('{"text": "good"}\n{broken\n')
    notices: Counter[str] = Counter()
    list(iter_documents(Source(kind="hub", path=tmp_path), notices))
    assert notices == {"skipped: rest of a damaged shard": 1}


def test_a_data_set_whose_first_file_is_truncated_is_refused_in_one_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"text {number * 7919}"}) + "\n" for number in range(5000)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-2000])
    with pytest.raises(InputError, match=r"cannot be opened as a data set: Compressed file ended before") as caught:
        list(iter_documents(Source(kind="hub", path=tmp_path)))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    for source in (
        Source(kind="hub", path=Path("nobody/nothing-of-the-kind")),
        Source(kind="hub", path=tmp_path, split="no-such-split"),
    ):
        with pytest.raises(
            InputError, match=r"cannot be opened as a data set: .*; correct the source's path"
        ) as caught:
            parts(source)
        assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_is_kept_and_a_folder_resolved(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    sources = "".join(f'[[corpus.sources]]\nkind = "hub"\npath = "{path}"\n' for path in ("owner/name", "local"))
    (tmp_path / "recipe.toml").write_text(sources)
    paths = [source.path for source in load_recipe(tmp_path / "recipe.toml").corpus.sources]
    assert paths == [Path("owner/name"), tmp_path / "local"]
