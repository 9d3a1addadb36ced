"""FacT-TT of rank 16, 61,440 factors, on the five few-shot sets; configs/fewshot.py has the rest.

The paper's claim is the best accuracy with the fewest numbers; its values (in PETL-ViT's issue 11)
were not obtained.
"""

from configs import fewshot


def get_config(arg: str = ""):
    return fewshot.get_config(",".join(["fact_tt", *filter(None, [arg])]))
