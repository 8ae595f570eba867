"""Metrics: identities, closed forms, two implementations equal, and the published numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from gooddrag import load_metrics, seeding
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.composition import composer, instantiate
from gooddrag.data import read_sample
from gooddrag.data.world import to_sample
from gooddrag.metrics import (
    Dift,
    DraggingAccuracy,
    ImageFidelity,
    MeanDistance,
    TruthError,
    bootstrap_difference,
    bootstrap_mean,
    collection,
    score,
)
from gooddrag.metrics.accuracy import dragging_accuracy, patch_errors
from gooddrag.metrics.base import SampleMean
from gooddrag.metrics.distance import dragbench_distances, match, nearby, regiondrag_distances
from gooddrag.metrics.fidelity import image_fidelity
from gooddrag.metrics.truth import ROUNDING_PSNR, truth_errors
from gooddrag.types import DragSample
from gooddrag.world import WorldEdit, render_edit
from tests import tiny

DRAG100 = Path(__file__).parents[2] / "shared" / "data" / "drag100"
GAMMAS = (1, 5, 10, 20)


def metrics_of(name: str, *overrides: str) -> dict[str, Any]:
    """A set of conf/metrics."""
    with composer() as compose:
        cfg = compose("base", [f"+metrics={name}", "+engine=default", *overrides])
    found: dict[str, Any] = instantiate(cfg.metrics)
    return found


@pytest.fixture(scope="module")
def world() -> WorldEdit:
    return render_edit("test", 0, 0, size=128)


@pytest.fixture
def picture() -> Tensor:
    return tiny.make_sample(seed=3, size=(40, 56)).image


def points(*pairs: tuple[float, float]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.float32)


class TestDraggingAccuracy:
    def test_patch_errors_by_hand(self, picture: Tensor) -> None:
        other = tiny.make_sample(seed=4, size=(40, 56)).image
        handles, targets = points((10, 12), (30, 20)), points((14, 15), (25, 21))
        found = patch_errors(picture, other, handles, targets, gamma=2)
        for i, ((px, py), (qx, qy)) in enumerate(
            zip(handles.int().tolist(), targets.int().tolist(), strict=True)
        ):
            ours = picture[:, py - 2 : py + 3, px - 2 : px + 3]
            theirs = other[:, qy - 2 : qy + 3, qx - 2 : qx + 3]
            expected = (ours - theirs).square().sum() / 25
            torch.testing.assert_close(found[i], expected)

    @pytest.mark.parametrize("gamma", [0, 1, 5])
    def test_a_shifted_picture_is_exact(self, picture: Tensor, gamma: int) -> None:
        edited = picture.roll((3, 4), dims=(1, 2))
        handles = points((20, 15), (30, 22))
        errors = patch_errors(picture, edited, handles, handles + points((4, 3)), gamma)
        assert errors.tolist() == [0, 0]

    def test_copy_and_paste_fools_it(self, world: WorldEdit) -> None:
        sample = to_sample(world)
        moving = (sample.handles != sample.targets).any(dim=1)
        (px, py), (qx, qy) = (
            p[moving][:1].int().tolist()[0] for p in (sample.handles, sample.targets)
        )
        pasted = sample.image.clone()
        patch = sample.image[:, py - 5 : py + 6, px - 5 : px + 6]
        pasted[:, qy - 5 : qy + 6, qx - 5 : qx + 6] = patch
        pair = sample.handles[moving][:1], sample.targets[moving][:1]
        assert float(patch_errors(sample.image, pasted, *pair, gamma=5)) == 0
        assert float(patch_errors(sample.image, sample.image, *pair, gamma=5)) > 0.01

    def test_at_a_border_the_common_pixels_count(self, picture: Tensor) -> None:
        errors = patch_errors(picture, picture, points((0, 0)), points((0, 0)), gamma=20)
        assert errors.tolist() == [0]
        other = patch_errors(picture, picture + 1, points((0, 39)), points((55, 0)), gamma=3)
        patches = picture[:, 39:40, 0:1], picture[:, 0:1, 55:56] + 1  # one pixel is in both
        torch.testing.assert_close(other[0], (patches[0] - patches[1]).square().sum())

    def test_norms(self) -> None:
        errors = torch.tensor([1.0, 2.0, 6.0])
        assert float(dragging_accuracy(errors, "once")) == 3
        assert float(dragging_accuracy(errors, "official")) == 1
        with pytest.raises(ValueError, match="once or official"):
            dragging_accuracy(errors, "twice")
        with pytest.raises(ValueError, match="once and official"):
            DraggingAccuracy(gammas=[1], norms=["twice"])

    def test_sizes_must_agree(self, picture: Tensor) -> None:
        with pytest.raises(ValueError, match="30 x 40 pixels and the source 56 x 40"):
            patch_errors(picture, picture[:, :, :30], points((1, 1)), points((2, 2)), gamma=1)

    @pytest.mark.skipif(not DRAG100.is_dir(), reason=f"Drag100 is not at {DRAG100}")
    def test_unedited_drag100(self) -> None:
        metric = metrics_of("dai")["dai"]
        for folder in sorted(path for path in DRAG100.iterdir() if path.is_dir()):
            sample = read_sample(folder)
            metric.update(sample.image, sample.image, sample.handles, sample.targets)
        found = {name: round(float(mean), 4) for name, mean in metric.compute().items()}
        once, official = (0.3772, 0.3657, 0.3360, 0.2961), (0.1974, 0.1899, 0.1751, 0.1601)
        assert metric.count.tolist() == [100] * 8
        assert found == {
            f"{name}_{gamma}": figure
            for name, figures in (("dai", once), ("dai_official", official))
            for gamma, figure in zip(GAMMAS, figures, strict=True)
        }


class Two(SampleMean):
    def __init__(self) -> None:
        super().__init__(["one", "other"])

    def update(self, one: float, other: float) -> None:
        self.add({"one": one, "other": other})


SYNCHRONISED = """
import sys, torch
from torch import distributed
from gooddrag.metrics import DraggingAccuracy
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
metric = DraggingAccuracy(gammas=[1], norms=["once"])
point = torch.tensor([[4.0, 4.0]])
for grey in ([0.0, 1.0], [0.5])[rank]:  # ranks need not have equally many samples
    picture = torch.zeros(3, 9, 9)
    metric.update(picture, picture + grey, point, point)
