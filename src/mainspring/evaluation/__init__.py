"""`evaluate`, `predict` and the loop under them. It talks to the trainer's overridable methods and its engine only.

| room | question |
|---|---|
| `entry` | what do `evaluate` and `predict` do besides the loop? |
| `loop` | what happens to each batch? |
| `batches` | what has this process of a batch, and what have all? |
| `losses` | how is the loss averaged? |
| `metric`, `streaming` | which forms may `compute_metrics` have? |
| `kept`, `pieces` | what is kept, and where: in memory or in a file? |
| `output` | how do predictions get into `output_file`? |
"""

from mainspring.evaluation.entry import evaluate, predict
from mainspring.evaluation.loop import EvaluationLoop, evaluation_loop
from mainspring.evaluation.output import OutputFile
from mainspring.evaluation.streaming import StreamingAccuracy, StreamingMetric, is_streaming

__all__ = [
    "EvaluationLoop",
    "OutputFile",
    "StreamingAccuracy",
    "StreamingMetric",
    "evaluate",
    "evaluation_loop",
    "is_streaming",
    "predict",
]
