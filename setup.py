"""Packages of the wheel: fact_jax, and configs/ as fact_jax.configs. All else: pyproject.toml."""

from setuptools import find_namespace_packages, setup

# Namespaces, too: a folder of data has no __init__.py.
PACKAGES = find_namespace_packages(include=["fact_jax", "fact_jax.*"], exclude=["*.__pycache__"])

setup(
    packages=[*PACKAGES, "fact_jax.configs"],
    package_dir={"fact_jax.configs": "configs"},
)
