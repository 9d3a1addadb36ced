"""Reading traced programs."""

import math

from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr


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


def product_flops(jaxpr):
    """Two for each multiplication of all matrix products that something reads, as XLA counts."""
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated", "factor_product"):
            terms = equation.invars[0].aval.shape[-1]  # backbone/dense.py's product of factors
            if name == "dot_general":
                contracted = params["dimension_numbers"][0][0]
                terms = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            elif name == "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                terms = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * terms
        turns = params["length"] if name == "scan" else 1
        total += turns * sum(map(product_flops, jaxprs_in_params(params)))
    return total
