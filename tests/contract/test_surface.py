"""Names: every method, parameter and attribute that scripts written for the reference use exists under the same name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import data, models
from tests.helpers.sides import REFERENCE, SUBJECT, Side
from tests.helpers.text import words

pytestmark = pytest.mark.parity

PUBLIC = words(
    "train evaluate predict evaluation_loop training_step compute_loss prediction_step get_train_dataloader "
    "get_eval_dataloader get_test_dataloader num_examples get_batch_samples get_total_train_batch_size get_tp_size "
    "get_cp_size get_sp_size set_initial_training_values create_optimizer_and_scheduler create_optimizer "
    "create_scheduler get_decay_parameter_names get_optimizer_cls_and_kwargs get_learning_rates "
    "get_num_trainable_parameters get_optimizer_group save_model save_state log log_metrics save_metrics "
    "metrics_format add_callback pop_callback remove_callback is_local_process_zero is_world_process_zero "
    "floating_point_ops store_flos call_model_init hyperparameter_search push_to_hub create_model_card init_hf_repo "
    "create_accelerator_and_postprocess compute_loss_context_manager autocast_smart_context_manager end"
)

SEMI_PUBLIC = words(
    "_get_train_sampler _get_eval_sampler _remove_unused_columns _set_signature_columns_if_needed "
    "_get_collator_with_removed_columns _prepare_input _prepare_inputs _wrap_model _inner_training_loop "
    "_maybe_log_save_evaluate _save_checkpoint _save _save_rng_state _load_rng_state _save_optimizer_and_scheduler "
    "_load_optimizer_and_scheduler _load_from_checkpoint _load_best_model _get_output_dir _hp_search_setup "
    "_report_to_hp_search _tune_save_checkpoint _push_from_checkpoint _finish_current_push _move_model_to_device "
    "_issue_warnings_after_load _get_dataloader _get_learning_rate _run_epoch _init_training_state "
    "_prepare_for_training _finalize_training _evaluate _determine_best_metric _get_num_items_in_batch "
    "_clip_grad_norm _get_grad_norm _track_num_input_tokens _save_scaler _load_scaler _load_callback_state "
    "_update_auto_batch_size _build_accelerator_args _validate_args _prepare_context_parallel_inputs"
)

FIRST_GENERATION = words(
    "prediction_loop num_tokens torch_jit_model_eval ipex_optimize_model propagate_args_to_deepspeed "
    "_add_sm_patterns_to_gitignore _sorted_checkpoints _rotate_checkpoints _nested_gather _gather_and_numpify "
    "_activate_neftune _deactivate_neftune _save_tpu init_git_repo _pad_across_processes"
)
"""Methods of 4.37 that the newest reference lacks: they delegate or raise an error that says what to use instead."""

FIRST_GENERATION_CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "train": ((None, None, None), {}),
    "evaluate": ((None, None, "eval"), {}),
    "training_step": (("model", {}), {}),
    "compute_loss": (("model", {}), {"return_outputs": True}),
    "prediction_step": (("model", {}, True), {"ignore_keys": None}),
    "evaluation_loop": (("loader", "Evaluation"), {"prediction_loss_only": True, "ignore_keys": None}),
    "_get_train_sampler": ((), {}),
    "log": (({},), {}),
    "_save_checkpoint": (("model", None), {"metrics": None}),
    "save_model": (("folder",), {"_internal_call": True}),
    "_save": (("folder",), {"state_dict": {}}),
    "_load_from_checkpoint": (("folder",), {"model": None}),
    "_wrap_model": (("model",), {"training": True, "dataloader": None}),
    "_inner_training_loop": (
        (),
        {
            "batch_size": 8,
            "args": None,
            "resume_from_checkpoint": None,
            "trial": None,
            "ignore_keys_for_eval": None,
        },
    ),
    "_hp_search_setup": ((None,), {}),
    "_remove_unused_columns": (("dataset",), {"description": "training"}),
    "_get_collator_with_removed_columns": (("collator",), {"description": "training"}),
    "create_optimizer": ((), {}),
    "create_scheduler": ((10,), {"optimizer": None}),
    "push_to_hub": ((), {"commit_message": "End of training", "blocking": True}),
    "get_optimizer_cls_and_kwargs": (("args",), {}),
}
"""How scripts of 4.37 call the methods of their superclass: `super().name(*args, **kwargs)` must be accepted."""

LATER = words("hyperparameter_search push_to_hub create_model_card")
"""Methods of the hub and of the hyper-parameter search, which are not available yet. The list only shrinks."""

DIFFERENT_ON_PURPOSE: dict[str, str] = {}
"""Methods whose parameters are not the reference's -> why. Empty, and meant to stay so."""

