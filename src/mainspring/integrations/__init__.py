"""Door: what scripts import from ``integrations``: whether a service's package is installed, and DeepSpeed's configurations."""

from __future__ import annotations

from accelerate.utils import (
    is_clearml_available,
    is_comet_ml_available as is_comet_available,
    is_deepspeed_available,
    is_dvclive_available,
    is_mlflow_available,
    is_swanlab_available,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)

from mainspring.absent import not_available_yet
from mainspring.integrations.deepspeed import (
    HfDeepSpeedConfig,
    HfTrainerDeepSpeedConfig,
    deepspeed_config,
    get_fp32_state_dict_from_zero_checkpoint,
    is_deepspeed_zero3_enabled,
    load_state_dict_from_zero_checkpoint,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)

__all__ = [
    "HfDeepSpeedConfig",
    "HfTrainerDeepSpeedConfig",
    "deepspeed_config",
    "get_fp32_state_dict_from_zero_checkpoint",
    "is_clearml_available",
    "is_comet_available",
    "is_deepspeed_available",
    "is_deepspeed_zero3_enabled",
    "is_dvclive_available",
    "is_mlflow_available",
    "is_swanlab_available",
    "is_tensorboard_available",
    "is_trackio_available",
    "is_wandb_available",
    "load_state_dict_from_zero_checkpoint",
    "set_hf_deepspeed_config",
    "unset_hf_deepspeed_config",
]

__getattr__ = not_available_yet(
    __name__,
    "AzureMLCallback",
    "ClearMLCallback",
    "CodeCarbonCallback",
    "CometCallback",
    "DVCLiveCallback",
    "DagsHubCallback",
    "FlyteCallback",
    "KubeflowCallback",
    "MLflowCallback",
    "NeptuneCallback",
    "SwanLabCallback",
    "TensorBoardCallback",
    "TrackioCallback",
    "WandbCallback",
    "get_available_reporting_integrations",
    "get_reporting_integration_callbacks",
    "run_hp_search_optuna",
    "run_hp_search_ray",
    "run_hp_search_wandb",
)
