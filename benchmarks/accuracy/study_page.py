"""The tables of docs/results.md, from the committed record of the study.

    python -m benchmarks.study_page

The page is right at any state of the record: its first table says how many cells there are. Means
are over the seeds that all tasks have, and the error is the standard error over these seeds.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.accuracy import study_claims, study_record, study_tables
from benchmarks.common import write_tables

PAGE = Path("docs/results.md")
TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "study_progress": study_tables.progress,
    "study_claims": study_claims.claims,
    "study_fewshot": lambda record: study_claims.few_images_table(),
    "study_groups": study_tables.by_group,
    "study_tasks": study_tables.by_task,
    "study_baseline": study_tables.against_baseline,
    "study_tests": study_tables.what_tests_see,
    "study_leaders": study_tables.leaders,
    "study_dinov2": lambda record: study_tables.by_group(record, "dinov2"),
    "study_dinov2_tasks": lambda record: study_tables.by_task(record, "dinov2"),
    "study_dinov2_baseline": lambda record: study_tables.against_baseline(record, "dinov2"),
    "study_findings": study_tables.findings,
}


def tables() -> dict[str, str]:
    """The Markdown table of each mark in the page."""
    record = study_record.read(study_record.RECORD)
    return {mark: table(record) for mark, table in TABLES.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_tables(PAGE, tables())


if __name__ == "__main__":
    main()
