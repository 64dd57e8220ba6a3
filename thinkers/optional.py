"""Imports of optional packages, which an extra installs."""

import importlib
from typing import Any

from thinkers.errors import usage_error


def require(module: str, extra: str, use: str) -> Any:
    """Import a module that the extra `extra` installs.

    Args:
        use: The feature that needs it, as the subject of the error: "a page".

    Raises:
        UsageError: It cannot be imported; the message has the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise usage_error(
            f"no package {package}, which {use} needs",
            f"the packages of the extra {extra}",
            f'pip install "thinkers[{extra}]"',
        ) from None
