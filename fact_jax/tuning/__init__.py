"""Tuning methods: pure functions from a small pytree of factors to an `Adaptation`."""

from fact_jax.tuning.adapter import Adapter
from fact_jax.tuning.adapter_plus import AdapterPlus
from fact_jax.tuning.adaptformer import AdaptFormer
from fact_jax.tuning.bitfit import BitFit
from fact_jax.tuning.cara import CaRA
from fact_jax.tuning.combination import Combination
from fact_jax.tuning.convpass import Convpass
from fact_jax.tuning.dora import DoRA
from fact_jax.tuning.efft import EFFT
from fact_jax.tuning.fact_cp import FacTCP
from fact_jax.tuning.fact_shared import FacTShared
from fact_jax.tuning.fact_tk import FacTTK
from fact_jax.tuning.fact_tt import FacTTT
from fact_jax.tuning.full import Full
from fact_jax.tuning.linear import Linear
from fact_jax.tuning.lora import LoRA
from fact_jax.tuning.lorta import LoRTA
from fact_jax.tuning.metatt import MetaTT, MetaTTHeads
from fact_jax.tuning.metatt_tasks import MetaTTTasks
from fact_jax.tuning.method import Method, count_parameters
from fact_jax.tuning.noah import NOAH, NOAHSubnet
from fact_jax.tuning.repadapter import RepAdapter
from fact_jax.tuning.ssf import SSF
from fact_jax.tuning.uni_lora import UniLoRA
from fact_jax.tuning.vpt import VPTDeep, VPTShallow

METHODS: dict[str, type] = {
    "fact_tt": FacTTT,
    "fact_tk": FacTTK,
    "fact_cp": FacTCP,
    "fact_shared": FacTShared,
    "metatt": MetaTT,
    "metatt_heads": MetaTTHeads,
    "metatt_tasks": MetaTTTasks,
    "lorta": LoRTA,
    "cara": CaRA,
    "efft": EFFT,
    "uni_lora": UniLoRA,
    "full": Full,
    "linear": Linear,
    "bitfit": BitFit,
    "vpt_shallow": VPTShallow,
    "vpt_deep": VPTDeep,
    "adapter": Adapter,
    "adapter_plus": AdapterPlus,
    "adaptformer": AdaptFormer,
    "lora": LoRA,
    "dora": DoRA,
    "ssf": SSF,
    "convpass": Convpass,
    "repadapter": RepAdapter,
    "noah": NOAH,
    "noah_subnet": NOAHSubnet,
}
"""The classes of all methods, by the names that configs and factor files use."""

__all__ = [
    "METHODS",
    "AdaptFormer",
    "Adapter",
    "AdapterPlus",
    "BitFit",
    "CaRA",
    "Combination",
    "Convpass",
    "DoRA",
    "EFFT",
    "FacTCP",
    "FacTShared",
    "FacTTK",
    "FacTTT",
    "Full",
    "Linear",
    "LoRA",
    "LoRTA",
    "MetaTT",
    "MetaTTHeads",
    "MetaTTTasks",
    "Method",
    "NOAH",
    "NOAHSubnet",
    "RepAdapter",
    "SSF",
    "UniLoRA",
    "VPTDeep",
    "VPTShallow",
    "count_parameters",
]
