"""Overrides: settings from YAML files and command-line flags, on top of a Config."""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import jsonargparse
import yaml

from thinkers.config.conflicts import remaining_conflicts
from thinkers.config.experiment import PLANNED, TASK_SIZES, Config, check_part, tuples
from thinkers.errors import UsageError, join_errors, nearest, usage_error
from thinkers.files import read_file
from thinkers.problems import Collector
from thinkers.user_paths import user_path

LARGEST_FILE, MOST_SETTINGS = 200_000, 1000
MOST_SHOWN = 1000
"""Bits of an integer that an error shows; Python does not print those of thousands of digits."""


def parser(config: Config, prog: str = "thinkers train RECIPE") -> jsonargparse.ArgumentParser:
    """Build a parser with a flag for each field of `config`, whose values are the defaults.

    It is that of the last call for the same classes, with other defaults: use it at once.
    """
    parts = {part: getattr(config, part) for part in config.parts}
    result = _flags_of(prog, tuple((part, type(value)) for part, value in parts.items()))
    for part, value in parts.items():
        result.set_defaults({f"{part}.{k}": v for k, v in _given(value).items()})
    return result


@lru_cache(maxsize=64)
def _flags_of(prog: str, kinds: tuple[tuple[str, type], ...]) -> jsonargparse.ArgumentParser:
    """Build a parser with a flag for each field of these classes, one class for each part."""
    result = jsonargparse.ArgumentParser(prog=prog, exit_on_error=False, add_help=False)
    for part, kind in kinds:
        # The sizes are added below, with a help that explains null.
        skip = set(TASK_SIZES) if part == "model" else set()
        result.add_class_arguments(kind, part, skip=skip, instantiate=False)  # type: ignore
    for field, meaning in TASK_SIZES.items():
        help = f"null: the {meaning} of the task"
        result.add_argument(f"--model.{field}", type=int | None, default=None, help=help)
    return result


def check_flags(flags: Any) -> None:
    """Raise UsageError unless these are texts such as --training.lr=0.001."""
    form = "--NAME=VALUE, such as --training.lr=0.001 or --task.max_length=9"
    if isinstance(flags, str) or not isinstance(flags, Sequence):
        found = repr(flags[:60]) if isinstance(flags, str) else f"of type {type(flags).__name__}"
        raise usage_error(
            f"flags {found}",
            f"a list of texts {form}",
            'pass such as flags=["--training.lr=0.001"]',
        )
    for flag in flags:
        if not isinstance(flag, str) or not re.match("--[^=]+=", flag):
            raise usage_error(
                f"the flag {flag!r}", form, "write name and value in one text, with = between them"
            )


def override(config: Config, files: Sequence[str] = (), flags: Sequence[str] = ()) -> Config:
    """Override `config` by YAML files in order, then by flags such as --model.dim=64.

    With reinforce, a new number of updates of one part is that of both.

    Raises:
        UsageError: A file, a name or a value that is not valid.
    """
    values, problems, reported = _read(config, files, flags)
    parts, not_given = {}, set()
    for part in config.parts:
        before = {key.partition(".")[2] for key in reported if key.startswith(f"{part}.")}
        own = getattr(config, part)
        parts[part], wrong = check_part(type(own), values[part], part, before)
        not_given |= before
        if wrong and parts[part] is not None:
            not_given |= _replaced(tuples(values[part]), parts[part], own)
        problems += wrong
    is_whole = all(made is not None for made in parts.values())
    found = dataclasses.replace(config, **parts)
    if is_whole and not {_key(flag) for flag in flags}.issuperset(PLANNED):
        found = _with_equal_updates(config, found)
    if problems:
        raise join_errors(problems + (remaining_conflicts(found, not_given) if is_whole else []))
    return found


def _replaced(given: Mapping[str, Any], made: Any, before: Any) -> set[str]:
    """Return the settings that have other values than those given, or than those before."""
    return {
        name
        for name, value in given.items()
        if getattr(made, name)
        not in ((value, getattr(before, name)) if value is None else (value,))
    }


def _with_equal_updates(before: Config, after: Config) -> Config:
    """Return `after` with the planned updates of the one part in which they differ from `before`.

    Where both differ, they stay: training refuses them if they are not equal.
    """
    old, new = before.reinforce, after.reinforce
    if old is None or new is None:
        return after
    pairs = [
        (before.training.num_updates, after.training.num_updates),
        (old.num_updates, new.num_updates),
    ]
    changed = [number for was, number in pairs if number != was]
    return after.with_updates(changed[0]) if len(changed) == 1 else after


