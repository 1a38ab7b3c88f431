"""A model's weights into a folder and back: whole, sharded, or the adapters of a PEFT model.

A model that can save itself (a `PreTrainedModel`, a `PeftModel`) does; of any other the state dict becomes
`model.safetensors`. Reading copies into the parameters that are there, which keep their device and dtype: an optimizer
built before still holds them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mainspring.checkpoint.adapters import adapter_folders, describe_adapters, has_adapters, load_adapters
from mainspring.checkpoint.contents import Contents
from mainspring.checkpoint.deferral import their_writes_too, write
from mainspring.checkpoint.disk import as_os_errors
from mainspring.checkpoint.names import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    DEEPSPEED_LATEST_NAME,
    FSDP_WEIGHTS_NAME,
    MANIFEST_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    SHARDED_MODEL_FOLDER,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)
from mainspring.checkpoint.pickles import METADATA_SUFFIX
from mainspring.checkpoint.torch_files import load_torch
from mainspring.errors import CheckpointError
from mainspring.model import is_peft, is_pretrained, unwrap

StateDict = Mapping[str, Any]
_PIECE = 1 << 30  # bytes
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class LoadReport:
    """What did not match when weights were loaded; both empty for a perfect match.

    Attributes:
        missing: Names of the model's tensors that the files do not hold (not those tied to one that was loaded); they
            keep their values.
        unexpected: Names in the files that the model does not have; they were ignored.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def messages(self) -> list[str]:
        """Return one sentence per kind of mismatch, naming the tensors; none for a perfect match."""
        kinds = (("the checkpoint lacks", self.missing), ("the model has no", self.unexpected))
        return [f"{what} {len(names)} tensor(s): {_some(names)}" for what, names in kinds if names]


@as_os_errors()
def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    state_dict: StateDict | None = None,
    processing_class: Any = None,
    is_main_process: bool = True,
) -> None:
    """Write a model's weights, its configuration, and its tokenizer or processor.

    Inside `deferred` the weights are copied, and written later. Those of a model with a `save_pretrained` of its own are
    written at once: it may read its files again.

    Args:
        model: The model, wrapped (DDP, compiled, ...) or not.
        folder: Where to; created.
        state_dict: The weights to write, where they are not simply the model's own (an engine gathered them). An empty one
            leaves them out: what describes the model is written alone.
        processing_class: A tokenizer, processor, ...: what has a `save_pretrained(folder)`; None: nothing.
        is_main_process: Whether this process writes; others only take part in what a model gathers for itself.

    Raises:
        CheckpointError: The state dict holds something that is not a tensor.
        OSError: The disk is full, or refuses a write for another reason.
    """
    bare = unwrap(model)
    if is_main_process:
        Path(folder).mkdir(parents=True, exist_ok=True)
    if state_dict is not None and not state_dict:
        if is_main_process:
            _describe(bare, folder)
    elif _saves_itself(bare):
        given = None if state_dict is None else dict(without_wrapper_prefix(state_dict))
        save: Any = bare.save_pretrained
        with their_writes_too(save), _on_this_rank(bare), _not_gathered_again(bare, given):
            save(os.fspath(folder), state_dict=given, is_main_process=is_main_process)
    elif is_main_process:
        state = bare.state_dict() if state_dict is None else without_wrapper_prefix(state_dict)
        tensors, aliases = _independent(state)
        file = os.path.join(os.path.abspath(folder), SAFE_WEIGHTS_NAME)
        write(lambda state: save_file(state, file, metadata={"format": "pt", **aliases}), tensors)
    if is_main_process and processing_class is not None:
        processing_class.save_pretrained(os.fspath(folder))


def load_weights(model: nn.Module, folder: str | os.PathLike[str]) -> LoadReport:
    """Load the weights in `folder` into the parameters of `model`.

    Looks, in this order, for: the adapters, where the model has some; the pieces of DeepSpeed, which are in full precision;
    `model.safetensors`; `pytorch_model.bin`; their indexed forms; what FSDP leaves, which is `pytorch_model_fsdp.bin` or a
    folder of shards. Pickled files are read with `weights_only=True`, those of DeepSpeed without executing anything.

    Args:
        model: The model, wrapped or not. Its parameters are written in place: objects, devices, dtypes and what is
            trainable stay.
        folder: A checkpoint directory, written here or by the reference. Where it has a manifest, only what that lists is
            read.

    Returns:
        The names that did not match.

    Raises:
        CheckpointError: There are no weights, or none that the folder's manifest lists; a file is damaged or refused, a
            shape differs, or not one name matches.
    """
    bare, contents = unwrap(model), Contents.of(folder)
    adapters = adapter_folders(bare, contents) if has_adapters(bare) else {}
    if adapters:
        return LoadReport(*load_adapters(bare, adapters))
    if not is_zero_checkpoint(contents) and not weight_files(contents):
        raise CheckpointError(_nothing_found(contents, has_adapters(bare)))
    report = _load_files(bare, weight_pieces(contents))
    if is_pretrained(bare) and report.missing and report.unexpected:
        return _load_converted(bare, contents, report)
    return report


