"""The operations that other tests need are compiled once, whoever asks, and again where something has changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mainspring.arguments.deepspeed.rules import settings_of_stage_3
from tests.helpers import compiled

pytestmark = pytest.mark.deepspeed


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that were compiled, in a cache of the test's own."""
    found: list[str] = []
    monkeypatch.setattr(compiled, "_CACHE", tmp_path / "cache")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(compiled, "_compile", found.append)
    return found


def test_an_operation_is_compiled_once(asked: list[str]) -> None:
    """Where torch will look for it."""
    compiled.build("cpu_adam")
    compiled.build("cpu_adam")
    compiled.build("async_io")
    assert asked == ["cpu_adam", "async_io"]
    assert Path(os.environ["TORCH_EXTENSIONS_DIR"]).parent == compiled._CACHE


def test_two_who_ask_at_once_compile_once(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first."""
    inside = threading.Event()

    def slow(operation: str) -> None:
        asked.append(operation)
        inside.wait(0.2)  # were the other let in, it would come now

    monkeypatch.setattr(compiled, "_compile", slow)
    both = [threading.Thread(target=compiled.build, args=("cpu_adam",)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert asked == ["cpu_adam"]


def test_another_environment_compiles_for_itself(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same folder, where that was given."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled._CACHE.parent / "given"))
    compiled.build("cpu_adam")
    monkeypatch.setattr(compiled, "_key", lambda: "another")
    compiled.build("cpu_adam")
    assert asked == ["cpu_adam"] * 2


def test_what_cannot_be_compiled_is_tried_again(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure leaves no mark."""

    def fails(operation: str) -> None:
        raise AssertionError(operation)

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_compile", fails)
        with pytest.raises(AssertionError):
            compiled.build("cpu_adam")
    compiled.build("cpu_adam")
    assert asked == ["cpu_adam"]


@pytest.mark.parametrize("given", [False, True])
def test_the_lock_of_a_killed_build_is_forgotten(
    given: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once in a folder of ours; in another's, whose builds may be going on, after a while."""
    compiled.use_folder()
    if given:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(compiled._CACHE.parent / "given"))
    lock = Path(os.environ["TORCH_EXTENSIONS_DIR"], "cpu_adam", "lock")
    lock.parent.mkdir(parents=True)
    lock.touch()
    compiled.build("cpu_adam")
    assert lock.exists() == given
    if given:
        os.utime(lock, (0, 0))
        compiled.build("cpu_adam")
        assert not lock.exists()


def test_environments_that_are_gone_leave_nothing(asked: list[str]) -> None:
    """Each takes a hundred megabytes."""
    gone = compiled._CACHE / "gone"
    gone.mkdir(parents=True)
    (gone / "environment").write_text("/no/such/environment")
    compiled.build("cpu_adam")
    assert [path for path in compiled._CACHE.iterdir() if path.is_dir()] == [Path(os.environ["TORCH_EXTENSIONS_DIR"])]


@pytest.mark.parametrize(("stage", "told"), [(2, 1), (3, 0)])
def test_a_ratio_is_looked_at_by_stage_3_alone(stage: int, told: int) -> None:
    """The others offload all states."""
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}
    notices = [str(one) for one in settings_of_stage_3({"zero_optimization": zero}, None)]
    assert len(notices) == told
    assert all("offload_optimizer.ratio=0.5: has no effect" in one for one in notices)
