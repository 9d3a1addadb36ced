"""All pictures of the docs, from the stored results.

python -m benchmarks.plots
"""

import argparse

from benchmarks.plots import (
    plot_compare,
    plot_dictionary,
    plot_hundred_tasks,
    plot_performance,
    plot_quickstart,
    plot_rounding,
)

MODULES = (
    plot_compare,
    plot_dictionary,
    plot_hundred_tasks,
    plot_performance,
    plot_quickstart,
    plot_rounding,
)

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for module in MODULES:
        module.main()
