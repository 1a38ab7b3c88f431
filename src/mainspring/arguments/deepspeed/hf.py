"""`HfDeepSpeedConfig`: a configuration as an object, kept alive while models are loaded; and the one of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mainspring.arguments.deepspeed import registry
from mainspring.arguments.deepspeed.filling import BY_OPTIONS, BY_RUN, BY_WORLD, Run, Setting, World, fill
from mainspring.arguments.deepspeed.reading import AUTO, put, read_config, setting
from mainspring.arguments.deepspeed.settings import Facts
from mainspring.errors import OptionError, Problem

_OFFLOADS = ("zero_optimization.offload_param.device", "zero_optimization.offload_optimizer.device")
_SIZES = ("train_micro_batch_size_per_gpu", "train_batch_size")
"""Settings that follow from the size of a micro-batch."""


class HfDeepSpeedConfig:
    """A DeepSpeed configuration. While it is kept, models that are loaded with stage 3 are divided at once.

    Args:
        config_file_or_dict: A mapping, JSON text, the path of a JSON file, or another such object.

    Attributes:
        config: The configuration.

    Raises:
        OptionError: It cannot be read.
    """

    def __init__(self, config_file_or_dict: Any) -> None:
        self._read(config_file_or_dict)
        registry.set_hf_deepspeed_config(self)

    def _read(self, config_file_or_dict: Any) -> None:
        config, problem = read_config("config_file_or_dict", config_file_or_dict)
        if problem is not None:
            raise OptionError([problem])
        self.config: dict[str, Any] = config

    def find_config_node(self, ds_key_long: str) -> tuple[dict[str, Any] | None, str]:
        """The section that a dotted path leads to (None: there is none), and the key in it."""
        above, _, key = ds_key_long.rpartition(".")
        node = setting(self.config, above) if above else self.config
        return (node if isinstance(node, dict) else None), key

    def get_value(self, ds_key_long: str, default: Any = None) -> Any:
        """The value at a dotted path."""
        node, key = self.find_config_node(ds_key_long)
        return default if node is None else node.get(key, default)

    def del_config_sub_tree(self, ds_key_long: str, must_exist: bool = False) -> None:
        """Leave out what is at a dotted path.

        Raises:
            ValueError: Nothing is there, and `must_exist` is set.
        """
        node, key = self.find_config_node(ds_key_long)
        if node is not None and key in node:
            del node[key]
        elif must_exist:
            raise ValueError(f"the DeepSpeed configuration has no {ds_key_long}: {self.config}")

    def is_auto(self, ds_key_long: str) -> bool:
        """Whether a setting is left to the options."""
        return bool(self.get_value(ds_key_long) == AUTO)

    def is_true(self, ds_key_long: str) -> bool:
        """Whether a setting is there and true."""
        return bool(self.get_value(ds_key_long))

    def is_false(self, ds_key_long: str) -> bool:
        """Whether a setting is there and false."""
        value = self.get_value(ds_key_long)
        return value is not None and not value

    def is_zero2(self) -> bool:
        """Whether optimizer states and gradients are divided, and the parameters are not."""
        return bool(self.get_value("zero_optimization.stage") == 2)

    def is_zero3(self) -> bool:
        """Whether the parameters are divided too."""
        return bool(self.get_value("zero_optimization.stage") == 3)

    def is_offload(self) -> bool:
        """Whether parameters or optimizer states lie in the host's memory, or on a disk."""
        divides = self.is_zero2() or self.is_zero3()
        return divides and any(self.get_value(path) in ("cpu", "nvme") for path in _OFFLOADS)


