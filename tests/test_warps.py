"""Warps of pictures, as functions of points and a mask."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from gooddrag.methods.fields import (
    distance_to,
    lattice,
    rigid,
    similarity,
    spline,
    upsampled,
    within,
)
from gooddrag.methods.warps import (
    Piece,
    Sheet,
    Zoom,
    connected,
    filled,
    inside,
    pulled,
    taken,
)

SIZE = (96, 128)
WARPS = {
    "sheet": Sheet(lattice=48, rim=12),
    "piece": Piece(lattice=48, reach=None),
    "near": Piece(lattice=48, reach=0.1),
    "zoom": Zoom(lattice=48, least=0.1),
}
EVERYWHERE = torch.ones(SIZE, dtype=torch.bool)
every_warp = pytest.mark.parametrize("warp", WARPS.values(), ids=WARPS.keys())


def places() -> torch.Tensor:
    """A picture whose colours say where they are: (x, y) in parts of 128 pixels, and nothing."""
    where = lattice(SIZE, 1) / 128
    return torch.cat((where, torch.zeros(*SIZE, 1)), dim=-1).permute(2, 0, 1).float()


def comes_from(picture: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Where the colours of `places` at points come from."""
    unit = (points + 0.5) / torch.tensor([SIZE[1], SIZE[0]]) * 2 - 1
    found = functional.grid_sample(picture[None], unit[None, None], align_corners=False)
    return found[0, :2, 0].T * 128


def box(top: int, bottom: int, left: int, right: int) -> torch.Tensor:
    """A mask."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


class TestFields:
    def test_upsampling_keeps_what_is_linear(self) -> None:
        """Places of the coarse lattice become those of the fine one, but for half a block's rim."""
        for spacing in (1, 2, 3):
            fine = upsampled(lattice(SIZE, spacing), spacing, SIZE)
            inner = (slice(spacing, -spacing),) * 2
            torch.testing.assert_close(fine[inner], lattice(SIZE, 1)[inner])

    def test_a_field_within_a_mask(self) -> None:
        """It is asked for near the mask alone, and is what the places all over would give."""
        mask, asked = box(20, 45, 30, 77), []

        def field(at: torch.Tensor) -> torch.Tensor:
            asked.append(len(at))
            return (at / 20).sin()

        for coarse in (1, 2, 3):
            everywhere = upsampled((lattice(SIZE, coarse) / 20).sin(), coarse, SIZE)
            assert torch.equal(within(mask, coarse, field)[mask], everywhere[mask])
            assert asked[-1] < mask.sum() / coarse**2 * 1.6

    def test_a_spline_takes_its_values_and_keeps_what_is_affine(self) -> None:
        centres = torch.rand(7, 2, generator=torch.Generator().manual_seed(0)).double() * 90
        turn = torch.tensor([[0.9, -0.3], [0.4, 1.1]]).double()
        at = torch.rand(20, 2).double() * 90
        affine = spline(centres, centres @ turn + 3, at)
        torch.testing.assert_close(affine, at @ turn + 3, rtol=0, atol=1e-6)
        values = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)).double()
        found = spline(centres, values, centres)
        torch.testing.assert_close(found, values, rtol=0, atol=1e-3)

    def test_points_in_one_place_agree_on_the_mean(self) -> None:
        centres = torch.tensor([[5.0, 5], [5, 5], [40, 8], [9, 50], [60, 60]]).double()
        values = torch.tensor([[2.0, 0], [4, 0], [3, 0], [3, 0], [3, 0]]).double()
        found = spline(centres, values, centres)
        torch.testing.assert_close(found, torch.tensor([[3.0, 0]]).double().expand(5, 2))

    def test_a_rigid_motion_is_found(self) -> None:
        """A turn by 30 degrees and a shift, from two points or more."""
        turn = torch.tensor(
            [[math.cos(0.5), math.sin(0.5)], [-math.sin(0.5), math.cos(0.5)]], dtype=torch.float64
        )
        p, at = torch.rand(4, 2).double() * 50, torch.rand(30, 2).double() * 50
        for n in (2, 4):
            found = rigid(at, p[:n], p[:n] @ turn + 7)
            torch.testing.assert_close(found, at @ turn + 7, rtol=0, atol=1e-6)

    def test_a_similarity_is_found(self) -> None:
        """A turn by 30 degrees that grows, and a shift; too small a size is held."""
        p = torch.rand(4, 2, generator=torch.Generator().manual_seed(0)).double() * 50
        x = torch.view_as_complex(p)
        for size, kept in ((1.3, 1.3), (0.2, 0.2), (0.01, 0.1), (30, 10)):
            turn = size * torch.exp(torch.tensor(1j * math.pi / 6, dtype=torch.complex128))
            q = turn * x + (7 - 2j)
            a, b = similarity(p, torch.view_as_real(q), 0.1)
            torch.testing.assert_close(a, turn / size * kept)
            torch.testing.assert_close(a * x.mean() + b, q.mean())

    def test_a_similarity_of_what_comes_together(self) -> None:
        """All in one place, where they keep their mean; and one pair, which is a shift."""
        p = torch.rand(3, 2).double() * 50
        a, b = similarity(p, torch.full_like(p, 20), 0.1)
        x = torch.view_as_complex(p).mean()
        torch.testing.assert_close(torch.stack((a, a * x + b)), torch.tensor([0.1, 20 + 20j]).to(a))
        a, b = similarity(p[:1], p[:1] + 2, 0.1)
        torch.testing.assert_close(torch.stack((a, b)), torch.tensor([1, 2 + 2j]).to(a))

    def test_one_pair_is_a_shift(self) -> None:
        at, p = torch.rand(30, 2).double(), torch.rand(1, 2).double()
        torch.testing.assert_close(rigid(at, p, p + 2), at + 2)

    def test_distances_are_to_segments(self) -> None:
        points = torch.tensor([[0.0, 0], [4, 0], [4, 4]]).double()
        at = torch.tensor([[2.0, -3], [2, 2], [9, 4], [0, 4]]).double()
        found = distance_to(points, at)
        expected = torch.tensor([3, 0, 5, math.sqrt(8)]).double()
        torch.testing.assert_close(found, expected)
        alone = distance_to(points[:1], at)
        torch.testing.assert_close(alone, at.norm(dim=1))


