"""LoRA adaptation: the loss, the fit, its randomness and its cache."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from gooddrag.adapt import AdapterFromFile, LoraAdapter, NoAdapter
from gooddrag.backbones.adapter_files import ADAPTER_FILE, save_adapter
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.events import EditCallback, Phases
from gooddrag.lora import Draws, adaptation_loss, add_noise, random_corner, training_picture
from tests.tiny import make_sample

NUMBERS: dict[str, Any] = {
    "rank": 2,
    "steps": 3,
    "batch_size": 2,
    "lr": 5e-3,
    "betas": [0.9, 0.999],
    "weight_decay": 1e-2,
    "targets": ["to_q", "to_k", "to_v", "to_out.0"],
    "crop": "once",
    "posterior": "sample",
    "seed": 0,
}


def adapter_of(cache: Path | None = None, **changes: Any) -> LoraAdapter:
    return LoraAdapter(cache=str(cache) if cache else None, **(NUMBERS | changes))


def equal(one: Adapter, other: Adapter) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Losses(EditCallback):
    def __init__(self) -> None:
        self.found: list[float] = []
        self.totals: list[int] = []

    def on_phase_start(self, phase: str, total: int) -> None:
        self.totals.append(total)

    def on_phase_advance(self, phase: str, loss: torch.Tensor | None = None) -> None:
        assert loss is not None
        self.found.append(float(loss))


def test_noise_is_added_as_the_scheduler_does(backbone: StableDiffusion) -> None:
    from diffusers import DDPMScheduler

    z_0, eps, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler.from_config(backbone.scheduler.config)
    found = add_noise(z_0, eps, backbone.alphas_cumprod[t])
    torch.testing.assert_close(found, scheduler.add_noise(z_0, eps, t))


def test_loss_is_a_mean_per_sample() -> None:
    eps, predicted = torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    predicted[:2] = 2.0
    assert adaptation_loss(predicted, eps, 2).tolist() == [4.0, 0.0]


def test_the_loss_falls(backbone: StableDiffusion) -> None:
    losses = Losses()
    adapter_of(steps=60, lr=2e-2)(backbone, [make_sample()], Phases([losses]))
    assert len(losses.found) == 60
    assert sum(losses.found[-15:]) < 0.95 * sum(losses.found[:15])


def test_a_batch_is_its_pictures_alone(backbone64: StableDiffusion) -> None:
    samples = [make_sample(seed=1), make_sample(seed=2)]
    together = adapter_of()(backbone64, samples, Phases([]))
    for sample, adapter in zip(samples, together, strict=True):
        alone = adapter_of()(backbone64, [sample], Phases([]))[0]
        for key in alone:
            torch.testing.assert_close(adapter[key], alone[key], rtol=0, atol=1e-7)


def test_randomness_is_of_seed_and_picture(backbone: StableDiffusion) -> None:
    one, again, other = (
        adapter_of(seed=seed)(backbone, [make_sample()], Phases([]))[0] for seed in (0, 0, 1)
    )
    assert equal(one, again)
    assert not equal(one, other)


def test_global_randomness_is_left_alone(backbone: StableDiffusion) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    adapter_of()(backbone, [make_sample()], Phases([]))
    assert torch.equal(torch.get_rng_state(), state)


class TestCache:
    def test_second_time_nothing_is_trained(
        self, backbone: StableDiffusion, tmp_path: Path
    ) -> None:
        first, second = Losses(), Losses()
        one = adapter_of(tmp_path)(backbone, [make_sample()], Phases([first]))[0]
        other = adapter_of(tmp_path)(backbone, [make_sample()], Phases([second]))[0]
        assert equal(one, other)
        assert (len(first.found), len(second.found)) == (3, 0)
        assert (first.totals, second.totals) == ([3], [0])

    def test_a_partly_cached_batch(self, backbone: StableDiffusion, tmp_path: Path) -> None:
        samples = [make_sample(seed=1), make_sample(seed=2)]
        cached = adapter_of(tmp_path)(backbone, samples[1:], Phases([]))[0]
        both = adapter_of(tmp_path)(backbone, samples, Phases([]))
        assert equal(both[1], cached)
        assert not equal(both[0], cached)

    @pytest.mark.parametrize(
        "name", sorted(set(NUMBERS) - {"betas", "targets", "crop", "posterior"})
    )
    def test_every_number_is_in_the_key(
        self, backbone: StableDiffusion, tmp_path: Path, name: str
    ) -> None:
        changed = adapter_of(tmp_path, **{name: NUMBERS[name] * 2 + 1})
        sample = make_sample()
        assert changed.folder(backbone, sample) != adapter_of(tmp_path).folder(backbone, sample)

    def test_picture_weights_and_precision_are_in_the_key(
        self, backbone: StableDiffusion, backbone64: StableDiffusion, tmp_path: Path
    ) -> None:
        adapt, sample = adapter_of(tmp_path), make_sample()
        folder = adapt.folder(backbone, sample)
        assert adapt.folder(backbone, make_sample(seed=9)) != folder
        assert adapt.folder(backbone64, sample) != folder
        renamed = make_sample(pairs=1)  # other points, same picture
        assert adapt.folder(backbone, renamed) == folder

    def test_rival_writers_leave_one_whole_file(
        self, backbone: StableDiffusion, tmp_path: Path
    ) -> None:
        adapter = adapter_of()(backbone, [make_sample()], Phases([]))[0]
        context = multiprocessing.get_context("fork")
        rivals = [context.Process(target=write_often, args=(adapter, tmp_path)) for _ in range(3)]
        for rival in rivals:
            rival.start()
        found = [AdapterFromFile(path=str(tmp_path))]
        while any(rival.is_alive() for rival in rivals):
            if (tmp_path / ADAPTER_FILE).exists():
                assert equal(found[0](backbone, [make_sample()], Phases([]))[0], adapter)
        for rival in rivals:
            rival.join()
            assert rival.exitcode == 0
        assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", ADAPTER_FILE]


def write_often(adapter: Adapter, folder: Path) -> None:
    for _ in range(20):
        save_adapter(adapter, folder)


def test_none_and_file(backbone: StableDiffusion, tmp_path: Path) -> None:
    assert NoAdapter()(backbone, [make_sample()], Phases([])) is None
    adapter = adapter_of()(backbone, [make_sample()], Phases([]))[0]
    save_adapter(adapter, tmp_path)
    from_file = AdapterFromFile(path=str(tmp_path))(backbone, [make_sample()] * 2, Phases([]))
    assert len(from_file) == 2
    assert equal(from_file[1], adapter)


class TestCrops:
    @pytest.mark.parametrize("size", [(64, 64), (96, 64), (50, 70)])
    def test_a_square_of_the_asked_side_fits(self, size: tuple[int, int]) -> None:
        picture = training_picture(torch.rand(3, *size), 64, "once")
        assert min(picture.shape[1:]) == 64
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            corner = random_corner(picture.shape[1:], 64, generator)
            assert all(
                0 <= at <= extent - 64 for at, extent in zip(corner, picture.shape[1:], strict=True)
            )

    def test_a_square_of_the_right_size_is_left_alone(self) -> None:
        image = torch.rand(3, 64, 64)
        torch.testing.assert_close(training_picture(image, 64, "once"), image)
        assert random_corner((64, 64), 64, torch.Generator()) == (0, 0)

    def test_crops_differ_where_there_is_room(self) -> None:
        generator = torch.Generator().manual_seed(0)
        corners = [random_corner((64, 200), 64, generator) for _ in range(20)]
        assert {top for top, _ in corners} == {0}
        assert len({left for _, left in corners}) > 5

    def test_none_squeezes(self) -> None:
        assert training_picture(torch.rand(3, 50, 70), 64, "none").shape == (3, 64, 64)

    @pytest.mark.parametrize(("size", "most"), [((64, 64), 1), ((64, 66), 3)])
    def test_no_crop_is_encoded_twice(
        self, backbone: StableDiffusion, size: tuple[int, int], most: int
    ) -> None:
        seen = []
        encode = backbone.encode

        def counted(images: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(images)
            return encode(images)

        samples = [make_sample(size=size), make_sample(size=size)]
        generators = [torch.Generator().manual_seed(i) for i in (1, 2)]
        adapter = adapter_of(crop="each_step", steps=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backbone, "encode", counted)
            mean, std = adapter._posterior(backbone, samples, generators)
        crops = {crop.numpy().tobytes() for images in seen for crop in images}
        assert 2 <= sum(map(len, seen)) <= 2 * most
        # each in its place: by step, sample and number, drawn by the sample's own generator
        for i in (0, 1):
            picture = training_picture(samples[i].image, 64, "each_step")
            generator = torch.Generator().manual_seed(i + 1)
            for step in range(4):
                for m in range(NUMBERS["batch_size"]):
                    top, left = random_corner(picture.shape[1:], 64, generator)
                    crop = picture[:, top : top + 64, left : left + 64]
                    assert crop.contiguous().numpy().tobytes() in crops
                    expected = encode(crop[None])
                    place = i * NUMBERS["batch_size"] + m
                    assert torch.equal(mean[step, place], expected[0][0])
                    assert torch.equal(std[step, place], expected[1][0])

    @pytest.mark.parametrize("crop", ["once", "each_step", "none"])
    def test_all_ways_train(self, backbone: StableDiffusion, crop: str) -> None:
        sample = make_sample(size=(64, 96))
        assert adapter_of(crop=crop, steps=2)(backbone, [sample], Phases([]))


def test_draws_come_in_the_official_order() -> None:
    generator = torch.Generator().manual_seed(3)
    draws = list(Draws([torch.Generator().manual_seed(3)], 2, 2, (4, 8, 8)))
    for draw in draws:
        assert torch.equal(draw.posterior, torch.randn(2, 4, 8, 8, generator=generator))
        assert torch.equal(draw.eps, torch.randn(2, 4, 8, 8, generator=generator))
        assert torch.equal(draw.t, torch.randint(1000, (2,), generator=generator))


@pytest.mark.parametrize(
    "change",
    [
        *({"crop": "twice"}, {"posterior": "mode"}, {"steps": 0}, {"rank": 0}, {"targets": []}),
        *({"lr": 0.0}, {"lr": -1.0, "weight_decay": 0.0}),
    ],
)
def test_settings_out_of_range(change: dict) -> None:
    with pytest.raises(ValueError, match=f"adapt.{next(iter(change))}"):
        adapter_of(**change)


def test_a_rank_that_no_projection_has_is_refused(backbone: StableDiffusion) -> None:
    """Before its matrices take more memory than the machine has."""
    with pytest.raises(ValueError, match=r"adapt\.rank=16 or less"):
        adapter_of(rank=100_000)(backbone, [make_sample()], Phases([]))
