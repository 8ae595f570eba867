"""Supervision, tracking, schedules and DDIM: closed forms, symmetries, borders."""

from __future__ import annotations

import pytest
import torch

from gooddrag import ddim
from gooddrag.geometry import Canvas, sample_patches
from gooddrag.schedule import aldd, drag_first, spread
from gooddrag.seeding import generator
from gooddrag.supervision import (
    MotionSupervision,
    arrived,
    mask_term,
    patch_weight,
    supervised_positions,
)
from gooddrag.tracking import PointTracking, track

ONE = torch.tensor([0])
GRID_24, GRID_32 = (Canvas((2 * n, 2 * n), (2 * n, 2 * n)) for n in (24, 32))
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)


def supervision(**changes: object) -> MotionSupervision:
    settings: dict = {
        "r1": 1,
        "beta": 4.0,
        "lam": 0.1,
        "scale": "official",
        "reference": "original",
        "arrival": 2.0,
        "arrived": "skip",
    }
    return MotionSupervision(**(settings | changes))


class TestSupervision:
    def test_steps_never_pass_the_target(self) -> None:
        handles = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
        targets = torch.tensor([[30.0, 40.0], [0.0, 2.5], [3.0, 3.0]])
        found = supervised_positions(handles, targets, beta=4.0)
        expected = torch.tensor([[2.4, 3.2], [0.0, 2.5], [3.0, 3.0]])
        torch.testing.assert_close(found, expected)

    def test_arrival_is_strict(self) -> None:
        handles = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
        targets = torch.tensor([[2.0, 0.0], [1.9, 0.0]])
        assert arrived(handles, targets, 2.0).tolist() == [False, True]

    @pytest.mark.parametrize(
        ("scale", "weight"), [("official", 64.0), ("dragdiffusion", 81.0), ("paper", 81.0 * 640)]
    )
    def test_weights(self, scale: str, weight: float) -> None:
        assert patch_weight(scale, 4, 640) == weight

    def test_moving_the_features_by_the_step_costs_nothing(self) -> None:
        """The loss is zero exactly when the patch at p + beta d shows the original one."""
        original = torch.rand(1, 3, 24, 24)
        handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[8.0, 20.0]])
        reference = sample_patches(original, ONE, handles, 1, GRID_24)
        moved = original.roll(4, dims=-1)
        loss = supervision()
        assert float(loss.drag_term(moved, reference, ONE, handles, targets, GRID_24)) == 0
        assert float(loss.drag_term(original, reference, ONE, handles, targets, GRID_24)) > 0

    def test_official_weight_of_a_known_difference(self) -> None:
        handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[8.0, 20.0]])
        zeros, halves = torch.zeros(1, 3, 24, 24), torch.full((1, 3, 24, 24), 0.5)
        reference = sample_patches(zeros, ONE, handles, 1, GRID_24)
        found = supervision().drag_term(halves, reference, ONE, handles, targets, GRID_24)
        assert float(found) == pytest.approx(4 * 0.5)
        paper = supervision(scale="paper")
        found = paper.drag_term(halves, reference, ONE, handles, targets, GRID_24)
        assert float(found) == pytest.approx(0.5 * 3 * 9)

    def test_pins_are_skipped_or_held(self) -> None:
        pin = torch.tensor([[8.0, 8.0]])
        zeros, ones = torch.zeros(1, 3, 24, 24), torch.ones(1, 3, 24, 24)
        reference = sample_patches(zeros, ONE, pin, 1, GRID_24)
        assert float(supervision().drag_term(ones, reference, ONE, pin, pin, GRID_24)) == 0
        held = supervision(arrived="hold").drag_term(ones, reference, ONE, pin, pin, GRID_24)
        assert float(held) == 4

    def test_self_referential_loss_knows_no_original(self) -> None:
        """With the current patch as reference a constant map costs nothing, whatever it was."""
        handles, targets = torch.tensor([[8.0, 8.0]]), torch.tensor([[8.0, 20.0]])
        reference = sample_patches(torch.zeros(1, 3, 24, 24), ONE, handles, 1, GRID_24)
        ones = torch.ones(1, 3, 24, 24)
        arguments = (ones, reference, ONE, handles, targets, GRID_24)
        assert float(supervision(reference="current").drag_term(*arguments)) == 0
        assert float(supervision().drag_term(*arguments)) > 0

    def test_no_gradient_reaches_the_reference(self) -> None:
        features = torch.rand(1, 3, 24, 24, requires_grad=True)
        handles, targets = torch.tensor([[8.0, 4.0]]), torch.tensor([[8.0, 20.0]])
        reference = sample_patches(features, ONE, handles, 1, GRID_24)
        supervision().drag_term(
            features, reference, ONE, handles, targets, GRID_24
        ).sum().backward()
        assert (features.grad[..., 7:10, 3:6] == 0).all()
        assert (features.grad[..., 7:10, 7:10] != 0).all()

    def test_handles_at_the_border(self) -> None:
        features = torch.rand(1, 3, 24, 24)
        handles, targets = torch.tensor([[0.0, 23.0]]), torch.tensor([[12.0, 12.0]])
        reference = sample_patches(features, ONE, handles, 4, GRID_24)
        found = supervision(r1=4).drag_term(features, reference, ONE, handles, targets, GRID_24)
        assert torch.isfinite(found).all()

    def test_mask_term_is_a_plain_sum_outside_the_mask(self) -> None:
        mask = torch.zeros(2, 1, 4, 4)
        mask[..., :2] = 1
        difference = torch.full((2, 4, 4, 4), 0.25)
        found = mask_term(difference, torch.zeros_like(difference), mask)
        assert found.tolist() == [0.25 * 4 * 8] * 2

    @pytest.mark.parametrize(
        "change",
        [{"scale": "big"}, {"reference": "none"}, {"arrived": "go"}, {"beta": 0.0}, {"r1": -1}],
    )
    def test_settings_out_of_range(self, change: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(change))):
            supervision(**change)


