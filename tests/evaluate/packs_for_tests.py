"""Small packs in the form of a shared folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def shared_packs(folder: Path, packs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Path:
    """Write `packs` (name → file → rows) under folder/data/benchmarks with their manifest; gives that folder."""
    data = folder / "data"
    lines = ["path\trows\traw_bytes\tdisk_bytes\tsha256"]
    for name, files in packs.items():
        directory = data / "benchmarks" / name
        directory.mkdir(parents=True)
        source = "# A pack\n\nSource:\n- github.com/some/where @ 1 : file\n\nLicence as stated there: CC0\n"
        (directory / "SOURCE.md").write_text(source)
        for file, rows in files.items():
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            (directory / file).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            lines.append(f"benchmarks/{name}/{file}\t{len(rows)}\t{len(content)}\t{len(content)}\t{digest}")
    (data / "MANIFEST.tsv").write_text("\n".join(lines) + "\n")
    return data / "benchmarks"
