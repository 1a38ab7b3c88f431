"""What a SageMaker job asks for in its environment, and whether that is here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from mainspring.errors import NotAvailableError, Problem

_FRAMEWORK, _MODEL_PARALLEL = "SM_FRAMEWORK_PARAMS", "SM_HP_MP_PARAMETERS"


def asks_for_data_parallel(environ: Mapping[str, str]) -> bool:
    """Whether gradients are to be summed by SageMaker's own library."""
    return bool(_settings(environ, _FRAMEWORK).get("sagemaker_distributed_dataparallel_enabled"))


def refuse(environ: Mapping[str, str]) -> None:
    """Notice that a job asks for what this version or this machine does not have.

    Raises:
        NotAvailableError: It does: for data parallelism without the package, or for model parallelism.
    """
    splits = "partitions" in _settings(environ, _MODEL_PARALLEL)
    if splits and _settings(environ, _FRAMEWORK).get("sagemaker_mpi_enabled"):
        why = "SageMaker's model parallelism wants models and training steps of its own kind, and is not available"
        fix = "leave it out of the job's distribution, and set fsdp=True to shard the model"
        raise NotAvailableError([Problem(_MODEL_PARALLEL, environ[_MODEL_PARALLEL], why, fix)])
    if asks_for_data_parallel(environ) and importlib.util.find_spec("smdistributed") is None:
        why = "the job asks for SageMaker's data parallelism, and its package smdistributed is not installed"
        fix = "use a SageMaker image that has it, or torch_distributed in the job's distribution"
        raise NotAvailableError([Problem(_FRAMEWORK, environ[_FRAMEWORK], why, fix)])


def _settings(environ: Mapping[str, str], variable: str) -> dict[str, Any]:
    """The JSON object in a variable; empty where there is none."""
    try:
        found = json.loads(environ.get(variable, "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
