"""Everything that is assumed about a model: how it is wrapped, what its forward takes, what it can do.

A model is any `torch.nn.Module`. What transformers and PEFT add is asked for only where the user has imported them: a
package that was never imported has no instances.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_LABEL_COLUMNS = ("label", "label_ids")
"""Columns that collators turn into `labels`."""


def _imported(name: str) -> ModuleType | None:
    return sys.modules.get(name)


def _is_a(obj: object, module: str, *names: str) -> bool:
    """Whether `obj` is an instance of one of these classes of a module, without importing it."""
    return isinstance(obj, _named(module, *names))


def _named(module: str, *names: str) -> tuple[type, ...]:
    """These classes of a module that was imported, those of them that it has."""
    found = _imported(module)
    return tuple(getattr(found, name) for name in names if hasattr(found, name))


# Wrappers ---------------------------------------------------------------------------------------------------------


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DistributedDataParallel`, `DataParallel`, FSDP and DeepSpeed, however they nest.

    A PEFT model is kept: it is the model being trained, not a wrapper of the hardware.
    """
    while True:
        inner = _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: nn.Module) -> nn.Module | None:
    if _is_a(model, "torch._dynamo.eval_frame", "OptimizedModule"):
        inner = model._orig_mod
    elif (
        isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        or _is_a(model, "torch.distributed.fsdp", "FullyShardedDataParallel")
        or _is_a(model, "deepspeed.runtime.engine", "DeepSpeedEngine")
    ):
        inner = model.module
    else:
        return None
    assert isinstance(inner, nn.Module)
    return inner


def devices_of_map(model: object) -> list[Any]:
    """The accelerators on which the model's layers were placed when it was loaded, each once; none without a map."""
    placed = getattr(model, "hf_device_map", None) or {}
    return list(dict.fromkeys(device for device in placed.values() if device not in ("cpu", "disk")))


def is_quantized_base(model: nn.Module) -> bool:
    """Whether the model is quantized, has no adapters beside its weights, and its quantizer trains none of them."""
    if not getattr(model, "is_quantized", False) or getattr(model, "_hf_peft_config_loaded", False) or is_peft(model):
        return False
    return not getattr(getattr(model, "hf_quantizer", None), "is_qat_trainable", False)


def is_peft(model: object) -> bool:
    """Whether this is a PEFT model (of any mixture of adapters)."""
    return _is_a(model, "peft", "PeftModel", "PeftMixedModel")


def base_of_peft(model: nn.Module) -> nn.Module:
    """The model under the adapters of a PEFT model; any other model itself."""
    if not is_peft(model):
        return model
    # A mixture of adapter types has no get_base_model; both keep the model inside their tuner.
    base = model.get_base_model() if hasattr(model, "get_base_model") else model.base_model.model  # type: ignore[operator,union-attr]
    assert isinstance(base, nn.Module)
    return base


def is_pretrained(model: object) -> bool:
    """Whether this is one of transformers' models."""
    return _is_a(model, "transformers.modeling_utils", "PreTrainedModel")


def _core(model: nn.Module | type[nn.Module]) -> nn.Module | type[nn.Module]:
    """The model that the user's forward belongs to; classes stay what they are."""
    return model if isinstance(model, type) else base_of_peft(unwrap(model))


def _class_of(model: nn.Module | type[nn.Module]) -> type[nn.Module]:
    core = _core(model)
    cls = core if isinstance(core, type) else type(core)
    if not issubclass(cls, _named("torch.distributed.fsdp", "FSDPModule")):
        return cls
    written: type[nn.Module] = cls.__bases__[-1]  # sharding in place has put a class of its own name around it
    return written


# What forward takes -----------------------------------------------------------------------------------------------


