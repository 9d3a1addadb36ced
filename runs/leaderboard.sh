#!/usr/bin/env bash
# All pages, tables and pictures of the study, from the committed benchmarks/results/study.json:
#
#     bash runs/leaderboard.sh
#
# PYTHON chooses the interpreter. `python -m benchmarks.study` trains what the record lacks.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
"$python" -m benchmarks.leaderboard
"$python" -m benchmarks.study_page
"$python" -m benchmarks.readme
