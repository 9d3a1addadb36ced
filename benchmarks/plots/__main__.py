"""All pictures of the docs, from the stored results.

python -m benchmarks.plots
"""

from benchmarks.plots import plot_compare, plot_performance, plot_quickstart, plot_rounding

if __name__ == "__main__":
    for module in (plot_compare, plot_performance, plot_quickstart, plot_rounding):
        module.main()
