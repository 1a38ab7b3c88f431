"""Recomputing activations: the same gradients to the last bit with fewer tensors kept, in models of any kind."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from mainspring import Trainer, TrainingArguments
from mainspring.errors import OptionError
from mainspring.model_features import recompute
from mainspring.model_features.layers import repeated_layers
from tests.helpers import data
from tests.helpers.models import tiny_bert, tiny_gpt2
from tests.helpers.sides import REFERENCE, SUBJECT, Side

CPU = torch.device("cpu")
IDS = torch.arange(3, 43).view(4, 10)


# Models -----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """What is hard to compute twice: random numbers, running statistics, a tensor that comes by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        self.calls += 1
        return x + self.drop(self.norm(self.mix(x)).tanh()) * scale


class Blocks(nn.Module):
    """Four blocks and a scale for all of them, between layers of other kinds."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        for block in self.blocks:
            x = block(x, scale=self.scale)
        out = self.head(x).squeeze(-1)
        return {"logits": out} if labels is None else {"loss": (out - labels).square().mean(), "logits": out}


class EncoderDecoder(nn.Module):
    """Layers of torch's own, in two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(8, 2, 2, 3, 16, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.inner(x, x).square().mean()}


class Stages(nn.Module):
    """Blocks in lists in a list, as convolutional networks have them."""

    def __init__(self) -> None:
        super().__init__()
        kind = nn.TransformerEncoderLayer
        self.stages = nn.Sequential(
            *(nn.Sequential(*(kind(8, 2, 16, 0.1, batch_first=True) for _ in range(count))) for count in (2, 3))
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.stages(x).square().mean()}


def llama(**changes: Any) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=48, num_hidden_layers=4, attention_dropout=0.2, use_cache=False, **{**sizes, **changes}
    )
    return transformers.LlamaForCausalLM(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=48,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.2,
        decoder_start_token_id=0,
        use_cache=False,
    )
    return transformers.T5ForConditionalGeneration(config)


def gpt2() -> Any:
    model = tiny_gpt2(0.2)
    model.config.use_cache = False
    return model


def points() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"x": torch.randn(6, 8, generator=generator), "labels": torch.randn(6, generator=generator)}


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "gpt2": (gpt2, {"input_ids": IDS, "labels": IDS}),
    "bert": (lambda: tiny_bert(0.2), {"input_ids": IDS, "labels": torch.tensor([0, 1, 0, 1])}),
    "t5": (t5, {"input_ids": IDS, "labels": IDS}),
    "llama": (llama, {"input_ids": IDS, "labels": IDS}),
    "blocks": (Blocks, points()),
    "encoder and decoder": (EncoderDecoder, {"x": torch.linspace(-1, 1, 192).view(4, 6, 8)}),
    "stages": (Stages, {"x": torch.linspace(-1, 1, 192).view(4, 6, 8)}),
}
OPTIONS: dict[str, dict[str, Any] | None] = {
    "by default": None,
    "reentrant": {"use_reentrant": True},
    "every second layer": {"every_n_layers": 2},
    "as selective": {"use_reentrant": False, "determinism_check": "none", "early_stop": False},
}


SUMMED_OTHERWISE = {("t5", "reentrant")}
"""Several layers use one tensor, the encoder's output, and its gradients are added up in another order."""


