from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mainspring.checkpoint import LoadReport, load_weights, save_model
from mainspring.errors import CheckpointError
from tests.helpers.data import Items, collate_text, ragged_text
from tests.helpers.models import tiny_gpt2
from tests.helpers.sides import REFERENCE


class Tied(nn.Module):
    """Input and output embeddings share one parameter, as many language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("steps", torch.zeros(()))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def randomise(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def assert_equal(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_plain_module_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    expected = copies(model)
    save_model(model, tmp_path / "new")
    assert names_in(tmp_path / "new") == ["model.safetensors"]
    with safe_open(tmp_path / "new" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    randomise(model)
    assert load_weights(model, tmp_path / "new") == LoadReport()
    assert_equal(model, expected)


def test_loading_keeps_parameters_devices_and_dtypes(tmp_path: Path) -> None:
    save_model(nn.Linear(3, 2), tmp_path)
    model = nn.Linear(3, 2).to(torch.bfloat16)
    model.bias.requires_grad_(False)
    before = list(model.parameters())
    load_weights(model, tmp_path)
    assert all(now is then for now, then in zip(model.parameters(), before, strict=True))
    assert [parameter.dtype for parameter in before] == [torch.bfloat16] * 2
    assert [parameter.requires_grad for parameter in before] == [True, False]


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied()
    expected = copies(model)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == {"embedding.weight", "steps"}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "head.weight": "embedding.weight"}
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert model.head.weight is model.embedding.weight
    assert_equal(model, expected)


def test_tied_weights_stored_under_the_other_name_are_not_missing(tmp_path: Path) -> None:
    model = Tied()
    expected = copies(model)
    save_file({"head.weight": expected["head.weight"], "steps": expected["steps"]}, tmp_path / "model.safetensors")
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


def test_tensors_that_overlap_or_are_not_contiguous_are_stored(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.arange(12.0).reshape(3, 4)
            self.register_buffer("whole", base)
            self.register_buffer("row", base[1])
            self.register_buffer("turned", base.T)
            self.register_buffer("empty", torch.zeros(0))
            self.register_buffer("empty_too", torch.zeros(0))

    model = Views()
    expected = copies(model)
    save_model(model, tmp_path)
    fresh = nn.Module()
    for name, value in expected.items():
        fresh.register_buffer(name, torch.full_like(value, -1))
    assert load_weights(fresh, tmp_path) == LoadReport()
    assert_equal(fresh, expected)


def test_a_given_state_dict_is_what_is_written(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    state = {name: torch.full_like(value, 3) for name, value in model.state_dict().items()}
    save_model(model, tmp_path, state_dict=state)
    assert_equal_files = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(assert_equal_files[name], state[name]) for name in state)


def test_what_is_not_a_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="notes in the state dict is a str, not a tensor"):
        save_model(nn.Linear(1, 1), tmp_path, state_dict={"notes": "hello"})


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    save_model(nn.Linear(1, 1), tmp_path / "a", processing_class=object(), is_main_process=False)
    assert not (tmp_path / "a").exists()


def test_the_processing_class_saves_itself(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: str) -> None:
            Path(folder, "tokenizer.json").write_text("{}")

    save_model(nn.Linear(1, 1), tmp_path, processing_class=Tokenizer())
    assert names_in(tmp_path) == ["model.safetensors", "tokenizer.json"]


def test_wrappers_leave_no_trace_in_the_names(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    wrapped = torch.compile(nn.DataParallel(model))
    save_model(wrapped, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"weight", "bias"}
    expected = copies(model)
    randomise(model)
    assert load_weights(wrapped, tmp_path) == LoadReport()
    assert_equal(model, expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_stored_by_a_wrapper_load(tmp_path: Path, prefix: str) -> None:
    model = nn.Linear(2, 1)
    expected = copies(model)
    save_file({prefix + name: value for name, value in expected.items()}, tmp_path / "model.safetensors")
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


def test_a_model_whose_own_names_look_like_a_wrappers_is_left_alone(tmp_path: Path) -> None:
    model = nn.Module()
    model.module = nn.Linear(2, 1)
    expected = copies(model)
    save_model(model, tmp_path)
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


def test_mismatches_are_reported_and_the_rest_is_loaded(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 2), "scale": torch.ones(1)}, tmp_path / "model.safetensors")
    model = nn.Linear(2, 1)
    report = load_weights(model, tmp_path)
    assert report == LoadReport(missing=("bias",), unexpected=("scale",))
    assert report.messages() == [
        "the checkpoint lacks 1 tensor(s): bias",
        "the model has no 1 tensor(s): scale",
    ]
    assert torch.equal(model.weight, torch.ones(1, 2))


def test_another_shape_is_named(tmp_path: Path) -> None:
    save_model(nn.Linear(3, 1), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"weight has shape \[1, 3\] in .*model\.safetensors but \[1, 2\] in Linear"
    ):
        load_weights(nn.Linear(2, 1), tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_model(nn.Sequential(nn.Linear(2, 1)), tmp_path)
    with pytest.raises(CheckpointError, match=r"weights of another model.*0\.weight.*Linear"):
        load_weights(nn.Linear(2, 1), tmp_path)


def test_nothing_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for model\.safetensors, pytorch_model\.bin, .*index\.json"):
        load_weights(nn.Linear(2, 1), tmp_path)
    with pytest.raises(CheckpointError, match="is not a directory"):
        load_weights(nn.Linear(2, 1), tmp_path / "nowhere")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save_model(nn.Linear(2, 1), tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors could not be read"):
        load_weights(nn.Linear(2, 1), tmp_path)


def test_pickled_weights_load(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    expected = copies(model)
    torch.save(expected, tmp_path / "pytorch_model.bin")
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_load(tmp_path: Path, kind: str) -> None:
    model = Tied()
    expected = copies(model)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    index = {"embedding.weight": f"{stem}-00001-of-00002.{kind}", "steps": f"{stem}-00002-of-00002.{kind}"}
    for name, shard in index.items():
        write = save_file if kind == "safetensors" else torch.save
        write({name: expected[name]}, tmp_path / shard)
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": index}))
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)
    (tmp_path / index["steps"]).unlink()
    with pytest.raises(CheckpointError, match=r"names \w+-00002-of-00002\.\w+, which is missing"):
        load_weights(model, tmp_path)


def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    save_file({"weight": torch.ones(1, 2)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"weight": "../outside.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="not a file beside it"):
        load_weights(nn.Linear(2, 1), folder)


# ---- transformers' models, and what the reference writes ----


def test_a_pretrained_model_opens_with_from_pretrained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_gpt2()
    save_model(model, tmp_path)
    assert {"config.json", "generation_config.json", "model.safetensors"} <= set(names_in(tmp_path))
    assert_equal(type(model).from_pretrained(tmp_path), copies(model))


def test_a_sharded_pretrained_model_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_gpt2()
    expected = copies(model)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


@pytest.mark.parametrize("kind", ["pretrained", "plain"])
def test_checkpoints_of_the_reference_load(tmp_path: Path, kind: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(48, 8), nn.Linear(8, 48)

        def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> dict[str, Tensor]:
            logits = self.head(self.embedding(input_ids))
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}

    torch.manual_seed(0)
    model = tiny_gpt2() if kind == "pretrained" else Plain()
    arguments = REFERENCE.arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    REFERENCE.api.Trainer(
        model=model, args=arguments, train_dataset=Items(ragged_text(8)), data_collator=collate_text
    ).train()
    expected = copies(model)
    randomise(model)
    assert load_weights(model, tmp_path / "checkpoint-2") == LoadReport()
    assert_equal(model, expected)


def test_experts_that_are_stored_apart_are_joined_again(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
        )
    )
    expected = copies(model)
    save_model(model, tmp_path)
    randomise(model)
    parameters = list(model.parameters())
    state = torch.get_rng_state()
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


# ---- adapters ----


def with_adapters(*names: str) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    model = get_peft_model(tiny_gpt2(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.set_adapter(names[-1])
    return randomise(model).train()


@pytest.mark.parametrize("names", [("default",), ("mine",), ("default", "mine"), ("mine", "yours")])
def test_adapters_come_back(tmp_path: Path, names: tuple[str, ...]) -> None:
    model = with_adapters(*names)
    save_model(model, tmp_path)
    expected = copies(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    parameters = dict(model.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    modes = [module.training for module in model.modules()]
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert model.active_adapters == [names[-1]]


@pytest.mark.parametrize("names", [("default",), ("default", "mine")])
def test_adapters_are_described_where_their_weights_are_elsewhere(names: tuple[str, ...], tmp_path: Path) -> None:
    """As peft describes them beside the weights, and not as the model under them."""
    model = with_adapters(*names)
    save_model(model, tmp_path / "described", state_dict={})
    save_model(model, tmp_path / "saved")
    folders = ["", *names[1:]]
    for folder in folders:
        files = (tmp_path / kind / folder / "adapter_config.json" for kind in ("described", "saved"))
        described, saved = (json.loads(file.read_text()) for file in files)
        saved["auto_mapping"] = None  # by which peft finds a class for the weights beside it: none are here
        assert described == saved
    assert len([path for path in (tmp_path / "described").rglob("*") if path.is_file()]) == len(names)
    assert not model.peft_config["default"].inference_mode


def test_adapters_inside_a_pretrained_model_come_back(tmp_path: Path) -> None:
    from peft import LoraConfig

    model = tiny_gpt2()
    model.add_adapter(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True), adapter_name="mine")
    expected = copies(randomise(model))
    save_model(model, tmp_path)
    assert "model.safetensors" not in names_in(tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.zero_()
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


def test_a_mixture_of_adapters_is_stored_whole(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True), mixed=True)
    expected = copies(randomise(model))
    save_model(model, tmp_path)
    randomise(model)
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


def test_adapters_keep_their_dtype(tmp_path: Path) -> None:
    model = with_adapters("default")
    save_model(model, tmp_path)
    model.to(torch.bfloat16)
    load_weights(model, tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_adapter_checkpoint_of_the_reference_loads(tmp_path: Path) -> None:
    model = with_adapters("default")
    arguments = REFERENCE.arguments(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    REFERENCE.api.Trainer(
        model=model, args=arguments, train_dataset=Items(ragged_text(4)), data_collator=collate_text
    ).train()
    expected = copies(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert load_weights(model, tmp_path / "checkpoint-1") == LoadReport()
    assert_equal(model, expected)


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    model = with_adapters("default")
    save_model(model, tmp_path)
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="adapter 'default'"):
        load_weights(model, tmp_path)


def test_a_pickled_adapter_loads(tmp_path: Path) -> None:
    model = with_adapters("default")
    expected = copies(model)
    save_model(model, tmp_path)
    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert load_weights(model, tmp_path) == LoadReport()
    assert_equal(model, expected)


def test_a_malicious_adapter_executes_nothing(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.mkdir, (tmp_path / "executed",))

    model = with_adapters("default")
    save_model(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(Malicious(), tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin was refused"):
        load_weights(model, tmp_path)
    assert not (tmp_path / "executed").exists()


def test_an_adapter_of_another_rank_is_named(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    save_model(with_adapters("default"), tmp_path)
    other = get_peft_model(tiny_gpt2(), LoraConfig(r=3, target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(CheckpointError, match=r"adapter 'default' in .* does not fit the model"):
        load_weights(other, tmp_path)


def test_no_adapter_found_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"looked for adapter_model\.safetensors, adapter_model\.bin, model"):
        load_weights(with_adapters("default"), tmp_path)
