"""Counts of a program that was traced or compiled: FLOPs of its products, bytes sent by chips."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend
from jax.interpreters.partial_eval import dce_jaxpr

_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


def matrix_flops(jaxpr) -> int:
    """2 x multiplications of all dots and convolutions on all chips; while loops count once.

    XLA's own count takes the body of every loop once, also that of the scan over the layers.
    Products that nothing reads, such as gradients of frozen kernels, are left out, as XLA does.
    """
    total = 0
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            if name == "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                terms = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            else:
                terms = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out) * terms
        if name == "factor_product":  # backbone/dense.py's
            terms = equation.invars[0].aval.shape[-1]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * terms
        times = params["length"] if name == "scan" else 1
        if name == "shard_map":  # its shapes are those of one shard
            times = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
        total += times * sum(
            matrix_flops(inner) for inner in jax.extend.core.jaxprs_in_params(params)
        )
    return total


def collectives(hlo: str, trips: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Each collective of a compiled program: kind, bytes, how often a step runs it, origin.

    `trips` are the turns of the program's nested loops, outermost first.
    """
    for match in filter(None, map(_COLLECTIVE.search, hlo.splitlines())):
        arrays, op = _ARRAY.findall(match["type"]), _OP_NAME.search(match.string)
        size = sum(
            int(bits) * math.prod(int(n) for n in shape.split(",") if n) // 8
            for _, bits, shape in arrays
        )
        yield {
            "kind": match["kind"],
            "dtypes": sorted({kind + bits for kind, bits, _ in arrays}),
            "arrays": len(arrays),
            "bytes": size,
            "times": math.prod(trips[: op[1].count("while/body") if op else 0]),
            "op": op and op[1],
        }