class TestParts:
    def test_connected(self) -> None:
        mask = box(10, 30, 10, 30) | box(30, 40, 30, 90) | box(60, 80, 20, 50)
        parts = connected(mask)
        assert torch.equal(parts > 0, mask)
        assert len(parts[mask].unique()) == 2  # corners hold together
        assert parts[20, 20] == parts[35, 85] != parts[70, 30]

    def test_a_snail_is_one(self) -> None:
        snail = torch.zeros(60, 60, dtype=torch.bool)
        for ring in range(0, 28, 4):
            snail[ring, ring : 60 - ring] = True
            snail[ring : 60 - ring, 59 - ring] = True
            snail[59 - ring, ring + 4 : 60 - ring] = True
            snail[ring + 4 : 60 - ring, ring + 4] = True
        assert len(connected(snail)[snail].unique()) == 1

    def test_what_is_pulled(self) -> None:
        """Each part by the pairs in it, if one of them moves; all by one outside."""
        left, right = box(20, 70, 10, 60), box(20, 70, 70, 120)
        handles = torch.tensor([[30.0, 40], [50, 40], [90, 40], [64, 5]])
        moving = torch.tensor([True, False, False, False])
        [(region, own)] = pulled(left | right, handles, moving, 48)
        assert torch.equal(region, left)
        assert own.tolist() == [True, True, False, False]
        [(region, own)] = pulled(left | right, handles, moving.flip(0), 48)
        assert torch.equal(region, left | right)
        assert own.tolist() == [False, False, False, True]

    def test_taken(self) -> None:
        picture = torch.rand(3, *SIZE)
        shifted = taken(picture, lattice(SIZE, 1) + torch.tensor([3.0, -2.0]))
        found = shifted[:, 2:, :-3]
        torch.testing.assert_close(found, picture[:, :-2, 3:], rtol=0, atol=1e-4)

    def test_inside(self) -> None:
        region = box(10, 20, 30, 40)
        assert torch.equal(inside(region, lattice(SIZE, 1)), region)
        assert not inside(EVERYWHERE, lattice(SIZE, 1) + 200).any()

    def test_filling(self) -> None:
        """What is known stays, one colour fills with itself, and nothing known is left alone."""
        picture, hole = torch.rand(3, *SIZE), box(20, 60, 30, 90)
        out = filled(picture, hole)
        assert torch.equal(out[:, ~hole], picture[:, ~hole])
        assert picture[:, ~hole].min() <= out.min() <= out.max() <= picture[:, ~hole].max()
        grey = torch.where(hole, torch.rand(3, *SIZE), 0.4)
        torch.testing.assert_close(filled(grey, hole), torch.full((3, *SIZE), 0.4))
        assert torch.equal(filled(picture, EVERYWHERE), picture)


