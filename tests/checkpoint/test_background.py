from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from mainspring.checkpoint import clean_stages, load_weights, save_model, save_torch, staged
from mainspring.checkpoint.background import BackgroundWriter
from mainspring.checkpoint.deferral import deferred, write
from mainspring.checkpoint.manifest import Facts, read_manifest, verify
from mainspring.checkpoint.staging import Stage
from tests.helpers.models import tiny_bert, tiny_gpt2, word_tokenizer


def contents(folder: Path) -> dict[str, Any]:
    return {str(path.relative_to(folder)): content(path) for path in folder.rglob("*") if path.is_file()}


def content(file: Path) -> Any:
    """The bytes, with the metadata of safetensors taken apart: it writes them in an order that varies by itself."""
    data = file.read_bytes()
    if file.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header.pop("__metadata__"), list(header.items()), data[end:]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def later(job: Callable[[], object]) -> None:
    """Inside a save: do this in its thread, before what is written after."""
    write(lambda _: job(), None)


def fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    writer = BackgroundWriter()
    yield writer
    writer.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a save waits for; opened at the end whatever happens, so that a failing test does not hang."""
    gate = threading.Event()
    yield gate
    gate.set()


# ---- what is written ----


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False), nn.BatchNorm1d(7))
    model[1].weight = model[0].weight
    return model


def sliced() -> nn.Module:
    whole = torch.randn(12)
    return nn.ParameterDict({"a": whole[:6].view(2, 3), "b": whole[3:9], "c": nn.Parameter(whole.view(3, 4).t())})


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, modules_to_save=["ln_f"])
    model = get_peft_model(tiny_gpt2(), config)
    model.add_adapter("other", config)
    return model


def prompt() -> nn.Module:
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(tiny_gpt2(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


def adapter_inside() -> nn.Module:
    from peft import LoraConfig

    model = tiny_gpt2()
    model.add_adapter(LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    return model


MODELS = {
    "plain": lambda: nn.Linear(3, 2),
    "tied": tied,
    "sliced": sliced,
    "half": lambda: nn.Linear(3, 2).bfloat16(),
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
    "compiled": lambda: torch.compile(tiny_bert()),
    "lora": lora,
    "prompt tuning": prompt,
    "an adapter inside": adapter_inside,
}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


def save(model: nn.Module, optimizer: torch.optim.Optimizer, stage: Path) -> None:
    save_model(model, stage, processing_class=word_tokenizer())
    save_torch(optimizer.state_dict(), stage / "optimizer.pt")


@pytest.mark.parametrize("name", MODELS)
def test_the_files_are_those_of_the_moment_of_saving(
    name: str, tmp_path: Path, writer: BackgroundWriter, gate: threading.Event
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    optimizer = optimizer_of(model)
    for round_ in ("1", "2"):  # the second copies into the memory of the first
        with staged(tmp_path / "expected" / round_) as stage:
            save(model, optimizer, stage)
        with writer.staged(tmp_path / "actual" / round_) as stage:
            later(partial(gate.wait, 60))
            save(model, optimizer, stage)
            assert not list(stage.rglob("*.safetensors"))
            assert not (stage / "optimizer.pt").exists()
        optimizer.step()  # training goes on before the first byte is written
        gate.set()
        assert [save.error for save in writer.drain()] == [None]
        assert contents(tmp_path / "actual" / round_) == contents(tmp_path / "expected" / round_)
        gate.clear()
    assert contents(tmp_path / "actual" / "1") != contents(tmp_path / "actual" / "2")


def test_an_untouched_model_is_read_back(tmp_path: Path, writer: BackgroundWriter) -> None:
    model = tiny_gpt2()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with writer.staged(tmp_path / "checkpoint-1") as stage:
        save_model(model, stage)
    writer.drain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_weights(model, tmp_path / "checkpoint-1")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_model_that_writes_in_its_own_way_does_so_at_once(tmp_path: Path, writer: BackgroundWriter) -> None:
    from transformers import GPT2LMHeadModel

    class Own(GPT2LMHeadModel):
        def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
            super().save_pretrained(save_directory, **kwargs)
            size = os.path.getsize(os.path.join(save_directory, "model.safetensors"))
            (Path(save_directory) / "size").write_text(str(size))

    with writer.staged(tmp_path / "checkpoint-1") as stage:
        save_model(Own(tiny_gpt2().config), stage)
        assert {"model.safetensors", "size"} <= set(names_in(stage))


def test_what_others_write_into_the_stage_is_written_at_once(tmp_path: Path, writer: BackgroundWriter) -> None:
    with writer.staged(tmp_path / "checkpoint-1") as stage:
        tiny_gpt2().save_pretrained(stage / "teacher")
        torch.save({}, stage / "mine.pt")
        assert sorted(contents(stage)) == [
            "mine.pt",
            "teacher/config.json",
            "teacher/generation_config.json",
            "teacher/model.safetensors",
        ]
        save_torch({}, stage / "ours.pt")
    writer.drain()
    assert names_in(tmp_path / "checkpoint-1") == ["mine.pt", "ours.pt", "teacher"]


def test_another_thread_that_saves_meanwhile_is_not_deferred(tmp_path: Path, writer: BackgroundWriter) -> None:
    def elsewhere() -> None:
        save_model(tiny_gpt2(), tmp_path / "elsewhere")
        save_torch({}, tmp_path / "elsewhere" / "state.pt")

    with writer.staged(tmp_path / "checkpoint-1"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert {"model.safetensors", "state.pt"} <= set(names_in(tmp_path / "elsewhere"))


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    from transformers import modeling_utils

    before = modeling_utils.safe_save_file
    with deferred(lambda state: state) as jobs:
        save_model(tiny_gpt2(), tmp_path)
        assert modeling_utils.safe_save_file is before
    assert len(jobs) == 1


def test_a_relative_folder_is_where_it_was_when_the_save_began(
    tmp_path: Path, writer: BackgroundWriter, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with writer.staged("out/checkpoint-1") as stage:
        later(partial(gate.wait, 60))
        save_model(nn.Linear(2, 1), stage)
    monkeypatch.chdir(tmp_path / "elsewhere")
    gate.set()
    assert [save.folder for save in writer.drain()] == [tmp_path / "out" / "checkpoint-1"]
    assert names_in(tmp_path / "out" / "checkpoint-1") == ["model.safetensors"]


def test_the_manifest_is_made_of_the_files_that_were_written_later(
    tmp_path: Path, writer: BackgroundWriter, gate: threading.Event
) -> None:
    facts = Facts(run_id="mine", step=1, samples=8)
    model = nn.Linear(3, 2)
    with writer.staged(tmp_path / "checkpoint-1", lambda stage: stage.commit(facts)) as stage:
        later(partial(gate.wait, 60))
        save(model, optimizer_of(model), stage)
        (stage / "trainer_state.json").write_text('{"global_step": 1}')
    gate.set()
    assert [save.error for save in writer.drain()] == [None]
    assert verify(tmp_path / "checkpoint-1") == []
    manifest = read_manifest(tmp_path / "checkpoint-1")
    assert manifest is not None
    assert manifest.facts == facts
    assert {"model.safetensors", "optimizer.pt"} <= set(manifest.files)


# ---- when ----


def test_the_checkpoint_appears_when_everything_is_written(
    tmp_path: Path, writer: BackgroundWriter, gate: threading.Event
) -> None:
    target = tmp_path / "checkpoint-1"
    with writer.staged(target) as stage:
        save_torch(1, stage / "a.pt")
        later(partial(gate.wait, 60))
    assert writer.poll() == []
    assert not target.exists()
    gate.set()
    (finished,) = writer.drain()
    assert finished.folder == target
    assert finished.error is None
    assert 0 < finished.blocking_s < finished.total_s
    assert names_in(tmp_path) == ["checkpoint-1"]
    assert writer.poll() == []


def test_a_finished_save_is_reported_once_without_waiting(tmp_path: Path, writer: BackgroundWriter) -> None:
    threads = set(threading.enumerate())
    with writer.staged(tmp_path / "checkpoint-1"):
        later(lambda: None)
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    assert [save.folder.name for save in writer.poll()] == ["checkpoint-1"]
    assert writer.poll() == []


def test_one_save_is_in_flight(
    tmp_path: Path, writer: BackgroundWriter, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    join = threading.Thread.join

    def opening_join(self: threading.Thread, timeout: float | None = None) -> None:
        gate.set()
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", opening_join)  # the first ends only because somebody waits for it
    with writer.staged(tmp_path / "checkpoint-1"):
        later(partial(gate.wait, 60))
        later(lambda: events.append("first written"))
    with writer.staged(tmp_path / "checkpoint-2"):
        events.append("second copied")
    first, second = writer.drain()
    assert events == ["first written", "second copied"]
    assert (first.folder.name, second.folder.name) == ("checkpoint-1", "checkpoint-2")
    assert (tmp_path / "checkpoint-1").is_dir()
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_stage_made_elsewhere_waits_for_the_save_before(
    tmp_path: Path, writer: BackgroundWriter, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    join = threading.Thread.join

    def opening_join(self: threading.Thread, timeout: float | None = None) -> None:
        gate.set()
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", opening_join)
    for name in ("checkpoint-1", "checkpoint-2"):
        jobs = [partial(gate.wait, 60), lambda name=name: events.append(name)]
        writer.submit(Stage.open(tmp_path / name), jobs, lambda stage: (events.append("commit"), stage.commit()))
    assert [save.error for save in writer.drain()] == [None, None]
    assert events == ["checkpoint-1", "commit", "checkpoint-2", "commit"]
    assert names_in(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_save_in_flight_is_not_taken_for_a_leftover(
    tmp_path: Path, writer: BackgroundWriter, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with writer.staged(tmp_path / "checkpoint-1"):
        later(partial(gate.wait, 60))
    assert clean_stages(tmp_path) == []
    assert clean_stages(".") == []
    gate.set()
    writer.drain()
    assert names_in(tmp_path) == ["checkpoint-1"]


def test_each_save_copies_into_the_memory_of_the_one_before(tmp_path: Path, writer: BackgroundWriter) -> None:
    places = []
    for name in ("checkpoint-1", "checkpoint-2"):
        with writer.staged(tmp_path / name):
            write(lambda state: places.append(state.data_ptr()), torch.ones(1000))
    writer.drain()
    assert places[0] == places[1]


def test_closing_finishes_the_save_and_frees_the_copies(tmp_path: Path, gate: threading.Event) -> None:
    writer = BackgroundWriter()
    held = []
    with writer.staged(tmp_path / "checkpoint-1") as stage:
        save_torch([torch.ones(1000)], stage / "a.pt")
        write(lambda state: held.append(StorageWeakRef(state[0].untyped_storage())), [torch.ones(1000)])
    assert [save.folder.name for save in writer.close()] == ["checkpoint-1"]
    gc.collect()
    assert [storage.expired() for storage in held] == [True]


# ---- when it fails ----

ERRORS = [OSError(28, "No space left on device"), KeyError("x"), SystemExit(3)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["job", "commit"])
def test_a_failure_is_reported_once_and_touches_nothing_else(
    tmp_path: Path, writer: BackgroundWriter, error: BaseException, where: str
) -> None:
    with staged(tmp_path / "checkpoint-1") as stage:
        (stage / "a").write_text("1")
    commit = Stage.commit if where == "job" else lambda _: fail(error)
    with writer.staged(tmp_path / "checkpoint-2", commit) as stage:
        (stage / "b").write_text("2")
        later(lambda: fail(error) if where == "job" else None)
    assert [(save.folder.name, save.error) for save in writer.drain()] == [("checkpoint-2", error)]
    assert writer.drain() == []
    assert names_in(tmp_path) == ["checkpoint-1"]
    with writer.staged(tmp_path / "checkpoint-2") as stage:
        save_torch(1, stage / "a.pt")
    assert [save.error for save in writer.drain()] == [None]
    assert names_in(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_the_failure_of_a_save_does_not_stop_the_next(tmp_path: Path, writer: BackgroundWriter) -> None:
    error = OSError(5, "Input/output error")
    with writer.staged(tmp_path / "checkpoint-1"):
        later(lambda: fail(error))
    with writer.staged(tmp_path / "checkpoint-2"):
        pass
    assert [save.error for save in writer.drain()] == [error, None]


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path, writer: BackgroundWriter) -> None:
    with writer.staged(tmp_path / "checkpoint-1"):
        later(lambda: fail(SafetensorError("Error while serializing: No space left on device (os error 28)")))
    (finished,) = writer.drain()
    assert isinstance(finished.error, OSError)
    assert finished.error.errno == 28


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failure_while_copying_leaves_everything_as_it_was(
    tmp_path: Path, writer: BackgroundWriter, error: BaseException
) -> None:
    written = []
    with pytest.raises(type(error)), writer.staged(tmp_path / "checkpoint-1") as stage:  # noqa: PT012 (the body is what fails)
        write(written.append, 1)
        (stage / "a").write_text("1")
        raise error
    assert writer.drain() == []
    assert written == []
    assert names_in(tmp_path) == []
    save_torch(1, tmp_path / "now.pt")
    assert names_in(tmp_path) == ["now.pt"]


def test_without_a_thread_the_stage_is_removed(
    tmp_path: Path, writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: fail(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="can't start"), writer.staged(tmp_path / "checkpoint-1"):
            pass
    assert writer.drain() == []
    assert names_in(tmp_path) == []
    with writer.staged(tmp_path / "checkpoint-1"):
        pass
    assert [save.error for save in writer.drain()] == [None]


def test_an_interrupt_while_the_thread_starts_loses_no_save(
    tmp_path: Path, writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def interrupted(self: threading.Thread) -> None:
        running = threading.Event()
        later = self._target  # type: ignore[attr-defined]
        self._target = lambda: (running.set(), later())  # type: ignore[attr-defined]
        start(self)
        running.wait()
        self.join()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), writer.staged(tmp_path / "checkpoint-1"):
        pass
    assert [save.error for save in writer.drain()] == [None]
    assert names_in(tmp_path) == ["checkpoint-1"]


# ---- when the process ends ----

SAVING = """
import os, signal, sys, threading
from mainspring.checkpoint import save_torch
from mainspring.checkpoint.background import BackgroundWriter
from mainspring.checkpoint.deferral import write