def forward_parameters(model: nn.Module | type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of the model's forward by name, in order, without `self`; of the base model under PEFT."""
    parameters = dict(inspect.signature(_core(model).forward).parameters)
    parameters.pop("self", None)
    return parameters


def label_names(model: nn.Module | type[nn.Module]) -> list[str]:
    """The arguments of forward that are labels, in order.

    Those whose name contains "label"; for a class named "...QuestionAnswering..." also the answer's start and end.
    """
    cls = _class_of(model)
    spans = ("start_positions", "end_positions") if "QuestionAnswering" in cls.__name__ else ()
    return [name for name in forward_parameters(cls) if "label" in name or name in spans]


def can_return_loss(model: nn.Module | type[nn.Module]) -> bool:
    """Whether forward returns a loss without labels and unasked: its `return_loss` defaults to True."""
    parameter = forward_parameters(_class_of(model)).get("return_loss")
    return parameter is not None and parameter.default is True


def accepts_loss_kwargs(model: nn.Module) -> bool:
    """Whether forward can be given `num_items_in_batch`, and so divide its loss by the items of the whole update.

    The model's own attribute `accepts_loss_kwargs` decides; without one, whether forward takes `**kwargs`.
    """
    core = _core(model)
    declared = getattr(core, "accepts_loss_kwargs", None)
    return takes_any_keyword(model) if declared is None else bool(declared)


def takes_any_keyword(model: nn.Module) -> bool:
    """Whether forward has `**kwargs`."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in forward_parameters(model).values())


def shifts_labels(model: nn.Module, by_declaration: bool = False) -> bool:
    """Whether the model's own loss leaves out each row's first label, as causal language models' does.

    Args:
        model: The model; only one of transformers can say.
        by_declaration: Go by the loss type that the class declares, as the reference does. Some classes, GPT-2 among
            them, declare none and shift all the same.
    """
    core = _core(model)
    losses = _imported("transformers.loss.loss_utils")
    if losses is None or not hasattr(core, "loss_type"):
        return False
    if getattr(getattr(core, "config", None), "is_encoder_decoder", False):
        return False
    used = losses.LOSS_MAPPING.get(core.loss_type)
    if used is None and not by_declaration and is_causal_lm(model):
        used = getattr(core, "loss_function", None)  # what the class falls back to
    return used is losses.ForCausalLMLoss


def is_causal_lm(model: nn.Module) -> bool:
    """Whether transformers lists the model's class among its causal language models."""
    if _imported("transformers") is None or not is_pretrained(core := _core(model)):
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return _class_of(core).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model's configuration says that it has an encoder and a decoder."""
    return bool(getattr(getattr(_core(model), "config", None), "is_encoder_decoder", False))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# Attention --------------------------------------------------------------------------------------------------------


def attention_implementation(model: nn.Module) -> str | None:
    """What transformers computes the model's attention with, such as `"sdpa"`; None for any other model."""
    return getattr(_text_config(model), "_attn_implementation", None)


def has_windows(model: nn.Module) -> bool:
    """Whether some layers see only what is near, by the configuration of transformers: one mask is not that of all."""
    config = _text_config(model)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    window = getattr(config, "sliding_window", None)
    return window is not None and getattr(config, "use_sliding_window", True) is not False


def carries_state(model: nn.Module) -> bool:
    """Whether the model hands a recurrent state from token to token, as transformers says of its classes."""
    return bool(getattr(_core(model), "_is_stateful", False))


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(_core(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def auxiliary_loss(model: nn.Module, outputs: Any) -> Tensor | float:
    """What the routers of experts have added to the loss: a mean over a batch, whatever the rest is normalised by."""
    found = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
    factor = getattr(_text_config(model), "router_aux_loss_coef", None)
    return 0.0 if found is None or factor is None else factor * found


# Inputs and size --------------------------------------------------------------------------------------------------


def main_input_name(model: nn.Module) -> str:
    """The input whose elements are counted as tokens: the model's `main_input_name`, else `"input_ids"`."""
    name = getattr(unwrap(model), "main_input_name", "input_ids")
    return name if isinstance(name, str) else "input_ids"


def signature_columns(model: nn.Module, label_names: Sequence[str]) -> list[str]:
    """The dataset columns that a batch for this model may need: forward's arguments, then the labels' names.

    `label` and `label_ids` are among them, because collators rename them to `labels`. No name is given twice.
    """
    return list(dict.fromkeys([*forward_parameters(model), *_LABEL_COLUMNS, *label_names]))


def refuse_label_argument(model: nn.Module) -> None:
    """Refuse a forward that can never be given its labels.

    Raises:
        ValueError: Forward has an argument `label` and none called `labels`.
    """
    names = forward_parameters(model)
    if "label" in names and "labels" not in names:
        raise ValueError(
            f"{_class_of(model).__name__}.forward takes 'label', which it would never be given: collators rename the "
            "column 'label' to 'labels'; rename the argument to 'labels'"
        )


# Size and cost ----------------------------------------------------------------------------------------------------


def tell_of_cast_weights(model: nn.Module, cast_to: torch.dtype | None) -> None:
    """Warn where training begins with the weights that an evaluation has left: they have lost digits for good."""
    if cast_to is not None and any(parameter.dtype == cast_to for parameter in model.parameters()):
        name = str(cast_to).removeprefix("torch.")
        option = {torch.float16: "fp16_full_eval", torch.bfloat16: "bf16_full_eval"}[cast_to]
        warnings.warn(
            f"{option}=True: an evaluation has cast the weights to {name}, and they are trained in it; evaluate after "
            "training, or train a model that was loaded anew",
            UserWarning,
            stacklevel=4,
        )


def param_count(model: nn.Module, trainable_only: bool = False) -> int:
    """The number of parameters, a shared one counted once; of one that lies in pieces, its full size."""
    return sum(_full_size(p) for p in model.parameters() if p.requires_grad or not trainable_only)


def note_full_sizes(model: nn.Module) -> None:
    """Note how large parameters are that become pieces without knowing of what."""
    for parameter in model.parameters():
        parameter._full_numel = _full_size(parameter)  # type: ignore[attr-defined]
    model.__dict__[_COUNTED] = _parameters_outside_embeddings(model)


_COUNTED = "_mainspring_parameters_outside_embeddings"
"""Where a model remembers their number from before they became pieces."""


def _full_size(parameter: nn.Parameter) -> int:
    # DeepSpeed leaves an empty tensor in place of a partitioned parameter and notes its size there.
    return int(getattr(parameter, "ds_numel", getattr(parameter, "_full_numel", parameter.numel())))


def watch_filling(model: nn.Module, told: Callable[[], None]) -> None:
    """Let a method be told when a function puts whole weights into the model, other than by `load_state_dict`."""
    _TOLD[model] = WeakMethod(told)


def tell_of_filling(model: nn.Module) -> None:
    """Tell whoever watches the model that whole weights are put into it."""
    told = _TOLD[model]() if model in _TOLD else None
    if told is not None:
        told()


_TOLD: WeakKeyDictionary[nn.Module, WeakMethod[Callable[[], None]]] = WeakKeyDictionary()


class FlopCounter:
    """Estimates the floating-point operations of one forward and backward pass.

    6 x tokens x parameters outside the embeddings (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1),
    for models that can count these parameters (`num_parameters(exclude_embeddings=True)`); 0 for others. A model that
    has its own `floating_point_ops(inputs)` is asked instead.

    The parameters are counted once, at the first call: counting walks the whole model.

    Args:
        model: The model being trained, wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrap(model)
        self._main_input = main_input_name(model)
        self._own = _own_flops(self._model)
        self._parameters: int | None = None

    def __call__(self, inputs: Any) -> float:
        """The estimate for one batch of inputs; 0 when the batch lacks the model's main input."""
        if self._own is not None:
            return float(self._own(inputs))
        tokens = inputs.get(self._main_input) if isinstance(inputs, Mapping) else None
        if not isinstance(tokens, Tensor):
            return 0.0
        if self._parameters is None:
            known = self._model.__dict__.get(_COUNTED)
            self._parameters = _parameters_outside_embeddings(self._model) if known is None else known
        return 6.0 * tokens.numel() * self._parameters


def _own_flops(model: nn.Module) -> Callable[[Any], float] | None:
    own: Callable[[Any], float] | None = getattr(model, "floating_point_ops", None)
    # Older transformers give every model this same estimate, counting the parameters anew at each call.
    return None if getattr(own, "__module__", None) == "transformers.modeling_utils" else own


def _parameters_outside_embeddings(model: nn.Module) -> int:
    count = getattr(model, "num_parameters", None)
    if count is None:
        return 0
    if is_pretrained(model) and any(hasattr(parameter, "ds_numel") for parameter in model.parameters()):
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        return sum(_full_size(p) for p in model.parameters() if id(p) not in embeddings)
    takes = inspect.signature(count).parameters.values()
    if any(p.name == "exclude_embeddings" or p.kind is inspect.Parameter.VAR_KEYWORD for p in takes):
        return int(count(exclude_embeddings=True))
    return int(count())


class Parts:
    """A model's modules and parameters, listed once: walking a module tree costs more than a small model's forward pass.

    Args:
        model: The model that is trained, wrapped or not. Its parts must not be replaced while the lists are in use.

    Attributes:
        model: The same.
        parameters: Every parameter, a shared one once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters: list[nn.Parameter] = list(model.parameters())
        self._modules: list[nn.Module] = list(model.modules())

    def train(self) -> None:
        """`model.train()`, left out where every module is in training mode already."""
        for module in self._modules:
            if not module.training:
                self.model.train()
                return

    def forget_gradients(self) -> None:
        """`model.zero_grad()`."""
        for parameter in self.parameters:
            parameter.grad = None


# What is changed on a model before training -----------------------------------------------------------------------


def align_special_tokens(model: nn.Module, processing_class: object) -> dict[str, int]:
    """Make the model's configurations agree with the tokenizer on the end, beginning and padding tokens.

    A token that the tokenizer lacks is left alone, and so is one that every configuration already lists. Generation
    goes on stopping at the end tokens it knew: the tokenizer's is put before them.

    Args:
        model: Has a `config`, and perhaps a `generation_config`; otherwise nothing is done.
        processing_class: A transformers tokenizer, or processor with a `tokenizer`; nothing is done for others.

    Returns:
        The tokens that were changed, such as `{"pad_token_id": 0}`; a warning lists them too.
    """
    tokenizer = _tokenizer_of(processing_class)
    config = getattr(model, "config", None)
    if tokenizer is None or config is None:
        return {}
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    generation_config = getattr(model, "generation_config", None)
    changed = {}
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None and _align(name, token, text_config, generation_config):
            changed[name] = token
    if changed:
        logger.warning("special tokens of the model's configuration set to the tokenizer's: %s", changed)
    return changed


def _tokenizer_of(processing_class: object) -> object | None:
    if _is_a(processing_class, "transformers.processing_utils", "ProcessorMixin"):
        return getattr(processing_class, "tokenizer", None)
    if _is_a(processing_class, "transformers.tokenization_utils_base", "PreTrainedTokenizerBase"):
        return processing_class
    return None


def _align(name: str, token: int, text_config: Any, generation_config: Any | None) -> bool:
    """Set one token on both configurations if either does not list it; whether it was set."""
    configs = [text_config] if generation_config is None else [text_config, generation_config]
    if all(token in _ids(getattr(config, name, None)) for config in configs):
        return False
    for config in configs:
        known = getattr(config, name, None)
        keeps_others = name == "eos_token_id" and (config is generation_config or isinstance(known, list))
        setattr(config, name, [token, *(i for i in _ids(known) if i != token)] if keeps_others else token)
    return True


def _ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


# What goes in and comes out ---------------------------------------------------------------------------------------


class Recurrence:
    """The memory of a model that is given part of its last output with the next batch, as the argument `mems`.

    Args:
        index: Which part of the output that is, the loss being part 0; below 0, the model has no memory.

    Attributes:
        active: Whether there is a memory.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._past: Any = None
        self.active = index >= 0

    def feed(self, inputs: Mapping[str, Any]) -> Any:
        """The batch, with what the batch before left."""
        return inputs if self._past is None else {**inputs, "mems": self._past}

    def remember(self, outputs: Any, has_loss: bool) -> None:
        """Keep what the next batch is given, cut from the graph.

        Args:
            outputs: A mapping or a tuple.
            has_loss: Whether a tuple begins with the loss.

        Raises:
            ValueError: The output has no such part.
        """
        parts = outputs
        if isinstance(outputs, Mapping):
            has_loss = "loss" in outputs
            parts = list(outputs.values())
        place = self._index if has_loss else self._index - 1
        if not isinstance(parts, (list, tuple)) or not 0 <= place < len(parts):
            found = ", ".join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
            raise ValueError(f"past_index={self._index}: the model's output has no such part ({found})")
        self._past = _detached(parts[place])

    def forget(self) -> None:
        """Begin anew: what comes next does not follow what was before."""
        self._past = None

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Something else goes through the model in between: it begins anew, and leaves nothing behind."""
        past, self._past = self._past, None
        try:
            yield
        finally:
            self._past = past


def _detached(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.detach()
    return type(tree)(_detached(part) for part in tree) if isinstance(tree, (list, tuple)) else tree


def is_padding_processor(processing_class: object) -> bool:
    """Whether batches are padded by it: a tokenizer, or a feature extractor of sequences."""
    return _is_a(processing_class, "transformers.tokenization_utils_base", "PreTrainedTokenizerBase") or _is_a(
        processing_class, "transformers.feature_extraction_sequence_utils", "SequenceFeatureExtractor"
    )


def count_input_tokens(
    model: nn.Module, inputs: Mapping[str, Any], processing_class: object, non_padding: bool
) -> Tensor | int | None:
    """Elements of the batch's main input; None when the batch lacks it.

    Args:
        model: Says what its main input is called.
        inputs: The batch.
        processing_class: Says which id is padding, where the batch has no attention mask.
        non_padding: Leave padding out. Without a mask or a padding id, every element counts.
    """
    main = inputs.get(main_input_name(model))
    if main is None:
        return None
    if non_padding and (packed := getattr(inputs, "tokens", None)) is not None:
        return int(packed)
    if non_padding and "attention_mask" in inputs and inputs["attention_mask"].dim() == main.dim():
        counted: Tensor = inputs["attention_mask"].sum()
        return counted
    pad = getattr(processing_class, "pad_token_id", None)
    if non_padding and pad is not None:
        return (main != pad).sum()  # type: ignore[no-any-return]
    return int(main.numel())


def predictions_of(outputs: Any, model: nn.Module, ignore_keys: Sequence[str] | None, has_loss: bool) -> Any:
    """What a model's output holds beside the loss: a tuple, or the value itself where there is only one.

    Args:
        outputs: A mapping or a tuple; with `has_loss`, the first element of a tuple is the loss.
        model: Its configuration names the keys that are no predictions, unless `ignore_keys` does.
        ignore_keys: Keys to leave out; default: the configuration's `keys_to_ignore_at_inference`, else
            `past_key_values`.
        has_loss: Whether the output begins with a loss.
    """
    if isinstance(outputs, Mapping):
        if ignore_keys is None:
            config = getattr(model, "config", None)
            ignore_keys = [] if config is None else getattr(config, "keys_to_ignore_at_inference", ["past_key_values"])
        left_out = {*ignore_keys, "loss"} if has_loss else set(ignore_keys)
        values: Any = tuple(value for key, value in outputs.items() if key not in left_out)
    else:
        values = outputs[1:] if has_loss and isinstance(outputs, (tuple, list)) else outputs
    return values[0] if isinstance(values, (tuple, list)) and len(values) == 1 else values
