"""Packs: found in their places, checked before they are read, and a missing one says how it is made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lmforge.errors import InputError
from lmforge.evaluate.packs import find_pack, known_packs, open_pack, pack_roots, packs_here
from tests.evaluate.packs_for_tests import shared_packs


def test_a_shared_folder_is_a_pack_with_its_licence_and_rows(tmp_path: Path) -> None:
    root = shared_packs(tmp_path, {"glue/sst2": {"dev.jsonl": [{"sentence": "good", "label": 1}]}})
    pack = find_pack("glue/sst2", [root])
    assert pack.licence == "CC0"
    assert pack.source == "github.com/some/where @ 1 : file"
    assert open_pack("glue/sst2", "validation", [root]) == [{"sentence": "good", "label": 1}]
    with pytest.raises(InputError, match="no split 'train'"):
        open_pack("glue/sst2", "train", [root])


def test_names_of_files_become_splits(tmp_path: Path) -> None:
    files = ("train_10k.jsonl", "dev_v1.1_articles.jsonl", "dev_v2.0_articles.jsonl", "wsc283_collection.jsonl")
    root = shared_packs(tmp_path, {"all": {name: [{"name": name}] for name in files}})
    pack = find_pack("all", [root])
    assert set(pack.files) == {"train", "dev_v1", "dev_v2", "wsc283_collection"}
    assert pack.split("collection").path.name == "wsc283_collection.jsonl"
    only = shared_packs(tmp_path / "b", {"humaneval": {"HumanEval.jsonl": [{"task_id": "1"}]}})
    assert open_pack("humaneval", "test", [only]) == [{"task_id": "1"}]


def test_an_altered_file_is_refused_and_a_version_is_of_the_content(tmp_path: Path) -> None:
    root = shared_packs(tmp_path, {"sciq": {"test.jsonl": [{"a": 1}]}})
    version = find_pack("sciq", [root]).version
    (root / "sciq" / "test.jsonl").write_text('{"a": 2}\n')
    with pytest.raises(InputError, match=r"altered since .* lmforge packs fetch sciq"):
        open_pack("sciq", "test", [root])
    other = shared_packs(tmp_path / "b", {"sciq": {"test.jsonl": [{"a": 2}]}})
    assert find_pack("sciq", [other]).version != version


def test_a_missing_pack_is_one_line_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^pack piqa: not on this machine; make it with: lmforge packs fetch piqa$"):
        find_pack("piqa", [tmp_path])
    with pytest.raises(InputError, match="no such pack; known are"):
        find_pack("nonsense", [tmp_path])


def test_roots_are_the_users_packs_then_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, own = tmp_path / "data", tmp_path / "own"
    shared_packs(tmp_path, {"piqa": {"validation.jsonl": [{"goal": "x"}]}})
    own.mkdir()
    monkeypatch.setenv("LMFORGE_DATA", str(data))
    monkeypatch.setenv("LMFORGE_PACKS", str(own))
    assert pack_roots() == [own, data / "benchmarks"]
    here = packs_here()
    assert here["piqa"] is not None
    assert here["boolq"] is None


def test_every_known_pack_has_a_licence_and_a_source() -> None:
    assert len(known_packs()) > 30
    assert all(each.licence and each.hub and each.splits for each in known_packs().values())


def test_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    root = shared_packs(tmp_path, {"sciq": {"test.jsonl": [{"a": 1}]}})
    file = find_pack("sciq", [root]).split("test")
    assert file.sha256 == hashlib.sha256((json.dumps({"a": 1}) + "\n").encode()).hexdigest()
    assert file.rows == 1


def test_the_guide_lists_every_pack_with_licence_and_source() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "benchmarks.md").read_text()
    for name, known in known_packs().items():
        line = next(line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        assert known.licence in line
        assert f"huggingface.co/datasets/{known.hub}" in line
