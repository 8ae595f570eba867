"""Pixels, grid and patches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gooddrag.geometry import Canvas, directions, latent_mask, product_patches, sample_patches

ONE = torch.tensor([0])
WIDE = Canvas((40, 48), (40, 48))  # a grid of 20 x 24 cells


def square(cells: int) -> Canvas:
    """A canvas with a square grid."""
    return Canvas((2 * cells, 2 * cells), (2 * cells, 2 * cells))


class TestCanvas:
    @pytest.mark.parametrize("size", [(512, 512), (509, 512), (257, 300), (64, 65)])
    def test_padding_extends_and_cropping_undoes(self, size: tuple[int, int]) -> None:
        canvas = Canvas.of(size, 8, "pad")
        image = torch.rand(1, 3, *size)
        padded = canvas.pad(image)
        assert all(side % 8 == 0 for side in padded.shape[-2:])
        assert torch.equal(canvas.crop(padded), image)
        assert torch.equal(padded[..., -1, : size[1]], image[..., -1, :])

    def test_resize_stretches_back_as_the_official_code(self) -> None:
        canvas = Canvas.of((509, 512), 8, "resize")
        decoded = torch.rand(1, 3, 504, 512)
        expected = functional.interpolate(decoded, (509, 512), mode="bilinear")
        assert torch.equal(canvas.crop(decoded), expected)
        assert canvas.grid == (254, 256)

    def test_points_on_the_grid_as_the_official_code_rounds(self) -> None:
        """Half to even (parity README, 8): y = 23 -> 12, y = 33 -> 16."""
        canvas = Canvas.of((256, 256), 8, "pad")
        points = torch.tensor([[23.0, 33.0], [33.0, 23.0], [0.0, 255.0]])
        expected = torch.tensor([[16.0, 12.0], [12.0, 16.0], [128.0, 0.0]])
        assert torch.equal(canvas.to_grid(points, "nearest"), expected)

    def test_fractions_survive_without_rounding(self) -> None:
        canvas = Canvas.of((200, 120), 8, "pad")
        points = torch.tensor([[23.0, 33.0], [11.0, 7.5]])
        torch.testing.assert_close(canvas.to_pixels(canvas.to_grid(points, "none")), points)

    def test_padding_does_not_shift_points(self) -> None:
        points = torch.tensor([[100.0, 200.0]])
        plain = Canvas.of((512, 512), 8, "pad").to_grid(points, "none")
        padded = Canvas.of((509, 505), 8, "pad").to_grid(points, "none")
        assert torch.equal(plain, padded)

    def test_unknown_words(self) -> None:
        with pytest.raises(ValueError, match="fit must be"):
            Canvas.of((64, 64), 8, "stretch")
        with pytest.raises(ValueError, match="rounding must be"):
            Canvas.of((64, 64), 8, "pad").to_grid(torch.zeros(1, 2), "up")


class TestPatches:
    def test_whole_centres_give_slices(self) -> None:
        features = torch.rand(1, 5, 20, 24)
        patch, valid = sample_patches(features, ONE, torch.tensor([[7.0, 9.0]]), 3, WIDE)
        assert torch.equal(patch[0], features[0, :, 4:11, 6:13])
        assert valid.all()

    def test_a_linear_map_is_sampled_exactly(self) -> None:
        rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
        features = (2 * rows + 3 * columns)[None, None]
        centre = torch.tensor([[7.25, 9.75]])
        patch, _ = sample_patches(features, ONE, centre, 2, WIDE)
        offsets = torch.arange(-2.0, 3.0)
        expected = 2 * (7.25 + offsets[:, None]) + 3 * (9.75 + offsets[None, :])
        torch.testing.assert_close(patch[0, 0], expected)

    @pytest.mark.parametrize("centre", [(0.0, 0.0), (19.0, 23.0), (0.0, 23.0), (1.0, 12.0)])
    def test_cells_beyond_the_border_are_marked(self, centre: tuple[float, float]) -> None:
        features = torch.rand(1, 2, 20, 24)
        patch, valid = sample_patches(features, ONE, torch.tensor([centre]), 3, WIDE)
        for i in range(7):
            for j in range(7):
                row, column = int(centre[0]) + i - 3, int(centre[1]) + j - 3
                inside = 0 <= row < 20 and 0 <= column < 24
                assert bool(valid[0, i, j]) == inside
                if inside:
                    assert torch.equal(patch[0, :, i, j], features[0, :, row, column])

    def test_padding_does_not_count(self) -> None:
        _, valid = sample_patches(
            torch.rand(1, 2, 20, 24),
            ONE,
            torch.tensor([[17.0, 12.0]]),
            2,
            Canvas((36, 48), (40, 48)),
        )
        assert valid[0].any(dim=1).tolist() == [True, True, True, False, False]

    def test_gradient(self) -> None:
        features = torch.rand(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
        centres = torch.tensor([[2.25, 3.5], [0.0, 5.0]])

        def sample(f: torch.Tensor) -> torch.Tensor:
            return sample_patches(f, torch.tensor([1, 0]), centres, 1, square(6))[0]

        assert torch.autograd.gradcheck(sample, (features,))

    def test_each_pair_reads_its_own_sample(self) -> None:
        features = torch.rand(3, 4, 10, 10)
        centres = torch.tensor([[4.0, 4.0], [5.0, 5.0], [4.0, 4.0]])
        together, _ = sample_patches(features, torch.tensor([2, 0, 0]), centres, 1, square(10))
        for i, owner in enumerate((2, 0, 0)):
            alone, _ = sample_patches(
                features[owner : owner + 1], ONE, centres[i : i + 1], 1, square(10)
            )
            assert torch.equal(together[i : i + 1], alone)


def test_directions_are_unit_vectors_and_zero_for_pins() -> None:
    handles, targets = (
        torch.tensor([[1.0, 1.0], [5.0, 5.0]]),
        torch.tensor([[4.0, 5.0], [5.0, 5.0]]),
    )
    direction, distance = directions(handles, targets)
    torch.testing.assert_close(direction, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert distance.tolist() == [5.0, 0.0]


@pytest.mark.parametrize(
    ("size", "grid"), [((8, 8), (32, 32)), ((9, 7), (36, 28)), ((8, 8), (8, 8))]
)
def test_patches_are_those_of_the_resized_map(size: tuple[int, int], grid: tuple[int, int]) -> None:
    """To the last bits, though that map is never made; so is the gradient."""
    canvas = Canvas((2 * grid[0], 2 * grid[1]), (2 * grid[0], 2 * grid[1]))
    features = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    sample, centres = torch.tensor([1, 0, 1]), torch.tensor([[3.0, 4.0], [5.25, 2.5], [0.0, 1.75]])
    found, _ = sample_patches(features, sample, centres, 2, canvas)
    resized = functional.interpolate(features, grid, mode="bilinear", align_corners=False)
    expected, _ = sample_patches(resized, sample, centres, 2, canvas)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    towards = torch.rand_like(found)
    one, other = (
        torch.autograd.grad((patches * towards).sum(), features)[0] for patches in (found, expected)
    )
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    ("size", "canvas"),
    [((8, 8), square(32)), ((9, 7), Canvas((70, 55), (72, 56))), ((8, 8), square(8))],
)
def test_products_give_the_same_patches(
    size: tuple[int, int], canvas: Canvas, samples: int, layout: torch.memory_format
) -> None:
    """Also beyond the border, and the gradient; and equal maps give equal patches."""
    features = torch.rand(samples, 3, *size, dtype=torch.float64).to(memory_format=layout)
    features.requires_grad_()
    sample = torch.tensor([samples - 1, 0, samples - 1])
    centres = torch.tensor([[3.0, 4.0], [5.25, 6.625], [0.0, 1.75]])
    found, expected = (
        patches(features, sample, centres, 2, canvas)
        for patches in (product_patches, sample_patches)
    )
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-7)  # weights of float32
    towards = torch.rand_like(found[0])
    one, other = (
        torch.autograd.grad((patches * towards).sum(), features)[0]
        for patches, _ in (found, expected)
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    again, _ = product_patches(features.detach(), sample, centres, 2, canvas)
    assert torch.equal(again, found[0])


def test_latent_mask_is_binary_at_latent_size() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 0.3  # anything above 0 is editable
    latent = latent_mask(mask, (32, 32), (8, 8))
    assert torch.equal(latent, (torch.arange(8) < 4).float().expand(1, 1, 8, 8))
