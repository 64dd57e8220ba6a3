"""Registries {name: class} of models and tasks, and look-up of the class of a Config.

A registry is a plain dict that users extend, so it is checked at each look-up.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin
from weakref import WeakSet

from thinkers.errors import UsageError, UsageTypeError, join_errors, nearest, usage_error
from thinkers.optional import require
from thinkers.problems import find_problems

SCALARS: dict[Any, tuple[str, type]] = {
    float: ("a number", Real),
    bool: ("True or False", bool),
    str: ("a text", str),
}
OF_EXTRAS = {
    "hf_looped": ("transformers", "hf", "the model hf_looped"),
    "reasoning_gym": ("reasoning_gym", "reasoning_gym", "the task reasoning_gym"),
}
"""{name of a model or task that is registered with an extra only: what `require` takes}."""
T = TypeVar("T")
_owned: WeakSet[type] = WeakSet()
"""The `Config` types that belong to a class."""


class Configured:
    """A class whose `Config` belongs to it alone, so that the type of settings identifies it.

    A subclass that defines no Config, or reuses that of another class, gets a derived one: equal in
    fields, different in type.
    """

    Config: ClassVar[type]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        given = getattr(cls, "Config", None)
        if given is None:
            return
        if given in _owned:
            names = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config"}
            given = cls.Config = type("Config", (given,), names | {"__doc__": given.__doc__})
        elif dataclasses.is_dataclass(given):
            typed(given)
        _owned.add(given)

    @classmethod
    def own_config(cls, config: Any) -> Any:
        """Return `config` as a `Config` of this class, or convert that of a parent class.

        Raises:
            UsageError: It is the Config of another class.
        """
        if type(config) is cls.Config:
            return config
        if issubclass(cls.Config, type(config)) and _fields(cls.Config) == _fields(type(config)):
            given = {f.name: getattr(config, f.name) for f in _fields(cls.Config) if f.init}
            return cls.Config(**given)
        expected, got = cls.Config.__qualname__, type(config).__qualname__
        raise UsageError(f"config must be a {expected}, got a {got}")


def typed(config: T) -> T:
    """Let a dataclass refuse numbers, texts and switches of another type, before it uses them.

    Integers are left to its `__post_init__`, which knows their range.

    Raises:
        UsageTypeError: As the dataclass is constructed: a value is not of its type.
    """
    construct = config.__init__  # type: ignore

    @functools.wraps(construct)
    def checked(self: Any, *given: Any, **named: Any) -> None:
        known = [x.name for x in dataclasses.fields(self) if x.init and not x.kw_only]
        values = dict(zip(known, given, strict=False)) | named
        if not wrong_types(type(self), values):
            try:
                return construct(self, *given, **named)
            except (ValueError, TypeError) as error:
                problems = construct_all(type(self), values)[1]
                if len(problems) < 2:
                    raise
                raise join_errors(problems) from error
        raise join_errors(construct_all(type(self), values)[1])

    checked.untyped = construct  # type: ignore
    config.__init__ = checked  # type: ignore
    return config


def wrong_types(kind: type, values: Mapping[str, Any]) -> dict[str, UsageError]:
    """Return {field: error} of the values that are not of the type of their field."""
    return {
        x.name: UsageTypeError(f"{x.name} must be {_words(x.type)}, got {values[x.name]!r}")
        for x in _fields(kind)
        if x.name in values and not _fits(values[x.name], x.type)
    }


def construct_all(
    kind: type, values: Mapping[str, Any], reported: Collection[str] = ()
) -> tuple[Any, list[UsageError]]:
    """Construct a dataclass, with other values in the place of wrong ones; return all problems.

    Args:
        reported: Fields whose problems are known, and whose values here are no longer those given.

    Returns:
        The dataclass, or None if some problem is of no single field; and the problems.
    """
    stand_ins = {x.name: _stand_ins(x) for x in _fields(kind) if x.init}
    wrong = wrong_types(kind, values)
    usual = {name: stand_ins[name][0] for name in wrong if name in stand_ins}
    checked: Any = kind.__init__  # type: ignore
    plain = getattr(checked, "untyped", checked)

    def construct(given: Mapping[str, Any]) -> Any:
        made: Any = object.__new__(kind)
        plain(made, **given)
        return made

    made, problems = find_problems(construct, {**values, **usual}, stand_ins, {*reported, *wrong})
    found = [x if isinstance(x, UsageError) else UsageError(str(x)) for x in problems]
    return made, [*wrong.values(), *found]


def _stand_ins(field: Any) -> list[Any]:
    """Return the default of a field, its choices, and small values that it may take."""
    default = [] if field.default is dataclasses.MISSING else [field.default]
    choices = [False, True] if field.type is bool else _choices(field.type)
    small = [] if choices else [None, 1, 0, 0.5, ""]
    values = [*default, *choices, *(x for x in small if _fits(x, field.type))]
    return values or [None]


def _choices(kind: Any) -> list[Any]:
    """Return the values of a Literal, alone or beside other types."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for part in get_args(kind) for word in _choices(part)]


