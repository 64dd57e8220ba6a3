"""The dict behind MODELS, in a module below the models, which look up their names in it."""

from typing import Any

from thinkers import registry

MODELS: dict[str, Any] = {}


class Name:
    """Descriptor of a model's `name`: its key in MODELS, or its own name outside of MODELS.

    Args:
        own: The name that the class itself defines; None means its Python name. An inherited name
            would be that of another class.
    """

    def __init__(self, own: str | None):
        self.own = own

    def __get__(self, model: Any, owner: type) -> str:
        return registry.name_of(owner, MODELS) or self.own or owner.__name__