@every_warp
class TestEveryWarp:
    def test_nothing_dragged_is_the_identity(self, warp: Any) -> None:
        picture, points = torch.rand(3, *SIZE), torch.tensor([[40.0, 40], [60, 30]])
        for mask in (EVERYWHERE, box(20, 60, 20, 100)):
            out, hole = warp(picture, mask, points, points)
            torch.testing.assert_close(out, picture, rtol=0, atol=1e-4)
            assert not hole.any()

    def test_handles_land_on_their_targets(self, warp: Any) -> None:
        """What turns and grows round the third, a pin."""
        handles = torch.tensor([[40.0, 40], [80, 50], [60, 30]])
        pin, turn = handles[2], torch.tensor([[1.1, 0.3], [-0.3, 1.1]])
        targets = pin + (handles - pin) @ turn
        out, _ = warp(places(), box(10, 90, 10, 120), handles, targets)
        assert (comes_from(out, targets) - handles).norm(dim=1).max() < 0.5

    def test_outside_the_mask_nothing_changes(self, warp: Any) -> None:
        picture, mask = torch.rand(3, *SIZE), box(20, 70, 20, 80)
        out, hole = warp(picture, mask, torch.tensor([[40.0, 40]]), torch.tensor([[60.0, 45]]))
        assert torch.equal(out[:, ~mask], picture[:, ~mask])
        assert not (hole & ~mask).any()
        assert (out[:, mask] != picture[:, mask]).float().mean() > 0.1

    def test_a_handle_outside_the_mask(self, warp: Any) -> None:
        """It still pulls at what is inside."""
        picture, mask = torch.rand(3, *SIZE), box(20, 70, 20, 80)
        out, _ = warp(picture, mask, torch.tensor([[82.0, 40]]), torch.tensor([[72.0, 40]]))
        assert torch.equal(out[:, ~mask], picture[:, ~mask])
        assert not torch.equal(out, picture)

    def test_points_at_and_beyond_the_border(self, warp: Any) -> None:
        handles = torch.tensor([[0.0, 0], [127, 95], [128.4, 40]])
        targets = torch.tensor([[10.0, 4], [127, 80], [-3, 99]])
        for mask in (EVERYWHERE, box(0, 50, 0, 128)):
            out, _ = warp(torch.rand(3, *SIZE), mask, handles, targets)
            assert torch.isfinite(out).all()
            assert 0 <= out.min() <= out.max() <= 1

    def test_it_scales_with_the_picture(self, warp: Any) -> None:
        mask = box(20, 70, 20, 80)
        handles, targets = (
            torch.tensor([[40.0, 40], [60, 50]]),
            torch.tensor([[50.0, 44], [60, 60]]),
        )
        small, _ = warp(places(), mask, handles, targets)

        def twice(picture: torch.Tensor) -> torch.Tensor:
            return functional.interpolate(picture[None], scale_factor=2, mode="bilinear")[0]

        large = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
        points = 2 * handles + 0.5, 2 * targets + 0.5
        out, _ = warp(twice(places()), large, *points)
        off = (functional.avg_pool2d(out, 2) - small).abs()
        assert off.mean() < 1e-3


class TestSheet:
    def test_its_rim_stays_and_it_stretches_towards_it(self) -> None:
        mask = box(10, 90, 10, 120)
        handle, target = torch.tensor([[60.0, 50]]), torch.tensor([[80.0, 50]])
        out, hole = WARPS["sheet"](places(), mask, handle, target)
        row = comes_from(out, torch.stack((torch.arange(10, 120), torch.full((110,), 50)), dim=1))
        assert (row[1:, 0] > row[:-1, 0]).all()  # it does not fold
        assert (row[[0, -1], 0] - torch.tensor([10.0, 119])).abs().max() < 2.5
        assert not hole.any()

    def test_one_pair_on_a_sheet_without_a_rim(self) -> None:
        """The corners hold it."""
        handle, target = torch.tensor([[60.0, 50]]), torch.tensor([[70.0, 50]])
        out, _ = WARPS["sheet"](places(), EVERYWHERE, handle, target)
        corners = torch.tensor([[0.0, 0], [127, 95]])
        assert (comes_from(out, corners) - corners).norm(dim=1).max() < 0.6

    @pytest.mark.parametrize(
        "kept", [box(0, 8, 0, 8), box(0, 20, 0, 20), box(0, 96, 0, 8), box(0, 8, 0, 128)]
    )
    def test_a_rim_on_one_line(self, kept: torch.Tensor) -> None:
        """A corner or an edge that the mask leaves out: the picture's corners hold it as well."""
        for handle in ([[60.0, 50]], [[3.5, 3.5]], [[3.5, 50]], [[60, 3.5]]):
            handles = torch.tensor(handle)
            out, _ = WARPS["sheet"](places(), ~kept, handles, handles + torch.tensor([[0, 12]]))
            corners = torch.tensor([[127.0, 95], [127, 0], [0, 95]])
            inside = ~kept[corners[:, 1].long(), corners[:, 0].long()]
            assert torch.isfinite(out).all()
            assert (comes_from(out, corners) - corners)[inside].norm(dim=1).max() < 0.6

    def test_a_rim_round_the_mask_holds_alone(self) -> None:
        sheet = Sheet(lattice=48, rim=12)
        for mask in (box(0, 60, 0, 90), box(10, 60, 20, 90), box(20, 60, 0, 90)):
            x, y = sheet._rim(mask).long().unbind(-1)
            assert not mask[y, x].any()


