"""Adapter+ of width 8, 165,984 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config adapter_plus

No published numbers are stored. AdamW at 1e-3, weight decay 1e-4 but not on biases and channels'
scales, 100 epochs of which 10 warm up, stochastic depth up to 0.1 in the network and behind the
bottleneck, no dropout; nothing to choose.
Source: visinf/adapter_plus, conf/experiment/vtab/adapter_plus_dim8.yaml, conf/train/default.yaml.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.vtab("adapter_plus", width=8, dropout_rate=0.0, decay_vectors=False)
