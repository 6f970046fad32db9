"""One update: periods in updates, clipping as torch's, figures, and the same seed to the bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from learner.config import LearnerConfig
from learner.learner import Learner, choose_device, host_arrays
from learner.networks import NetworkConfig
from learner.networks.q_network import QNetwork
from learner.td import huber, q_learning
from replay.chunk import Schema
from replay.mirror import Batch

SCHEMA = Schema((4,), "float32", 3)
SMALL = LearnerConfig(network=NetworkConfig(hidden=(16,)), lr=1e-2, device="cpu")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def learner(seed: int = 1, **changes: object) -> Learner:
    return Learner(SMALL.model_copy(update=changes), SCHEMA, torch.device("cpu"), seed)


def batch(seed: int = 0, size: int = 32) -> Batch:
    rng = np.random.default_rng(seed)
    s_tm1, s_t = rng.normal(size=(2, size, 4)).astype(np.float32)
    r_t, discount_t = rng.normal(size=size).astype(np.float32), rng.choice([0.0, 0.97], size).astype(np.float32)
    return Batch(s_tm1, rng.integers(0, 3, size), r_t, discount_t, s_t)


def flat(network: QNetwork) -> torch.Tensor:
    """A copy of all parameters as one vector."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()]).clone()


def test_all_three_networks_start_alike() -> None:
    fresh = learner()
    assert torch.equal(flat(fresh.online), flat(fresh.target))
    assert torch.equal(flat(fresh.online), flat(fresh.average))


def test_the_target_period_counts_updates() -> None:
    """Updates 3, 6 and 9 copy the online network; between them the target stands still."""
    tested = learner(target_period_updates=3)
    expected = flat(tested.target)
    for update in range(1, 11):
        tested.update(batch(update))
        if update % 3 == 0:
            expected = flat(tested.online)
        assert tested.updates == update
        assert torch.equal(flat(tested.target), expected)
        assert not torch.equal(flat(tested.target), flat(tested.online)) or update % 3 == 0


def test_polyak_targets() -> None:
    """target <- (1 - tau) target + tau online, after each update."""
    tested = learner(target_period_updates=1, target_tau=0.25)
    expected = flat(tested.target)
    for update in range(5):
        tested.update(batch(update))
        expected = 0.75 * expected + 0.25 * flat(tested.online)
        torch.testing.assert_close(flat(tested.target), expected)


def test_the_running_average_follows_each_update() -> None:
    """Whatever the target's period; tau 1 is the online network itself."""
    tested, itself = learner(average_tau=0.1, target_period_updates=100), learner(target_period_updates=100)
    expected = flat(tested.average)
    for update in range(5):
        tested.update(batch(update))
        itself.update(batch(update))
        expected = 0.9 * expected + 0.1 * flat(tested.online)
        torch.testing.assert_close(flat(tested.average), expected)
        torch.testing.assert_close(flat(itself.average), flat(itself.online), rtol=0, atol=0)


@pytest.mark.parametrize("weighted", [False, True], ids=["uniform", "importance weights"])
@pytest.mark.parametrize("max_norm", [1e-3, 0.1, 1e6])
def test_an_update_is_torchs_own(max_norm: float, weighted: bool) -> None:
    """Per-layer parameters, clip_grad_norm_ and Adam give the same weights and the same norm, clipped or not; the TD
    errors that come back are those before the step, neither weighted nor clipped."""
    tested = learner(max_grad_norm=max_norm, double=False)
    twin, target = copy.deepcopy(tested.online), copy.deepcopy(tested.target)
    for parameter in twin.parameters():
        parameter.data = parameter.data.clone()
    adam = torch.optim.Adam(twin.parameters(), lr=1e-2, eps=tested.config.adam_eps)
    for update in range(4):
        one = batch(update)
        s_tm1, a_tm1, r_t, discount_t, s_t = (torch.from_numpy(column) for column in one)
        adam.zero_grad()
        weights = np.random.default_rng(update).uniform(0.1, 1.0, len(a_tm1)).astype(np.float32) if weighted else None
        error = q_learning(twin(s_tm1).q, a_tm1, r_t, discount_t, target(s_t).q)
        losses = huber(error, 1.0) * (1.0 if weights is None else torch.from_numpy(weights))
        losses.mean().backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
        adam.step()
        torch.testing.assert_close(tested.update(one, weights), error.detach(), rtol=1e-4, atol=1e-6)
        figures = tested.metrics()
        assert figures is not None
        assert figures.grad_norm == pytest.approx(float(norm), rel=1e-5)
        torch.testing.assert_close(flat(tested.online), flat(twin), rtol=1e-4, atol=1e-6)


