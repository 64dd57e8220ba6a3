"""`python -m thinkers`, the same as the command `thinkers`."""

from thinkers.cli.main import console

if __name__ == "__main__":
    console()
