"""What is logged, when, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mainspring.arguments.enums import IntervalStrategy
from mainspring.arguments.option import option, steps_or_share

LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")


@dataclass(kw_only=True)
class LoggingArguments:
    """Logging and tracking."""

    logging_strategy: IntervalStrategy | str = option(IntervalStrategy.STEPS, "When to log.", choices=IntervalStrategy)
    logging_steps: float = option(500, "Updates between two logs; below 1, a share of all.", check=steps_or_share)
    logging_first_step: bool = option(False, "Log the first update too.")
    log_on_each_node: bool = option(True, "With several machines, log on each.")
    logging_nan_inf_filter: bool = option(True, "Leave NaN and infinite losses out of the logged mean.")
    include_num_input_tokens_seen: str | bool = option(
        "no", "Count input tokens: all, non_padding or no (True is all)."
    )
    log_level: str = option("passive", "Log level of the main process.", choices=LOG_LEVELS)
    log_level_replica: str = option("warning", "Log level of the other processes.", choices=LOG_LEVELS)
    disable_tqdm: bool | None = option(None, "No progress bars; default: when the log level is above warning.")
    report_to: None | str | list[str] = option(  # noqa: RUF036 - parsers that read one type take the first after None
        "none", "Services that get the logs."
    )
    run_name: str | None = option(None, "Name of the run.")
    project: str = option("huggingface", "Project of Trackio.")
    trackio_space_id: str | None = option(None, "Space of Trackio.")
    trackio_bucket_id: str | None = option(None, "Bucket of Trackio.")
    trackio_static_space_id: str | None | Literal[False] = option(  # noqa: RUF036 - as above, the first before None
        None, "Static space of Trackio."
    )
    skip_memory_metrics: bool = option(True, "No memory report.")
    debug: str | list[str] = option(
        "",
        "Debugging aids, separated by spaces: underflow_overflow (magnitudes in every module, until one is not finite), "
        "tpu_metrics_debug (what XLA has counted, after each epoch).",
        none="",
    )
