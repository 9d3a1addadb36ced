"""Reading traced programs."""

from jax.extend.core import jaxprs_in_params


def equations(jaxpr):
    """All equations, those of loops and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def arrays_of_type(jaxpr, dtype):
    """Operations with a result of this type; Python's own numbers, which are weak, are left out."""
    return [
        str(equation)[:200]
        for equation in equations(jaxpr)
        if any(str(v.aval.dtype) == dtype and not v.aval.weak_type for v in equation.outvars)
    ]