class TestTracking:
    def test_follows_a_shift(self) -> None:
        original = torch.rand(1, 8, 32, 32)
        handles = torch.tensor([[10.0, 12.0], [20.0, 5.0]])
        sample = torch.tensor([0, 0])
        vectors = sample_patches(original, sample, handles, 0, GRID_32)[0][:, :, 0, 0]
        moved = original.roll((3, -2), dims=(-2, -1))
        found = track(moved, vectors, sample, handles, 5, GRID_32)
        assert torch.equal(found, handles + torch.tensor([3.0, -2.0]))

    def test_the_first_of_equals_wins_in_row_major_order(self) -> None:
        flat = torch.ones(1, 2, 32, 32)
        found = track(flat, torch.ones(1, 2), ONE, torch.tensor([[10.0, 12.0]]), 3, GRID_32)
        assert found.tolist() == [[7.0, 9.0]]

    @pytest.mark.parametrize("handle", [(0.0, 0.0), (31.0, 31.0), (2.0, 30.0)])
    def test_stays_inside_at_borders(self, handle: tuple[float, float]) -> None:
        flat = torch.rand(1, 2, 32, 32)
        found = track(flat, torch.ones(1, 2), ONE, torch.tensor([handle]), 12, GRID_32)[0]
        assert ((found >= 0) & (found <= 31)).all()

    def test_never_enters_the_padding(self) -> None:
        features = torch.zeros(1, 1, 32, 32)
        features[..., 28:, :] = 1  # the perfect match lies in the padding
        found = track(
            features,
            torch.ones(1, 1),
            ONE,
            torch.tensor([[26.0, 10.0]]),
            6,
            Canvas((56, 64), (64, 64)),
        )
        assert float(found[0, 0]) <= 27

    def test_fractions_are_kept(self) -> None:
        features = torch.rand(1, 4, 32, 32)
        handle = torch.tensor([[10.25, 12.5]])
        vectors = sample_patches(features, ONE, handle, 0, GRID_32)[0][:, :, 0, 0]
        assert torch.equal(track(features, vectors, ONE, handle, 3, GRID_32), handle)

    def test_settings_out_of_range(self) -> None:
        with pytest.raises(ValueError, match=r"tracking\.when"):
            PointTracking(r2=3, when="late", on_entry=True)
        with pytest.raises(ValueError, match="r2"):
            PointTracking(r2=-1, when="stale", on_entry=True)


