"""`compute_metrics` for generated texts: ROUGE and BLEU, by the packages that papers cite, without any download.

trainer = Seq2SeqTrainer(..., compute_metrics=text_metrics.rouge(tokenizer))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from mainspring.errors import MissingPackageError

Compute = Callable[[Any], dict[str, float]]

_EXTRA = "pip install 'mainspring[text-metrics]'"

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def decoded(tokenizer: Any, ids: Any) -> list[str]:
    """The texts of token ids, without special tokens and what only fills them up.

    Args:
        tokenizer: Has `batch_decode`.
        ids: Integers of shape (rows, length), or a list of such batches. Negative ones, as in labels, are no tokens and
            never reach the tokenizer.

    Raises:
        ValueError: They are no token ids, such as the logits of an evaluation that generated nothing.
    """
    batches = [np.asarray(batch) for batch in (ids if isinstance(ids, list) else [ids])]
    for batch in batches:
        if batch.ndim != 2 or not np.issubdtype(batch.dtype, np.integer):
            raise ValueError(
                f"an array of {batch.dtype} of shape {batch.shape} holds no texts, which are rows of token ids: set "
                "predict_with_generate=True with a Seq2SeqTrainer"
            )
    rows = [row[row >= 0].tolist() for batch in batches for row in batch]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text.strip() for text in texts]


def rouge(tokenizer: Any, kinds: Sequence[str] = ROUGE_KINDS, use_stemmer: bool = True) -> Compute:
    """ROUGE (Lin 2004, https://aclanthology.org/W04-1013) by the package `rouge_score`.

    Args:
        tokenizer: Turns ids into texts.
        kinds: What to measure. `rougeLsum` takes each line of a text for a sentence.
        use_stemmer: Count words of one stem as equal (Porter's stemmer, for English).

    Returns:
        A `compute_metrics` that gives each kind's F-measure, averaged over the samples, from 0 to 100.

    Raises:
        MissingPackageError: `rouge_score` is not installed.
    """
    scorer = _imported("rouge_score.rouge_scorer", "rouge_score").RougeScorer(list(kinds), use_stemmer=use_stemmer)

    def measure(predictions: list[str], references: list[str]) -> dict[str, float]:
        scores = [scorer.score(truth, guess) for guess, truth in zip(predictions, references, strict=True)]
        return {kind: 100 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}

    return of_texts(tokenizer, measure)


def bleu(tokenizer: Any, **options: Any) -> Compute:
    """BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040) by the package `sacrebleu`.

    Args:
        tokenizer: Turns ids into texts.
        options: Keywords of `sacrebleu.corpus_bleu`, such as `tokenize="zh"` or `lowercase=True`.

    Returns:
        A `compute_metrics` that gives `bleu`, over all samples together, from 0 to 100.

    Raises:
        MissingPackageError: `sacrebleu` is not installed.
    """
    sacrebleu = _imported("sacrebleu", "sacrebleu")

    def measure(predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"bleu": float(sacrebleu.corpus_bleu(predictions, [references], **options).score)}

    return of_texts(tokenizer, measure)


def of_texts(tokenizer: Any, measure: Callable[[list[str], list[str]], Mapping[str, float]]) -> Compute:
    """A `compute_metrics` that measures texts.

    Args:
        tokenizer: Turns ids into texts.
        measure: `(predictions, references) -> metrics`, both lists of texts.
    """

    def compute(prediction: Any) -> dict[str, float]:
        guesses, truths = prediction.predictions, prediction.label_ids
        guesses = guesses[0] if isinstance(guesses, tuple) else guesses
        return dict(measure(decoded(tokenizer, guesses), decoded(tokenizer, truths)))

    return compute


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingPackageError(f"this metric needs the package {package}: {_EXTRA}") from error
