"""Where a sweep's cells run: here, as tasks on a Ray cluster, or as jobs under Slurm.

However they run, cells are claimed, stored and resumed through the work directory alone
(fact_jax/sweep). A launcher's command only starts what works on them and follows the store.
"""
