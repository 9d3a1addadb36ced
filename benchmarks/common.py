"""The programs' shared parts: options, the network, the JSON and the pages that they write."""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CLASSES = 100
RESULTS = Path("benchmarks/results")
Row = Sequence[str]
NAMES = {  # of the methods of the first comparison
    "full": "Full fine-tuning",
    "linear": "Linear probe",
    "bitfit": "BitFit",
    "vpt_shallow": "VPT-shallow",
    "vpt_deep": "VPT-deep",
    "adapter": "Adapter",
    "adaptformer": "AdaptFormer",
    "lora": "LoRA",
    "ssf": "SSF",
    "convpass": "Convpass",
    "repadapter": "RepAdapter",
    "noah": "NOAH",
    "fact_tt": "FacT-TT",
    "fact_tk": "FacT-TK",
    "fact_cp": "FacT, CP",
    "fact_shared": "FacT, shared",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "variant": {"default": "vit_b16"},
    "image_size": {"type": int, "default": 0, "help": "0: the variant's"},
    "batch": {"type": int, "default": 8, "help": "images a step"},
    "dtype": {"default": "float32", "choices": ["float32", "bfloat16"]},
    "attention": {"default": "xla", "choices": ["xla", "cudnn"]},
    "remat": {"default": "none", "choices": ["none", "attention", "block"]},
    "rounds": {"type": int, "default": 3},
}


def option_parser(doc: str | None, *options: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with some of the shared `options`, and with --out."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for name in options:
        made.add_argument(f"--{name}", **OPTIONS[name])
    made.add_argument("--out", type=Path, help="JSON file of the result")
    made.set_defaults(**defaults)
    return made


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the file, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def store(args: argparse.Namespace, content: dict[str, Any], *without: str) -> None:
    """Writes the content behind the options, but for some, to --out, if it was given."""
    if args.out:
        settings = {k: v for k, v in vars(args).items() if k not in ("out", *without)}
        write_json(args.out, {"settings": settings, **content})


def numbers(value: float) -> str:
    """'0', '8.4K', '1.2M'."""
    if value < 1000:
        return f"{value:.0f}"
    if value < 99_950:
        return f"{value / 1e3:.1f}K"
    return f"{value / 1e3:.0f}K" if value < 999_500 else f"{value / 1e6:.1f}M"


def markdown(head: Row, rows: Iterable[Row], texts: int = 1) -> str:
    """A Markdown table; the first `texts` columns are aligned left, the others right."""
    rule = [" --- " if i < texts else " --: " for i in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(rule)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "".join(f"{line}\n" for line in lines)


def with_tables(page: str, tables: dict[str, str]) -> str:
    """The page with each table written anew behind its mark `<!-- name -->`."""
    for name, table in tables.items():
        page, count = re.subn(
            rf"(<!-- {name} -->\n)(?:\|.*\n)*", lambda m, table=table: m[1] + table, page
        )
        if count != 1:
            raise SystemExit(f"The page has {count} marks <!-- {name} -->; expected one.")
    return page


def write_tables(path: Path, tables: dict[str, str]) -> None:
    """Writes the tables of a page anew."""
    path.write_text(with_tables(path.read_text(), tables))
    print(f"Wrote the tables of {path}.")
