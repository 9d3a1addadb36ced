"""Reading traced programs."""

from jax.extend.core import jaxprs_in_params


def equations(jaxpr):
    """All equations, those of loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
