"""Packages that only some uses need: the extras of pyproject.toml."""

from importlib.util import find_spec

from fact_jax.errors import UserError


def require(use: str, extra: str, *modules: str) -> None:
    """Raises a UserError with pip's command if a module of an extra is not installed.

    Args:
      use: what needs the modules, the subject of the message's sentence.
      extra: the extra that brings them.
      modules: their names.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UserError(
            f"{use} needs {' and '.join(missing)}: pip install 'fact-jax[{extra}]', or in a "
            f"checkout pip install -e '.[{extra}]'."
        )