def _fits(value: Any, kind: Any) -> bool:
    """Return False if `kind` is a type of SCALARS, or made of them, and the value is of no such."""
    if kind in SCALARS:
        is_switch = isinstance(value, bool)
        return is_switch == (kind is bool) and isinstance(value, SCALARS[kind][1])
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in parts if part is not NoneType) or (
            value is None and NoneType in parts
        )
    if get_origin(kind) in (tuple, Sequence):
        return isinstance(value, tuple | list) and all(_fits(x, parts[0]) for x in value)
    return True


def _words(kind: Any) -> str:
    if kind in SCALARS:
        return SCALARS[kind][0]
    if get_origin(kind) in (tuple, Sequence):
        return "a tuple or a list, each value of its type"
    parts = ["None" if part is NoneType else _words(part) for part in get_args(kind)]
    return " or ".join(parts) if parts else getattr(kind, "__name__", str(kind))


def _fields(config: type) -> tuple[Any, ...]:
    return dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()


def check(registry: Mapping[str, Any], kind: str) -> None:
    """Check a registry of classes.

    Args:
        kind: The noun for an entry, such as "model".

    Raises:
        UsageError: A value is not a class with a Config, or two names have one class.
    """
    names: dict[Any, str] = {}
    for name, found in registry.items():
        if not (isinstance(found, type) and issubclass(found, Configured)) or not hasattr(
            found, "Config"
        ):
            raise usage_error(
                f"{kind} {name!r} is {found!r}",
                f"a class that extends thinkers.{kind.capitalize()} and has a Config",
                "register such a class",
            )
        other = names.setdefault(found.Config, name)
        if other != name:
            raise usage_error(
                f"the {kind}s {other!r} and {name!r} are one class, {found.__qualname__}",
                "a separate class for each name, since names are looked up by class",
                f"remove one of the names, or register a subclass of {found.__qualname__}",
            )


def class_named(name: Any, registry: Mapping[str, Any], kind: str) -> Any:
    """Return the class of this name.

    Raises:
        UsageError: There is none, or the registry is not valid.
    """
    check(registry, kind)
    if not isinstance(name, str) or name not in registry:
        check_extra(name)
        close = nearest(str(name), registry)
        raise usage_error(f"unknown {kind} {name!r}", close, "add yours with --import_module FILE")
    return registry[name]


def check_extra(name: Any) -> None:
    """Raise UsageError if what is not registered under this name only lacks an extra."""
    if isinstance(name, str) and name in OF_EXTRAS:
        require(*OF_EXTRAS[name])


def name_of(found: type, registry: Mapping[str, Any]) -> str | None:
    """Return the name under which a class is registered; None if it is not."""
    return next((name for name, other in registry.items() if other is found), None)


def name_of_config(config: Any, registry: Mapping[str, Any], kind: str) -> str:
    """Return the registered name of the class that these settings belong to.

    Raises:
        UsageError: It is not registered, or the registry is not valid.
    """
    check(registry, kind)
    for name, found in registry.items():
        if type(config) is found.Config:
            return name
    raise usage_error(
        f"{type(config).__qualname__} is not the Config of a {kind} in {list(registry)}",
        f"the Config of a registered {kind}",
        f"register its class first: thinkers.{kind.upper()}S[NAME] = CLASS",
    )