def override_task(task: Any, flags: Sequence[str]) -> Any:
    """Override the `Config` of a task by flags such as --task.context=64."""
    check_flags(flags)
    reader = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    reader.add_class_arguments(type(task), "task", instantiate=False)
    reader.set_defaults({f"task.{k}": v for k, v in _given(task).items()})
    known = {f"task.{field}": _of_field(task, field) for field in _given(task)}
    fix = "change settings of the task alone, --task.*; the model is that of the run"
    tokens = [(f"--{_key(flag)}", flag) for flag in flags]
    values, problems, reported = _parse_known(reader, known, tokens, fix)
    before = [key.removeprefix("task.") for key in reported]
    # A task without settings has no group of them.
    made, wrong = check_part(type(task), values.get("task", {}), "task", before)
    if problems or wrong:
        raise join_errors([*problems, *wrong])
    return made


def parse(config: Config, files: Sequence[str], flags: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return {part: {field: value}} of every field, checked against its type."""
    values, problems, _ = _read(config, files, flags)
    if problems:
        raise join_errors(problems)
    return values


def _read(
    config: Config, files: Sequence[str], flags: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[UsageError], set[str]]:
    """Return the values of all fields, the problems, and the settings that these are about.

    A setting with a problem has the value that it has in `config`.
    """
    check_flags(flags)
    reader, problems = parser(config), Collector()
    tokens: list[tuple[str, str]] = []
    for file in files:
        with problems:
            tokens += _read_file(file, config.parts, problems)
    tokens += [(f"--{_key(flag)}", flag) for flag in flags]
    known = {
        key: _of_field(getattr(config, key.partition(".")[0]), key.partition(".")[2])
        for key in reader.get_defaults().keys()
        if "." in key
    }
    fix = f"thinkers train {config.recipe or 'RECIPE'} --print_config lists every setting"
    whose = f", which {config.recipe or 'this configuration'} does not have"
    settings, wrong, reported = _parse_known(reader, known, tokens, fix, whose)
    values = {part: settings.get(part, {}) for part in config.parts}
    return values, [*problems.found, *wrong], reported


def _parse_known(
    reader: jsonargparse.ArgumentParser,
    known: Mapping[str, tuple[Any, Any]],
    tokens: Sequence[tuple[str, str]],
    fix: str,
    whose: str = "",
) -> tuple[dict[str, Any], list[UsageError], set[str]]:
    """Parse flags, each beside its name for errors.

    Args:
        known: {setting: (type, value that it has unless a flag changes it)}.
        fix: The remedy for an unknown setting.
        whose: The end of the first line of its error.

    Returns:
        The values of all settings, those with a problem as if no flag named them; the problems;
        and the settings that these are about.
    """
    problems = [
        usage_error(f"{shown}{whose}", f"--{nearest(_key(token), known)}", fix)
        for shown, token in tokens
        if _key(token) not in known
    ]
    given = [token for _, token in tokens if _key(token) in known]
    reported: set[str] = set()
    while True:
        try:
            settings = reader.parse_args(given).as_dict()
            found = _first_not_finite(settings, known)
        except jsonargparse.ArgumentError as error:
            settings = reader.get_defaults().as_dict()
            found = _type_problem(known, str(error), given)
        except OverflowError:
            settings = reader.get_defaults().as_dict()
            found = _overflow(reader, given)
        if found is None:
            return settings, problems, reported
        key, problem = found
        problems.append(problem)
        reported.add(key)
        kept = [token for token in given if _key(token) != key]
        if len(kept) == len(given):  # not of a flag: what else is wrong stays unknown
            return settings, problems, reported
        given = kept


def _key(flag: str) -> str:
    return flag[2:].partition("=")[0]


def _of_field(config: Any, name: str) -> tuple[Any, Any]:
    """Return the type and the value of a field."""
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    return kinds.get(name, "a value"), getattr(config, name, None)


def dump(config: Config, files: Sequence[str] = (), flags: Sequence[str] = ()) -> str:
    """Return the settings as YAML, which `--config` reads back."""
    values = json.loads(json.dumps(parse(config, files, flags)))
    return yaml.safe_dump(values, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """YAML loader that rejects repeated keys and aliases, which the standard allows.

    A repeated key hides a value; nested aliases can expand to gigabytes ("billion laughs").
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, *{self.peek_event().anchor}")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (KeyError, IndexError, AttributeError):  # of the library, as for !!bool abc
            raise yaml.YAMLError(f"{node.value!r} is no {node.tag.rpartition(':')[2]}") from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value in keys:
                raise yaml.YAMLError(f"{key.value} twice")
            if isinstance(key.value, str):  # other keys are refused when they are constructed
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def _read_file(file: str, parts: Sequence[str], problems: Collector) -> list[tuple[str, str]]:
    """Return (the name for errors, the equivalent flag) of each setting in a YAML file.

    Args:
        problems: Collector of the problems of its parts; a file that cannot be read is an error.
    """
    fix = "write a valid one by thinkers train RECIPE --print_config > FILE"
    path = user_path(file, "--config")
    try:
        raw = read_file(path, LARGEST_FILE, UsageError, follow=True)
        data = _Loader(raw.decode()).get_single_data()
    except UsageError as error:
        raise usage_error(f"--config {error}", "a YAML file", fix) from None
    except FileNotFoundError:
        raise usage_error(f"--config {file}: No such file", "a YAML file", fix) from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not UTF-8"
        raise usage_error(f"--config {file}: {where}", "a YAML file in UTF-8", fix) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise usage_error(f"--config {file}: {what[:200]}", "a YAML file", fix) from None
    groups = data.values() if isinstance(data, dict) else ()
    number = len(groups) + sum(len(x) for x in groups if isinstance(x, dict))
    if number > MOST_SETTINGS:
        found, expected = f"--config {file}: {number} settings", f"at most {MOST_SETTINGS}"
        raise usage_error(found, expected, fix)
    tokens = []
    for part, settings in (data or {}).items() if isinstance(data or {}, dict) else [("", data)]:
        with problems:
            if part not in parts:
                raise usage_error(f"{_text(part or data)} in {file}", ", ".join(parts), fix)
            if not isinstance(settings, dict):
                raise usage_error(
                    f"{part}: {_text(settings)} in {file}", f"the settings of {part}", fix
                )
            tokens += [(f"{part}.{k} in {file}", _token(part, k, v)) for k, v in settings.items()]
    return tokens


def _token(part: str, field: Any, value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except (TypeError, ValueError) as error:  # a date as a key, thousands of digits
        what = " ".join(str(error).split())
        raise usage_error(
            f"--{part}.{field} of a file: {what}", "a number, a text or a list of them", "change it"
        ) from None
    return f"--{part}.{field}={text}"


def _type_problem(
    known: Mapping[str, tuple[Any, Any]], message: str, tokens: list[str]
) -> tuple[str, UsageError]:
    """Return the setting that an error of jsonargparse is about, and the error in three lines."""
    found = re.search(r'key "([^"]+)"', message)
    if not found:
        return "", usage_error(" ".join(message.split()), "a setting and its value", "see --help")
    key = found[1]
    given = [token for token in tokens if _key(token) == key]
    value = given[-1].partition("=")[2] if given else "nothing"
    hint, default = known.get(key, ("a value", None))
    expected = f"{_describe(hint)}; {json.dumps(default, default=str)} if it is left out"
    fix = f"write --{key} VALUE, or leave it out"
    return key, usage_error(f"--{key} {value!r}", expected, fix)


def _overflow(reader: jsonargparse.ArgumentParser, tokens: list[str]) -> tuple[str, UsageError]:
    """Return the setting whose integer is too large for a float, and the error."""
    for token in tokens:
        with suppress(jsonargparse.ArgumentError):
            try:
                reader.parse_args([token])
            except OverflowError:
                break
    flag, _, value = token.partition("=")
    return _key(token), usage_error(f"{flag} {value}", "a finite number", f"change {flag}")


def _describe(hint: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint]
    return re.sub(r"typing\.|<class '|'>", "", str(hint)).replace("None", "null")


def _first_not_finite(
    settings: Mapping[str, Any], known: Iterable[str]
) -> tuple[str, UsageError] | None:
    """Return the first setting with a number that JSON or torch cannot hold, and its error."""
    for key in known:
        part, _, field = key.partition(".")
        value = settings.get(part, {}).get(field)
        for x in value if isinstance(value, tuple | list) else [value]:
            if isinstance(x, int) and not -(2**63) <= x < 2**63:
                expected, fix = "a number of at most 64 bits", f"change --{key}"
                return key, usage_error(f"--{key} {_shown(x)}", expected, fix)
            if isinstance(x, float) and not math.isfinite(x):
                fix = f"leave --{key} out for the default"
                return key, usage_error(f"--{key} {x}", "a finite number", fix)
    return None


def _text(value: Any) -> str:
    """Return a value of a file as Python shows it."""
    try:
        return repr(value)
    except ValueError as error:  # an integer of thousands of digits
        return f"a value that cannot be shown: {error}"


def _shown(number: int) -> str:
    """Return an integer as text, or its size."""
    bits = number.bit_length()
    return str(number) if bits <= MOST_SHOWN else f"of {bits} bits"


def _given(value: Any) -> dict[str, Any]:
    """Return the settings as they were given: None where a value was derived from the others.

    A printed max_steps, for example, would not follow a later change of num_steps.
    """
    settings = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    for field in dataclasses.fields(value):
        if field.default is None and settings[field.name] is not None:
            try:
                derived = dataclasses.replace(value, **{field.name: None})
            except UsageError:
                continue  # None is invalid beside the other settings: the value was given
            if getattr(derived, field.name) == settings[field.name]:
                settings[field.name] = None
    return settings