ATTRIBUTES = words(
    "args model model_wrapped model_init model_accepts_loss_kwargs is_model_parallel place_model_on_device "
    "is_in_train state control callback_handler optimizer lr_scheduler optimizer_cls_and_kwargs accelerator "
    "data_collator train_dataset eval_dataset processing_class compute_loss_func compute_metrics "
    "preprocess_logits_for_metrics label_names label_smoother can_return_loss gather_function is_deepspeed_enabled "
    "is_fsdp_enabled deepspeed hub_model_id hp_name hp_search_backend current_flos neftune_noise_alpha "
    "_train_batch_size _signature_columns _created_lr_scheduler loss_is_scaled_for_ga"
)

ATTRIBUTES_AFTER_TRAINING = words(
    "_globalstep_last_logged _total_loss_scalar _tr_loss current_gradient_accumulation_steps _initial_global_step "
    "_initial_num_input_tokens_seen"
)

ARGUMENT_MEMBERS = words(
    "train_batch_size eval_batch_size device n_gpu parallel_mode world_size process_index local_process_index "
    "should_log should_save ddp_timeout_delta place_model_on_device get_process_log_level main_process_first "
    "get_warmup_steps to_dict to_json_string to_sanitized_dict set_training set_evaluate set_testing set_save "
    "set_logging set_push_to_hub set_optimizer set_lr_scheduler set_dataloader"
)

HANDLER_MEMBERS = words(
    "callbacks add_callback pop_callback remove_callback call_event callback_list on_init_end on_train_begin "
    "on_train_end on_epoch_begin on_epoch_end on_step_begin on_pre_optimizer_step on_optimizer_step on_substep_end "
    "on_step_end on_evaluate on_predict on_save on_log on_prediction_step"
)


