"""Methods of the older generation that subclasses still call or override: each hands on, or says where it went."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from mainspring import checkpoint as ckpt
from mainspring.errors import NotAvailableError, Problem
from mainspring.measuring.memory import TrainerMemoryTracker
from mainspring.metrics import nested_numpify
from mainspring.model_features.neftune import Noise

if TYPE_CHECKING:
    from mainspring.metrics import EvalLoopOutput


def _later(name: str) -> NotAvailableError:
    return NotAvailableError([Problem(name, None, "not available yet", "leave the call out")])


class OlderNames:
    """What the older generation's `Trainer` had and the newest lacks, and what is not available yet."""

    # No backend of torch_xla here.
    is_fsdp_xla_enabled = False
    is_fsdp_xla_v1_enabled = False
    is_fsdp_xla_v2_enabled = False

    _memory_tracker = TrainerMemoryTracker(skip_memory_metrics=True)

    @property
    def tokenizer(self) -> Any:
        """Older spelling of `processing_class`."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self.processing_class = value

    @property
    def _tr_loss(self: Any) -> Any:
        """The loss window: a 0-d tensor on the device."""
        return self._window.total

    def prediction_loop(self: Any, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Older name of `evaluation_loop`."""
        output: EvalLoopOutput = self.evaluation_loop(dataloader, description, *args, **kwargs)
        return output

    def num_tokens(self: Any, train_dl: Any, max_steps: int | None = None) -> int:
        """Input tokens in a loader, all of it or its first `max_steps` batches."""
        total = 0
        for index, batch in enumerate(train_dl):
            if max_steps is not None and index >= max_steps:
                break
            total += int(batch["input_ids"].numel())
        return total

    def _nested_gather(self: Any, tensors: Any, name: str | None = None) -> Any:
        return None if tensors is None else self.accelerator.gather(tensors)

    def _gather_and_numpify(self: Any, tensors: Any, name: str) -> Any:
        return None if tensors is None else nested_numpify(self._nested_gather(tensors))

    def _pad_across_processes(self: Any, tensor: Any, pad_index: int = -100) -> Any:
        return self.accelerator.pad_across_processes(tensor, dim=1, pad_index=pad_index)

    def _sorted_checkpoints(
        self: Any, output_dir: str | None = None, checkpoint_prefix: str = "checkpoint", use_mtime: bool = False
    ) -> list[str]:
        found: list[str] = ckpt.sort_checkpoints(
            output_dir or self.args.output_dir,
            checkpoint_prefix,
            use_mtime,
            best_model_checkpoint=self.state.best_model_checkpoint,
        )
        return found

    def _rotate_checkpoints(self: Any, use_mtime: bool = False, output_dir: str | None = None) -> None:
        ckpt.rotate_checkpoints(
            output_dir or self.args.output_dir,
            self.args.save_total_limit,
            self.state.best_model_checkpoint,
            use_mtime=use_mtime,
        )

    def init_git_repo(self, at_init: bool = False) -> None:
        """Older name of `init_hf_repo`."""
        warnings.warn("init_git_repo is now init_hf_repo", FutureWarning, stacklevel=2)
        self.init_hf_repo()

    def torch_jit_model_eval(self, model: Any, dataloader: Any, training: bool = False) -> Any:
        """Removed: use `torch_compile=True`."""
        raise ValueError("torch_jit_model_eval was removed together with jit_mode_eval: use torch_compile=True")

    def ipex_optimize_model(self, model: Any, training: bool = False, dtype: Any = None) -> Any:
        """Removed: the package behind it no longer works with current torch."""
        raise ValueError("ipex_optimize_model was removed together with use_ipex: use torch_compile=True")

    def _add_sm_patterns_to_gitignore(self) -> None:
        """Removed: nothing here keeps a git repository."""
        raise ValueError("_add_sm_patterns_to_gitignore was removed: the output folder is no git repository any more")

    def _update_auto_batch_size(self, batch_size: int) -> None:
        """Removed: the batch size stays what it is."""
        raise ValueError(
            "_update_auto_batch_size was removed: auto_find_batch_size=True cuts micro-batches, and leaves the batch size"
        )

    def _activate_neftune(self: Any, model: Any) -> Any:
        """Put noise on the model's embeddings, `neftune_noise_alpha` of it; returns the model."""
        self.neftune_hook_handle = Noise(model, self.neftune_noise_alpha)
        return model

    def _deactivate_neftune(self: Any, model: Any) -> None:
        """Take the noise away again."""
        self.neftune_hook_handle.remove()

    # ---- not available yet: what has nothing to do does nothing, what is asked to do something refuses ----

    def _report_to_hp_search(self: Any, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Outside a search there is nobody to tell `metrics`; reporting to one is not available yet."""
        if self.hp_search_backend is not None and trial is not None:
            raise _later("_report_to_hp_search")

    def _finish_current_push(self) -> None:
        """Return at once: nothing is ever being pushed, as pushing is not available yet."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not available yet."""
        raise _later("_push_from_checkpoint")

    def _tune_save_checkpoint(self, checkpoint_dir: str) -> None:
        """Not available yet."""
        raise _later("_tune_save_checkpoint")

    def _save_tpu(self, output_dir: str | None = None) -> None:
        """Not available yet."""
        raise _later("_save_tpu")

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Not available yet."""
        raise _later("init_hf_repo")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Not available yet."""
        raise _later("push_to_hub")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Not available yet."""
        raise _later("create_model_card")

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Not available yet."""
        raise _later("hyperparameter_search")

    def propagate_args_to_deepspeed(self: Any, auto_find_batch_size: bool = False) -> None:
        """Let the engine read the configuration again, in which options have changed since the trainer was built.

        Args:
            auto_find_batch_size: Not looked at: what the options say of the batch is what holds.

        Raises:
            OptionError: The configuration contradicts the options.
            RuntimeError: The run has no such engine.
        """
        self._engine.read_options_again(self._engine_options())
