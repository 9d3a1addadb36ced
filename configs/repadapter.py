"""RepAdapter of width 8 in two groups, 239,808 numbers, on the 19 tasks of VTAB-1K.

Published group mean: 76.09 % at 0.22M numbers, which leaves out its biases; the best test epoch.
The scales are those of its search script, which runs the training with its test evaluations for
each of the five and so chooses on test; here they are compared on val200.
Source: luogen1996/RepAdapter, train.py, scripts/search_repblock.sh.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.methods = "repadapter"
    config.repadapter = ConfigDict(
        {"width": 8, "groups": 2, "scales": (0.1, 0.5, 1.0, 5.0, 10.0), "published": "repadapter"}
    )
    return config
