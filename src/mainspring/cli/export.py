"""``mainspring export``: the model in a checkpoint as one folder, or as one file."""

from __future__ import annotations

import argparse
import re

from mainspring.cli.answer import Answer

_DESCRIPTION = """\
Write the model in a checkpoint as a folder of safetensors that from_pretrained opens, or as one file. The checkpoint may be
DeepSpeed's (any stage of ZeRO), FSDP's in shards or whole, or a plain one; neither DeepSpeed nor several processes are
needed, and no more memory than a part of the model takes. A checkpoint of adapters gives the adapters, not the model
beneath them.
"""
_EPILOG = """\
DeepSpeed's own `zero_to_fp32.py . pytorch_model.bin` does not write that file any more: 0.19 takes a folder, and makes one of
that name. `mainspring export . pytorch_model.bin` writes the file; so does a name that ends in .safetensors.
"""
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?B?)", flags=re.IGNORECASE)
_FILES = (".bin", ".safetensors")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export`` to the commands of ``mainspring``."""
    parser = commands.add_parser(
        "export", help="write a checkpoint's model as one folder or file", description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the checkpoint")
    parser.add_argument("out", metavar="OUT", help="the new folder; a file where it ends in .bin or .safetensors")
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="type of floating-point numbers; by default as they are, and float32 for weights that ZeRO has divided",
    )
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=_size, help="a folder's largest file; default 5GB (10**9 bytes each)"
    )
    parser.add_argument(
        "--tag", metavar="NAME", help="DeepSpeed's folder in the checkpoint, where `latest` names another"
    )
    parser.add_argument("--force", action="store_true", help="replace an OUT that is an export itself")
    parser.set_defaults(answer=_export)


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size as 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2].upper().removesuffix("B") + "B"])


def _export(options: argparse.Namespace) -> Answer:
    if options.max_shard_size is not None and options.out.endswith(_FILES):
        raise ValueError(f"--max-shard-size divides a folder's weights, and {options.out} is one file: leave one out")
    # torch is imported here, not for the help.
    import torch

    from mainspring.checkpoint.export import export
    from mainspring.cli.checkpoints.words import size_of

    done = export(
        options.checkpoint,
        options.out,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        max_shard_size=options.max_shard_size,
        tag=options.tag,
        force=options.force,
    )
    line = f"wrote {options.out}: {done.tensors} tensors ({', '.join(done.dtypes)}), {size_of(done.size)}, from {done.form}"
    alone = "only the adapter is in it: load it into the model that it was trained for" if done.adapter else ""
    return Answer("\n".join(filter(None, (line, alone))))
