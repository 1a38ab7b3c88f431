"""Generate on this process of several, with texts of every length, and save what `compute_metrics` was given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from mainspring import Seq2SeqTrainer, Seq2SeqTrainingArguments
from tests.helpers.data import Items
from tests.helpers.seq2seq import collate_joined, collate_pairs, pairs, tiny_bart, tiny_decoder

ROWS = 10  # over two processes in batches of three: the last round is not full

CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bart": (tiny_bart, collate_pairs, {"generation_max_length": 9, "generation_num_beams": 2}),
    "decoder": (tiny_decoder, collate_joined, {"generation_config": {"max_new_tokens": 6}}),
    "as the reference": (tiny_bart, collate_pairs, {"generation_max_length": 9, "compat": "5"}),
}


def evaluate(folder: Path, new_model: Any, collate: Any, options: dict[str, Any]) -> dict[str, Any]:
    def given(prediction: Any) -> dict[str, Any]:
        return {"texts": prediction.predictions.tolist(), "labels": prediction.label_ids.tolist()}

    torch.manual_seed(0)
    args = Seq2SeqTrainingArguments(
        str(folder),
        predict_with_generate=True,
        per_device_eval_batch_size=3,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **options,
    )
    trainer = Seq2SeqTrainer(
        new_model(), args, data_collator=collate, eval_dataset=Items(pairs(ROWS)), compute_metrics=given
    )
    found: dict[str, Any] = trainer.evaluate()
    return {name: found[f"eval_{name}"] for name in ("loss", "texts", "labels")}


def main(out: Path) -> None:
    """Save what each case gave, for this rank."""
    found = {name: evaluate(out / "run", *case) for name, case in CASES.items()}
    (out / f"seq2seq-rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