print(float(metric.compute()["dai_1"]))
distributed.barrier()
distributed.destroy_process_group()
"""


class TestMeans:
    def test_a_sample_and_the_mean(self) -> None:
        metric = Two()
        assert {k: float(v) for k, v in metric(1.0, 4.0).items()} == {"one": 1, "other": 4}
        assert {k: float(v) for k, v in metric(3.0, 5.0).items()} == {"one": 3, "other": 5}
        assert {k: float(v) for k, v in metric.compute().items()} == {"one": 2, "other": 4.5}
        metric.reset()
        assert math.isnan(metric(math.nan, 1.0)["one"])

    def test_what_does_not_apply_is_left_out(self) -> None:
        metric = Two()
        metric.update(math.nan, math.inf)
        metric.update(2.0, 1.0)
        assert {k: float(v) for k, v in metric.compute().items()} == {"one": 2, "other": math.inf}
        assert metric.count.tolist() == [1, 2]

    def test_two_processes(self, tmp_path: Path) -> None:
        commands = [
            [sys.executable, "-c", SYNCHRONISED, str(rank), str(tmp_path / "meeting")]
            for rank in (0, 1)
        ]
        running = [
            subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for c in commands
        ]
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
            assert float(out) == pytest.approx((0 + 3 + 0.75) / 3)


class TestAgainstTruth:
    def test_torchmetrics_own_overall(self, picture: Tensor) -> None:
        truth = (picture + 0.05 * torch.randn(picture.shape)).clamp(0, 1)
        mask = torch.zeros(1, 40, 56)
        mask[:, 10:30, 10:40] = 1
        found = truth_errors(picture, truth, mask)
        ssim = structural_similarity_index_measure(picture[None], truth[None], data_range=1.0)
        torch.testing.assert_close(found["ssim"], ssim)
        psnr = peak_signal_noise_ratio(picture, truth, data_range=1.0)
        torch.testing.assert_close(found["psnr"], psnr)
        torch.testing.assert_close(found["mae"], (picture - truth).abs().mean())

    def test_regions_add_up(self, picture: Tensor) -> None:
        truth, mask = picture.flip(1), torch.zeros(1, 40, 56)
        mask[:, :10] = 1
        found = truth_errors(picture, truth, mask)
        for kind in ("mae", "ssim"):
            parts = 0.25 * found[f"{kind}_inside"] + 0.75 * found[f"{kind}_outside"]
            torch.testing.assert_close(found[kind], parts)
        squares = {region: 10 ** (-found[f"psnr{region}"] / 10) for region in ("", "_inside")}
        outside = 10 ** (-found["psnr_outside"] / 10)
        torch.testing.assert_close(squares[""], 0.25 * squares["_inside"] + 0.75 * outside)

    def test_a_change_outside_the_mask_is_outside(self, picture: Tensor) -> None:
        mask = torch.zeros(1, 40, 56)
        mask[..., :28] = 1
        edited = picture.clone()
        edited[..., 28:] += 0.25
        found = {k: float(v) for k, v in truth_errors(edited, picture, mask).items()}
        assert found["mae_inside"] == 0
        assert found["mae_outside"] == pytest.approx(0.25)
        assert found["psnr_inside"] == pytest.approx(ROUNDING_PSNR)
        assert found["psnr_outside"] == pytest.approx(20 * math.log10(4), abs=1e-4)
        assert found["ssim_outside"] < found["ssim"] < found["ssim_inside"] <= 1

    def test_rounding_to_bytes_is_nothing(self, world: WorldEdit) -> None:
        rounded = (world.truth * 255).round() / 255
        found = truth_errors(rounded, world.truth, world.mask)
        assert float(found["psnr"]) > ROUNDING_PSNR - 0.3

    def test_without_an_outside(self, picture: Tensor) -> None:
        found = truth_errors(picture, picture, torch.ones(1, 40, 56))
        assert all(torch.isnan(found[f"{kind}_outside"]) for kind in ("psnr", "ssim", "mae"))

    def test_truth_beats_source(self, world: WorldEdit) -> None:
        metric = TruthError()
        edited, unedited = (metric(edited=p, world=world) for p in (world.truth, world.source))
        for name in ("psnr", "ssim"):
            assert edited[f"{name}_inside"] > unedited[f"{name}_inside"]
        assert edited["mae"] == 0 < unedited["mae"]


class TestFidelity:
    def test_what_the_network_sees(self, picture: Tensor) -> None:
        seen: list[Tensor] = []

        def network(one: Tensor, other: Tensor) -> Tensor:
            seen.extend((one, other))
            return (one - other).abs().mean(dim=(1, 2, 3), keepdim=True)

        found = image_fidelity(picture, torch.ones_like(picture), network, side=24)
        assert [tuple(p.shape) for p in seen] == [(1, 3, 24, 24)] * 2
        assert seen[1].unique().tolist() == [1]
        assert -1 <= float(seen[0].min()) < 0
        torch.testing.assert_close(found, 1 - (1 - seen[0]).mean())

    def test_metric(self, picture: Tensor) -> None:
        metric = ImageFidelity(net="alex", side=8, network=lambda a, b: (a - b).abs().mean())
        assert float(metric(source=picture, edited=picture)["if"]) == 1
        assert float(metric(source=picture, edited=1 - picture)["if"]) < 1

    def test_without_the_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "lpips", None)
        with pytest.raises(ValueError, match=r"pip install 'gooddrag\[fidelity\]'") as caught:
            metrics_of("fidelity")
        assert "\n" not in str(caught.value)


def plain_match(
    source: Tensor, edited: Tensor, handles: Tensor, size: tuple[int, int], mode: str
) -> Tensor:
    """The protocols' scripts in words of today, with whole maps."""
    ours, theirs = (
        torch.nn.functional.interpolate(f[None], size, mode=mode)[0] for f in (source, edited)
    )
    found = []
    for x, y in handles.long().tolist():
        cosine = torch.cosine_similarity(ours[:, y, x, None, None], theirs, dim=0)
        best = int(cosine.argmax())
        found.append([best % size[1], best // size[1]])
    return torch.tensor(found).float()


class TestMeanDistance:
    @pytest.mark.parametrize("mode", ["bilinear", "nearest"])
    def test_match_is_the_plain_one(self, mode: str) -> None:
        generator = torch.Generator().manual_seed(5)
        source, edited = torch.randn(2, 150, 5, 7, generator=generator)
        handles = points((3, 4), (50, 39), (20, 11))
        found = match(source, edited, handles, (40, 56), mode)
        assert torch.equal(found, plain_match(source, edited, handles, (40, 56), mode))

    def test_pictures_as_features(self, picture: Tensor) -> None:
        noise = torch.rand(8, 40, 56)
        edited = noise.roll((3, 5), dims=(1, 2))
        handles = points((20, 10), (31, 22))
        targets = handles + points((2, 3))
        found = match(noise, edited, handles, (40, 56), "bilinear")
        assert torch.equal(found, handles + points((5, 3)))
        size = (40, 56)
        assert dragbench_distances(noise, edited, handles, targets, size).tolist() == [3, 3]
        # found 3 pixels to the right, within the discs: a share of the width
        near = regiondrag_distances(noise, edited, handles, targets, size)
        torch.testing.assert_close(near, torch.full((2,), 300 / 56))

    def test_nearby_by_hand(self) -> None:
        handles, targets = points((10, 12), (30, 8)), points((40, 20), (30, 9))
        found = nearby(handles, targets, (32, 48))
        for pair, (p, q) in enumerate(zip(handles.tolist(), targets.tolist(), strict=True)):
            radius = max(5, math.dist(p, q) / math.sqrt(2))
            for y in range(32):
                for x in range(48):
                    inside = math.dist((x, y), p) < radius or math.dist((x, y), q) < radius
                    assert bool(found[pair, y, x]) == inside

    def test_far_places_are_not_regiondrags(self) -> None:
        noise = torch.rand(8, 64, 64)
        edited = noise.roll(40, dims=2)
        handles, targets = points((10, 10)), points((15, 10))
        far = dragbench_distances(noise, edited, handles, targets, (64, 64))
        near = regiondrag_distances(noise, edited, handles, targets, (64, 64))
        assert float(far) == 35
        assert float(near) <= 100 * 15 / 64

    def test_means_of_the_protocols(self) -> None:
        """DragBench's over pairs, RegionDrag's over pictures."""

        def features(image: Tensor, prompt: str, name: str) -> Tensor:
            assert prompt == "p"
            assert name.startswith("n/")
            return image

        bench, region = (
            MeanDistance(protocol=protocol, featurizer=features)
            for protocol in ("dragbench", "regiondrag")
        )
        image = torch.rand(3, 100, 100)
        for handles, targets in (
            (points((10, 10), (20, 20), (40, 40)), points((11, 10), (21, 20), (41, 40))),
            (points((50, 50)), points((54, 50))),
        ):
            sample = DragSample(image, handles, targets, prompt="p", name="n")
            for metric in (bench, region):
                score(collection({"md": metric}), sample, image)
        assert float(bench.compute()["md_dragbench"]) == pytest.approx((1 + 1 + 1 + 4) / 4)
        assert float(region.compute()["md_regiondrag"]) == pytest.approx((1 + 4) / 2)
        with pytest.raises(ValueError, match="dragbench or regiondrag, found 'both'"):
            MeanDistance(protocol="both", featurizer=features)

    @pytest.mark.parametrize("protocol", ["dragbench", "regiondrag"])
    def test_on_the_embedded_model(self, protocol: str) -> None:
        """The truth's handles are nearer to their targets than the unedited picture's."""
        node = f"metrics.md_{protocol}.featurizer"
        found = metrics_of(
            f"md_{protocol}",
            f"backbone@{node}.backbone=mini",
            f"{node}.ensemble=2",
            *([f"{node}.side=256"] if protocol == "regiondrag" else []),
        )
        metrics = collection(found)
        world = render_edit("test", 0, 13)
        sample = to_sample(world)
        moving = (sample.handles != sample.targets).any(dim=1)
        sample = DragSample(
            sample.image, sample.handles[moving], sample.targets[moving], sample.mask, name="moving"
        )
        unedited, edited = (
            score(metrics, sample, image)[f"md_{protocol}"] for image in (sample.image, world.truth)
        )
        assert edited < 0.5 * unedited
        assert unedited == score(metrics, sample, sample.image)[f"md_{protocol}"]  # repeatable


def dift(backbone: StableDiffusion, **settings: Any) -> Dift:
    defaults: dict[str, Any] = {"t": 261, "ensemble": 2, "side": None, "posterior": "sample"}
    return Dift(backbone=backbone, **defaults | {"prompted": True, "seed": 0} | settings)


class TestDift:
    def test_draws(self, backbone: StableDiffusion) -> None:
        image = tiny.make_sample().image
        features = dift(backbone)(image, "", "a")
        assert features.ndim == 3
        assert features.isfinite().all()
        assert torch.equal(features, dift(backbone)(image, "", "a"))
        assert not torch.equal(features, dift(backbone)(image, "", "b"))
        assert not torch.equal(features, dift(backbone, seed=1)(image, "", "a"))

    def test_the_ensemble_is_a_mean(self, backbone64: StableDiffusion) -> None:
        """Of single draws, put in by hand."""
        image, t = tiny.make_sample().image, 261
        both = dift(backbone64, posterior="mean")(image, "", "a")
        mean, _ = backbone64.encode(image[None])
        generator = seeding.generator(0, "dift", "a")
        eps = torch.randn(2, 2, *mean.shape[1:], generator=generator).to(mean)[1]
        a = backbone64.alphas_cumprod[t].double()
        text = backbone64.embed([""])
        single = [
            backbone64.noise_and_features(a.sqrt() * mean + (1 - a).sqrt() * e, t, text)[1].clone()
            for e in eps[:, None]
        ]
        torch.testing.assert_close(both, torch.cat(single).mean(dim=0))

    def test_options(self, backbone: StableDiffusion) -> None:
        image = tiny.make_sample(size=(64, 48)).image
        assert (
            dift(backbone, side=32)(image, "", "a").shape[1:]
            == (dift(backbone, side=32)(image.transpose(1, 2), "", "a").shape[1:])
        )
        plain = dift(backbone, prompted=False)
        assert torch.equal(plain(image, "a cat", "a"), plain(image, "a dog", "a"))
        prompted = dift(backbone)
        assert not torch.equal(prompted(image, "a cat", "a"), prompted(image, "a dog", "a"))

    @pytest.mark.parametrize("bad", [{"t": 1000}, {"ensemble": 0}, {"posterior": "mode"}])
    def test_bad_settings(self, backbone: StableDiffusion, bad: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="found"):
            dift(backbone, **bad)


OPTIONS: dict[str, Any] = {"resamples": 2000, "level": 0.95}


class TestStatistics:
    def test_as_a_loop(self) -> None:
        values = torch.randn(20)
        found = bootstrap_mean(values, **OPTIONS, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(20, (2000, 20), generator=generator)
        means = sorted(float(values.double()[row].mean()) for row in drawn)
        assert found.mean == pytest.approx(float(values.double().mean()))
        assert found.low == pytest.approx(means[50], abs=0.01)
        assert found.high == pytest.approx(means[1949], abs=0.01)
        assert found.count == 20

    def test_near_the_normal_interval(self) -> None:
        values = torch.randn(400, generator=torch.Generator().manual_seed(2))
        found = bootstrap_mean(values, **OPTIONS, generator=torch.Generator().manual_seed(0))
        half = 1.96 * float(values.std()) / 20
        assert found.low == pytest.approx(found.mean - half, abs=0.1 * half)
        assert found.high == pytest.approx(found.mean + half, abs=0.1 * half)

    def test_pairs_tell_more(self) -> None:
        before = torch.randn(100) * 10
        after = before + 0.5 + 0.1 * torch.randn(100)
        found = bootstrap_difference(
            before, after, **OPTIONS, generator=torch.Generator().manual_seed(0)
        )
        assert 0.4 < found.low < found.mean < found.high < 0.6

    def test_portions_make_no_difference_in_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = torch.rand(50)
        whole = bootstrap_mean(values, **OPTIONS, generator=torch.Generator().manual_seed(0))
        monkeypatch.setattr("gooddrag.metrics.statistics._CHUNK", 50 * 7)
        parts = bootstrap_mean(values, **OPTIONS, generator=torch.Generator().manual_seed(0))
        assert whole == parts  # the same numbers in the same order

    @pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
    def test_bad_values(self, values: Sequence[float]) -> None:
        with pytest.raises(ValueError, match="finite"):
            bootstrap_mean(torch.tensor(values), **OPTIONS, generator=torch.Generator())

    def test_bad_settings(self) -> None:
        with pytest.raises(ValueError, match="level"):
            bootstrap_mean(torch.ones(2), resamples=5, level=1.0, generator=torch.Generator())
        with pytest.raises(ValueError, match="pairs, found 2 and 3"):
            bootstrap_difference(
                torch.ones(2), torch.ones(3), **OPTIONS, generator=torch.Generator()
            )


class TestScore:
    def test_a_row(self, world: WorldEdit) -> None:
        metrics, sample = collection(metrics_of("truth")), to_sample(world)
        row = score(metrics, sample, world.truth, world)
        assert all(isinstance(number, float) for number in row.values())
        assert {"dai_1", "dai_official_20", "psnr_inside", "ssim", "mae_outside"} < row.keys()
        assert row["true_handle_error"] < 0.3
        assert row["true_handle_found"] == 1
        assert row["mae"] == 0
        unedited = score(metrics, sample, sample.image, world)
        means = {name: float(mean) for name, mean in metrics.compute().items()}
        assert means.keys() == row.keys()
        for name, mean in means.items():
            assert mean == pytest.approx((row[name] + unedited[name]) / 2)

    def test_equal_numbers_are_not_merged(self, world: WorldEdit) -> None:
        """On the first sample both are 0, which compute groups would take for one metric."""
        sample = to_sample(world)
        metrics = collection(
            {
                "a": DraggingAccuracy(gammas=[1], norms=["once"]),
                "b": DraggingAccuracy(gammas=[5], norms=["once"]),
            }
        )
        grey = torch.full_like(sample.image, 0.5)
        flat = DragSample(grey, sample.handles, sample.targets, name="flat")
        score(metrics, flat, grey)
        row = score(metrics, sample, sample.image)
        assert row["dai_1"] != row["dai_5"]
        assert float(metrics.compute()["dai_1"]) == pytest.approx(row["dai_1"] / 2)

    def test_truth_is_needed(self, world: WorldEdit) -> None:
        with pytest.raises(ValueError, match="true_handle needs the true result"):
            score(collection(metrics_of("true_handle")), to_sample(world), world.source)

    def test_sizes_must_agree(self, world: WorldEdit) -> None:
        with pytest.raises(ValueError, match="bring them to one size"):
            score(collection(metrics_of("default")), to_sample(world), world.source[:, 1:])

    def test_from_python(self, world: WorldEdit) -> None:
        metrics = load_metrics("truth", ["metrics.dai.gammas=[3]", "metrics.dai.norms=[once]"])
        row = score(metrics, to_sample(world), world.truth, world)
        assert {name for name in row if name.startswith("dai")} == {"dai_3"}
        with pytest.raises(ValueError, match="once and official, found both"):
            load_metrics("dai", ["metrics.dai.norms=[both]"])

    def test_sets(self) -> None:
        assert metrics_of("default").keys() == {"dai"}
        assert metrics_of("truth").keys() == {"dai", "truth_error", "true_handle"}
        with composer() as compose:
            paper = compose("base", ["+metrics=paper", "+engine=default"]).metrics
        assert paper.keys() == {"dai", "md_dragbench", "md_regiondrag", "fidelity"}
        # conf has what the protocols' scripts have
        for name, side in (("md_dragbench", None), ("md_regiondrag", 768)):
            featurizer = paper[name].featurizer
            assert (featurizer.t, featurizer.ensemble, featurizer.side) == (261, 8, side)
            assert featurizer.backbone.feature_block == 1
            assert featurizer.backbone.path.endswith("stable-diffusion-2-1")

    def test_both_protocols_look_through_one_model(self, tiny_folder: Path) -> None:
        words = ["~metrics.fidelity"]
        for name in ("md_dragbench", "md_regiondrag"):
            node = f"metrics.{name}.featurizer.backbone"
            words += [f"backbone@{node}=folder", f"{node}.path={tiny_folder}"]
        metrics = load_metrics("paper", words)
        one, other = (metrics[f"md_{name}"].featurizer for name in ("dragbench", "regiondrag"))
        assert one.backbone is other.backbone
        assert (one.side, other.side) == (None, 768)
