"""The shape of the library's functions."""

import ast

from places import ROOT


def test_no_function_has_more_than_60_lines_or_6_parameters():
    for path in (ROOT / "fact_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [a.arg for a in arguments if a.arg not in ("self", "cls")]
                where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
                assert node.end_lineno - node.lineno < 60, where
                assert len(names) <= 6, where