def test_weight_decay_is_adamws_without_biases_and_norms() -> None:
    network = NetworkConfig(hidden=(5,), layer_norm=True)
    tested = learner(weight_decay=0.3, double=False, network=network)
    twin, target = copy.deepcopy(tested.online), copy.deepcopy(tested.target)
    for parameter in twin.parameters():
        parameter.data = parameter.data.clone()
    weights = [p for name, p in twin.named_parameters() if "norm" not in name and name.endswith("weight")]
    others = [p for p in twin.parameters() if not any(p is weight for weight in weights)]
    groups = [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=1e-2, eps=tested.config.adam_eps)
    for update in range(4):
        one = batch(update)
        s_tm1, a_tm1, r_t, discount_t, s_t = (torch.from_numpy(column) for column in one)
        adam.zero_grad()
        error = q_learning(twin(s_tm1).q, a_tm1, r_t, discount_t, target(s_t).q)
        huber(error, 1.0).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(twin.parameters(), tested.config.max_grad_norm)
        adam.step()
        tested.update(one)
        torch.testing.assert_close(flat(tested.online), flat(twin), rtol=1e-4, atol=1e-6)
    before = flat(tested.online).clone()
    broken = batch(9)
    broken.r_t[:] = np.nan
    tested.update(broken)
    torch.testing.assert_close(flat(tested.online), before, rtol=0, atol=0, msg="a skipped update decays nothing")


def test_parameters_stay_views_of_one_vector() -> None:
    """Adam, clipping and copies work on the vector; the layers have to see it, also after many steps."""
    tested = learner()
    places = [parameter.data_ptr() for parameter in tested.online.parameters()]
    for update in range(5):
        tested.update(batch(update))
    assert [parameter.data_ptr() for parameter in tested.online.parameters()] == places
    steps = np.diff(places)
    assert_array_equal(steps, [4 * parameter.numel() for parameter in tested.online.parameters()][:-1])


def test_only_the_online_network_chooses_in_double_learning() -> None:
    """One linear layer, set by hand: online prefers action 1, target values it at -2, its own best at 5."""
    for double, expected in ((True, 0.5 * -2.0), (False, 0.5 * 5.0)):
        tested = learner(network=NetworkConfig(hidden=()), double=double, target_period_updates=100)
        with torch.no_grad():
            for network, bias in ((tested.online, [0.0, 1.0, 0.0]), (tested.target, [5.0, -2.0, 0.0])):
                layer = network.head.linear
                assert isinstance(layer, torch.nn.Linear)
                layer.weight.zero_()
                layer.bias.copy_(torch.tensor(bias))
        zeros = np.zeros((1, 4), np.float32)
        tested.update(Batch(zeros, np.zeros(1, np.int64), np.zeros(1, np.float32), np.full(1, 0.5, np.float32), zeros))
        figures = tested.metrics()
        assert figures is not None
        assert figures.td_error == pytest.approx(abs(expected))


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    first, again, other = learner(seed=5), learner(seed=5), learner(seed=6)
    for update in range(20):
        for each in (first, again, other):
            each.update(batch(update))
    assert torch.equal(flat(first.online), flat(again.online))
    assert not torch.equal(flat(first.online), flat(other.online))


