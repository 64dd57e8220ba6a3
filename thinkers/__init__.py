"""Transformers that think in latent space before they answer."""

from thinkers.version import __version__ as __version__
