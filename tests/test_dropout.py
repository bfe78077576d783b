"""Cheap dropout masks have the distribution of torch's own, and their random numbers go on where a state left them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mltrack.training.speed.dropout import CheapDropout, cheap_masks


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_that_is_dropped_and_the_mean_are_those_of_the_probability(p: float, dtype: torch.dtype):
    torch.manual_seed(0)
    count = 1_000_003  # no multiple of four
    values = torch.ones(count, dtype=dtype)
    out = CheapDropout(p)(values)
    error = 4 * (p * (1 - p) / count) ** 0.5  # four standard deviations
    assert abs((out == 0).double().mean().item() - p) < error + (0.001 if dtype is torch.bfloat16 else 0)
    assert abs(out.double().mean().item() - 1) < error / (1 - p) + (0.004 if dtype is torch.bfloat16 else 1e-6)
    assert len(out.unique()) == 2
    if dtype is torch.float32:
        assert out.max().item() == pytest.approx(65536 / (65536 - round(p * 65536)), rel=1e-7)


def test_in_bf16_too_what_is_kept_is_scaled_by_the_inverse_of_how_much_is_kept():
    """The comparison in bf16 keeps 7 % more than asked for where a hundredth is kept; float64 holds the scale that the
    rounding of a product would hide.
    """
    from mltrack.training.speed.dropout import _scale

    torch.manual_seed(0)
    for p in (0.5, 0.9, 0.99):
        module, count = CheapDropout(p), 4_000_000
        kept = (module(torch.ones(count, dtype=torch.bfloat16)) != 0).double().mean().item()
        assert kept * _scale(module._threshold, torch.bfloat16) == pytest.approx(
            1, abs=4 * ((1 - kept) / kept / count) ** 0.5
        )


def test_elements_are_dropped_independently_of_their_neighbours():
    """Each of the four elements that one number decides about, and those beside them, meet as often as chance
    has it.
    """
    torch.manual_seed(1)
    zero = CheapDropout(0.3)(torch.ones(400_000)) == 0
    for distance in (1, 2, 3, 4, 8):
        both = (zero[:-distance] & zero[distance:]).double().mean().item()
        assert abs(both - 0.09) < 4 * (0.09 * 0.91 / len(zero)) ** 0.5


def test_the_gradient_passes_where_the_value_passed():
    torch.manual_seed(2)
    values = torch.randn(3, 5, 7, requires_grad=True)
    out = CheapDropout(0.4)(values)
    out.backward(torch.ones_like(out))
    assert values.grad is not None
    assert torch.equal(out, values.detach() * values.grad)
    assert values.grad.unique().numel() == 2


def test_everything_or_nothing():
    values = torch.randn(100)
    assert torch.equal(CheapDropout(0.0)(values), values)
    assert torch.equal(CheapDropout(1.0)(values), torch.zeros(100))
    assert torch.equal(CheapDropout(0.5).eval()(values), values)


def test_a_random_state_gives_the_same_mask_again():
    module, values = CheapDropout(0.5), torch.ones(1001)
    torch.manual_seed(3)
    module(values)
    state = torch.get_rng_state()
    first = module(values)
    torch.set_rng_state(state)
    assert torch.equal(module(values), first)
    assert not torch.equal(module(values), first)


def test_a_model_has_its_own_dropout_again_afterwards():
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.Dropout(0.2),
        nn.Sequential(nn.Dropout(0.3), nn.AlphaDropout(0.1)),
        nn.Dropout(0.1, inplace=True),
    )
    own = [model[1], model[2][0], model[2][1]]
    names = list(model.state_dict())
    with cheap_masks(model):
        assert [type(model[1]), type(model[2][0]), type(model[2][1])] == [CheapDropout, CheapDropout, nn.AlphaDropout]
        assert (model[1].p, model[2][0].p) == (0.2, 0.3)
        assert list(model.state_dict()) == names
        assert type(model[3]) is nn.Dropout, "it works in place, and so it stays"
        model.eval()
    assert [model[1], model[2][0], model[2][1]] == own
    assert not model[1].training
    with cheap_masks(model, False):
        assert model[1] is own[0]
