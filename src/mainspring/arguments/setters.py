"""Setters that change a group of options together, for scripts that build their arguments step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class GroupedSetters:
    """`args.set_training(learning_rate=1e-4).set_save(strategy="epoch")`.

    Each sets all options of its group, those left out to the setter's own defaults, and returns the arguments. Values
    are read and checked as the constructor does, before any is assigned. What must hold between groups is not
    checked: another setter may be about to follow.

    Some of the setters' defaults are not the options' own: `set_logging` turns off what `TrainingArguments` has on. So
    it is in the reference, and scripts rely on it.

    Raises:
        OptionError: Values that cannot be, all in one error.
        NotAvailableError: Options whose machinery is not here yet.
    """

    def _assign(self, **options: Any) -> Self:
        """Read, check and set options together."""
        raise NotImplementedError

    def set_training(
        self,
        learning_rate: float = 5e-5,
        batch_size: int = 8,
        weight_decay: float = 0,
        num_epochs: float = 3,
        max_steps: int = -1,
        gradient_accumulation_steps: int = 1,
        seed: int = 42,
        activation_checkpointing: bool = False,
        gradient_checkpointing: bool | None = None,
    ) -> Self:
        """Set what training needs, and `do_train`.

        `gradient_checkpointing` is the older name of `activation_checkpointing`.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_training(learning_rate=1e-4, batch_size=32)
        >>> args.learning_rate, args.per_device_train_batch_size, args.do_train
        (0.0001, 32, True)
        """
        if gradient_checkpointing is not None:
            activation_checkpointing = gradient_checkpointing
        return self._assign(
            do_train=True,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            weight_decay=weight_decay,
            num_train_epochs=num_epochs,
            max_steps=max_steps,
            gradient_accumulation_steps=gradient_accumulation_steps,
            seed=seed,
            activation_checkpointing=activation_checkpointing,
            gradient_checkpointing=activation_checkpointing,
        )

    def set_evaluate(
        self,
        strategy: str = "no",
        steps: int = 500,
        batch_size: int = 8,
        accumulation_steps: int | None = None,
        delay: float | None = None,
        loss_only: bool = False,
        jit_mode: bool = False,
    ) -> Self:
        """Set when and how to evaluate, and `do_eval` accordingly.

        `jit_mode` is of the older generation; True is refused, as `jit_mode_eval` is by the constructor.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_evaluate(strategy="steps", steps=100)
        >>> args.eval_steps, args.do_eval
        (100, True)
        """
        return self._assign(
            eval_strategy=strategy,
            do_eval=strategy != "no",
            eval_steps=_interval(strategy, steps),
            per_device_eval_batch_size=batch_size,
            eval_accumulation_steps=accumulation_steps,
            eval_delay=delay,
            prediction_loss_only=loss_only,
            **_tracing(jit_mode),
        )

    def set_testing(self, batch_size: int = 8, loss_only: bool = False, jit_mode: bool = False) -> Self:
        """Set how to predict on held-out data, and `do_predict`. `jit_mode` is as of `set_evaluate`.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_testing(batch_size=32)
        >>> args.per_device_eval_batch_size, args.do_predict
        (32, True)
        """
        return self._assign(
            do_predict=True,
            per_device_eval_batch_size=batch_size,
            prediction_loss_only=loss_only,
            **_tracing(jit_mode),
        )

    def set_save(
        self, strategy: str = "steps", steps: int = 500, total_limit: int | None = None, on_each_node: bool = False
    ) -> Self:
        """Set when to save, and how many checkpoints to keep.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_save(strategy="steps", steps=100)
        >>> args.save_steps
        100
        """
        return self._assign(
            save_strategy=strategy,
            save_steps=_interval(strategy, steps),
            save_total_limit=total_limit,
            save_on_each_node=on_each_node,
        )

    def set_logging(
        self,
        strategy: str = "steps",
        steps: int = 500,
        report_to: str | list[str] = "none",
        level: str = "passive",
        first_step: bool = False,
        nan_inf_filter: bool = False,
        on_each_node: bool = False,
        replica_level: str = "passive",
    ) -> Self:
        """Set what is logged, when, and to whom.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_logging(strategy="steps", steps=100)
        >>> args.logging_steps, args.logging_nan_inf_filter
        (100, False)
        """
        return self._assign(
            logging_strategy=strategy,
            logging_steps=_interval(strategy, steps),
            report_to=report_to,
            log_level=level,
            logging_first_step=first_step,
            logging_nan_inf_filter=nan_inf_filter,
            log_on_each_node=on_each_node,
            log_level_replica=replica_level,
        )

    def set_push_to_hub(
        self,
        model_id: str,
        strategy: str = "every_save",
        token: str | None = None,
        private_repo: bool | None = None,
        always_push: bool = False,
        revision: str | None = None,
    ) -> Self:
        """Set where and when to push, and `push_to_hub`.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_push_to_hub("me/awesome-model")
        Traceback (most recent call last):
        mainspring.errors.NotAvailableError: push_to_hub=True: this option is not available yet; leave it out
        ...
        """
        return self._assign(
            push_to_hub=True,
            hub_model_id=model_id,
            hub_strategy=strategy,
            hub_token=token,
            hub_private_repo=private_repo,
            hub_always_push=always_push,
            hub_revision=revision,
        )

    def set_optimizer(
        self,
        name: str = "adamw_torch",
        learning_rate: float = 5e-5,
        weight_decay: float = 0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        args: str | None = None,
    ) -> Self:
        """Set the optimizer and its numbers.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_optimizer(name="adamw_torch", beta1=0.8)
        >>> print(args.optim, args.adam_beta1)
        adamw_torch 0.8
        """
        return self._assign(
            optim=name,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            adam_beta1=beta1,
            adam_beta2=beta2,
            adam_epsilon=epsilon,
            optim_args=args,
        )

    def set_lr_scheduler(
        self,
        name: str = "linear",
        num_epochs: float = 3.0,
        max_steps: int = -1,
        warmup_steps: float = 0,
        *,
        warmup_ratio: float | None = None,
    ) -> Self:
        """Set the schedule, and the length and warm-up that shape it.

        `warmup_ratio` is of the older generation: `warmup_steps` below 1 is the same, and above 0 it wins.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_lr_scheduler(name="cosine", warmup_steps=0.05)
        >>> args.warmup_steps
        0.05
        >>> args = args.set_lr_scheduler(name="cosine", warmup_ratio=0.05)
        >>> args.warmup_ratio
        0.05
        """
        older = {} if warmup_ratio is None else {"warmup_ratio": warmup_ratio}
        return self._assign(
            lr_scheduler_type=name,
            num_train_epochs=num_epochs,
            max_steps=max_steps,
            warmup_steps=warmup_steps,
            **older,
        )

    def set_dataloader(
        self,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        prefetch_factor: int | None = None,
        multiprocessing_context: str | None = None,
        in_order: bool = True,
        auto_find_batch_size: bool = False,
        ignore_data_skip: bool = False,
        sampler_seed: int | None = None,
    ) -> Self:
        """Set how batches are made.

        >>> from mainspring import TrainingArguments
        >>> args = TrainingArguments("working_dir")
        >>> args = args.set_dataloader(train_batch_size=16, eval_batch_size=64)
        >>> args.per_device_train_batch_size, args.per_device_eval_batch_size
        (16, 64)
        """
        return self._assign(
            per_device_train_batch_size=train_batch_size,
            per_device_eval_batch_size=eval_batch_size,
            dataloader_drop_last=drop_last,
            dataloader_num_workers=num_workers,
            dataloader_pin_memory=pin_memory,
            dataloader_persistent_workers=persistent_workers,
            dataloader_prefetch_factor=prefetch_factor,
            dataloader_multiprocessing_context=multiprocessing_context,
            dataloader_in_order=in_order,
            auto_find_batch_size=auto_find_batch_size,
            ignore_data_skip=ignore_data_skip,
            data_seed=sampler_seed,
        )


def _interval(strategy: str, steps: float) -> float:
    if strategy == "steps" and steps == 0:
        raise ValueError("steps=0: strategy is 'steps'; set it above 0, or choose another strategy")
    return steps


def _tracing(jit_mode: bool) -> dict[str, Any]:
    """The older option, where it asks for something."""
    return {"jit_mode_eval": jit_mode} if jit_mode else {}
