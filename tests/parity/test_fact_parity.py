"""FacT-TT and FacT-TK: logits, the gradients of every factor and of the head, and training."""

import jax
import numpy as np
import pytest
import torch
import torch_fact
from stored.cases import SMALL_DINO, FactCase, TrainCase
from torch import nn
from torch_models import Play

from fact_jax import FacTTK, FacTTT, get_variant
from fact_jax.training.schedule import learning_rate

VIT_B16 = get_variant("vit_b16").replace(precision="highest")
FORMS = ("released", "formula")
# At scale 10 the increments are larger than the frozen kernels, and PyTorch in float32 is up to
# 1e-4 away from PyTorch in float64, with which gradients are compared there. Elsewhere both float32
# versions agree to 1e-6.


def tk(rank, scale, mlp_cores):
    return pytest.param(FacTTK(rank, scale, mlp_cores), id=f"tk{rank}-{mlp_cores}-scale{scale}")


def tt(rank, scale):
    return pytest.param(FacTTT(rank, scale), id=f"tt{rank}-scale{scale}")


# The width is 48: ranks 5, 7 and 10 do not divide it, 1 and 48 are the extremes.
@pytest.mark.parametrize(
    "method",
    [
        *(tt(rank, 1.0) for rank in (1, 5, 16, 48)),
        *(tt(7, scale) for scale in (0.1, 10.0)),
        *(tk(rank, 1.0, form) for rank in (1, 5, 8, 48) for form in FORMS),
        *(tk(10, scale, form) for scale in (0.1, 10.0) for form in FORMS),
    ],
)
def test_logits_and_gradients(method, compare):
    case = FactCase(method)
    inputs = case.inputs()
    far = method.scale == 10
    dtype = torch.float64 if far else torch.float32
    expected = torch_fact.fact_outputs(method, case.config, **inputs, dtype=dtype)
    compare(case.ours(**inputs), expected, 1e-4 if far else 1e-5)


@pytest.mark.parametrize("method", [tt(5, 1.0), tk(5, 1.0, "released")])
def test_with_layer_scale(method, compare):
    case = FactCase(method, SMALL_DINO)
    inputs = case.inputs()
    compare(case.ours(**inputs), torch_fact.fact_outputs(method, case.config, **inputs), 1e-5)


@pytest.mark.parametrize("method", [tt(16, 1.0), tk(32, 1.0, "released")])
def test_vit_b16_at_224(method, compare):
    case = FactCase(method, VIT_B16, batch=2, classes=100)
    inputs = case.inputs()
    compare(case.ours(**inputs), torch_fact.fact_outputs(method, case.config, **inputs), 1e-5)


def test_the_two_tucker_forms_differ():
    case = FactCase(FacTTK(5))
    inputs = case.inputs()
    released, formula = (
        torch_fact.fact_outputs(FacTTK(5, mlp_cores=form), case.config, **inputs)["logits"]
        for form in FORMS
    )
    assert np.abs(released - formula).max() > 0.1


class Path(nn.Module):
    """Stochastic depth that is played back."""

    def __init__(self, play: Play):
        super().__init__()
        self.forward = play


@pytest.mark.parametrize("method", [tt(5, 1.0), tk(5, 1.0, "released")])
@pytest.mark.usefixtures("fresh_traces")
def test_dropout_and_stochastic_depth_with_the_same_masks(method, compare, drawn):
    """The jitted program reports what jax.random.bernoulli gave, and PyTorch is fed with it."""
    case = FactCase(method)
    inputs = case.inputs()
    rates = dict(key=jax.random.key(1), dropout_rate=0.3, drop_path_rate=np.float32(0.5))
    actual = case.ours(**inputs, **rates)
    jax.effects_barrier()
    # 6 a block, 8 in the last, which does not fuse query, key and value; then the backward pass
    # draws them again.
    forward = 6 * (case.config.depth - 1) + 8
    assert len(drawn) == 2 * forward
    again = {mask.tobytes() for mask, _ in drawn[forward:]}
    assert again == {mask.tobytes() for mask, _ in drawn[:forward]}
    masks = []
    for mask, keep in drawn[:forward]:
        sites = 3 if mask.shape[-1] == 3 * method.rank and mask.shape[1] > 1 else 1  # q, k and v
        masks += [(part, keep) for part in np.split(mask, sites, axis=-1)]
    assert any(not mask.all() for mask, _ in masks if mask.shape[1:] == (1, 1))

    play = Play(masks)
    base, trainable = inputs["base"], inputs["trainable"]
    torch_model = torch_fact.fact_vit(method, case.config, base, trainable, drop=play)
    for block in torch_model.blocks:
        block.drop_path1, block.drop_path2 = Path(play), Path(play)
    expected = torch_fact.logits_and_gradients(torch_model, inputs["images"], inputs["labels"])
    assert next(play.masks, None) is None
    compare(actual, expected, 1e-5)


@pytest.mark.parametrize(
    "method",
    [
        *(tt(4, 1.0), tt(5, 10.0)),
        *(tk(4, 1.0, "released"), tk(5, 0.1, "released"), tk(5, 1.0, "formula")),
    ],
)
def test_50_adamw_steps(method, compare):
    """Losses of all steps and final factors; PyTorch is fed the batches of TrainCase.order."""
    case = TrainCase(method)
    inputs = case.inputs()
    expected = torch_fact.train(case, **inputs)
    assert expected["losses"].shape == (50,)
    for name, start in inputs["trainable"]["factors"].items():
        assert np.abs(expected[name] - start).max() > 0.01  # they did move
    compare(case.ours(**inputs), expected, 1e-3 if method.scale == 10 else 5e-5)


def test_50_adamw_steps_from_fresh_factors(compare):
    """V = 0, as training starts: the gradients of U and S are exactly 0 in the first step."""
    case = TrainCase(FacTTT(4))
    inputs = case.inputs()
    inputs["trainable"]["factors"]["V"][:] = 0
    compare(case.ours(**inputs), torch_fact.train(case, **inputs), 5e-5)


def test_learning_rates_of_100_epochs_against_timm(compare):
    optimizer, rates = torch.optim.AdamW([torch.zeros(1)], 1e-3), []
    scheduler = torch_fact.timm_scheduler()(
        optimizer, t_initial=100, warmup_t=10, lr_min=1e-5, warmup_lr_init=1e-6
    )
    for epoch in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch)
    ours = [learning_rate(epoch) for epoch in range(100)]
    compare({"rates": np.array(ours)}, {"rates": np.array(rates)}, 1e-12)