class TestPiece:
    def test_one_pair_shifts_all(self) -> None:
        picture = torch.rand(3, *SIZE)
        handle, target = torch.tensor([[60.0, 50]]), torch.tensor([[70.0, 46]])
        out, hole = WARPS["piece"](picture, EVERYWHERE, handle, target)
        found, expected = out[:, :-4, 10:], picture[:, 4:, :-10]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        leaves = box(4, 96, 0, 118)  # and stays in the picture
        assert torch.equal(hole, leaves & ~box(0, 92, 10, 128))

    def test_it_leaves_a_hole_and_takes_nothing_from_beyond(self) -> None:
        mask = box(20, 70, 20, 100)
        shift = torch.tensor([[30.0, 0]])
        handle = torch.tensor([[40.0, 40]])
        _, hole = WARPS["piece"](torch.rand(3, *SIZE), mask, handle, handle + shift)
        assert torch.equal(hole, box(20, 70, 20, 50))

    def test_parts_move_by_themselves(self) -> None:
        picture = torch.rand(3, *SIZE)
        left, right = box(20, 70, 10, 60), box(20, 70, 70, 120)
        handles, targets = (
            torch.tensor([[30.0, 40], [90, 40]]),
            torch.tensor([[40.0, 40], [90, 40]]),
        )
        out, hole = WARPS["piece"](picture, left | right, handles, targets)
        assert torch.equal(out[:, right], picture[:, right])
        torch.testing.assert_close(
            out[:, 20:70, 20:60], picture[:, 20:70, 10:50], rtol=0, atol=1e-4
        )
        assert torch.equal(hole, box(20, 70, 10, 20))

    def test_what_is_far_from_the_handles_stays(self) -> None:
        picture, handle = torch.rand(3, *SIZE), torch.tensor([[40.0, 40]])
        out, _ = WARPS["near"](picture, EVERYWHERE, handle, handle + 6)
        away = (lattice(SIZE, 1) - 46).norm(dim=-1) > 2 * 0.1 * 96 + 10
        torch.testing.assert_close(out[:, away], picture[:, away], rtol=0, atol=1e-4)

    def test_no_reach(self) -> None:
        with pytest.raises(ValueError, match="reach"):
            Piece(lattice=8, reach=0.0)


class TestZoom:
    def test_what_comes_together_shrinks(self) -> None:
        """A pin inside the mask has no say; what is left round it is a hole."""
        handles = torch.tensor([[40.0, 50], [60, 50], [90, 30]])
        targets = torch.tensor([[48.0, 50], [52, 50], [90, 30]])
        out, hole = WARPS["zoom"](places(), box(10, 90, 10, 120), handles, targets)
        points, middle = torch.tensor([[50.0, 50], [52, 50], [46, 54]]), torch.tensor([50.0, 50])
        found = comes_from(out, points)
        assert (found - (middle + 5 * (points - middle))).norm(dim=1).max() < 0.5
        assert hole[20, 20]
        assert not hole[50, 52]

    def test_a_handle_alone_shifts(self) -> None:
        mask, handle = box(20, 70, 20, 100), torch.tensor([[40.0, 40]])
        for name in ("zoom", "piece"):
            out, hole = WARPS[name](places(), mask, handle, handle + torch.tensor([[30.0, 0]]))
            points = torch.tensor([[70.0, 40], [60, 60]])
            assert (comes_from(out, points) - points + torch.tensor([30.0, 0])).abs().max() < 0.1
            assert torch.equal(hole, box(20, 70, 20, 50))

    def test_two_pairs_say_how_large(self) -> None:
        """Apart by 1.5 times as much, and all is: no hole is left."""
        handles = torch.tensor([[40.0, 50], [60, 50]])
        targets = torch.tensor([[35.0, 50], [65, 50]])
        out, hole = WARPS["zoom"](places(), box(10, 90, 10, 120), handles, targets)
        points, middle = torch.tensor([[50.0, 50], [80, 60], [20, 30]]), torch.tensor([50.0, 50])
        found = comes_from(out, points)
        assert (found - (middle + (points - middle) / 1.5)).norm(dim=1).max() < 0.5
        assert not hole.any()

    @pytest.mark.parametrize("least", [0.0, 1.5])
    def test_no_size(self, least: float) -> None:
        with pytest.raises(ValueError, match="least"):
            Zoom(lattice=8, least=least)
