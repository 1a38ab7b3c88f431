"""Tensor parallelism over gloo: the numbers of one process, whole checkpoints, exact resume, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mainspring.arguments.parallel_sizes import ParallelSizes
from tests.distributed import divided_models as models
from tests.distributed.divided_models import BATCH, ON_FOUR, ON_TWO, WRITERS, Run, numbers, trainer
from tests.distributed.launch import forked
from tests.distributed.worker_divided import texts
from tests.helpers.data import IGNORED

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

Results = list[dict[str, Any]]
"""What each process wrote."""


def _launch(out: Path, processes: int) -> Results:
    forked("tests.distributed.worker_divided", str(out), processes=processes)
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(processes)]


@pytest.fixture(scope="session")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes work; there is a checkpoint of one process alone."""
    out = tmp_path_factory.mktemp("two")
    alone = trainer(ON_TWO["llama"], out / "alone", alone=True, save_strategy="steps", save_steps=2)
    alone.train()
    return out


@pytest.fixture(scope="session")
def two(folder_of_two: Path) -> Results:
    """The results of two processes."""
    return _launch(folder_of_two, 2)


@pytest.fixture(scope="session")
def folder_of_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where four processes work."""
    return tmp_path_factory.mktemp("four")


@pytest.fixture(scope="session")
def four(folder_of_four: Path) -> Results:
    """The results of four processes."""
    return _launch(folder_of_four, 4)


def _check_numbers(run: Run, results: Results, name: str, folder: Path) -> None:
    """Logged losses and norms, weights, evaluations and predictions are those of one process."""
    alone = trainer(run, folder, alone=True)
    before = alone.evaluate()["eval_loss"]
    alone.train()
    output = alone.predict(alone.eval_dataset)
    first = results[0][name]
    for here, there in zip(numbers(alone), first["logs"], strict=True):
        assert here == pytest.approx(there, rel=run.tolerance, abs=run.tolerance)
    _check_weights(alone.model.state_dict(), first["weights"], run.tolerance)
    for result in results:
        assert result[name]["losses"] == pytest.approx([before, output.metrics["test_loss"]], rel=run.tolerance)
        np.testing.assert_array_equal(result[name]["labels"], output.label_ids)
        _check_predictions(output.predictions, result[name]["predictions"], output.label_ids, 10 * run.tolerance)


def _check_predictions(expected: Any, actual: Any, labels: Any, tolerance: float) -> None:
    """Where samples fall into other batches, other places behind them are filled up, which nothing depends on."""
    filled = actual == IGNORED
    assert np.all(labels[..., None][filled[..., :1]] == IGNORED) if actual.ndim == 3 else not filled.any()
    np.testing.assert_allclose(np.where(filled, expected, actual), expected, rtol=0, atol=tolerance)


def _check_weights(expected: dict[str, Any], actual: dict[str, Any], tolerance: float = 0.0) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


# ---- two processes ----


@pytest.mark.parametrize("name", ON_TWO)
def test_two_processes_that_share_layers_train_as_one(name: str, two: Results, tmp_path: Path) -> None:
    """They read the same samples, and nothing of theirs counts twice."""
    _check_numbers(ON_TWO[name], two, name, tmp_path)


@pytest.mark.parametrize("name", ON_TWO)
def test_two_processes_are_what_was_asked_for(name: str, two: Results) -> None:
    """One model between two processes that read one share of the data; half of each divided layer lies on each."""
    for result in two:
        facts = result[name]
        assert facts["world_size"] == 2
        assert facts["engine"] == "Parallel"
        assert facts["data"] == (0, 1)
        assert facts["sizes"] == (2, 1, 1)
        assert facts["accelerate"] == 2
        assert facts["batch"] == BATCH * ON_TWO[name].options.get("gradient_accumulation_steps", 1)
        assert facts["divided"]
    weights = {key: share for key, share in two[0][name]["pieces"].items() if "weight" in key and "norm" not in key}
    if name not in ("odd_vocabulary", "along_the_sequence"):
        assert set(weights.values()) == {0.5}


@pytest.mark.parametrize("name", [*ON_TWO, "dropout"])
def test_what_is_not_divided_stays_the_same(name: str, two: Results) -> None:
    """To the last bit, whatever was dropped: both processes draw the same random numbers."""
    first, second = (result[name] for result in two)
    _check_weights(first["whole"], second["whole"])
    assert first["logs"] == second["logs"]


def test_dropout_drops(two: Results) -> None:
    """The run with dropout is another one than that without."""
    assert two[0]["dropout"]["logs"][0]["loss"] != two[0]["own"]["logs"][0]["loss"]


def test_an_odd_vocabulary_falls_into_unequal_parts(two: Results) -> None:
    """26 of 51 tokens on the first process, 25 on the second."""
    shares = [result["odd_vocabulary"]["pieces"]["lm_head.weight"] * 51 for result in two]
    assert shares == pytest.approx([26, 25])


def test_tied_weights_are_one_tensor(two: Results) -> None:
    """The head has no weight of its own."""
    assert "lm_head.weight" not in two[0]["tied"]["divided"]
    assert "lm_head.weight" in two[0]["llama"]["divided"]


def test_frozen_layers_stay_as_they_were(two: Results) -> None:
    """Dividing a layer does not make it trainable."""
    torch.manual_seed(3)
    before = models.Own().state_dict()
    after = two[0]["own_frozen"]["weights"]
    assert torch.equal(after["up.weight"], before["up.weight"])
    assert not torch.equal(after["down.weight"], before["down.weight"])


def test_every_process_generates_the_texts_of_one(two: Results, tmp_path: Path) -> None:
    """Greedily, after training."""
    alone = trainer(ON_TWO["llama"], tmp_path, alone=True)
    alone.train()
    alone.model.eval()
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = alone.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    for result in two:
        assert torch.equal(result["generated"]["texts"], expected)


@pytest.mark.parametrize("steps", ["straight", "resumed"])
def test_a_resumed_run_of_two_ends_as_the_other(steps: str, two: Results) -> None:
    """To the last bit: weights, optimizer and all that is logged."""
    for result in two:
        assert result["saved"][steps][0] == result["saved"]["straight"][0]
    _check_weights(two[0]["saved"]["straight"][1], two[0]["saved"][steps][1])


def test_a_saved_model_is_opened_by_one_process(two: Results, folder_of_two: Path, tmp_path: Path) -> None:
    """One whole file, under the names of a model that was never divided."""
    from transformers import GPTNeoXForCausalLM

    folder = folder_of_two / "saved" / "model"
    opened = GPTNeoXForCausalLM.from_pretrained(folder)
    _check_weights(two[0]["saved"]["straight"][1], opened.state_dict())
    opened.save_pretrained(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_checkpoint_of_two_is_gone_on_with_by_one(two: Results, folder_of_two: Path, tmp_path: Path) -> None:
    """Weights and optimizer are whole in it."""
    run = ON_TWO["neox"]
    alone = trainer(run, tmp_path, alone=True, optim="adamw_torch_fused", learning_rate=1e-2)
    alone.train(resume_from_checkpoint=str(folder_of_two / "saved" / "checkpoint-2"))
    _check_weights(two[0]["saved"]["straight"][1], alone.model.state_dict(), run.tolerance)


def test_a_checkpoint_of_one_is_gone_on_with_by_two(two: Results, folder_of_two: Path, tmp_path: Path) -> None:
    """Each process takes its pieces of weights and optimizer."""
    alone = trainer(ON_TWO["llama"], tmp_path, alone=True)
    alone.train(resume_from_checkpoint=str(folder_of_two / "alone" / "checkpoint-2"))
    assert numbers(alone)[-1] == pytest.approx(two[0]["from_one"]["logs"][-1], rel=1e-5)
    _check_weights(alone.model.state_dict(), two[0]["from_one"]["weights"], 1e-5)


def test_a_model_that_was_divided_when_it_was_loaded_is_not_divided_again(
    two: Results, folder_of_two: Path, tmp_path: Path
) -> None:
    """`from_pretrained(tp_plan="auto")` says what the sizes are; training and saving are as ever."""
    facts = two[0]["loaded"]
    assert (facts["engine"], facts["sizes"], facts["data"]) == ("Parallel", (2, 1, 1), (0, 1))
    assert set(facts["pieces"].values()) == {0.5}
    _check_weights(two[0]["llama"]["weights"], facts["weights"], 1e-5)
    _check_weights(facts["weights"], load_file(folder_of_two / "loaded" / "model" / "model.safetensors"))
    assert "the model was loaded with tp_size=2" in facts["four"]


COMPLAINTS = {
    "product": "parallelism_config={'tp_size': 4}: the product of the sizes is 4, and the run has 2 processes",
    "context": "torch's ring attention has no kernel for the CPU",
    "sequence": "division of sequences (Ulysses), which is not available yet",
    "no_plan": "Sequential has no plan that says which of its layers are divided",
    "no_such_module": "none of the names is a module of Own",
    "style": "there is no such style; did you mean 'colwise'?",
    "parameter": "it names a parameter, and only whole modules are divided",
    "kind": "dropout is a Dropout, and 'colwise' divides nn.Linear and nn.Embedding",
    "heads": "the model has num_attention_heads=1, which do not fall into 2 equal parts",
    "width": "up has out_features=7, which does not fall into 2 equal parts",
    "shared": "gpt_neox.embed_in and lm_head share one weight, and the plan divides them differently",
    "early": "the optimizer was created before the engine 'parallel' replaced the model's parameters",
    "in_pieces": "lie in pieces on several processes, and the engine 'ddp' wants all of them on each: set fsdp=True",
    "optimizer": "optimizers=(optimizer, ...) cannot be combined with the engine 'parallel'",
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_what_cannot_be_is_refused_by_every_process(name: str, two: Results) -> None:
    """With the reason, and nobody waits for anybody."""
    for result in two:
        assert COMPLAINTS[name] in result["complaints"][name]


# ---- four processes ----


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_processes_train_as_one(name: str, four: Results, tmp_path: Path) -> None:
    """Two groups of two that read different samples, or one group of four."""
    _check_numbers(ON_FOUR[name], four, name, tmp_path)


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_processes_are_what_was_asked_for(name: str, four: Results) -> None:
    """Neighbours share layers and samples; those two apart hold other shards, or copies, and read other samples."""
    run = ON_FOUR[name]
    sizes = ParallelSizes(**run.sizes)
    for rank, result in enumerate(four):
        facts = result[name]
        assert facts["world_size"] == 4
        assert facts["engine"] == ("ParallelShards" if run.shares > 1 else "Parallel")
        assert facts["wrapper"].startswith("FSDP") == (run.shares > 1)
        group = rank // sizes.tp_size
        assert facts["data"] == (group, run.shares)
        assert facts["random"] == group * sizes.tp_size
        assert facts["gathered"] == [share * sizes.tp_size + rank % sizes.tp_size for share in range(run.shares)]
        assert facts["read"] == [[2 * i, 2 * i + 1] for i in range(group, 4, run.shares)]
        assert facts["sizes"] == (sizes.tp_size, 1, 1)
        assert facts["batch"] == BATCH * run.shares * run.options.get("gradient_accumulation_steps", 1)


def test_layers_lie_in_quarters_where_shards_are_divided(four: Results) -> None:
    """Half of a half; copies have halves, and what no plan names is halved by the shards alone."""
    layer, norm = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight", "gpt_neox.layers.0.input_layernorm.weight"
    for result in four:
        assert result["shards"]["pieces"][layer] == 0.25
        assert result["shards"]["pieces"][norm] == 0.5
        assert result["copies"]["pieces"][layer] == 0.5
        assert result["copies"]["pieces"][norm] == 1.0


def test_a_model_that_was_sharded_when_it_was_loaded_is_not_sharded_again(four: Results, folder_of_four: Path) -> None:
    """`from_pretrained(distributed_config=...)` says what the sizes are; training and saving are as ever."""
    for result in four:
        facts = result["loaded"]
        assert (facts["engine"], facts["sizes"], facts["data"][1]) == ("ParallelShards", (2, 1, 1), 2)
        assert facts["pieces"]["model.layers.0.self_attn.q_proj.weight"] == 0.25
        for here, there in zip(facts["expected"], facts["logs"], strict=True):
            assert there == pytest.approx(here, rel=1e-5)
    _check_weights(
        four[0]["loaded"]["weights"], load_file(folder_of_four / "loaded" / "model" / "model.safetensors"), 1e-5
    )


@pytest.mark.parametrize("name", WRITERS)
def test_groups_write_the_texts_of_one_process(name: str, four: Results, tmp_path: Path) -> None:
    """In batches of the same samples, each text once, on every process."""
    expected = texts(WRITERS[name], tmp_path, alone=True, per_device_eval_batch_size=BATCH)
    for result in four:
        np.testing.assert_array_equal(result["texts"][name], expected)


@pytest.mark.parametrize("name", ["saved", "saved_in_pieces", "saved_copies"])
def test_a_resumed_run_of_four_ends_as_the_other(name: str, four: Results) -> None:
    """To the last bit, from whole checkpoints and from those in pieces."""
    for result in four:
        assert result[name]["resumed"][0] == result[name]["straight"][0]
    _check_weights(four[0][name]["straight"][1], four[0][name]["resumed"][1])


@pytest.mark.parametrize("name", ["saved", "saved_in_pieces", "saved_copies"])
def test_a_checkpoint_of_four_is_gone_on_with_by_one(
    name: str, four: Results, folder_of_four: Path, tmp_path: Path
) -> None:
    """In whichever form."""
    run = ON_FOUR["copies" if name == "saved_copies" else "shards"]
    alone = trainer(run, tmp_path, alone=True, optim="adamw_torch_fused", learning_rate=1e-2)
    alone.train(resume_from_checkpoint=str(folder_of_four / name / "checkpoint-2"))
    _check_weights(four[0][name]["straight"][1], alone.model.state_dict(), run.tolerance)
