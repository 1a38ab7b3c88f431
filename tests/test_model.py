"""What is assumed about models: equal to the reference's answers on its own classes, sensible on plain modules."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.trainer_utils import align_special_tokens as reference_align
from transformers.utils import can_return_loss as reference_can_return_loss, find_labels

from mainspring import model as models
from tests.helpers.models import tiny_bert, tiny_gpt2, word_tokenizer


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Any, y: Any = None) -> Any:
        return self.layer(x)


class QuestionAnsweringNet(nn.Module):
    def forward(self, x: Any, my_label: Any, start_positions: Any, end_positions: Any, label_ids: Any = None) -> Any:
        return x


class Inherits(QuestionAnsweringNet):
    """Answers questions too, but not by its name."""


class Returns(nn.Module):
    def forward(self, x: Any, return_loss: bool = True, **kwargs: Any) -> Any:
        return x


def lora(model: Any) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"]))


@pytest.fixture
def group(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# Wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("group")
def test_wrappers_are_taken_off_however_they_nest() -> None:
    model = Plain()
    compiled = torch.compile(model)
    assert isinstance(compiled, nn.Module)
    wrapped = [model, compiled, nn.DataParallel(model), nn.parallel.DistributedDataParallel(model)]
    nested = [nn.parallel.DistributedDataParallel(compiled), torch.compile(nn.DataParallel(model))]
    for wrapper in [*wrapped, *nested]:
        assert isinstance(wrapper, nn.Module)
        assert models.unwrap(wrapper) is model


def test_a_module_that_keeps_another_as_module_is_no_wrapper() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Plain()

    model = Keeps()
    assert models.unwrap(model) is model


def test_peft_models_are_kept_and_looked_into() -> None:
    base = tiny_bert()
    model = lora(base)
    assert models.unwrap(model) is model
    assert models.is_peft(model)
    assert not models.is_peft(base)
    assert models.base_of_peft(model) is base
    assert models.base_of_peft(base) is base
    mixed = peft.PeftMixedModel(tiny_bert(), peft.LoraConfig(r=2, target_modules=["query"]))
    assert models.is_peft(mixed)
    assert type(models.base_of_peft(mixed)).__name__ == "BertForSequenceClassification"


def test_pretrained_models_are_told_from_others() -> None:
    assert models.is_pretrained(tiny_gpt2())
    assert not models.is_pretrained(Plain())


# What forward takes -----------------------------------------------------------------------------------------------

CLASSES = [
    transformers.GPT2LMHeadModel,
    transformers.BertForQuestionAnswering,
    transformers.BertForSequenceClassification,
    transformers.BertForPreTraining,
    transformers.CLIPModel,
    transformers.T5ForConditionalGeneration,
    Plain,
    QuestionAnsweringNet,
    Inherits,
    Returns,
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_labels_and_loss_of_classes_equal_the_reference(cls: type[nn.Module]) -> None:
    assert models.label_names(cls) == find_labels(cls)
    assert models.can_return_loss(cls) == reference_can_return_loss(cls)


def test_a_model_that_returns_its_loss_unasked_is_found() -> None:
    assert models.can_return_loss(Returns())
    assert not models.can_return_loss(Plain())


@pytest.mark.usefixtures("group")
def test_questions_about_forward_look_through_wrappers_and_adapters() -> None:
    model = nn.parallel.DistributedDataParallel(lora(tiny_bert()))
    assert models.label_names(model) == ["labels"]
    assert list(models.forward_parameters(model))[:2] == ["input_ids", "attention_mask"]
    assert models.accepts_loss_kwargs(model)
    assert models.main_input_name(model) == "input_ids"


def test_forward_parameters_keep_their_order_and_omit_self() -> None:
    assert list(models.forward_parameters(Plain())) == list(models.forward_parameters(Plain)) == ["x", "y"]


def reference_trainer(model: nn.Module, tmp_path: Any) -> Any:
    args = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    return transformers.Trainer(model, args)


def tiny_t5() -> Any:
    config = transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


def tiny_llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert, tiny_llama, tiny_t5, Plain, Returns, lambda: lora(tiny_bert())])
def test_loss_arguments_and_shifts_equal_the_reference(make: Any, tmp_path: Any) -> None:
    model = make()
    theirs = reference_trainer(model, tmp_path)
    assert models.accepts_loss_kwargs(model) == theirs.model_accepts_loss_kwargs
    assert models.shifts_labels(model, by_declaration=True) == theirs._loss_shifts_labels
    assert models.label_names(model) == theirs.label_names


@pytest.mark.parametrize("declared", [True, False])
def test_a_models_own_word_on_loss_arguments_wins(declared: bool) -> None:
    for model in (Plain(), Returns(), tiny_bert()):
        model.accepts_loss_kwargs = declared
        assert models.accepts_loss_kwargs(model) is declared


def test_a_causal_loss_shifts_and_that_of_an_encoder_decoder_does_not() -> None:
    llama, t5 = tiny_llama(), tiny_t5()
    assert models.shifts_labels(llama)
    assert LOSS_MAPPING[t5.loss_type] is ForCausalLMLoss
    assert not models.shifts_labels(t5)
    assert not models.shifts_labels(Plain())


def test_labels_shift_as_the_loss_in_use_does_not_as_the_class_declares() -> None:
    """GPT-2 declares no loss type, and its loss leaves out each row's first label all the same."""
    model = tiny_gpt2()
    ids = torch.randint(0, model.config.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))
    whole = model(input_ids=ids, labels=ids).loss
    without_first = model(input_ids=ids, labels=torch.where(torch.arange(6) == 0, -100, ids)).loss
    assert torch.equal(whole, without_first)
    assert models.shifts_labels(model)
    assert not models.shifts_labels(model, by_declaration=True)


