"""What happens around the constructor of `TrainingArguments` and of its subclasses.

Only `output_dir` is positional, older spellings are translated, unknown keywords are refused with a hint, and every
instance is read and validated once: in plain subclasses, in dataclass subclasses, which generate a constructor that
knows of none of this, and in subclasses whose own `__post_init__` does not call ours.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from abc import ABCMeta
from collections.abc import Mapping
from typing import Any, TypeVar

from mainspring.arguments.docstring import OptionsDocstring, default_of
from mainspring.arguments.masking import shown
from mainspring.arguments.sources import record
from mainspring.arguments.spellings import kept, translate
from mainspring.errors import OptionError, Problem, did_you_mean

Class = TypeVar("Class", bound=type)


class UnknownOptionError(OptionError, TypeError):
    """A keyword that is no option."""


class Construction(ABCMeta):
    """The metaclass of arguments. It derives from `ABCMeta` so that subclasses may mix in abstract classes."""

    def __init__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "__repr__" not in vars(cls):
            # `@dataclass` leaves alone what the class has itself. The one that it makes would print tokens.
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance."""
        if not _generates_its_own_constructor(cls):
            instance = super().__call__(*args, **kwargs)
        else:
            options = read_keywords(cls, args, kwargs)
            make: Any = cls.__new__
            instance = make(cls, **options)
            record(instance, kwargs, options, _constructor_names(cls))
            instance.__init__(**options)
            vars(instance).update(kept(kwargs, _constructor_names(cls)))
        if not instance.__dict__.get("_ready"):
            instance._complete()
        instance._note_end_of_construction()
        instance._heed_launcher()
        return instance

    @property
    def __signature__(cls) -> inspect.Signature:
        """What `inspect`, editors and `help` show: the constructor, with `output_dir` first."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        first = [p.replace(kind=kind) for p in parameters if p.name == "output_dir" and p.kind is p.KEYWORD_ONLY]
        others = [p.replace(kind=p.KEYWORD_ONLY) if p.kind is kind else p for p in parameters if p.name != "output_dir"]
        return inspect.Signature([*first, *others] if first else parameters)


def takes_every_spelling(cls: Class) -> Class:
    """Class decorator: the generated constructor also takes `output_dir` first, and older spellings.

    A subclass with a constructor of its own hands its keywords on to it with `super().__init__`.
    """
    generated = cls.__init__  # type: ignore[misc]

    @functools.wraps(generated)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes the class's
        options = read_keywords(cls, args, kwargs)
        record(self, kwargs, options, _constructor_names(cls))
        generated(self, **options)
        vars(self).update(kept(kwargs, _constructor_names(cls)))

    cls.__init__ = __init__  # type: ignore[misc]
    cls.__doc__ = OptionsDocstring(cls.__doc__ or "")  # type: ignore[assignment]
    return cls


def read_keywords(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of a generated constructor, from what the user wrote.

    Raises:
        TypeError: More than one positional argument, or `output_dir` twice.
        OptionError: A keyword that is no option, or an older one that cannot be served.
    """
    if len(args) > 1:
        raise TypeError(f"{cls.__name__} takes one positional argument, output_dir, but got {len(args)}")
    if args and "output_dir" in kwargs:
        raise TypeError(f"{cls.__name__} got output_dir twice")
    names = _constructor_names(cls)
    given = dict(zip(("output_dir",), args, strict=False))
    options, problems = translate({**given, **kwargs}, names)
    unknown = [name for name in options if name not in names]
    if unknown or problems:
        strange = [
            Problem(name, shown(name, options[name]), "is no option", f"leave it out{did_you_mean(name, names)}")
            for name in unknown
        ]
        said = {problem.option for problem in problems}
        known = {name: value for name, value in options.items() if name in names and name not in said}
        error = UnknownOptionError if unknown else OptionError
        raise error([*strange, *problems, *_problems_of(cls, known)])
    return options


def _problems_of(cls: type, options: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What is wrong with these options, found without the class's own code."""
    trial: Any = object.__new__(cls)
    for field in dataclasses.fields(cls):
        vars(trial)[field.name] = options.get(field.name, default_of(field))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial._complete()
    except OptionError as error:
        return error.problems
    return ()


@functools.cache
def _constructor_names(cls: type) -> frozenset[str]:
    return frozenset(list(inspect.signature(cls.__init__).parameters)[1:])  # type: ignore[misc]


@functools.cache
def _generates_its_own_constructor(cls: type) -> bool:
    """Whether the constructor is the one that `@dataclass` made for a user's subclass."""
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    parameters = vars(owner).get("__dataclass_params__")
    return parameters is not None and parameters.init and not owner.__module__.startswith("mainspring.")
