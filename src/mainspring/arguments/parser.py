"""`HfArgumentParser`: dataclasses become options of the command line, or are filled from a mapping or a file."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mainspring.arguments.actions import COMMAND_LINE, PLACE, MovePlace, Store, StoreOneOrMany, SwitchOff, Written
from mainspring.arguments.config_files import options_of_json, options_of_yaml, words_of
from mainspring.arguments.masking import shown
from mainspring.arguments.option import groups_of
from mainspring.arguments.readings import TEXT, Reading, reading_of
from mainspring.arguments.sources import Origin, read_elsewhere
from mainspring.arguments.spellings import OLDER_NAMES, OLDER_TYPES, ON_UNLESS_SAID, RENAMED
from mainspring.arguments.training_arguments import TrainingArguments
from mainspring.errors import did_you_mean

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
        self._written = Written()
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
        json = field.metadata.get("json", False)  # text, or a path: the arguments read it
        reading = TEXT if json else reading_of(annotation, field.metadata.get("choices"))
        said = {name: field.metadata[name] for name in _PASSED_ON if name in field.metadata}
        keywords = {**self._shape(reading), **said, **self._presence(field, annotation)}
        aliases = field.metadata.get("aliases", [])
        target.add_argument(*_spellings(field.name), *([aliases] if isinstance(aliases, str) else aliases), **keywords)
        if _can_be_switched_off(field, reading) and f"no_{field.name}" not in self._names():
            off: dict[str, Any] = {"action": SwitchOff, "written": self._written, "dest": field.name}
            off["default"] = keywords.get("default")
            target.add_argument(*_spellings(f"no_{field.name}"), help=said.get("help"), **off)

    def _shape(self, reading: Reading) -> dict[str, Any]:
        """What argparse is told of a reading: converter, choices, number of words, and to note where they were."""
        action = StoreOneOrMany if reading.one_or_many else Store
        shape: dict[str, Any] = {"type": reading.word, "action": action, "written": self._written}
        if reading.choices is not None:
            shape["choices"] = reading.choices
        if reading.many:
            shape["nargs"] = "*" if reading.flag else "+"
        elif reading.flag:
            shape.update(nargs="?", const=True, metavar="BOOL")
        return shape

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

    @contextlib.contextmanager
    def _with_older_spellings(self) -> Iterator[None]:
        """Hidden, and for one parse only: what a script itself calls so, be it before or later, comes first."""
        known, strings = list(self._actions), set(self._option_string_actions)
        self._older_spellings = set()
        try:
            for cls in self.dataclass_types:
                if issubclass(cls, TrainingArguments):
                    self._add_older_spellings(_annotations(cls))
            yield
        finally:
            self._actions[:] = [action for action in self._actions if action in known]
            for string in self._option_string_actions.keys() - strings:
                del self._option_string_actions[string]

    def _add_older_spellings(self, hints: Mapping[str, Any]) -> None:
        for name in sorted(OLDER_NAMES - {action.dest for action in self._actions}):
            reading = reading_of(hints[RENAMED[name]] if name in RENAMED else OLDER_TYPES.get(name, bool))
            self._add_hidden(name, name, **self._shape(reading))
            if name in ON_UNLESS_SAID:
                self._add_hidden(f"no_{name}", name, action=SwitchOff, written=self._written)

    def _add_hidden(self, spelling: str, name: str, **shape: Any) -> None:
        """Add those spellings of an older option that nothing else has."""
        free = [string for string in _spellings(spelling) if string not in self._option_string_actions]
        if free:
            hidden: Any = {"dest": name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            self.add_argument(*free, **shape, **hidden)
            self._older_spellings.add(name)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """What an abbreviation may stand for, as argparse finds it: hidden options only where nothing else fits."""
        found = super()._get_option_tuples(option_string)
        return [match for match in found if match[0].help != argparse.SUPPRESS] or found

    # ---- from words to instances ----

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, which every other way of parsing goes through."""
        with self._with_older_spellings():
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
        self._written.forget()
        words = [*self._words_of_files(files), *words]
        namespace, left_over = self.parse_known_args(words)
        if left_over and not return_remaining_strings:
            masks = _masks(words, self._names() | OLDER_NAMES)
            raise ValueError("\n".join(self._complaint(masks.get(word, word)) for word in left_over))
        built: list[Any] = [self._build(cls, namespace) for cls in self.dataclass_types]
        if vars(namespace):
            built.append(namespace)
        return (*built, left_over) if return_remaining_strings else tuple(built)

    def _words_of_files(self, files: Sequence[Path]) -> list[str]:
        """Their words, each file's after its name, so that each value can be told where it was written."""
        if not files:
            return []
        if PLACE not in self._option_string_actions:
            hidden: Any = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
            self.add_argument(PLACE, action=MovePlace, written=self._written, **hidden)
        words = []
        for file in files:
            words += [PLACE, f"file {os.fspath(file)}", *words_of(file)]
        return [*words, PLACE, COMMAND_LINE]

    def _build(self, cls: type[Any], namespace: argparse.Namespace) -> Any:
        """Make an instance from what was given, and take that out of the namespace.

        What nobody gave is left to the dataclass: a mutable default is then made anew, and an older spelling does not
        compete with the default of the newer one.
        """
        values = {}
        defaults = {action.dest: action.default for action in self._actions}  # a script may have changed them
        for name in self._accepted(cls, self._older_spellings):
            if not hasattr(namespace, name):
                continue
            value = getattr(namespace, name)
            delattr(namespace, name)
            default = self._defaults_of_fields.get(name, dataclasses.MISSING)
            if name in self._written or defaults.get(name) is not default:
                values[name] = value
        with read_elsewhere(cls, {name: self._written.origin(name) for name in values}):
            return cls(**values)

    @staticmethod
    def _accepted(cls: type[Any], older: Collection[str]) -> list[str]:
        """The keywords that a dataclass takes: its fields and, for arguments of ours, older spellings."""
        return [*(field.name for field in _fields(cls)), *(older if issubclass(cls, TrainingArguments) else ())]

    def _complaint(self, word: str) -> str:
        if not word.startswith("-"):
            return f"{word!r} belongs to no option; put the option that it is a value of before it"
        visible = {text for text, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS}
        return _no_such_option(word.partition("=")[0], visible)

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
        return self._fill(args, allow_extra_keys, "mapping")

    def _fill(self, args: Mapping[str, Any], allow_extra_keys: bool, source: str) -> tuple[Any, ...]:
        names = self._names()
        accepted = [self._accepted(cls, OLDER_NAMES - names) for cls in self.dataclass_types]
        unknown = sorted(str(name) for name in args if not any(name in some for some in accepted))
        if unknown and not allow_extra_keys:
            raise ValueError("\n".join(_no_such_option(name, names) for name in unknown))
        built = []
        for cls, some in zip(self.dataclass_types, accepted, strict=True):
            values = {name: args[name] for name in some if name in args}
            with read_elsewhere(cls, dict.fromkeys(values, Origin(source))):
                built.append(cls(**values))
        return tuple(built)

    def parse_json_file(self, json_file: str | os.PathLike[str], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Fill the dataclasses from a JSON file, as `parse_dict` does.

        Raises:
            ValueError: The file holds no JSON object, or as for `parse_dict`.
        """
        return self._fill(options_of_json(json_file), allow_extra_keys, f"file {os.fspath(json_file)}")

    def parse_yaml_file(self, yaml_file: str | os.PathLike[str], allow_extra_keys: bool = False) -> tuple[Any, ...]:
        """Fill the dataclasses from a YAML file, as `parse_dict` does.

        Raises:
            MissingPackageError: PyYAML is not installed.
            ValueError: The file holds no YAML mapping, or as for `parse_dict`.
        """
        return self._fill(options_of_yaml(yaml_file), allow_extra_keys, f"file {os.fspath(yaml_file)}")


def _masks(words: Sequence[str], names: Collection[str]) -> dict[str, str]:
    """What stands for words that come after an option which is a token, looks like one, or may abbreviate one."""
    masks: dict[str, str] = {}
    options: list[str] = []
    for word in words:
        if word.startswith("-"):
            option = word.partition("=")[0].lstrip("-").replace("-", "_")
            abbreviated = [] if option in names else [name for name in names if name.startswith(option)]
            options = [option, *abbreviated]
        elif mask := next((mask for name in options if (mask := shown(name, word)) != word), None):
            masks[word] = mask
    return masks


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