def _parameters(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def mismatch(expected: Any, actual: Any) -> str:
    """Say how `actual` refuses a call that `expected` takes; empty when it takes them all.

    The reference's parameters must come first, by name and in order, with a default where it has one. Further ones
    must be optional.
    """
    theirs, ours = _parameters(expected), _parameters(actual)
    named = [p for p in theirs if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for index, want in enumerate(named):
        have = ours[index] if index < len(ours) else None
        if have is None or have.name != want.name:
            return f"parameter {index} is {have and have.name!r}, expected {want.name!r}"
        if want.default is not want.empty and have.default != want.default:
            return f"default of {want.name!r} is {have.default!r}, expected {want.default!r}"
    for p in theirs:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.kind not in {own.kind for own in ours}:
            return f"takes no *{p.name}"
    needed = [
        p.name
        for p in ours[len(named) :]
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return f"also requires {needed}" if needed else ""


@pytest.mark.parametrize("name", [name for name in (*PUBLIC, *SEMI_PUBLIC) if name not in LATER])
def test_method_takes_the_references_parameters(name: str) -> None:
    """Name, order and defaults of the parameters, read off the installed reference."""
    if name in DIFFERENT_ON_PURPOSE:
        return
    expected, actual = getattr(REFERENCE.api.Trainer, name), getattr(SUBJECT.api.Trainer, name)
    assert mismatch(expected, actual) == ""


@pytest.mark.skipif(SUBJECT.is_reference, reason="about what Mainspring lacks")
@pytest.mark.parametrize("name", LATER)
def test_what_comes_later_is_still_missing(name: str) -> None:
    """A method that exists with the reference's parameters leaves the list."""
    method = getattr(SUBJECT.api.Trainer, name, None)
    assert method is None or mismatch(getattr(REFERENCE.api.Trainer, name), method)


def test_mismatch_notices_what_it_should() -> None:
    """A renamed, missing, reordered, newly required parameter or another default is a mismatch; more options are not."""

    def wanted(a: int, b: int = 1) -> None: ...

    def renamed(a: int, c: int = 1) -> None: ...

    def missing(a: int) -> None: ...

    def other_default(a: int, b: int = 2) -> None: ...

    def required(a: int, b: int = 1, *, c: int) -> None: ...

    def wider(a: int, b: int = 1, c: int = 2, **kwargs: Any) -> None: ...

    assert mismatch(wanted, wider) == mismatch(wanted, wanted) == ""
    assert all(mismatch(wanted, wrong) for wrong in (renamed, missing, other_default, required))


def test_every_method_of_the_reference_is_listed() -> None:
    """A method that a newer reference brings is noticed here: it is promised above or named below."""
    methods = {
        name
        for name, value in vars(REFERENCE.api.Trainer).items()
        if not name.startswith("__") and (callable(value) or isinstance(value, staticmethod))
    }
    internal = {
        "_defer_fsdp_gradient_reduction",
        "_sync_replicated_trainable_parameters",
        "_has_mixed_mesh_grads",
        "_mixed_mesh_grad_norm",
    }
    assert methods - {*PUBLIC, *SEMI_PUBLIC} == internal


own = pytest.mark.skipif(SUBJECT.is_reference, reason="the newest reference dropped what 4.37 had")


@own
@pytest.mark.parametrize("name", FIRST_GENERATION)
def test_method_of_the_first_generation_exists(name: str) -> None:
    """A subclass that calls or overrides it finds it."""
    assert callable(getattr(SUBJECT.api.Trainer, name))


@own
@pytest.mark.parametrize("name", FIRST_GENERATION_CALLS)
def test_calls_of_the_first_generation_bind(name: str) -> None:
    """What a 4.37 subclass passes to `super()` is accepted by the signature."""
    args, kwargs = FIRST_GENERATION_CALLS[name]
    method = inspect.getattr_static(SUBJECT.api.Trainer, name)
    receiver = () if isinstance(method, staticmethod) else (None,)
    inspect.signature(getattr(SUBJECT.api.Trainer, name)).bind(*receiver, *args, **kwargs)


def test_constructor_takes_the_references_parameters() -> None:
    """In the reference's order: `Trainer(model, args, collator, train, eval)` is written positionally."""
    assert mismatch(REFERENCE.api.Trainer.__init__, SUBJECT.api.Trainer.__init__) == ""


@own
def test_constructor_takes_the_old_name_of_the_processing_class(tmp_path: Path) -> None:
    """`tokenizer=` is the 4.37 name; both together contradict each other."""
    trainer_class, args = SUBJECT.api.Trainer, SUBJECT.arguments(tmp_path)
    tokenizer = models.word_tokenizer()
    with pytest.warns(FutureWarning, match="processing_class"):
        trainer = trainer_class(model=models.Regressor(), args=args, tokenizer=tokenizer)
    assert trainer.processing_class is tokenizer
    with pytest.raises((TypeError, ValueError), match="tokenizer"):
        trainer_class(model=models.Regressor(), args=args, tokenizer=tokenizer, processing_class=tokenizer)


def _trainer(side: Side, folder: Path, **options: Any) -> Any:
    return side.api.Trainer(
        model=models.Regressor(),
        args=side.arguments(folder, **{"max_steps": 3, **options}),
        train_dataset=data.Items(data.points(22)),
        eval_dataset=data.Items(data.points(6)),
    )


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attribute_is_there_from_the_start(name: str, tmp_path: Path) -> None:
    """With a value of the reference's kind: None stays None, a flag stays a flag."""
    ours, theirs = (getattr(_trainer(side, tmp_path), name) for side in (SUBJECT, REFERENCE))
    assert (ours is None) == (theirs is None)
    if isinstance(theirs, (bool, int, str, list)):
        assert ours == theirs


@pytest.mark.parametrize("name", ["is_fsdp_xla_enabled", "is_fsdp_xla_v1_enabled", "is_fsdp_xla_v2_enabled"])
def test_flags_of_absent_hardware_are_off(name: str, tmp_path: Path) -> None:
    """The reference's are off as well, though some of its values for that are None."""
    ours, theirs = (getattr(_trainer(side, tmp_path), name) for side in (SUBJECT, REFERENCE))
    assert ours in (False, None)
    assert not theirs


def test_attributes_after_training(tmp_path: Path) -> None:
    """What callbacks and subclasses read off a Trainer that has trained."""
    trainers = [_trainer(side, tmp_path, gradient_accumulation_steps=2) for side in (SUBJECT, REFERENCE)]
    for trainer in trainers:
        trainer.train()
    ours, theirs = trainers
    for name in ATTRIBUTES_AFTER_TRAINING:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert not ours.is_in_train
    assert ours.model_wrapped is ours.model
    assert ours.optimizer is not None
    assert ours.lr_scheduler is not None
    assert ours.callback_handler.optimizer is ours.optimizer
    assert set(ours._signature_columns) == set(theirs._signature_columns)


def test_is_in_train_is_true_exactly_while_training(tmp_path: Path) -> None:
    """Evaluation inside training sees it, evaluation outside does not."""
    seen: list[bool] = []
    base: Any = SUBJECT.api.Trainer

    class Watch(base):  # type: ignore[misc]
        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(self.is_in_train)
            return super().prediction_step(*args, **kwargs)

    trainer = Watch(
        model=models.Regressor(),
        args=SUBJECT.arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1),
        train_dataset=data.Items(data.points(4)),
        eval_dataset=data.Items(data.points(4)),
    )
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert seen == [False, True, False]


@pytest.mark.parametrize("name", ARGUMENT_MEMBERS)
def test_arguments_member_exists(name: str, tmp_path: Path) -> None:
    """Methods and properties of the arguments object, by the reference's names."""
    ours, theirs = (getattr(side.arguments(tmp_path), name) for side in (SUBJECT, REFERENCE))
    assert callable(ours) == callable(theirs)
    if callable(theirs):
        assert mismatch(theirs, ours) == ""
    else:
        assert str(getattr(ours, "value", ours)) == str(getattr(theirs, "value", theirs))


@pytest.mark.parametrize("name", HANDLER_MEMBERS)
def test_callback_handler_member_exists(name: str, tmp_path: Path) -> None:
    """Subclasses fire events themselves: `self.callback_handler.on_log(self.args, self.state, self.control, logs)`."""
    ours, theirs = (getattr(_trainer(side, tmp_path).callback_handler, name) for side in (SUBJECT, REFERENCE))
    if callable(theirs):
        assert mismatch(theirs, ours) == ""


def test_only_output_dir_is_positional(tmp_path: Path) -> None:
    """`TrainingArguments("out")` works, for subclasses too."""
    base: Any = SUBJECT.api.TrainingArguments
    import dataclasses

    @dataclasses.dataclass
    class WithOption(base):  # type: ignore[misc]
        extra: int = 3

    for cls in (base, WithOption):
        assert cls(str(tmp_path), use_cpu=True).output_dir == str(tmp_path)
    assert WithOption("out", extra=5, use_cpu=True).extra == 5


ACCELERATOR_VERBS = words(
    "prepare backward no_sync accumulate clip_grad_norm_ gather gather_for_metrics unwrap_model sync_gradients "
    "num_processes process_index device is_main_process is_local_main_process parallelism_config state "
    "gradient_state reduce pad_across_processes wait_for_everyone print autocast mixed_precision distributed_type "
    "optimizer_step_was_skipped free_memory get_state_dict save prepare_model prepare_optimizer prepare_data_loader"
)


@pytest.mark.parametrize("name", ACCELERATOR_VERBS)
def test_accelerator_member_exists(name: str, tmp_path: Path) -> None:
    """`trainer.accelerator` is an accelerate Accelerator with values that are true for one process."""
    from accelerate import Accelerator

    ours, theirs = (_trainer(side, tmp_path).accelerator for side in (SUBJECT, REFERENCE))
    assert isinstance(ours, Accelerator)
    value, wanted = getattr(ours, name), getattr(theirs, name)
    if isinstance(wanted, (bool, int, str, torch.device, type(None))):
        assert value == wanted