def test_causal_language_models_are_those_of_the_list() -> None:
    assert models.is_causal_lm(tiny_gpt2())
    assert models.is_causal_lm(tiny_llama())
    assert not models.is_causal_lm(tiny_bert())
    assert not models.is_causal_lm(Plain())


def test_main_input_is_the_models_or_input_ids() -> None:
    class Sounds(Plain):
        main_input_name = "x"

    assert models.main_input_name(Plain()) == "input_ids"
    assert models.main_input_name(Sounds()) == "x"


def test_columns_are_forwards_arguments_and_labels_without_repetition() -> None:
    assert models.signature_columns(Plain(), ["y", "target"]) == ["x", "y", "label", "label_ids", "target"]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert, Plain, lambda: lora(tiny_bert())])
def test_columns_equal_the_reference(make: Any, tmp_path: Any) -> None:
    model = make()
    theirs = reference_trainer(model, tmp_path)
    theirs._set_signature_columns_if_needed()
    assert set(models.signature_columns(model, theirs.label_names)) == set(theirs._signature_columns)


def test_a_label_argument_is_refused_unless_there_is_labels() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Any, label: Any = None) -> Any:
            return x

    class Right(nn.Module):
        def forward(self, x: Any, label: Any = None, labels: Any = None) -> Any:
            return x

    with pytest.raises(ValueError, match=r"Wrong.forward takes 'label'.*rename the argument to 'labels'"):
        models.refuse_label_argument(Wrong())
    models.refuse_label_argument(Right())
    models.refuse_label_argument(tiny_bert())


# Size and cost ----------------------------------------------------------------------------------------------------


def test_parameters_are_counted_once_and_by_what_is_trained() -> None:
    model = tiny_gpt2()
    assert models.param_count(model) == model.num_parameters()
    model.transformer.wte.requires_grad_(False)
    assert models.param_count(model, trainable_only=True) == model.num_parameters(only_trainable=True)
    partitioned = Plain()
    partitioned.layer.weight.data = torch.empty(0)
    partitioned.layer.weight.ds_numel = 4  # type: ignore[attr-defined]
    assert models.param_count(partitioned) == 6


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert, Plain, lambda: lora(tiny_bert())])
def test_operations_equal_the_reference(make: Any, tmp_path: Any) -> None:
    model = make()
    inputs = {"input_ids": torch.ones(3, 5, dtype=torch.long), "labels": torch.ones(3)}
    assert models.FlopCounter(model)(inputs) == reference_trainer(model, tmp_path).floating_point_ops(inputs)
    assert models.FlopCounter(model)({"labels": torch.ones(3)}) == 0


def test_parameters_for_operations_are_counted_once() -> None:
    class Counts(Plain):
        calls = 0

        def num_parameters(self, exclude_embeddings: bool = False) -> int:
            assert exclude_embeddings
            self.calls += 1
            return 10

    model = Counts()
    counter = models.FlopCounter(nn.DataParallel(model))
    assert [counter({"input_ids": torch.ones(2, n)}) for n in (1, 3)] == [120.0, 360.0]
    assert model.calls == 1


