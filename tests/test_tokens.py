"""A token that is among the options appears nowhere: not in a file of the run, not in a log, not in an error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CANARY = "hf_cAnArYcAnArYcAnArY"

SCRIPT = """
import logging
import os
import sys
from dataclasses import dataclass

from mainspring import EarlyStoppingCallback, HfArgumentParser, Trainer, TrainerCallback, TrainingArguments, utils
from mainspring.errors import NotAvailableError, OptionError
from tests.helpers import data, models

CANARY, OUT = os.environ["CANARY"], sys.argv[1]
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
utils.logging.set_verbosity_debug()


@dataclass
class Arguments(TrainingArguments):
    my_token: str | None = None


class Telling(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        print(args, repr(args), state, control, kwargs)


def say(error):
    logging.exception("what went wrong")
    print(error, repr(error))


tokens = {"my_token": CANARY}
for name in ("hub_token", "push_to_hub_token"):
    try:
        Arguments(OUT, **{name: CANARY})
    except NotAvailableError as error:
        say(error)
    else:
        tokens[name] = CANARY
        if tokens.get("hub_token"):
            tokens.pop("push_to_hub_token", None)
print("carried by", sorted(tokens))


def trainer(**options):
    args = Arguments(
        OUT, use_cpu=True, max_steps=4, save_steps=2, logging_steps=1, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, per_device_train_batch_size=4, log_level="debug", **tokens, **options,
    )
    assert args.my_token == CANARY
    print(args, repr(args), args.to_dict(), args.to_json_string(), args.to_sanitized_dict())
    args.explain(everything=True)
    rows = data.Items(data.points(16))
    callbacks = [Telling(), EarlyStoppingCallback(early_stopping_patience=5)]
    return Trainer(models.Regressor(), args, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)


run = trainer()
run.train()
run.evaluate()
run.predict(run.eval_dataset)
run.save_model()
run.save_state()
run.log_metrics("eval", run.evaluate())
run.save_metrics("eval", run.evaluate())
trainer(max_grad_norm=2.0).train(resume_from_checkpoint=os.path.join(OUT, "checkpoint-2"))
for method in ("plan", "explain"):
    if hasattr(run, method):
        print(getattr(run, method)())

with open(os.path.join(OUT, "broken.yaml"), "w") as file:
    file.write("my_token: [" + CANARY[:8])
with open(os.path.join(OUT, "broken.json"), "w") as file:
    file.write('{"my_token": ' + CANARY[:8])
parser = HfArgumentParser(Arguments)
words = ["--output_dir", OUT]
MISTAKES = [
    lambda: Arguments(OUT, hub_token=CANARY, push_to_hub_token=CANARY + "2", fp16=True, bf16=True),
    lambda: Arguments(OUT, my_tokn=CANARY, hub_tokens=CANARY, seed=-1),
    lambda: Arguments(OUT, my_token=CANARY, learning_rate="fast", evaluation_strategy="sometimes"),
    lambda: Arguments(OUT, hub_token=[CANARY]),
    lambda: Arguments(OUT, my_token=CANARY).set_push_to_hub("me/model", token=CANARY),
    lambda: setattr(Arguments(OUT), "push_to_hub_token", CANARY),
    lambda: parser.parse_args_into_dataclasses([*words, "--my_token", CANARY, "--seed", "-1"]),
    lambda: parser.parse_args_into_dataclasses([*words, "--my_tokn", CANARY]),
    lambda: parser.parse_args_into_dataclasses([*words, "--my_tokn=" + CANARY]),
    lambda: parser.parse_args_into_dataclasses([*words, "--hub_token", CANARY, "--optim", "none"]),
    lambda: parser.parse_args_into_dataclasses([*words, "--my_token", CANARY, CANARY]),
    lambda: parser.parse_args_into_dataclasses([*words, "--my_to", "x", CANARY]),
    lambda: Arguments(OUT, lr_scheduler_kwargs='{"api_token": "' + CANARY + '",}'),
    lambda: Arguments(OUT, deepspeed={"deep": {"api_token": CANARY}}, seed=-1),
    lambda: parser.parse_dict({"output_dir": OUT, "my_token": CANARY, "my_tokn": CANARY}),
    lambda: parser.parse_dict({"output_dir": OUT, "my_token": CANARY, "seed": -1}),
    lambda: parser.parse_yaml_file(os.path.join(OUT, "broken.yaml")),
    lambda: parser.parse_json_file(os.path.join(OUT, "broken.json")),
]
for number, mistake in enumerate(MISTAKES):
    try:
        mistake()
    except (ValueError, TypeError, SystemExit) as error:
        say(error)
    else:
        raise AssertionError(f"mistake {number} was none")
for name in ("broken.yaml", "broken.json"):
    os.remove(os.path.join(OUT, name))
"""


def traces_of(canary: str, folder: Path) -> Iterator[Path]:
    """Files that hold it, be it in their content or in their name."""
    for path in folder.rglob("*"):
        if canary in path.name or (path.is_file() and canary.encode() in path.read_bytes()):
            yield path


def test_a_token_leaves_no_trace(tmp_path: Path) -> None:
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-W", "always", str(script), str(out)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CANARY": CANARY},
    )
    assert done.returncode == 0, done.stderr
    assert "carried by ['hub_token', 'my_token']" in done.stdout or "hub_token='<HUB_TOKEN>'" in done.stdout
    assert "<MY_TOKEN>" in done.stdout
    assert (out / "checkpoint-4" / "trainer_state.json").is_file()
    secret = CANARY[:8]
    assert [line for line in (done.stdout + done.stderr).splitlines() if secret in line] == []
    assert list(traces_of(secret, tmp_path)) == []


@pytest.mark.parametrize("place", ["content", "name"])
def test_traces_are_found(place: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    if place == "content":
        (tmp_path / "deep" / "weights.bin").write_bytes(b"\0" * 9 + CANARY.encode() + b"\0")
    else:
        (tmp_path / "deep" / CANARY).touch()
    assert len(list(traces_of(CANARY[:8], tmp_path))) == 1
