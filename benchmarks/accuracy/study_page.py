"""The tables of docs/results.md, from the committed record of the study.

    python -m benchmarks.study_page

The page is right at any state of the record: its first table says how many cells there are. Means
are over the seeds that all tasks have, and the error is the standard error over these seeds.
"""

import argparse
from pathlib import Path

from benchmarks.accuracy import study_record, study_tables
from benchmarks.common import write_tables

PAGE = Path("docs/results.md")


def tables() -> dict[str, str]:
    """The Markdown table of each mark in the page."""
    record = study_record.read(study_record.RECORD)
    return {mark: table(record) for mark, table in study_tables.TABLES.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_tables(PAGE, tables())


if __name__ == "__main__":
    main()
