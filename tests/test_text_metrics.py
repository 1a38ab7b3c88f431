"""Metrics of generated texts: ids become texts without what is none, and the scores are the packages' own."""

from __future__ import annotations

import builtins
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mainspring import EvalPrediction, text_metrics
from mainspring.errors import MissingPackageError
from tests.helpers.models import word_tokenizer

IGNORED = -100
END = 2


def prediction(guesses: list[list[int]], truths: list[list[int]]) -> EvalPrediction:
    def table(rows: list[list[int]], filler: int) -> Any:
        width = max(map(len, rows))
        return np.array([row + [filler] * (width - len(row)) for row in rows])

    return EvalPrediction(table(guesses, 0), table(truths, IGNORED))


class Strict:
    """A tokenizer whose padding is 0, and that knows no negative ids, as none does."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        assert all(token >= 0 for row in rows for token in row)
        return [" ".join(f"w{token}" for token in row if token) + " " for row in rows]


def test_ignored_labels_never_reach_the_tokenizer() -> None:
    ids = np.array([[5, IGNORED, 6], [IGNORED, IGNORED, 7]])
    assert text_metrics.decoded(Strict(), ids) == ["w5 w6", "w7"]
    assert text_metrics.decoded(Strict(), [ids, np.array([[8]])]) == ["w5 w6", "w7", "w8"]


def test_special_tokens_are_no_text() -> None:
    assert text_metrics.decoded(word_tokenizer(), np.array([[1, 5, 6, END, 0, 0]])) == ["w5 w6"]


def test_logits_are_no_texts() -> None:
    with pytest.raises(ValueError, match="float32 of shape .2, 3, 4.*predict_with_generate=True"):
        text_metrics.decoded(Strict(), np.zeros((2, 3, 4), dtype=np.float32))


def test_own_metrics_are_given_texts() -> None:
    compute = text_metrics.of_texts(Strict(), lambda guesses, truths: {"same": float(guesses == truths)})
    assert compute(prediction([[5, 6]], [[5, 6]])) == {"same": 1.0}
    several = EvalPrediction((np.array([[5]]), np.zeros((1, 2))), np.array([[5]]))
    assert compute(several) == {"same": 1.0}, "outputs beside the texts are left alone"


def test_rouge_is_the_mean_of_the_packages_f_measures() -> None:
    pytest.importorskip("rouge_score")
    compute = text_metrics.rouge(Strict())
    scores = compute(prediction([[5, 6, 7], [9, 8]], [[5, 6, 7], [8, 9]]))
    assert scores == pytest.approx({"rouge1": 100, "rouge2": 50, "rougeL": 75, "rougeLsum": 75})
    assert text_metrics.rouge(Strict(), kinds=["rouge1"])(prediction([[5]], [[6]])) == {"rouge1": 0.0}


def test_bleu_is_the_packages_corpus_score() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    given = prediction([[5, 6, 7, 8], [9, 10, 11, 12, 13]], [[5, 6, 7, 8], [9, 10, 11, 12, 14]])
    guesses, truths = ["w5 w6 w7 w8", "w9 w10 w11 w12 w13"], ["w5 w6 w7 w8", "w9 w10 w11 w12 w14"]
    assert text_metrics.bleu(Strict())(given)["bleu"] == sacrebleu.corpus_bleu(guesses, [truths]).score
    assert text_metrics.bleu(Strict())(prediction([[5, 6, 7, 8]], [[5, 6, 7, 8]])) == {"bleu": pytest.approx(100)}
    other = text_metrics.bleu(Strict(), smooth_method="none")(prediction([[5, 6]], [[5, 7]]))
    assert other == {"bleu": 0.0}, "options reach the package"


@pytest.mark.parametrize("build", [text_metrics.rouge, text_metrics.bleu])
def test_nothing_is_downloaded(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")

    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert build(Strict())(prediction([[5, 6, 7, 8]], [[5, 6, 7, 8]]))


@pytest.mark.parametrize(("build", "package"), [(text_metrics.rouge, "rouge_score"), (text_metrics.bleu, "sacrebleu")])
def test_a_missing_package_is_named_where_the_metric_is_made(
    build: Callable[..., Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return importing(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=f"needs the package {package}: pip install"):
        build(Strict())
