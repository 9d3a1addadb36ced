"""RepAdapter of width 8 in two groups, 239,808 numbers, on the 19 tasks of VTAB-1K.

    python -m experiments.vtab --config repadapter
    python -m experiments.vtab --config repadapter:released
    python -m experiments.vtab --config repadapter:released_attention

Published group mean: 76.09 % at 0.22M numbers, which leaves out its biases; the best test epoch.
`repadapter.py`: five scales are compared on val200. They are those of its search script, which runs
the training with its test evaluations for each and so chooses on test.
`repadapter.py:released`: the released scale of every task.
`repadapter.py:released_attention`: the adapters before attention alone, 119,904 numbers, with the
released scales of that form. No published numbers. An earlier README of the authors had 77.12 %,
and 77.40 % for both places; a later one dropped both.
Normalisation: ImageNet's, as in train.py of 1285c27. In that of a7b33b7, which the scales came
with, it was the model's (timm: mean and deviation 0.5): --config.normalisation=inception. Which of
the two the published row has is not said.
Source: luogen1996/RepAdapter, train.py, scripts/search_repblock.sh (1285c27); scales:
configs/repblock and configs/repattn (a7b33b7).
"""

from ml_collections import ConfigDict

from configs import base

SCALES = (0.1, 0.5, 1.0, 5.0, 10.0)


def get_config(arg: str = "repadapter") -> ConfigDict:
    forms = {
        "repadapter": {"published": "repadapter"},
        "released": {"published": "repadapter", "per_task": base.released("repadapter")},
        "released_attention": {
            "attention_only": True,
            "per_task": base.released("repadapter_attention"),
        },
    }
    settings = base.form("repadapter", arg, forms)
    return base.vtab("repadapter", width=8, groups=2, scales=SCALES, **settings)
