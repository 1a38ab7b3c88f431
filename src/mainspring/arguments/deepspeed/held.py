"""`args.hf_deepspeed_config` and `args.deepspeed_plugin`: what scripts read of the configuration of their arguments."""

from __future__ import annotations

from typing import Any

from mainspring.arguments.deepspeed import launcher, registry
from mainspring.arguments.deepspeed.hf import DeepSpeedPlugin, HfTrainerDeepSpeedConfig
from mainspring.arguments.deepspeed.joining import as_arguments_say
from mainspring.arguments.deepspeed.settings import announced_processes, in_world, notices, settings_of_options
from mainspring.arguments.machine import MachineProperties
from mainspring.arguments.spellings import warn
from mainspring.errors import OptionError

_HELD = "_deepspeed"


class HoldsDeepSpeed(MachineProperties):
    """Arguments that hold their DeepSpeed configuration."""

    @property
    def n_gpu(self) -> int:
        """As without DeepSpeed, which drives one device with each process."""
        devices = super().n_gpu
        return devices if self.hf_deepspeed_config is None else min(1, devices)

    @property
    def hf_deepspeed_config(self) -> HfTrainerDeepSpeedConfig | None:
        """The configuration, filled in as far as is known; None without DeepSpeed."""
        held: HfTrainerDeepSpeedConfig | None = vars(self).get(_HELD)
        return held

    @property
    def deepspeed_plugin(self) -> DeepSpeedPlugin | None:
        """The same in the words of Accelerate's plugin."""
        held = self.hf_deepspeed_config
        return None if held is None else DeepSpeedPlugin(held)


def hold(args: Any) -> None:
    """Fill the configuration of finished arguments in, and put it in force: `from_pretrained` may come next.

    Args:
        args: The arguments, which keep it.

    Raises:
        OptionError: A configuration that cannot be, or that contradicts the options: all of it in one error.
    """
    launcher.derive_options(args)
    settings, problems = settings_of_options(args)
    if settings is None:
        if problems:
            raise OptionError(problems)
        return
    announced, of_world = in_world(settings, args, announced_processes() or 1)
    # Without a launcher there may be more processes later: what contradicts this one is no error by itself then.
    if problems or (of_world and announced_processes()):
        raise OptionError([*problems, *of_world])
    for notice in notices(args, settings):
        warn(str(notice), UserWarning)
    held = HfTrainerDeepSpeedConfig.of_arguments(announced.config)
    vars(args)[_HELD] = held
    if launcher.wants_empty_parameters() or not held.is_zero3():
        registry.set_hf_deepspeed_config(held, as_arguments_say(args))
