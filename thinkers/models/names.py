"""The dict behind MODELS, below the models themselves, whose names are their keys in it."""

from typing import Any

from thinkers import registry

MODELS: dict[str, Any] = {}


class Name:
    """The `name` of a class of model: its key in MODELS, and its own name outside of MODELS.

    Args:
        own: The name that the class itself defines; None for the name of the class in Python. A
            name that is inherited would be that of another class.
    """

    def __init__(self, own: str | None):
        self.own = own

    def __get__(self, model: Any, owner: type) -> str:
        return registry.name_of(owner, MODELS) or self.own or owner.__name__