class TestSchedules:
    @pytest.mark.parametrize("K", [1, 7, 70, 71])
    @pytest.mark.parametrize("B", [1, 3, 10, 100])
    def test_all_have_the_same_number_of_operations(self, K: int, B: int) -> None:
        assert sum(aldd(K, B)) == sum(drag_first(K)) == sum(spread(K, 38)) == K

    def test_spread_is_even(self) -> None:
        assert max(spread(70, 38)) - min(spread(70, 38)) <= 1

    @pytest.mark.parametrize("arguments", [{"K": 0, "B": 1}, {"K": 3, "B": 0}, {"K": 1.5, "B": 1}])
    def test_counts_are_whole_and_positive(self, arguments: dict) -> None:
        with pytest.raises(ValueError, match="whole number"):
            aldd(**arguments)


class TestDdim:
    times = ddim.Timesteps(ALPHAS, steps=50, strength=0.75)

    def test_the_official_ladder(self) -> None:
        """38 steps from 741 to 1 (parity README, 1 and 2)."""
        assert self.times.descending == list(range(741, 0, -20))
        assert len(self.times.descending) == 38

    def test_below_the_first_timestep_stands_the_first_alpha(self) -> None:
        assert self.times.down(1)[1] == ALPHAS[0]

    def test_moving_there_and_back(self) -> None:
        z, eps = torch.rand(1, 4, 8, 8, dtype=torch.float64), torch.rand(1, 4, 8, 8).double()
        a, b = ALPHAS[100], ALPHAS[500]
        there = ddim.move(z, eps, a, b)
        torch.testing.assert_close(ddim.move(there, eps, b, a), z, rtol=0, atol=1e-5)

    def test_a_point_distribution_is_inverted_exactly(self) -> None:
        """For data that is one point z_0 the true noise is (z - sqrt(a) z_0) / sqrt(1 - a).

        It stays the same all the way down.
        """
        z_0 = torch.randn(1, 4, 8, 8, dtype=torch.float64)

        def noise(z: torch.Tensor, t: int) -> torch.Tensor:
            a = self.times.alpha(t).double()
            return (z - a**0.5 * z_0) / (1 - a) ** 0.5

        start = torch.randn_like(z_0)
        eps = noise(start, self.times.descending[0])
        end = ddim.sample(start, noise, self.times, self.times.descending)
        a = self.times.alpha(0).double()  # the ladder ends at the first alpha, not at 1
        torch.testing.assert_close(end, a**0.5 * z_0 + (1 - a) ** 0.5 * eps, rtol=0, atol=1e-5)

    def test_inversion_with_constant_noise_is_undone_by_sampling(self) -> None:
        z_0, eps = torch.randn(1, 4, 8, 8).double(), torch.randn(1, 4, 8, 8).double()
        z_T = ddim.invert(z_0, lambda z, t: eps, self.times)
        back = ddim.sample(z_T, lambda z, t: eps, self.times, self.times.descending)
        torch.testing.assert_close(back, z_0, rtol=0, atol=1e-5)

    def test_predicting_z_0(self) -> None:
        z_0, eps, a = torch.randn(4), torch.randn(4), ALPHAS[400]
        z_t = a**0.5 * z_0 + (1 - a) ** 0.5 * eps
        torch.testing.assert_close(ddim.predict_z0(z_t, eps, a), z_0)

    @pytest.mark.parametrize(
        ("steps", "strength", "word"),
        [
            (0, 0.5, "steps"),
            (50, 0.0, "strength"),
            (50, 1.1, "strength"),
            (50, 0.005, "strength"),
            (1000, 1.0, "offset"),
        ],
    )
    def test_out_of_range(self, steps: int, strength: float, word: str) -> None:
        with pytest.raises(ValueError, match=word):
            ddim.Timesteps(ALPHAS, steps=steps, strength=strength)

    def test_the_whole_ladder_can_be_walked(self) -> None:
        """Strength 1 ends in an IndexError in the official code (parity README, 4)."""
        assert ddim.Timesteps(ALPHAS, steps=50, strength=1.0).descending[0] == 981


def test_generators_depend_on_seed_and_names_alone() -> None:
    def draw(*names: str, seed: int = 0) -> list[float]:
        return torch.rand(3, generator=generator(seed, *names)).tolist()

    assert draw("a", "b") == draw("a", "b")
    assert (
        len(
            {tuple(x) for x in (draw("a", "b"), draw("ab"), draw("b", "a"), draw("a", "b", seed=1))}
        )
        == 4
    )
