"""Command lines of the older generation: every option string that 4.37 had, beside whatever a script adds itself."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mainspring import HfArgumentParser, TrainingArguments

STRINGS_OF_4_37 = """
--adafactor --adam_beta1 --adam_beta2 --adam_epsilon --auto_find_batch_size --bf16 --bf16_full_eval --data_seed
--dataloader_drop_last --dataloader_num_workers --dataloader_persistent_workers --dataloader_pin_memory
--ddp_backend --ddp_broadcast_buffers --ddp_bucket_cap_mb --ddp_find_unused_parameters --ddp_timeout --debug
--deepspeed --disable_tqdm --dispatch_batches --do_eval --do_predict --do_train --eval_accumulation_steps
--eval_delay --eval_steps --evaluation_strategy --fp16 --fp16_backend --fp16_full_eval --fp16_opt_level --fsdp
--fsdp_config --fsdp_min_num_params --fsdp_transformer_layer_cls_to_wrap --full_determinism
--gradient_accumulation_steps --gradient_checkpointing --gradient_checkpointing_kwargs --greater_is_better
--group_by_length --half_precision_backend --help --hub_always_push --hub_model_id --hub_private_repo --hub_strategy
--hub_token --ignore_data_skip --include_inputs_for_metrics --include_num_input_tokens_seen
--include_tokens_per_second --jit_mode_eval --label_names --label_smoothing_factor --learning_rate
--length_column_name --load_best_model_at_end --local_rank --log_level --log_level_replica --log_on_each_node
--logging_dir --logging_first_step --logging_nan_inf_filter --logging_steps --logging_strategy --lr_scheduler_kwargs
--lr_scheduler_type --max_grad_norm --max_steps --metric_for_best_model --mp_parameters --neftune_noise_alpha
--no_cuda --no_dataloader_pin_memory --no_log_on_each_node --no_logging_nan_inf_filter --no_remove_unused_columns
--no_save_safetensors --no_skip_memory_metrics --num_train_epochs --optim --optim_args --output_dir
--overwrite_output_dir --past_index --per_device_eval_batch_size --per_device_train_batch_size
--per_gpu_eval_batch_size --per_gpu_train_batch_size --prediction_loss_only --push_to_hub --push_to_hub_model_id
--push_to_hub_organization --push_to_hub_token --ray_scope --remove_unused_columns --report_to
--resume_from_checkpoint --run_name --save_on_each_node --save_only_model --save_safetensors --save_steps
--save_strategy --save_total_limit --seed --skip_memory_metrics --split_batches --tf32 --torch_compile
--torch_compile_backend --torch_compile_mode --torchdynamo --tpu_metrics_debug --tpu_num_cores --use_cpu --use_ipex
--use_legacy_prediction_loop --use_mps_device --warmup_ratio --warmup_steps --weight_decay -h
""".split()  # noqa: SIM905 - one a line would be four screens
"""What `HfArgumentParser(TrainingArguments)` of transformers 4.37.2 takes."""


def parse(parser: HfArgumentParser, *words: str) -> tuple[object, ...]:
    return parser.parse_args_into_dataclasses(list(words), look_for_args_file=False)


def test_every_option_string_of_that_version_is_known() -> None:
    parser = HfArgumentParser(TrainingArguments)
    unknown = []
    for string in STRINGS_OF_4_37:
        if string in ("-h", "--help"):
            continue
        with parser._with_older_spellings():
            known = string in parser._option_string_actions
        if not known:
            unknown.append(string)
    assert unknown == []


@pytest.mark.parametrize("string", ["--no_save_safetensors", "--no-save-safetensors"])
def test_what_was_on_can_be_switched_off(string: str) -> None:
    with pytest.warns(FutureWarning, match="^save_safetensors has no effect"):
        (args,) = parse(HfArgumentParser(TrainingArguments), string)
    assert args.save_safetensors is False


def test_another_class_may_have_the_switch() -> None:
    @dataclass
    class Script:
        cuda: bool = True

    args, script = parse(HfArgumentParser((TrainingArguments, Script)), "--no_cuda")
    assert (args.use_cpu, script.cuda) == (False, False)


@pytest.mark.parametrize(
    ("string", "keywords", "words", "expected"),
    [
        ("--no_cuda", {"dest": "cuda", "action": "store_false"}, ["--no_cuda"], {"cuda": False}),
        ("--logging-dir", {"dest": "ldir"}, ["--logging-dir", "x"], {"ldir": "x"}),
    ],
)
def test_a_script_may_take_the_string_for_something_else(
    string: str, keywords: dict[str, str], words: list[str], expected: dict[str, object]
) -> None:
    parser = HfArgumentParser(TrainingArguments)
    parser.add_argument(string, **keywords)
    args, others = parse(parser, *words)
    assert vars(others) == expected
    assert args == TrainingArguments()


def test_a_script_may_take_it_between_two_parses() -> None:
    parser = HfArgumentParser(TrainingArguments)
    _, left_over = parser.parse_known_args(["--overwrite_output_dir", "--mine"])
    assert left_over == ["--mine"]
    parser.add_argument("--overwrite_output_dir", action="store_true")
    parser.add_argument("--mine", action="store_true")
    args, others = parse(parser, "--overwrite_output_dir", "--mine", "--adafactor")
    assert vars(others) == {"overwrite_output_dir": True, "mine": True}
    assert args.optim == "adafactor"
    assert "overwrite_output_dir" not in vars(args)


@pytest.mark.parametrize("words", [["--resume_from_checkpoint", "True"], ["--resume_from_checkpoint=true"]])
def test_resuming_by_a_word_is_a_truth_value(words: list[str]) -> None:
    (args,) = parse(HfArgumentParser(TrainingArguments), *words)
    assert args.resume_from_checkpoint is True
    assert TrainingArguments(resume_from_checkpoint="FALSE").resume_from_checkpoint is False
    assert TrainingArguments(resume_from_checkpoint="auto").resume_from_checkpoint == "auto"


def test_an_abbreviated_token_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        parse(HfArgumentParser(TrainingArguments), "--hub_to", "x", "hf_CANARY")
    assert "CANARY" not in str(caught.value)
    assert "<HUB_TOKEN>" in str(caught.value)
