import pytest
import torch

from gooddrag.drawing import before_after, frame, overlay, path_of, titled
from gooddrag.types import DragSample, Edit, Tracking, Trajectory

RED, BLUE = torch.tensor([232, 44, 44]) / 255, torch.tensor([38, 104, 240]) / 255
P, Q = torch.tensor([[60.0, 100.0]]), torch.tensor([[180.0, 100.0]])


def grey(height=256, width=256):
    return torch.full((3, height, width), 0.5)


def colour(image, x, y):
    return image[:, round(y), round(x)]


def edit_of(image, path):
    way = Trajectory(start=path[0])
    way.trackings = [Tracking(0, 700, 3, points, points.flip(1) / 2) for points in path[1:]]
    return Edit(image, path[-1], way, {}, 0)


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (300, 200), (64, 64), (1700, 900)])
def test_points_lie_where_they_should(size):
    scale = torch.tensor([size[1] / 256, size[0] / 256])
    p, q = P * scale, Q * scale
    drawn = overlay(grey(*size), p, q)
    assert drawn.shape == (3, *size)
    torch.testing.assert_close(colour(drawn, *p[0].tolist()), RED, atol=0.02, rtol=0)
    torch.testing.assert_close(colour(drawn, *q[0].tolist()), BLUE, atol=0.02, rtol=0)


def test_dots_are_centred_on_their_pixels():
    drawn = frame(grey(), P, Q)
    where = ((drawn - 0.5).abs().amax(dim=0) > 0.05).nonzero().flip(1).float()
    for point in (P[0], Q[0]):
        near = where[(where - point).norm(dim=1) < 20]
        torch.testing.assert_close(near.mean(dim=0), point, atol=0.1, rtol=0)


def test_nothing_else_changes():
    image = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(0))
    untouched = image.clone()
    drawn = overlay(image, P, Q)
    assert torch.equal(image, untouched)
    far = torch.ones(256, 256, dtype=torch.bool)
    far[85:116, 45:196] = False
    assert torch.equal(drawn[:, far], image[:, far])
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_turning_the_picture_turns_the_drawing():
    drawn = frame(grey(), P, Q)
    turned = frame(grey(), P.flip(1), Q.flip(1))
    torch.testing.assert_close(drawn.transpose(1, 2), turned, atol=0.02, rtol=0)


def test_arrow_lies_between_the_points():
    with_arrow, without = overlay(grey(), P, Q), overlay(grey(), P, Q, arrows=False)
    assert torch.equal(colour(without, 120, 100), torch.full((3,), 0.5))
    assert (colour(with_arrow, 120, 100) > 0.9).all()


def test_a_pin_is_a_red_ring_round_a_blue_dot():
    drawn = overlay(grey(), P, P)
    torch.testing.assert_close(colour(drawn, 60, 100), BLUE, atol=0.02, rtol=0)
    ring = drawn[:, 100, 50:70]
    assert (ring - RED[:, None]).abs().amax(dim=0).min() < 0.1


def test_mask_is_outlined_outside_and_the_rest_dimmed():
    mask = torch.zeros(1, 256, 256)
    mask[:, 140:220, 30:200] = 1
    drawn = overlay(grey(), P, Q, mask)
    assert torch.equal(drawn[:, 142:218, 32:198], grey()[:, 142:218, 32:198])
    assert (colour(drawn, 10, 10) < 0.5).all()
    edge = drawn[0, 180, 20:36]
    assert edge.max() > 0.7
    assert torch.equal(overlay(grey(), P, Q, torch.ones(1, 256, 256)), overlay(grey(), P, Q))
    assert torch.equal(overlay(grey(), P, Q, torch.zeros(1, 256, 256)), overlay(grey(), P, Q))


def test_path_is_drawn_where_it_went():
    path = torch.tensor([[[60.0, 100.0]], [[60.0, 200.0]], [[180.0, 200.0]]])
    drawn = frame(grey(), path[-1], Q, path)
    for x, y in ((60, 150), (120, 200)):
        assert (colour(drawn, x, y) - RED).abs().max() < 0.25
    assert torch.equal(colour(drawn, 120, 150), torch.full((3,), 0.5))


def test_arrived_handles_and_targets_both_show():
    drawn = frame(grey(), Q, Q)
    torch.testing.assert_close(colour(drawn, 180, 100), RED, atol=0.02, rtol=0)
    assert (drawn[:, 100, 170:190] - BLUE[:, None]).abs().amax(dim=0).min() < 0.15


@pytest.mark.parametrize("mask", [None, torch.ones(1, 256, 200)])
def test_before_after_shows_both(mask):
    path = [P, P + 10, P + 20]
    sample = DragSample(grey(256, 200), P, Q, mask)
    edit = edit_of(torch.full((3, 256, 200), 0.2), path)
    drawn = before_after(sample, edit)
    strip, gap = drawn.shape[1] - 256, drawn.shape[2] - 400
    assert strip > 0
    assert gap > 0
    assert torch.equal(drawn[:, strip:, :200], overlay(sample.image, P, Q, mask))
    after = overlay(edit.image, P + 20, Q, path=path_of(edit), arrows=False)
    assert torch.equal(drawn[:, strip:, -200:], after)
    assert (drawn[:, strip:, 200 : 200 + gap] == 1).all()
    assert drawn[:, :strip, :200].min() < 0.5  # the title
    assert drawn.max() <= 1


def test_methods_without_tracking():
    sample = DragSample(grey(), P, Q)
    assert path_of(Edit(grey(), Q, None, {}, 0)) is None
    assert before_after(sample, Edit(grey(), Q, None, {}, 0)).isfinite().all()


def test_path_holds_every_position_in_order():
    path = [P, P + 1, P + 3]
    found = path_of(edit_of(grey(), path))
    assert torch.equal(found, torch.stack([*path, path[-1]]))


def test_tiny_and_half_precision():
    image = torch.zeros(3, 16, 16, dtype=torch.bfloat16)
    drawn = overlay(image, torch.tensor([[0.0, 0.0]]), torch.tensor([[15.0, 15.0]]))
    assert drawn.dtype == torch.float32
    assert titled(drawn, "source").shape[2] == 16
