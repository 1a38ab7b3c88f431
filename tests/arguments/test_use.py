"""No option is accepted and then forgotten: each is read where it acts, refused, or listed here with its place."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mainspring
from mainspring import Seq2SeqTrainingArguments
from mainspring.arguments import not_yet

SOURCES = Path(mainspring.__file__).parent
NAMES = frozenset(field.name for field in dataclasses.fields(Seq2SeqTrainingArguments))

ELSEWHERE: dict[str, tuple[str, str]] = {
    # Scripts read these three of their own accord; the trainer is told by the calls that the script then makes.
    "do_train": ("arguments/output.py", "For scripts: whether to train."),
    "do_eval": ("arguments/output.py", "For scripts: whether to evaluate"),
    "do_predict": ("arguments/output.py", "For scripts: whether to predict."),
    # Two names of one option: resolved into each other at construction, and the trainer reads the older, which the
    # reference's arguments have too.
    "activation_checkpointing": (
        "arguments/training_arguments.py",
        '("activation_checkpointing", "gradient_checkpointing"),',
    ),
    "activation_checkpointing_kwargs": (
        "arguments/training_arguments.py",
        '("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),',
    ),
    # The three intervals become updates of the run in one loop over their names; the flow reads them off the state.
    "logging_steps": ("state.py", '("logging_steps", "eval_steps", "save_steps")'),
    "eval_steps": ("state.py", '("logging_steps", "eval_steps", "save_steps")'),
    "save_steps": ("state.py", '("logging_steps", "eval_steps", "save_steps")'),
    # Nothing reports yet: all values but the empty ones are refused.
    "report_to": ("arguments/not_yet.py", 'name == "report_to" and value'),
    # Settings that describe what is done here anyway: all others are refused.
    "accelerator_config": ("arguments/not_yet.py", "settings = unavailable_settings(config)"),
    # Options that foreign arguments lack: resolved together, and everybody reads the result.
    "compat": ("arguments/own.py", "BEHAVIOURS[args.compat]"),
    "eval_loss_reduction": ("arguments/own.py", "else args.eval_loss_reduction"),
    "resume_log_window": ("arguments/own.py", "resume_log_window=args.resume_log_window"),
    "restore_callback_states_from_checkpoint": ("arguments/own.py", '"restore_callback_states_from_checkpoint", None'),
}
"""Options that no `args.<name>` outside the arguments reads: a file, and the text there by which they act."""


def read_off_arguments(tree: ast.AST, receivers: frozenset[str]) -> Iterator[str]:
    """Attributes read as `args.name`, `self.args.name` or `getattr(args, "name", ...)`."""

    def is_receiver(node: ast.AST) -> bool:
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        return name in receivers

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_receiver(node.value):
            yield node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            owner, name = node.args[:2]
            if is_receiver(owner) and isinstance(name, ast.Constant):
                yield str(name.value)


def read_through(name: str) -> set[str]:
    """What a property or method of the arguments reads off them."""
    member = inspect.getattr_static(Seq2SeqTrainingArguments, name, None)
    function = member.fget if isinstance(member, property) else member
    if not inspect.isfunction(function):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return set(read_off_arguments(tree, frozenset({"self"})))


def used_outside_the_arguments() -> set[str]:
    """Options read by the rest of the package, be it through properties of the arguments."""
    # The command line's `args` are argparse's.
    files = [path for path in SOURCES.rglob("*.py") if path.relative_to(SOURCES).parts[0] not in ("arguments", "cli")]
    found = {n for path in files for n in read_off_arguments(ast.parse(path.read_text()), frozenset({"args"}))}
    waiting = list(found)
    while waiting:
        new = read_through(waiting.pop()) - found
        found |= new
        waiting.extend(new)
    return found & NAMES


def test_every_option_acts_or_is_refused() -> None:
    assert NAMES - used_outside_the_arguments() - not_yet.OPTIONS - set(ELSEWHERE) == set()


def test_the_exceptions_are_needed_and_act_where_the_table_says() -> None:
    assert set(ELSEWHERE) & (used_outside_the_arguments() | not_yet.OPTIONS) == set()
    for name, (file, text) in ELSEWHERE.items():
        assert text in (SOURCES / file).read_text(), name


def test_what_a_property_stands_on_counts() -> None:
    """`tf32` and the backend act when `device` is first asked for."""
    assert {"tf32", "ddp_backend", "use_cpu"} <= read_through("_place")
    assert "_place" in read_through("device")
    example = ast.parse("self.args.a + getattr(args, 'b') + other.c")
    assert set(read_off_arguments(example, frozenset({"args"}))) == {"a", "b"}
