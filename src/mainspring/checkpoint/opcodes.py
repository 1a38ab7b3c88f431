"""What a pickle would do if it were loaded, found by following its opcodes; nothing of it is executed or imported.

Unpickling is a small stack machine. Here it runs on stand-ins: a value is a name that was looked up, a string, a tuple, or
unknown. Whatever cannot be followed exactly is reported, so that an unusual but harmless pickle is refused rather than an
artful one let through.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Collection
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from mainspring.checkpoint.numpy_values import dtype_class

COMPUTED_NAME = "a name that it computes"
COMPUTED_CALL = "a call of something that it computes"
CHANGED_GLOBAL = "a change to a class or function"
FOREIGN_REFERENCE = "a reference that is not to a storage"
_HIGHEST_PROTOCOL = 5


class MalformedPickleError(ValueError):
    """The opcodes are not what any pickler writes."""


@dataclass(frozen=True)
class _Global:
    """A class or function, looked up by its name."""

    name: str


class _Sign:
    """A value that only its identity tells apart."""


Value: TypeAlias = "_Global | _Sign | str | tuple[Any, ...]"

_UNKNOWN = _Sign()
_MARK = _Sign()

# What these push is the string that the unpickler pushes. Strings of the older opcodes are decoded as the caller of
# the unpickler pleases, so they stay unknown.
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})
_TUPLES = frozenset({"EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"})
_FILLS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"})
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD"})
# The extension registry, and data that is not in the file: no checkpoint uses them.
_REFUSED = frozenset({"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID"})


class Scan:
    """The run of one pickle.

    Attributes:
        dangers: What it does that is not allowed, in the order in which it comes: names that were looked up
            ("os.system"), or a few words for what has no name.
        called: Whether it got as far as to call something.
        finished: Whether it ran to its end.
    """

    def __init__(self, allowed: Collection[str], storages: bool) -> None:
        """Prepare a scan.

        Args:
            allowed: Names ("collections.OrderedDict") that may be looked up, and called with anything.
            storages: Whether the pickle may refer to torch's storages outside it.
        """
        self.dangers: list[str] = []
        self.called = False
        self.finished = False
        self._allowed = allowed
        self._storages = storages
        self._protocol = 0
        self._stack: list[Value] = []
        self._memo: dict[int, Value] = {}

    def run(self, source: IO[bytes]) -> None:
        """Follow the pickle that begins at the source's position, which stands behind it afterwards.

        Raises:
            MalformedPickleError: It is not a pickle, or one that cannot be followed; `dangers` has what came before.
        """
        began = source.tell()
        try:
            for opcode, argument, position in pickletools.genops(source):
                assert position is not None
                if opcode.name in ("GLOBAL", "INST"):
                    argument = _lines(source, position)
                self._step(opcode, argument, first=position == began)
        except (ValueError, IndexError, OverflowError) as error:  # MalformedPickleError is the first of them
            raise MalformedPickleError(str(error)) from error
        self.finished = True

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any, first: bool) -> None:
        name = opcode.name
        if name == "PROTO":
            self._begin(argument, first)
        elif name in _REFUSED:
            self._danger(f"the opcode {name}")
            raise MalformedPickleError(f"it uses {name}")
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._remembered(argument))
        elif name == "DUP":
            self._stack.append(self._top())
        elif name == "POP":
            self._stack.pop()
        else:
            self._effect(opcode, argument)

    def _begin(self, protocol: int, first: bool) -> None:
        # The protocol decides how names are read, so it may not change on the way.
        if not first or protocol > _HIGHEST_PROTOCOL:
            raise MalformedPickleError("its protocol is not announced as any pickler does")
        self._protocol = protocol

    def _effect(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Take from the stack and put onto it what the opcode is declared to."""
        name, taken = opcode.name, self._take(opcode)
        self.called = self.called or name in _CALLS
        result: Value = _UNKNOWN
        if name == "MARK":
            result = _MARK
        elif name in _STRINGS:
            result = str(argument)
        elif name in _TUPLES:
            result = tuple(taken)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            result = self._look_up(*(argument if name == "GLOBAL" else taken))
        elif name == "INST":
            self._look_up(*argument)
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
            self._call(*taken[:2])
        elif name == "BINPERSID":
            self._refer(taken[0])
        elif name == "BUILD" or name in _FILLS:
            self._change(taken[0])
            result = taken[0]
        self._stack += [result] * len(opcode.stack_after)

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[Value]:
        """Pop what the opcode consumes, the lowest first, without the mark."""
        wanted = opcode.stack_before
        if pickletools.markobject not in wanted:
            taken = self._pop(len(wanted))
        else:
            below = wanted.index(pickletools.markobject)
            mark = next((i for i in reversed(range(len(self._stack))) if self._stack[i] is _MARK), -1)
            if mark < 0:
                raise MalformedPickleError("its stack has no mark")
            above = self._pop(len(self._stack) - mark - 1)
            self._stack.pop()
            if "OBJ" in opcode.name and not above:
                raise MalformedPickleError("it makes an object of nothing")
            taken = self._pop(below) + above
        return taken

    def _pop(self, count: int) -> list[Value]:
        start = len(self._stack) - count
        taken = self._stack[max(start, 0) :]
        if start < 0 or _MARK in taken:
            raise MalformedPickleError("its stack runs empty")
        del self._stack[start:]
        return taken

    def _top(self) -> Value:
        (top,) = self._pop(1)
        self._stack.append(top)
        return top

    def _remembered(self, key: int) -> Value:
        if key not in self._memo:
            raise MalformedPickleError("it recalls what it never stored")
        return self._memo[key]

    # ---- judgements ----

    def _look_up(self, module: Value, name: Value) -> Value:
        if not (isinstance(module, str) and isinstance(name, str)):
            self._danger(COMPUTED_NAME)
            return _UNKNOWN
        if self._protocol < 3:  # as the unpickler does: names of Python 2 become those of today
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        found = _Global(f"{module}.{name}")
        if found.name not in self._allowed:
            self._danger(found.name)
        return found

    def _call(self, function: Value, arguments: Value = ()) -> None:
        if not isinstance(function, _Global):
            self._danger(COMPUTED_CALL)
        elif function.name == "numpy.dtype":
            self._make_dtype(arguments[0] if isinstance(arguments, tuple) and arguments else _UNKNOWN)

    def _make_dtype(self, code: Value) -> None:
        # The class of what it makes decides whether torch goes on: arrays of objects are not allowed, arrays of floats are.
        name = dtype_class(code)
        if name not in self._allowed:
            self._danger(name or COMPUTED_NAME)

    def _change(self, target: Value) -> None:
        if isinstance(target, _Global):
            self._danger(CHANGED_GLOBAL)

    def _refer(self, reference: Value) -> None:
        # torch resolves other kinds too; one of them hands back whatever it was given.
        if not (self._storages and isinstance(reference, tuple) and reference[:1] == ("storage",)):
            self._danger(FOREIGN_REFERENCE)

    def _danger(self, what: str) -> None:
        if what not in self.dangers:
            self.dangers.append(what)


def _lines(source: IO[bytes], position: int) -> tuple[str, str]:
    """Read the two lines behind an opcode as the unpickler does: pickletools undoes escapes that the unpickler leaves."""
    behind = source.tell()
    source.seek(position + 1)
    module, name = (source.readline()[:-1].decode("utf-8") for _ in range(2))
    if source.tell() != behind:
        raise MalformedPickleError("its lines cannot be told apart")
    return module, name