# ---- writing ----


@contextlib.contextmanager
def _not_gathered_again(model: nn.Module, given: dict[str, Any] | None) -> Iterator[None]:
    """A model that transformers divided when it loaded it gathers what it saves, and waits for processes that are not here.

    What it is given here is whole already.
    """
    config = getattr(model, "config", None)
    held: dict[str, Any] = {} if given is None or config is None else vars(config)
    divided = held.get("distributed_config")
    if divided is not None:
        held["distributed_config"] = None
    try:
        yield
    finally:
        if divided is not None:
            held["distributed_config"] = divided


def _describe(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the configurations that `from_pretrained` reads beside the weights."""
    if is_peft(model):
        describe_adapters(model, folder)
        return
    generates = getattr(model, "can_generate", None)
    names = ("config", "generation_config") if callable(generates) and generates() else ("config",)
    for name in names:
        config: Any = getattr(model, name, None)
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(os.fspath(folder))


@contextlib.contextmanager
def _on_this_rank(model: nn.Module) -> Iterator[None]:
    """Let a model save itself where it is asked to: transformers' do so on the first of all processes only, and say nothing.

    With a disk for each machine, the first process of each one writes.
    """
    asked = "should_save_on_this_rank"
    if not hasattr(model, asked):
        yield
        return
    vars(model)[asked] = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del vars(model)[asked]


def _saves_itself(model: nn.Module) -> bool:
    if not is_peft(model):
        return is_pretrained(model)
    from peft import PeftModel

    return isinstance(model, PeftModel)  # a PeftMixedModel cannot, and is stored like any other module


def _independent(state: StateDict) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state dict into tensors that share no memory, and names that are another's second name.

    safetensors stores each byte once. The very same tensor under two names (tied weights) is stored under the first, and
    the other goes into the metadata as `{second name: first name}`, as safetensors' own `save_model` does; tensors that
    only overlap (slices of one buffer) are copied apart.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_names: dict[tuple[Any, ...], str] = {}
    storages: set[tuple[str, int]] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} in the state dict is a {type(value).__name__}, not a tensor: {SAFE_WEIGHTS_NAME} holds tensors only; "
                f"keep it in a tensor, or override _save"
            )
        view = (str(value.device), value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and view in first_names:
            aliases[name] = first_names[view]
            continue
        first_names[view] = name
        storage = (str(value.device), value.untyped_storage().data_ptr())
        tensor = value.detach().contiguous()
        tensors[name] = tensor.clone() if value.numel() and storage in storages else tensor
        storages.add(storage)
    return tensors, aliases


def without_wrapper_prefix(state: StateDict) -> StateDict:
    """Drop what DDP or `torch.compile` put before every name."""
    for prefix in _WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_wrapper_prefix({name[len(prefix) :]: value for name, value in state.items()})
    return state


# ---- reading ----


def weight_files(contents: Contents) -> list[Path]:
    """Return the files of a whole model's weights, or the folder of its shards, as `load_weights` chooses; none: empty.

    Raises:
        CheckpointError: An index is damaged, or names files that are not there.
    """
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if file := contents.file(name):
            return [file]
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if index := contents.file(name):
            return _shards(index, contents)
    if file := contents.file(FSDP_WEIGHTS_NAME):
        return [file]
    sharded = contents.below(SHARDED_MODEL_FOLDER)
    return [sharded.root] if sharded.file(METADATA_SUFFIX) is not None else []


def _shards(index: Path, contents: Contents) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of weights: {error!r}") from error
    strangers = [name for name in names if Path(name).name != name]
    if strangers:  # an index that points out of its folder would make us read any file
        raise CheckpointError(f"{index} names {strangers[0]!r}, which is not a file beside it")
    absent = [name for name in names if contents.file(name) is None]
    if absent:
        raise CheckpointError(f"{index} names {_some(absent)}, which {'is' if len(absent) == 1 else 'are'} missing")
    return [index.parent / name for name in names]


def is_zero_checkpoint(contents: Contents) -> bool:
    """Whether DeepSpeed wrote a checkpoint, or a part of it."""
    return contents.file(DEEPSPEED_LATEST_NAME) is not None


def weight_pieces(contents: Contents) -> Iterator[tuple[Path, StateDict]]:
    """Yield a model's weights by their names on the disk, in pieces of some size, and where each is from.

    Raises:
        CheckpointError: A file is damaged or refused.
    """
    if is_zero_checkpoint(contents):
        for piece in _limited(_of_zero(contents)):
            yield contents.root, piece
        return
    for file in weight_files(contents):
        for piece in _pieces(file):
            yield file, piece


def _of_zero(contents: Contents) -> Iterator[tuple[str, Any]]:
    from mainspring.checkpoint.zero import zero_weights

    found = zero_weights(contents.root)
    names: dict[str, list[str]] = {name: [name] for name in found.tensors}
    for name, owner in found.aliases.items():
        names[owner].append(name)
    for owner, value in found.tensors.items():
        tensor = value.read()
        yield from ((name, tensor) for name in names[owner])


def _pieces(file: Path) -> Iterator[StateDict]:
    """The content of a file, or, in pieces of some size, that of a folder of shards."""
    if not file.is_dir():
        yield _read(file)
        return
    from mainspring.checkpoint.sharded.streaming import stream_shards  # needs torch's distributed checkpoints

    yield from _limited(stream_shards(file, "model"))


def _limited(values: Iterable[tuple[str, Any]]) -> Iterator[StateDict]:
    piece: dict[str, Any] = {}
    for name, value in values:
        piece[name] = value
        if sum(tensor.nbytes for tensor in piece.values() if isinstance(tensor, Tensor)) > _PIECE:
            yield piece
            piece = {}
    yield piece


def _read(file: Path) -> StateDict:
    if file.suffix != ".safetensors":
        return dict(load_torch(file))
    try:
        return load_file(file, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} could not be read: {error}") from error


def _load_files(model: nn.Module, pieces: Iterable[tuple[Path, StateDict]]) -> LoadReport:
    found: set[str] = set()
    unexpected: list[str] = []
    file = Path()
    for file, state in pieces:  # one in memory at a time
        if not all(name in model.state_dict() for name in state):
            state = without_wrapper_prefix(state)
        unexpected += _copy_into(model, state, file)
        found.update(state)
    missing = _missing(model, found)
    if found and len(unexpected) == len(found) and missing:
        raise CheckpointError(
            f"{file.parent} holds the weights of another model: none of its tensors ({_some(unexpected)}) "
            f"is one of {type(model).__name__}'s ({_some(missing)})"
        )
    return LoadReport(tuple(missing), tuple(unexpected))


def _copy_into(model: nn.Module, state: StateDict, source: Path) -> list[str]:
    """Copy `state` into the model's own tensors, and return the names it does not have."""
    try:
        return list(model.load_state_dict(state, strict=False).unexpected_keys)
    except RuntimeError as error:
        own = model.state_dict(keep_vars=True)  # of pieces, their parameters know the whole shape
        unequal = [name for name in state if name in own and _shape(state[name]) != _shape(own[name])]
        if not unequal:
            raise CheckpointError(f"{source} does not fit {type(model).__name__}: {error}") from error
        name = unequal[0]
        raise CheckpointError(
            f"{name} has shape {_shape(state[name])} in {source} but {_shape(own[name])} in {type(model).__name__}"
            + (f" (and {len(unequal) - 1} more differ)" if len(unequal) > 1 else "")
        ) from error


def _missing(model: nn.Module, found: set[str]) -> list[str]:
    """Return the model's names that were not loaded, neither themselves nor through a tensor they are tied to."""
    own = model.state_dict(keep_vars=True)  # with the objects themselves, so that tied names show
    loaded = {id(own[name]) for name in found if name in own}
    left_out = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    return [name for name, value in own.items() if id(value) not in loaded and name not in left_out]


def _load_converted(model: nn.Module, contents: Contents, report: LoadReport) -> LoadReport:
    """Load weights whose names on disk differ from the model's.

    transformers stores some architectures in the layout they were published in (a tensor per expert) and joins the tensors
    when it loads. Only its own `from_pretrained` knows how, so a second model is read and copied from. A name for name load
    alone would leave those weights at their random values.
    """
    with torch.random.fork_rng(devices=[]):  # from_pretrained draws initial values for what it does not find
        other, info = type(model).from_pretrained(  # type: ignore[attr-defined]
            None,
            config=model.config,
            state_dict={name: value for _, piece in weight_pieces(contents) for name, value in piece.items()},
            dtype=model.dtype,
            output_loading_info=True,
        )
    lacking = set(info["missing_keys"])
    state = {name: value for name, value in other.state_dict().items() if name not in lacking}
    _copy_into(model, state, contents.root)
    missing = _missing(model, set(state))
    if len(missing) >= len(report.missing):  # nothing was joined: the names really differ
        return report
    return LoadReport(tuple(missing), tuple(sorted(info["unexpected_keys"])))


# ---- words ----


def _nothing_found(contents: Contents, wants_adapter: bool) -> str:
    names = [SAFE_WEIGHTS_NAME, WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME]
    if wants_adapter:
        names = [ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME, *names]
    root = contents.root
    where = f"no weights in {root}" if root.is_dir() else f"{root} is not a directory"
    if unlisted := [name for name in names if (root / name).is_file()]:
        where = (
            f"no weights in {root} that its {MANIFEST_NAME} lists ({_some(unlisted)} was put there by somebody else)"
        )
    return f"{where}: looked for {', '.join(names)}"


def _shape(value: Any) -> list[int] | None:
    return list(getattr(value, "ds_shape", value.shape)) if isinstance(value, Tensor) else None


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f", ... ({len(listed)} in all)" if len(listed) > 5 else "")
