"""A checkpoint of any form as one model: a folder that `from_pretrained` opens, or one file.

    export("out/checkpoint-500", "model")

Tensors go from file to file in pieces, so that a model needs no memory of its size.

| module | question it answers |
|---|---|
| `sources` | in which form does a checkpoint hold its weights, and where is each tensor? |
| `shards` | and in torch's distributed checkpoints? |
| `files` | how is one file written, piece by piece? |
| `folders` | how is a folder, with an index where there are several? |
| `companions` | which other files belong to a model? |
| `exporting` | how does all of it appear in one step, or not at all? |
"""

from mainspring.checkpoint.export.exporting import Exported, export

__all__ = ["Exported", "export"]
