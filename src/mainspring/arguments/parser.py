"""`HfArgumentParser`: dataclasses become options of the command line, or are filled from a mapping or a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mainspring.arguments.option import groups_of
from mainspring.arguments.readings import Reading, reading_of
from mainspring.arguments.spellings import OLDER_NAMES, OLDER_TYPES, RENAMED
from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.errors import MissingPackageError, did_you_mean

_PASSED_ON = ("help", "metavar", "nargs", "const")
"""Keys of a field's metadata that argparse gets as they are."""


def HfArg(  # noqa: N802 - the name that scripts import
    *,
    aliases: str | list[str] | None = None,
    help: str | None = None,  # noqa: A002 - argparse's word
    default: Any = dataclasses.MISSING,
    default_factory: Callable[[], Any] | Any = dataclasses.MISSING,
    metadata: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Declare a dataclass field together with what its option on the command line is called and means.

    Args:
        aliases: Further spellings of the option, such as `-e`.
        help: Its meaning, for `--help`.
        default: Its default. Without one, and without `default_factory`, the option is required.
        default_factory: Makes a default that is mutable.
        metadata: Further metadata of the field.
        **kwargs: Further keywords of `dataclasses.field`.
    """
    said = {name: value for name, value in (("aliases", aliases), ("help", help)) if value is not None}
    return dataclasses.field(
        default=default, default_factory=default_factory, metadata={**(metadata or {}), **said}, **kwargs
    )


class HfArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose options are the fields of dataclasses.

    A field `max_steps` is the option `--max_steps` and `--max-steps`; its annotation says how it is read. Options of
    type bool may stand alone (`--bf16`) or take a value (`--bf16 false`); where leaving one out does not mean False,
    there is `--no_x` and `--no-x`. `TrainingArguments` also takes the spellings of its older generation, which
    `--help` leaves out. Arguments added with `add_argument` come back in a namespace of their own.

    Args:
        dataclass_types: The dataclass or dataclasses. One with `_argument_group_name` gets a group of that name in
            `--help`.
        **kwargs: Keywords of `argparse.ArgumentParser`.

    Raises:
        TypeError: Something is no dataclass, or has an annotation that cannot be resolved.
    """

    dataclass_types: list[type[Any]]

    def __init__(self, dataclass_types: type[Any] | Iterable[type[Any]] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(**kwargs)
        one = (dataclass_types,) if isinstance(dataclass_types, type) else dataclass_types
        self.dataclass_types = list(one or ())
        self._defaults_of_fields: dict[str, Any] = {}
        self._older_spellings: set[str] = set()
        for cls in self.dataclass_types:
            self._add_dataclass(cls)

    # ---- from dataclass to options ----

    def _add_dataclass(self, cls: type[Any]) -> None:
        if not dataclasses.is_dataclass(cls):
            raise TypeError(f"dataclass_types={cls!r}: not a dataclass; decorate it with @dataclass")
        hints = _annotations(cls)
        for title, fields in self._groups(cls):
            target = self if title is None else self.add_argument_group(title)
            for field in fields:
                self._add_field(target, field, hints[field.name])

    def _groups(self, cls: type[Any]) -> Iterable[tuple[str | None, list[dataclasses.Field[Any]]]]:
        named = getattr(cls, "_argument_group_name", None)
        if named is None and issubclass(cls, TrainingArguments):
            return [(title, fields) for title, fields in groups_of(cls).items() if fields]
        return [(named, _fields(cls))]

    def _add_field(self, target: argparse._ActionsContainer, field: dataclasses.Field[Any], annotation: Any) -> None:
        reading = reading_of(annotation, field.metadata.get("choices"))
        said = {name: field.metadata[name] for name in _PASSED_ON if name in field.metadata}
        keywords = {**_shape(reading), **said, **self._presence(field, annotation)}
        aliases = field.metadata.get("aliases", [])
        target.add_argument(*_spellings(field.name), *([aliases] if isinstance(aliases, str) else aliases), **keywords)
        if _can_be_switched_off(field, reading) and f"no_{field.name}" not in self._names():
            off: dict[str, Any] = {"action": "store_false", "dest": field.name, "default": keywords.get("default")}
            target.add_argument(*_spellings(f"no_{field.name}"), help=said.get("help"), **off)

    def _presence(self, field: dataclasses.Field[Any], annotation: Any) -> dict[str, Any]:
        """The default, or that there is none."""
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif annotation is bool:
            return {"default": False}
        else:
            return {"required": True}
        self._defaults_of_fields[field.name] = default
        return {"default": default}

    def _names(self) -> set[str]:
        return {field.name for cls in self.dataclass_types for field in _fields(cls)}

    def _add_older_spellings(self) -> None:
        """Hidden, and last: an argument that a script itself calls so comes first."""
        for cls in self.dataclass_types:
            if not issubclass(cls, TrainingArguments):
                continue
            hints, taken = _annotations(cls), {action.dest for action in self._actions}
            for name in sorted(OLDER_NAMES - taken):
                reading = reading_of(hints[RENAMED[name]] if name in RENAMED else OLDER_TYPES.get(name, bool))
                keywords = {**_shape(reading), "dest": name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
                self.add_argument(*_spellings(name), **keywords)
                self._older_spellings.add(name)

    # ---- from words to instances ----

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, which every other way of parsing goes through."""
        self._add_older_spellings()
        return super().parse_known_args(args, namespace)

    def parse_args_into_dataclasses(
        self,
        args: Sequence[str] | None = None,
        return_remaining_strings: bool = False,
        look_for_args_file: bool = True,
        args_filename: str | os.PathLike[str] | None = None,
        args_file_flag: str | None = None,
    ) -> tuple[Any, ...]:
        """Parse the command line.

        Args:
            args: The words; those of this process by default.
            return_remaining_strings: Return words that belong to no option, rather than refuse them.
            look_for_args_file: Read options from the file that is called as the script but ends in `.args`, if there
                is one. They come first, so that the command line wins.
            args_filename: Read this file instead, if there is one.
            args_file_flag: An option, such as `--config`, that names further files of options; later ones win.

        Returns:
            One instance per dataclass, in their order; then a namespace, if the parser has other arguments; then,
            if asked for, the list of remaining words.

        Raises:
            ValueError: Words are left over, or options have values that cannot be, or a named file does not exist.
        """
        words = list(sys.argv[1:] if args is None else args)
        files: list[Path] = []
        if args_filename is not None:
            files.append(Path(args_filename))
        elif look_for_args_file and sys.argv and sys.argv[0]:
            files.append(Path(sys.argv[0]).with_suffix(".args"))
        files = [file for file in files if file.is_file()]
        if args_file_flag is not None:
            named, words = _files_named_by(args_file_flag, words)
            files += named
        before = [word for file in files for word in file.read_text(encoding="utf-8").split()]

        namespace, left_over = self.parse_known_args([*before, *words])
        if left_over and not return_remaining_strings:
            raise ValueError("\n".join(self._complaint(word) for word in left_over))
        built: list[Any] = [self._build(cls, namespace) for cls in self.dataclass_types]
        if vars(namespace):
            built.append(namespace)
        return (*built, left_over) if return_remaining_strings else tuple(built)

    def _build(self, cls: type[Any], namespace: argparse.Namespace) -> Any:
        """Make an instance from what was given, and take that out of the namespace.

        What nobody gave is left to the dataclass: a mutable default is then made anew, and an older spelling does not
        compete with the default of the newer one.
        """
        values = {}
        for name in self._accepted(cls, self._older_spellings):
            if not hasattr(namespace, name):
                continue
            value = getattr(namespace, name)
            delattr(namespace, name)
            if name not in self._defaults_of_fields or value is not self._defaults_of_fields[name]:
                values[name] = value
        return cls(**values)

    @staticmethod
    def _accepted(cls: type[Any], older: Collection[str]) -> list[str]:
        """The keywords that a dataclass takes: its fields and, for arguments of ours, older spellings."""
        return [*(field.name for field in _fields(cls)), *(older if issubclass(cls, TrainingArguments) else ())]

    def _complaint(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no option; put the option that it is a value of before it"
        shown = {text for text, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS}
        return _no_such_option(word.partition("=")[0], shown)

    # ---- from a mapping or a file ----

    def parse_dict(self, args: Mapping[str, Any], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Fill the dataclasses from a mapping, without the command line.

        Args:
            args: Values by name of the field.
            allow_extra_keys: Leave unknown names alone, rather than refuse them.

        Returns:
            One instance per dataclass, in their order.

        Raises:
            ValueError: A name that no dataclass has, or values that cannot be.
        """
        names = self._names()
        accepted = [self._accepted(cls, OLDER_NAMES - names) for cls in self.dataclass_types]
        unknown = sorted(str(name) for name in args if not any(name in some for some in accepted))
        if unknown and not allow_extra_keys:
            raise ValueError("\n".join(_no_such_option(name, names) for name in unknown))
        values = ({name: args[name] for name in some if name in args} for some in accepted)
        return tuple(cls(**given) for cls, given in zip(self.dataclass_types, values, strict=True))

    def parse_json_file(self, json_file: str | os.PathLike[str], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Fill the dataclasses from a JSON file, as `parse_dict` does.

        Raises:
            ValueError: The file holds no JSON object, or as for `parse_dict`.
        """
        try:
            content = json.loads(Path(json_file).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            place = f"{error.msg} at line {error.lineno}, column {error.colno}"
            raise ValueError(f"json_file={os.fspath(json_file)!r}: not JSON: {place}; correct it there") from error
        return self.parse_dict(_mapping_in("json_file", json_file, content), allow_extra_keys)

    def parse_yaml_file(self, yaml_file: str | os.PathLike[str], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Fill the dataclasses from a YAML file, as `parse_dict` does.

        Raises:
            MissingPackageError: PyYAML is not installed.
            ValueError: The file holds no YAML mapping, or as for `parse_dict`.
        """
        try:
            yaml: Any = import_module("yaml")
        except ImportError as error:
            raise MissingPackageError("parse_yaml_file needs PyYAML: pip install pyyaml", name="yaml") from error
        try:
            content = yaml.safe_load(Path(yaml_file).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            said = " ".join(str(error).split())
            raise ValueError(f"yaml_file={os.fspath(yaml_file)!r}: not YAML: {said}; correct it there") from error
        return self.parse_dict(_mapping_in("yaml_file", yaml_file, content), allow_extra_keys)


def _no_such_option(name: str, names: Iterable[str]) -> str:
    return f"{name}: there is no such option; leave it out{did_you_mean(name, names)}"


def _annotations(cls: type[Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise TypeError(
            f"{cls.__name__} has an annotation that cannot be resolved ({error}); define what it names at module level"
        ) from error


def _fields(cls: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


def _shape(reading: Reading) -> dict[str, Any]:
    """What argparse is told of a reading: converter, choices, number of words."""
    shape: dict[str, Any] = {"type": reading.word}
    if reading.choices is not None:
        shape["choices"] = reading.choices
    if reading.many:
        shape["nargs"] = "*" if reading.flag else "+"
    elif reading.flag:
        shape.update(nargs="?", const=True, metavar="BOOL")
    if reading.one_or_many:
        shape["action"] = _OneOrMany
    return shape


class _OneOrMany(argparse.Action):
    """No word is True, one word is its value, several are a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, True if not values else values[0] if len(values) == 1 else values)


def _can_be_switched_off(field: dataclasses.Field[Any], reading: Reading) -> bool:
    """Truth values that are True, or undecided, unless something is said."""
    return reading.flag and not reading.many and (field.default is True or field.default is None)


def _files_named_by(flag: str, words: list[str]) -> tuple[list[Path], list[str]]:
    """The files that an option names, and the words without it."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(flag, dest="files", action="append", default=[], type=Path)
    found, others = finder.parse_known_args(words)
    for file in found.files:
        if not file.is_file():
            raise ValueError(f"{flag}={os.fspath(file)!r}: there is no such file; correct the path")
    return found.files, others


def _mapping_in(option: str, file: str | os.PathLike[str], content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{option}={os.fspath(file)!r}: holds a {type(content).__name__}; write options by name")
    return content