class HfTrainerDeepSpeedConfig(HfDeepSpeedConfig):
    """A configuration that the options of a run fill in, in two steps.

    Args:
        config_file_or_dict: A mapping, JSON text, the path of a JSON file, or another such object.

    Attributes:
        mismatches: What contradicts the options, so far.
    """

    def __init__(self, config_file_or_dict: Any) -> None:
        super().__init__(config_file_or_dict)
        self._begin()

    def _begin(self) -> None:
        self._computes_in: str | None = None
        self.mismatches: list[str] = []
        self._problems: list[Problem] = []

    @classmethod
    def of_arguments(cls, config: Mapping[str, Any]) -> HfTrainerDeepSpeedConfig:
        """One that the options have filled in already. It is not in force yet."""
        made = cls.__new__(cls)
        made._read(config)
        made._begin()
        made._note_precision()
        return made

    def dtype(self) -> Any:
        """The type that the model computes in.

        Raises:
            ValueError: No options have been looked at.
        """
        if self._computes_in is None:
            raise ValueError("the type follows from options: call trainer_config_process(args) before")
        import torch  # a configuration is read without it

        return getattr(torch, self._computes_in)

    def fill_match(self, ds_key_long: str, hf_val: Any, hf_key: str | None = None, must_match: bool = True) -> None:
        """Put a value where the configuration says "auto"; another value there contradicts it.

        Args:
            ds_key_long: The setting, dotted.
            hf_val: Its value by the options.
            hf_key: The option that says so, for the message.
            must_match: Whether another value is a contradiction.
        """
        self._fill((Setting(ds_key_long, hf_key or "the options", lambda _: hf_val, agrees=must_match),), None)

    def fill_only(self, ds_key_long: str, hf_val: Any, hf_key: str | None = None, *, must_match: bool = False) -> None:
        """As `fill_match`; another value is no contradiction."""
        self.fill_match(ds_key_long, hf_val, hf_key, must_match)

    def trainer_config_process(self, args: Any, auto_find_batch_size: bool = False) -> None:
        """Fill in what the options know.

        Args:
            args: The arguments of the run.
            auto_find_batch_size: Whether the size of a micro-batch is found by trying: it need not agree then.
        """
        world = World(args.world_size, args.per_device_train_batch_size, args.gradient_accumulation_steps)
        found = _SIZES if auto_find_batch_size else ()
        for rows, source in ((BY_WORLD, world), (BY_OPTIONS, Facts(args, self.config))):
            self._fill([replace(row, agrees=row.agrees and row.path not in found) for row in rows], source)
        if args.save_on_each_node:
            put(self.config, "checkpoint.use_node_local_storage", True)
        self._note_precision()

    def trainer_config_finalize(self, args: Any, model: Any, num_training_steps: int) -> None:
        """Fill in what only training knows, and refuse what contradicts the options.

        Args:
            args: The arguments of the run.
            model: The model.
            num_training_steps: Updates of the run.

        Raises:
            OptionError: Everything that contradicts the options, or that cannot be filled in.
        """
        warmup = args.get_warmup_steps(num_training_steps)
        self._fill(BY_RUN, Run(hidden_size(model), num_training_steps, warmup))
        if self._problems:
            raise OptionError(self._problems)

    def _fill(self, rows: Sequence[Setting], source: Any) -> None:
        _, problems = fill(self.config, rows, source)
        self._problems += problems
        self.mismatches += map(str, problems)

    def _note_precision(self) -> None:
        halves = {"fp16.enabled": "float16", "bf16.enabled": "bfloat16"}
        self._computes_in = next((kind for path, kind in halves.items() if self.is_true(path)), "float32")


def hidden_size(model: Any) -> int | None:
    """The model's hidden size by its configuration, the largest of several; None where it does not say."""
    config = getattr(model, "config", None)
    for place in (config, getattr(config, "text_config", None)):
        if (size := getattr(place, "hidden_size", None)) is not None:
            return int(size)
        if sizes := getattr(place, "hidden_sizes", None):
            return int(max(sizes))
    return None


class DeepSpeedPlugin:
    """What scripts read as `args.deepspeed_plugin`: the configuration in the words of Accelerate's plugin.

    Args:
        hf_ds_config: The configuration of the arguments.
    """

    def __init__(self, hf_ds_config: HfTrainerDeepSpeedConfig) -> None:
        self.hf_ds_config = hf_ds_config

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The configuration as a mapping."""
        return self.hf_ds_config.config

    @property
    def zero_stage(self) -> int:
        """What ZeRO divides: 0 nothing, 1 optimizer states, 2 gradients too, 3 parameters too."""
        return int(self.hf_ds_config.get_value("zero_optimization.stage", 0))

    @property
    def gradient_accumulation_steps(self) -> Any:
        """Micro-batches of an update."""
        return self.hf_ds_config.get_value("gradient_accumulation_steps", 1)

    @property
    def gradient_clipping(self) -> Any:
        """The norm to which gradients are clipped."""
        return self.hf_ds_config.get_value("gradient_clipping", AUTO)

    @property
    def offload_optimizer_device(self) -> str:
        """Where optimizer states lie: none, cpu or nvme."""
        return str(self.hf_ds_config.get_value("zero_optimization.offload_optimizer.device", "none"))

    @property
    def offload_param_device(self) -> str:
        """Where parameters lie: none, cpu or nvme."""
        return str(self.hf_ds_config.get_value("zero_optimization.offload_param.device", "none"))

    @property
    def zero3_save_16bit_model(self) -> bool:
        """Whether saved models of stage 3 are whole."""
        return self.hf_ds_config.is_true("zero_optimization.stage3_gather_16bit_weights_on_model_save")

    @property
    def zero3_init_flag(self) -> bool:
        """Whether models that are loaded are divided at once."""
        return self.hf_ds_config.is_zero3()

    def is_zero3_init_enabled(self) -> bool:
        """As `zero3_init_flag`."""
        return self.zero3_init_flag
