"""FacT-TT of rank 4: 8,448 factors, the paper's 8K version (group mean 73.5 %, best test epoch)."""

from ml_collections import ConfigDict

from configs import tt_rank16


def get_config() -> ConfigDict:
    config = tt_rank16.get_config()
    config.fact_tt.rank = 4
    config.fact_tt.published = "fact_tt_4"
    return config