def test_a_count_of_ones_own_needs_not_know_embeddings() -> None:
    class Counts(Plain):
        def num_parameters(self) -> int:
            return 10

    assert models.FlopCounter(Counts())({"input_ids": torch.ones(1)}) == 60.0


def test_a_models_own_estimate_of_operations_wins() -> None:
    class Estimates(Plain):
        def floating_point_ops(self, inputs: dict[str, Any]) -> int:
            return 7 * len(inputs)

        def num_parameters(self, exclude_embeddings: bool = False) -> int:
            raise AssertionError("asked for all the same")

    assert models.FlopCounter(Estimates())({"input_ids": torch.ones(2), "y": 1}) == 14.0


# Special tokens ---------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, 3, 1, [3], [1, 3], [3, 1], [1, 2]]


class Config(SimpleNamespace):
    def get_text_config(self) -> Any:
        return getattr(self, "text", self)


def configured(name: str, config: Any, generation: Any) -> Any:
    blank = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    made = SimpleNamespace(config=Config(**{**blank, name: config}))
    if generation != "absent":
        made.generation_config = SimpleNamespace(**{**blank, name: generation})
    return made


@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("token", [None, 3])
def test_alignment_equals_the_reference_whatever_the_configurations_hold(
    name: str, token: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = SimpleNamespace(**{"eos_token_id": None, "bos_token_id": None, "pad_token_id": None, name: token})
    monkeypatch.setattr(models, "_tokenizer_of", lambda processing_class: processing_class)
    for config, generation in itertools.product(VALUES, ["absent", *VALUES]):
        ours, theirs = configured(name, config, generation), configured(name, config, generation)
        before = repr(ours)
        changed = models.align_special_tokens(ours, tokenizer)
        reference_align(theirs, tokenizer)
        assert repr(ours) == repr(theirs), (config, generation)
        assert (changed == {name: token}) == (repr(ours) != before), (config, generation)


def test_a_tokenizer_sets_model_and_generation_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = tiny_gpt2(), tiny_gpt2()
    for model in (ours, theirs):
        model.config.pad_token_id = None
        model.config.eos_token_id = 7
    logging.getLogger("mainspring").propagate = True
    with caplog.at_level(logging.WARNING):
        assert models.align_special_tokens(ours, word_tokenizer()) == {"eos_token_id": 2, "pad_token_id": 0}
    assert "{'eos_token_id': 2, 'pad_token_id': 0}" in caplog.text
    reference_align(theirs, word_tokenizer())
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert models.align_special_tokens(ours, word_tokenizer()) == {}


def test_the_tokenizer_of_a_processor_is_used() -> None:
    class Processor(transformers.ProcessorMixin):  # type: ignore[misc]
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

    model = tiny_gpt2()
    model.config.eos_token_id = 7
    assert models.align_special_tokens(model, Processor(word_tokenizer())) == {"eos_token_id": 2}


def test_the_text_part_of_a_configuration_is_set() -> None:
    model = configured("eos_token_id", 1, "absent")
    model.config.text = SimpleNamespace(eos_token_id=1, bos_token_id=1, pad_token_id=0)
    assert models.align_special_tokens(model, word_tokenizer()) == {"eos_token_id": 2}
    assert (model.config.text.eos_token_id, model.config.eos_token_id) == (2, 1)


def test_nothing_is_aligned_with_other_processors_or_without_configuration() -> None:
    class Tokenizer:
        eos_token_id = 2

    model = tiny_gpt2()
    model.config.eos_token_id = 7
    assert models.align_special_tokens(model, Tokenizer()) == {}
    assert models.align_special_tokens(model, None) == {}
    assert model.config.eos_token_id == 7
    assert models.align_special_tokens(Plain(), word_tokenizer()) == {}


# Imports ----------------------------------------------------------------------------------------------------------


def test_nothing_is_imported_to_look_at_a_plain_module() -> None:
    code = """
import sys
from torch import nn
from mainspring import loss, model, optimizers, schedulers, seeding
net = nn.Linear(2, 2)
model.unwrap(net), model.is_peft(net), model.is_pretrained(net), model.label_names(net), model.shifts_labels(net)
model.is_causal_lm(net), model.align_special_tokens(net, object()), model.accepts_loss_kwargs(net)
print(sorted({"transformers", "peft", "datasets", "pandas", "torch._dynamo"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    assert done.stdout.strip() == "[]"
