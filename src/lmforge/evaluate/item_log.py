"""What was computed for each item, written as items end: a killed evaluation goes on from it.

    FOLDER/KEY.jsonl, a line an item: {"item": hash of what was asked, "answer": …}

KEY is the hash of everything that the answers depend on (weights, tokenizer, prompts, code …), never a model's name: a
log of other weights has another name. A line that a kill cut off is left out and written again.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from lmforge.errors import InputError
from lmforge.record import hash_json


class ItemLog:
    """Answers by what was asked; with no folder they live in memory alone."""

    def __init__(self, folder: Path | None, key: str) -> None:
        """Opens FOLDER/KEY.jsonl, and reads what stands there.

        Raises:
            InputError: the folder cannot be written.
        """
        self.path = None if folder is None else folder / f"{key}.jsonl"
        self.answers: dict[str, Any] = {}
        self._file = None
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._read()
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{self.path}: the items' log cannot be written ({error.strerror}); free the place"
            ) from error
        self.found = len(self.answers)

    def _read(self) -> None:
        assert self.path is not None
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self.path.write_bytes(whole)
        for line in whole.splitlines():
            content = json.loads(line)
            self.answers[content["item"]] = content["answer"]

    def get(self, asked: Any) -> Any | None:
        """The answer to what was asked, None where it is not there."""
        return self.answers.get(hash_json(asked))

    def add(self, asked: Any, answer: Any) -> None:
        """Note an answer, at once on the disk."""
        item = hash_json(asked)
        self.answers[item] = answer
        if self._file is not None:
            self._file.write(json.dumps({"item": item, "answer": answer}) + "\n")
            self._file.flush()

    def __enter__(self) -> ItemLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
