"""`mainspring launch`: its words, its errors, and what it costs to ask. tests/distributed/test_launchers.py starts runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mainspring.cli import main
from mainspring.launch import elastic, job
from mainspring.launch.job import Wanted


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What would have been started; each job ends with status 7."""
    seen: list[Wanted] = []
    monkeypatch.setattr(job, "job_of", lambda wanted: seen.append(wanted) or wanted)
    monkeypatch.setattr(elastic, "run", lambda _: 7)
    return seen


def test_options_after_the_script_are_its_own(started: list[Wanted]) -> None:
    assert main(["launch", "--nproc", "2", "train.py", "--nproc", "8", "--cpu", "-m"]) == 7
    assert started == [Wanted("train.py", ["--nproc", "8", "--cpu", "-m"], nproc=2)]


@pytest.mark.parametrize("form", ["{}-{}", "{}_{}"])
def test_torchruns_and_accelerates_spellings_are_known(form: str, started: list[Wanted]) -> None:
    spelled = {
        form.format(*name): value
        for name, value in {
            ("--nproc-per", "node"): "4",
            ("--node", "rank"): "1",
            ("--master", "addr"): "host",
            ("--master", "port"): "1",
            ("--rdzv", "backend"): "c10d",
            ("--rdzv", "endpoint"): "host:2",
            ("--rdzv", "id"): "job",
            ("--rdzv", "conf"): "a=b",
            ("--local", "addr"): "here",
            ("--max", "restarts"): "3",
            ("--shutdown", "timeout"): "60",
            ("--config", "file"): "c.yaml",
            ("--mixed", "precision"): "bf16",
        }.items()
    }
    spelled = {name.replace("nproc-per_", "nproc_per_"): value for name, value in spelled.items()}
    flags = [word for pair in spelled.items() for word in pair]
    main(["launch", *flags, "--nnodes", "1:2", "--cpu", "--no-config", "-m", "package.train"])
    assert started == [
        Wanted(
            "package.train",
            [],
            is_module=True,
            nproc=4,
            nnodes="1:2",
            node_rank=1,
            master_addr="host",
            master_port=1,
            rdzv_backend="c10d",
            rdzv_endpoint="host:2",
            rdzv_id="job",
            rdzv_conf="a=b",
            local_addr="here",
            max_restarts=3,
            shutdown_timeout=60,
            config="c.yaml",
            reads_default_config=False,
            mixed_precision="bf16",
            cpu=True,
        )
    ]


@pytest.mark.parametrize(
    "words", [[], ["--nproc", "0", "x.py"], ["--nproc", "two", "x.py"], ["--mixed-precision", "fp8", "x.py"]]
)
def test_words_that_are_none_are_refused(words: list[str], started: list[Wanted]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["launch", *words])
    assert stopped.value.code == 2
    assert started == []


def test_mistakes_are_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, config = tmp_path / "train.py", tmp_path / "c.yaml"
    assert main(["launch", str(script)]) == 2
    script.touch()
    config.write_text("distributed_type: MULTI_GPU\nnum_proceses: 2\n")
    assert main(["launch", "--config", str(config), str(script)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == f"mainspring: {script}: no such file; with -m, the name of a module is taken"
    assert second.startswith("mainspring: num_proceses=2: ")
    assert "did you mean 'num_processes'" in second


def test_nothing_is_printed_beside_what_the_script_prints(
    started: list[Wanted], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["launch", "train.py"])
    assert capsys.readouterr().out == ""


def test_the_help_needs_no_torch() -> None:
    code = (
        "import sys, contextlib; from mainspring.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['launch', '--help'])\n"
        "sys.exit(bool({'torch', 'accelerate'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