writer = BackgroundWriter()
with writer.staged(sys.argv[1]) as stage:
    save_torch(1, stage / "a.pt")
    write(lambda _: {job}, None)
{then}
"""


def run(target: Path, job: str, then: str = "") -> subprocess.CompletedProcess[str]:
    script = SAVING.format(job=job, then=then)
    return subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("then", "status"), [("", 0), ("sys.exit(7)", 7), ("raise KeyError", 1)])
def test_a_program_that_ends_finishes_its_save(tmp_path: Path, then: str, status: int) -> None:
    done = run(tmp_path / "checkpoint-1", "threading.main_thread().join()", then)
    assert done.returncode == status
    assert names_in(tmp_path) == ["checkpoint-1"]
    assert names_in(tmp_path / "checkpoint-1") == ["a.pt"]


def test_a_failure_after_the_end_of_the_program_is_logged(tmp_path: Path) -> None:
    done = run(tmp_path / "checkpoint-1", "(threading.main_thread().join(), 1 / 0)")
    assert "checkpoint-1 was not written: ZeroDivisionError" in done.stderr
    assert names_in(tmp_path) == []


@pytest.mark.faults
def test_of_a_killed_program_only_a_stage_remains(tmp_path: Path) -> None:
    with staged(tmp_path / "checkpoint-1") as stage:
        (stage / "a").write_text("1")
    before = contents(tmp_path)
    done = run(tmp_path / "checkpoint-2", "os.kill(os.getpid(), signal.SIGKILL)", "threading.Event().wait()")
    assert done.returncode == -signal.SIGKILL
    assert len(clean_stages(tmp_path)) == 1
    assert contents(tmp_path) == before
