"""Files → parts: gathered, cut, never lost or doubled."""

import itertools
from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lmforge.corpus.sources.files import PART_BYTES, SPLIT_ABOVE, File, byte_ranges, cut, files_of, gathered
from lmforge.recipe import Source


def file(name: str, size: int) -> File:
    return File(name, Path(name), size, 0)


@given(st.lists(st.integers(0, 2 * PART_BYTES), max_size=30))
def test_gathered_keeps_every_file_in_order(sizes: list[int]) -> None:
    files = [file(str(number), size) for number, size in enumerate(sizes)]
    parts = gathered(files)
    assert [each for part in parts for each in part.files] == files
    assert all(part.bytes <= PART_BYTES or len(part.files) == 1 for part in parts)
    assert all(one.bytes + other.files[0].size > PART_BYTES for one, other in itertools.pairwise(parts))


def test_gathered_of_a_giant_source_has_a_bounded_number_of_parts() -> None:
    assert len(gathered([file(str(number), 1 << 40) for number in range(100)])) == 100
    assert len(gathered([file(str(number), 200 << 20) for number in range(100_000)])) < 2 << 16


def test_a_large_file_is_cut_where_it_stands() -> None:
    small, large, last = file("a", 10), file("b", 2 * SPLIT_ABOVE + 5), file("c", 10)
    parts = cut([small, large, last], [(large, byte_ranges(large))])
    assert [(part.files[0].name, part.start, part.stop) for part in parts] == [
        ("a", 0, None),
        ("b", 0, SPLIT_ABOVE),
        ("b", SPLIT_ABOVE, 2 * SPLIT_ABOVE),
        ("b", 2 * SPLIT_ABOVE, 2 * SPLIT_ABOVE + 5),
        ("c", 0, None),
    ]
    assert sum(part.bytes for part in parts) == small.size + large.size + last.size


def names_in(path: Path) -> list[str]:
    return [file.name for file in files_of(Source(kind="folder", path=path), (".txt",), Counter())]


def test_links_capitals_and_patterns_give_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("texts/a.txt", "texts/B.TXT", "texts/sub/c.txt", "texts/picture.png", "elsewhere/d.Txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "texts" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "texts")
    (tmp_path / "texts" / "alias.txt").symlink_to(tmp_path / "texts" / "a.txt")
    wanted = ["B.TXT", "a.txt", "again/d.Txt", "sub/c.txt"]
    assert names_in(tmp_path / "texts") == wanted
    assert len(names_in(tmp_path / "texts" / "**")) == 4
    assert len(names_in(tmp_path / "texts" / "*")) == 4
    assert names_in(tmp_path / "texts" / "*.png") == ["picture.png"]  # a pattern that names a suffix decides itself