class Result:
    """One forward and backward pass: gradients, buffers, and how many bytes the graph kept."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor], turn_on: Callable[[nn.Module], Any]) -> None:
        self.model = model.train()
        self.kept = 0
        end = turn_on(model)
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
            loss = self.model(**inputs)["loss"]
        loss.backward()
        self.drawn = torch.rand(())
        self.gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        if end is not None:
            end()

    def _keep(self, tensor: Tensor) -> Tensor:
        self.kept += tensor.numel() * tensor.element_size()
        return tensor

    def close(self, other: Result) -> bool:
        """The same but for rounding."""
        return all(torch.allclose(value, other.gradients[name], 1e-4, 1e-7) for name, value in self.gradients.items())

    def same(self, other: Result) -> bool:
        return all(
            torch.equal(value, getattr(other, part)[name])
            for part in ("gradients", "buffers")
            for name, value in getattr(self, part).items()
        ) and torch.equal(self.drawn, other.drawn)


def of(make: Callable[[], nn.Module], inputs: dict[str, Tensor], turn_on: Callable[[nn.Module], Any]) -> Result:
    torch.manual_seed(0)
    return Result(make(), inputs, turn_on)


def ours(kwargs: dict[str, Any] | None) -> Callable[[nn.Module], Any]:
    return lambda model: recompute.start(model, kwargs, CPU)


def leave(model: nn.Module) -> None:
    """Everything is kept."""


# Gradients and memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_kept_activations_and_less_is_kept(name: str, option: str) -> None:
    kept, recomputed = of(*MODELS[name], leave), of(*MODELS[name], ours(OPTIONS[option]))
    assert recomputed.close(kept) if (name, option) in SUMMED_OTHERWISE else recomputed.same(kept)
    assert recomputed.kept < (0.85 if option == "every second layer" else 0.7) * kept.kept


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama"])
def test_what_is_kept_and_computed_is_the_references(name: str, option: str) -> None:
    def reference(model: Any) -> None:
        given = dict(OPTIONS[option] or {})
        chosen = {"every_n_layers": given.pop("every_n_layers", 1)}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=given or None, **chosen)

    theirs, mine = of(*MODELS[name], reference), of(*MODELS[name], ours(OPTIONS[option]))
    assert mine.same(theirs)
    assert mine.kept == theirs.kept


def test_without_the_state_of_random_numbers_dropout_differs() -> None:
    """As torch says; the keyword arrives."""
    kept = of(*MODELS["blocks"], leave)
    assert not of(*MODELS["blocks"], ours({"preserve_rng_state": False})).same(kept)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_first_layer_gets_gradients_where_inputs_require_none(reentrant: bool) -> None:
    inputs = MODELS["stages"][1]
    assert not inputs["x"].requires_grad
    result = of(*MODELS["stages"], ours({"use_reentrant": reentrant}))
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in result.gradients.values())


def test_a_context_is_entered_forwards_and_again() -> None:
    entered: list[str] = []

    class Noting:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            entered.append(self.name)

        def __exit__(self, *error: object) -> None:
            pass

    of(*MODELS["blocks"], ours({"context_fn": lambda: (Noting("forward"), Noting("again"))}))
    assert entered == ["forward"] * 4 + ["again"] * 4


# Layers -----------------------------------------------------------------------------------------------------------


def test_the_layers_are_those_that_repeat() -> None:
    assert repeated_layers(blocks := Blocks()) == list(blocks.blocks)
    both = EncoderDecoder()
    assert repeated_layers(both) == [*both.inner.encoder.layers, *both.inner.decoder.layers]
    stages = Stages()
    assert repeated_layers(stages) == [layer for stage in stages.stages for layer in stage]


def test_a_list_of_single_layers_of_torch_is_no_list_of_blocks() -> None:
    """A linear layer keeps its input only: there is nothing to gain."""
    assert repeated_layers(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])) == []
    assert repeated_layers(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))) == []


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_first_of_every_n_layers_computes_twice(every: int) -> None:
    model = of(*MODELS["blocks"], ours({"every_n_layers": every})).model
    assert [block.calls for block in model.blocks] == [2 if place % every == 0 else 1 for place in range(4)]


def test_it_ends_and_leaves_the_model_as_it_was() -> None:
    model = Blocks()
    before = {name: type(module) for name, module in model.named_modules()}
    end = recompute.start(model, None, CPU)
    assert isinstance(model.blocks[0], Block)
    assert type(model.blocks[0]).__name__ == "Block"
    model.train()(**points())["loss"].backward()
    end()
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all("_recomputing" not in vars(module) for module in model.modules())


def test_copies_and_pickles_are_of_the_class_that_was_written() -> None:
    model = Blocks()
    recompute.start(model, None, CPU)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(copied.blocks[0]) is Block
        assert copied.blocks[0].mix.weight is not model.blocks[0].mix.weight
        assert torch.equal(copied.blocks[0].mix.weight, model.blocks[0].mix.weight)


def test_evaluations_compute_once() -> None:
    model = Blocks()
    recompute.start(model, None, CPU)
    model.eval()(**points())["loss"].backward()
    with torch.no_grad():
        model.train()(**points())
    assert [block.calls for block in model.blocks] == [2] * 4


def test_layers_that_nobody_calls_are_told_of() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            for block in self.blocks:
                x = block.mix(x)
            return {"loss": x.mean()}

    with pytest.warns(UserWarning, match=r"activation_checkpointing=True: had no effect, .*\(Block\)"):
        of(Apart, {"x": torch.ones(2, 8)}, ours(None))


def test_a_model_without_repeated_layers_says_so() -> None:
    with pytest.raises(OptionError, match="activation_checkpointing=True: Linear has no list .* of one class"):
        recompute.start(nn.Linear(2, 2), None, CPU)


# Models with methods of their own ---------------------------------------------------------------------------------


class Older(Blocks):
    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = "default") -> None:
        self.given = gradient_checkpointing_kwargs


class Newer(Older):
    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        self.given = kwargs


def test_a_model_is_given_what_was_given_and_no_more() -> None:
    older, newer = Older(), Newer()
    recompute.start(older, None, CPU)
    assert older.given == "default"
    recompute.start(older, {"use_reentrant": True}, CPU)
    assert older.given == {"use_reentrant": True}
    options = {"use_reentrant": True, "every_n_layers": 2}
    recompute.start(newer, options, CPU)
    assert newer.given == {"activation_checkpointing_kwargs": {"use_reentrant": True}, "every_n_layers": 2}
    assert options == {"use_reentrant": True, "every_n_layers": 2}


def test_the_way_is_always_said_where_other_keywords_are() -> None:
    """Torch refuses to choose by itself."""
    recompute.start(older := Older(), {"preserve_rng_state": True}, CPU)
    assert older.given == {"use_reentrant": False, "preserve_rng_state": True}


def test_a_method_that_cannot_choose_layers_is_passed_over() -> None:
    model = of(Older, points(), ours({"every_n_layers": 2})).model
    assert not hasattr(model, "given")
    assert [block.calls for block in model.blocks] == [2, 1, 2, 1]


class WithOlderMethod(transformers.LlamaForCausalLM):
    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        self.given = gradient_checkpointing_kwargs


def test_a_method_written_for_the_older_generation_is_called_as_that_did() -> None:
    model = WithOlderMethod(llama().config)
    with pytest.raises(TypeError, match="every_n_layers"):
        model.activation_checkpointing_enable()  # the reference's way
    recompute.start(model, {"use_reentrant": True}, CPU)
    assert model.given == {"use_reentrant": True}


class Unsupported(transformers.LlamaForCausalLM):
    supports_gradient_checkpointing = False


def test_a_pretrained_model_that_cannot_do_it_itself_does_it_by_layers() -> None:
    config = llama().config
    inputs = MODELS["llama"][1]
    kept, recomputed = of(lambda: Unsupported(config), inputs, leave), of(lambda: Unsupported(config), inputs, ours({}))
    assert recomputed.same(kept)
    assert recomputed.kept < 0.5 * kept.kept


@pytest.mark.parametrize("reentrant", [False, True])
def test_adapters_of_a_frozen_model_get_their_gradients(reentrant: bool) -> None:
    def adapted() -> Any:
        return peft.get_peft_model(llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))

    inputs = MODELS["llama"][1]
    kept, recomputed = of(adapted, inputs, leave), of(adapted, inputs, ours({"use_reentrant": reentrant}))
    trained = {name for name, gradient in kept.gradients.items() if gradient is not None}
    assert len(trained) == 8
    assert all(torch.equal(kept.gradients[name], recomputed.gradients[name]) for name in trained)
    assert recomputed.kept < kept.kept


def test_a_method_that_forgets_frozen_embeddings_is_helped() -> None:
    """Older versions of transformers leave them as they are, and the adapters below without gradients."""
    adapted = peft.get_peft_model(WithOlderMethod(llama().config), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    embeddings = adapted.get_base_model().get_input_embeddings()
    assert not embeddings(IDS).requires_grad
    recompute.start(adapted, {"use_reentrant": True}, CPU)
    assert embeddings(IDS).requires_grad


# Options ----------------------------------------------------------------------------------------------------------

WRONG = {
    "every_layer": (1, "'every_layer' is neither .*; did you mean 'every_n_layers'"),
    "every_n_layers": (0, "every_n_layers is no number of layers .*; give 1 or more"),
    "offload": ("yes", "offload is a str, not bool"),
    "use_reentrant": (None, "use_reentrant is a NoneType, not bool"),
}


@pytest.mark.parametrize("name", WRONG)
def test_keywords_are_refused_by_name(name: str) -> None:
    value, message = WRONG[name]
    with pytest.raises(OptionError, match=f"activation_checkpointing_kwargs=.*{message}"):
        recompute.start(Blocks(), {name: value}, CPU)
    with pytest.raises(OptionError, match=message):
        TrainingArguments("out", use_cpu=True, gradient_checkpointing=True, gradient_checkpointing_kwargs={name: value})


def test_offloading_on_the_cpu_is_told_of_and_left_out() -> None:
    with pytest.warns(UserWarning, match="'offload': True.*has no effect, because the model is trained on the CPU"):
        recomputed = of(*MODELS["llama"], ours({"offload": True}))
    assert recomputed.same(of(*MODELS["llama"], leave))
    model = llama().train()
    model.activation_checkpointing_enable(offload=True)
    with pytest.raises(RuntimeError, match="pin_memory=True requires"):
        model(**MODELS["llama"][1])  # the reference


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["llama", "stages"])
def test_offloaded_activations_leave_the_device(name: str) -> None:
    device = torch.device("cuda")
    make, inputs = MODELS[name]
    inputs = {key: value.to(device) for key, value in inputs.items()}

    def on(model: nn.Module, offload: bool) -> Any:
        model.to(device)
        return recompute.start(model, {"offload": offload}, device)

    there = of(make, inputs, lambda model: on(model, False))
    away = of(make, inputs, lambda model: on(model, True))
    assert away.same(there)
    assert away.kept < there.kept


# In training ------------------------------------------------------------------------------------------------------

PLAIN = Side(SUBJECT.name, SUBJECT.package, {})


def trained(side: Side, model: nn.Module, folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    texts = data.Items(data.ragged_text(12, seed=1))
    args = side.arguments(folder, max_steps=3, seed=3, **options)
    trainer = side.api.Trainer(model, args, data_collator=data.collate_text, train_dataset=texts)
    trainer.train()
    return trainer


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.parity
@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_is_the_references(option: str, tmp_path: Path) -> None:
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": OPTIONS[option]}
    theirs, mine = (trained(side, seeded(gpt2), tmp_path / side.name, **options) for side in (REFERENCE, SUBJECT))
    kept = trained(SUBJECT, seeded(gpt2), tmp_path / "kept")
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(mine.model.state_dict()[name], value)
        assert torch.equal(mine.model.state_dict()[name], kept.model.state_dict()[name])
    assert mine.model.is_activation_checkpointing
    assert mine.model.config.use_cache is False


def rows(count: int) -> data.Items:
    generator = torch.Generator().manual_seed(2)
    return data.Items([{"x": x, "labels": x.sum()} for x in torch.randn(count, 8, generator=generator)])


def of_blocks(folder: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    args = PLAIN.arguments(folder, max_steps=4, **options)
    return Trainer(Blocks(), args, train_dataset=rows(16), eval_dataset=rows(8))


def test_a_plain_module_is_trained_and_resumed_as_without(tmp_path: Path) -> None:
    options = {"activation_checkpointing": True, "eval_strategy": "steps", "eval_steps": 2}
    saves = {"save_strategy": "steps", "save_steps": 2}
    (kept := of_blocks(tmp_path / "kept", **{**options, "activation_checkpointing": False})).train()
    (whole := of_blocks(tmp_path / "whole", **options, **saves)).train()
    assert [block.calls for block in whole.model.blocks] == [12] * 4  # 4 updates twice, 2 evaluations of 2 batches
    (resumed := of_blocks(tmp_path / "whole", **options, **saves)).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
    )
    for name, value in kept.model.state_dict().items():
        assert torch.equal(whole.model.state_dict()[name], value)
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert all(type(block) is Block for block in whole.model.blocks)


def test_training_that_fails_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    class Failing(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            super().training_step(*args, **kwargs)
            raise ZeroDivisionError("a mistake")

    trainer = Failing(
        Blocks(), PLAIN.arguments(tmp_path, max_steps=1, activation_checkpointing=True), train_dataset=rows(4)
    )
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert all(type(block) is Block for block in trainer.model.blocks)


def test_an_optimizer_in_the_backward_pass_finds_the_same(tmp_path: Path) -> None:
    options = {"optimizer_in_backward": True, "max_grad_norm": 0.0}
    (kept := of_blocks(tmp_path / "kept", **options)).train()
    (recomputed := of_blocks(tmp_path / "again", activation_checkpointing=True, **options)).train()
    for name, value in kept.model.state_dict().items():
        assert torch.equal(recomputed.model.state_dict()[name], value)


def test_a_compiled_model_recomputes_too(tmp_path: Path) -> None:
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    (kept := of_blocks(tmp_path / "kept", **compiled)).train()
    (recomputed := of_blocks(tmp_path / "again", activation_checkpointing=True, **compiled)).train()
    for name, value in kept.model.state_dict().items():
        assert torch.equal(recomputed.model.state_dict()[name], value)


def test_two_trainings_in_a_row_recompute_once_each(tmp_path: Path) -> None:
    trainer = of_blocks(tmp_path, activation_checkpointing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()
        first = trainer.model.blocks[0].calls
        trainer.train()
    assert (first, trainer.model.blocks[0].calls) == (8, 16)