def test_the_loss_of_a_fixed_batch_falls() -> None:
    """To a hundredth, with a fixed target."""
    tested, fixed = learner(target_period_updates=10_000), batch()
    tested.update(fixed)
    first = tested.metrics()
    for _ in range(500):
        tested.update(fixed)
        last = tested.metrics()
    assert first is not None
    assert last is not None
    assert last.loss < first.loss / 100


def test_figures_are_means_since_the_last_reading() -> None:
    """Two updates' mean loss is the mean of the two; none without an update; the batch's figures are the last one's."""
    alone, together = learner(), learner()
    assert alone.metrics() is None
    singly = []
    for update in range(2):
        alone.update(batch(update))
        together.update(batch(update))
        singly.append(alone.metrics())
    first, second, both = *singly, together.metrics()
    assert first is not None
    assert second is not None
    assert both is not None
    assert both.loss == pytest.approx((first.loss + second.loss) / 2)
    of_the_last = ("td_error", "q_mean", "q_abs_max", "grad_norm", "updates_skipped", "skipped_in_a_row")
    for name in of_the_last:
        assert getattr(both, name) == pytest.approx(getattr(second, name)), name
    assert both.td_error_p100 == pytest.approx(max(first.td_error_p100, second.td_error_p100))
    assert together.metrics() is None


def test_pixels_stay_bytes_until_they_are_on_the_device() -> None:
    """A uint8 batch and the same in float, scaled, move the weights alike."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 8, 4), np.uint8)
    rest = batch(size=8)
    byte_learner = Learner(SMALL, Schema((4,), "uint8", 3, obs_divisor=255), torch.device("cpu"), 1)
    float_learner = learner()
    byte_learner.update(replace(rest, s_tm1=pixels[0], s_t=pixels[1]))
    scaled = (pixels / np.float32(255)).astype(np.float32)
    float_learner.update(replace(rest, s_tm1=scaled[0], s_t=scaled[1]))
    torch.testing.assert_close(flat(byte_learner.online), flat(float_learner.online))


def test_host_arrays_name_every_parameter() -> None:
    arrays = host_arrays(learner().online)
    assert {name: array.shape for name, array in arrays.items()} == {
        "encoder.layers.0.weight": (16, 4), "encoder.layers.0.bias": (16,),
        "head.linear.weight": (3, 16), "head.linear.bias": (3,),
    }  # fmt: skip


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^device '{name}' cannot be used here: .*; try auto or cpu$") as raised:
        choose_device(name)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_an_update_that_is_not_finite_is_skipped_and_counted(value: float) -> None:
    """One poisoned reward: weights, average and Adam's moments stay as if the batch had never been; the next
    good batch gives the weights of a twin that never saw it, to the bit."""
    tested, twin = learner(target_period_updates=100), learner(target_period_updates=100)
    for one in (batch(1), batch(2)):
        tested.update(one)
        twin.update(one)
    poisoned = batch(3)
    poisoned.r_t[5] = value
    before = [flat(tested.online), flat(tested.average), tested._adam.m.clone(), tested._adam.v.clone()]
    for _ in range(2):
        tested.update(poisoned)
    after = [flat(tested.online), flat(tested.average), tested._adam.m, tested._adam.v]
    figures = tested.metrics()
    assert figures is not None
    assert (figures.updates_skipped, figures.skipped_in_a_row) == (2, 2)
    assert all(math.isfinite(figure) for figure in figures)
    assert tested.updates == 4
    for was, now in zip(before, after, strict=True):
        assert torch.equal(was, now)
    tested.update(batch(4))
    twin.update(batch(4))
    assert torch.equal(flat(tested.online), flat(twin.online))
    figures = tested.metrics()
    assert figures is not None
    assert (figures.updates_skipped, figures.skipped_in_a_row) == (2, 0)
