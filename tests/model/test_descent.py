"""The descent: the paper's recipe against a plain loop over FrEIA's modules, and what stops or survives a bad step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from FrEIA.framework import SequenceINN
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.errors import FitError
from cflow_ray.model import descent
from cflow_ray.model.context import FitContext
from cflow_ray.model.descent import fit_level, fitting_precision
from cflow_ray.model.features import Features
from cflow_ray.model.fibres import Fibres
from cflow_ray.model.flow import Decoder
from cflow_ray.model.paper_descent import PaperDescent
from cflow_ray.model.position import position_encoding
from cflow_ray.model.progress import FitProgress
from cflow_ray.model.recipes import PaperSchedule, schedule_of
from cflow_ray.model.seeds import seeded
from cflow_ray.model.stepping import Level

FLOW = FlowConfig(blocks=2, condition_channels=8)
LEVEL = Level(number=1, of=3, stride=16)


def maps(images: int, channels: int = 5, size: tuple[int, int] = (3, 4), seed: int = 0) -> Tensor:
    """Features (I, C, h, w) that half precision holds exactly, so that both loops see the same numbers."""
    features = torch.randn(images, channels, *size, generator=torch.Generator().manual_seed(seed))
    return (features * 256).round() / 256


def fibres_of(maps_IChw: Tensor) -> Fibres:
    features = Features.of_pyramid([maps_IChw], (48, 64))
    return Fibres(features.levels[0], range(len(maps_IChw)), FLOW.condition_channels)


def config(**changes: object) -> DetectorConfig:
    return DetectorConfig(encoder=EncoderConfig(strides=(16,)), flow=FLOW, precision="float32", **changes)


# the paper's recipe


class OfficialSettings:
    """`config.py` and the head of `train.py` of gudovskiy/cflow-ad."""

    lr = 2e-4
    meta_epochs = 25
    sub_epochs = 8
    lr_decay_rate = 0.1
    lr_warm_epochs = 2
    eta_min = lr * lr_decay_rate**3
    lr_warmup_from = lr / 10
    lr_warmup_to = eta_min + (lr - eta_min) * (1 + math.cos(math.pi * lr_warm_epochs / meta_epochs)) / 2


def official_rates(batches: int) -> Iterator[float]:
    """`adjust_learning_rate`, then `warmup_learning_rate`, for every batch of images of a whole training."""
    c, rate = OfficialSettings, math.nan
    for epoch in range(c.meta_epochs):
        rate = c.eta_min + (c.lr - c.eta_min) * (1 + math.cos(math.pi * epoch / c.meta_epochs)) / 2
        for sub_epoch in range(c.sub_epochs):
            for i in range(batches):
                if epoch < c.lr_warm_epochs:
                    batch_id, total_batches = i + sub_epoch * batches, batches * c.sub_epochs
                    p = (batch_id + epoch * total_batches) / (c.lr_warm_epochs * total_batches)
                    rate = c.lr_warmup_from + p * (c.lr_warmup_to - c.lr_warmup_from)
                yield rate


def official_losses(
    flow: SequenceINN, maps_IChw: Tensor, fibre_draws: torch.Generator, image_draws: torch.Generator
) -> Iterator[float]:
    """`train_meta_epoch` of one level, straight down; the generators stand in for torch's global one."""
    images, C, h, w = maps_IChw.shape
    optimizer = torch.optim.Adam(flow.parameters(), lr=OfficialSettings.lr)
    rates = official_rates(images // 32)
    for _ in range(25 * 8):
        shuffled = torch.randperm(images, generator=image_draws)
        for batch in range(images // 32):  # DataLoader(batch_size=32, shuffle=True, drop_last=True)
            for group in optimizer.param_groups:
                group["lr"] = next(rates)
            e = maps_IChw[shuffled[32 * batch : 32 * batch + 32]]
            e_r = e.reshape(32, C, h * w).transpose(1, 2).reshape(32 * h * w, C)
            c_r = position_encoding(8, h, w).repeat(32, 1)
            perm = torch.randperm(len(e_r), generator=fibre_draws)
            for f in range(len(e_r) // 256):
                idx = perm[256 * f : 256 * f + 256]
                z, log_jac_det = flow(e_r[idx], [c_r[idx]])
                logp = C * -0.9189385332046727 - 0.5 * torch.sum(z**2, 1) + log_jac_det
                loss = -nn.LogSigmoid()(logp / C)
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
                yield loss.mean().item()


def plain_flow(decoder: Decoder) -> SequenceINN:
    """FrEIA alone, as `model.py` of the official code builds it, at the decoder's weights."""

    def subnet_fc(dims_in: int, dims_out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dims_in, 2 * dims_in), nn.ReLU(), nn.Linear(2 * dims_in, dims_out))

    flow = SequenceINN(decoder.channels)
    for _ in range(FLOW.blocks):
        flow.append(
            AllInOneBlock,
            cond=0,
            cond_shape=(FLOW.condition_channels,),
            subnet_constructor=subnet_fc,
            affine_clamping=1.9,
            global_affine_type="SOFTPLUS",
            permute_soft=True,
        )
    flow.load_state_dict(decoder.flow.state_dict())
    return flow


@pytest.mark.parametrize(
    ("images", "size"),
    [(40, (3, 4)), (75, (4, 5)), (33, (8, 12))],  # every pass drops 8, 11 and 1 images
    ids=["one step a pass", "several batches", "several steps"],
)
def test_the_papers_recipe_gives_the_loss_curve_of_a_plain_loop(images: int, size: tuple[int, int]) -> None:
    maps_IChw = maps(images, size=size)
    steps = 120
    decoder = Decoder(5, FLOW, seeded(7, "level1"))
    twin = plain_flow(decoder)
    of_paper = PaperDescent(decoder, fibres_of(maps_IChw), seeded(7, "f"), seeded(7, "i"))
    ours = itertools.chain.from_iterable(of_paper.one_pass() for _ in range(200))
    found = [float(loss) for loss in itertools.islice(ours, steps)]
    expected = list(itertools.islice(official_losses(twin, maps_IChw, seeded(7, "f"), seeded(7, "i")), steps))
    assert found == pytest.approx(expected, abs=1e-4)
    assert found[:50] == pytest.approx(expected[:50], abs=2e-5)
    assert len({round(loss, 4) for loss in found[:50]}) > 40  # steps differ by more than they are allowed to
    for (name, parameter), other in zip(decoder.flow.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("batches", [1, 3, 7])
def test_the_papers_rates_are_the_official_formulas_over_all_200_passes(batches: int) -> None:
    schedule = PaperSchedule()
    found = [
        schedule.rate_at(meta_epoch, batch + sub_epoch * batches, schedule.sub_epochs * batches)
        for meta_epoch in range(25)
        for sub_epoch in range(8)
        for batch in range(batches)
    ]
    assert len(found) == 200 * batches
    assert found == pytest.approx(list(official_rates(batches)), rel=1e-12)
    assert found[0] == 2e-5
    assert max(found) == pytest.approx(found[16 * batches])  # the warm-up ends where the cosine is
    assert min(found[16 * batches :]) > 2e-7


def test_the_papers_recipe_keeps_the_weights_of_its_last_step() -> None:
    """Nothing selects: the fit is the descent to its end, held-out images or not."""
    maps_IChw, watched = maps(32, size=(2, 4)), list[FitProgress]()
    fitted = fit_level(
        LEVEL,
        fibres_of(maps_IChw),
        fibres_of(maps(4, size=(2, 4), seed=1)),
        config(recipe="paper"),
        3,
        FitContext(lambda progress, decoder: watched.append(progress)),
    )
    generator = seeded(3, "level1")
    decoder = Decoder(5, FLOW, generator)
    of_paper = PaperDescent(decoder, fibres_of(maps_IChw), generator, seeded(3, "order"))
    of_paper.spread(fibres_of(maps(4, size=(2, 4), seed=1)), 1024)
    for _ in range(200):
        list(of_paper.one_pass())
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), decoder.parameters(), strict=True))
    assert [progress.step for progress in watched] == list(range(1, 201))
    assert {(progress.level, progress.levels, progress.steps) for progress in watched} == {(1, 3, 200)}
    assert watched[-1].nll < watched[0].nll


# bad steps


def poison(at: int) -> FitContext:
    """Makes a weight NaN the first time that a fit reports this step or a later one."""

    def watch(progress: FitProgress, decoder: Decoder) -> None:
        if progress.step >= at:
            decoder.blocks[0].global_offset.data[0, 0] = math.nan

    return FitContext(watch)


@pytest.mark.parametrize(
    ("recipe", "at", "step"), [("fast", 20, "21"), ("fast", 60, "61"), ("paper", 1, "1 of pass 2")]
)
def test_a_weight_that_is_no_number_stops_the_fit_by_level_and_step(recipe: str, at: int, step: str) -> None:
    fibres = fibres_of(maps(100, size=(4, 16)) if recipe == "fast" else maps(32, size=(2, 4)))
    with pytest.raises(FitError, match=rf"loss became nan at level 1 \(stride 16\), step {step}\."):
        fit_level(LEVEL, fibres, fibres_of(maps(4)), config(recipe=recipe), 0, poison(at))


def test_the_papers_recipe_does_not_hand_out_weights_that_are_no_numbers() -> None:
    """After the last step no loss would tell."""
    fibres = fibres_of(maps(32, size=(2, 4)))
    with pytest.raises(FitError, match=r"weights.*level 1 \(stride 16\), in the last step"):
        fit_level(LEVEL, fibres, fibres_of(maps(4)), config(recipe="paper"), 0, poison(200))


def test_what_is_no_number_after_the_best_step_does_not_matter() -> None:
    fibres = fibres_of(maps(32, size=(4, 16)))
    steps = list[int]()
    counting = FitContext(lambda progress, _: steps.append(progress.steps))
    fit_level(LEVEL, fibres, fibres_of(maps(4)), config(recipe="fast"), 0, counting)
    decoder = fit_level(LEVEL, fibres, fibres_of(maps(4)), config(recipe="fast"), 0, poison(steps[-1]))
    assert all(torch.isfinite(parameter).all() for parameter in decoder.parameters())


# seeds and precision


def test_every_use_of_a_seed_has_draws_of_its_own() -> None:
    uses = [(seed, use) for seed in (0, 1, 11) for use in ("split", "order", "level0", "level1", "level11")]
    draws = [torch.rand(4, generator=seeded(*use)).tolist() for use in uses]
    assert len({tuple(draw) for draw in draws}) == len(uses)
    assert draws == [torch.rand(4, generator=seeded(*use)).tolist() for use in uses]


def test_either_precision_fits() -> None:
    """On a mixture no Gaussian describes: both leave the start behind, by much the same, and are not the same."""
    generator = torch.Generator().manual_seed(0)
    x_IHW = torch.randn(440, 4, 4, generator=generator)
    maps_IChw = torch.stack([x_IHW, x_IHW.square() + 0.2 * torch.randn(440, 4, 4, generator=generator)], 1)
    last = dict[str, float]()
    for precision in ("float32", "bfloat16"):
        reports = list[FitProgress]()
        decoder = fit_level(
            LEVEL,
            fibres_of(maps_IChw[:400]),
            fibres_of(maps_IChw[400:]),
            config(recipe="fast").model_copy(update={"precision": precision}),
            0,
            FitContext(lambda progress, _, reports=reports: reports.append(progress)),
        )
        assert all(parameter.dtype == torch.float32 for parameter in decoder.parameters())
        assert reports[-1].nll < reports[0].nll - 0.2
        last[precision] = reports[-1].nll
    assert last["bfloat16"] == pytest.approx(last["float32"], abs=0.02)
    assert last["bfloat16"] != last["float32"]


@pytest.mark.parametrize(
    ("asked", "hardware_has_it", "channels", "device", "taken"),
    [
        ("float32", True, 320, "cpu", torch.float32),
        ("bfloat16", False, 40, "cpu", torch.bfloat16),
        ("auto", True, 320, "cpu", torch.bfloat16),
        ("auto", True, 40, "cpu", torch.float32),  # turning so few values into bfloat16 costs more than it saves
        ("auto", True, 40, "cuda", torch.bfloat16),
        ("auto", False, 320, "cpu", torch.float32),
    ],
)
def test_precision_is_what_was_asked_for_or_what_pays(
    asked: str,
    hardware_has_it: bool,
    channels: int,
    device: str,
    taken: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descent, "_multiplies_bfloat16", lambda device: hardware_has_it)
    values = 256 * channels
    assert fitting_precision(config().model_copy(update={"precision": asked}), values, device) == taken
    of_paper = config(recipe="paper").model_copy(update={"precision": asked})
    assert fitting_precision(of_paper, values, device) == torch.float32


@pytest.mark.parametrize("recipe", ["fast", "balanced"])
def test_steps_are_taken_at_the_rates_of_the_schedule(recipe: str) -> None:
    fibres, seen = fibres_of(maps(64)), dict[int, float]()
    watch = FitContext(lambda progress, _: seen.update({progress.step: progress.rate}))
    fit_level(LEVEL, fibres, fibres_of(maps(4, seed=1)), config(recipe=recipe), 0, watch)
    schedule = schedule_of(recipe, LEVEL.stride, fibres.tiles, fibres.positions)
    assert len(set(seen.values())) > 1
    assert seen == pytest.approx({step: schedule.rate_at(step - 1) for step in seen})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_gpu_takes_the_steps_of_the_cpu(recipe: str) -> None:
    fibres, held_out = fibres_of(maps(64)), fibres_of(maps(4, seed=1))
    losses: dict[str, list[float]] = {"cpu": [], "cuda": []}
    for device, seen in losses.items():

        def watch(progress: FitProgress, _: Decoder, seen: list[float] = seen) -> None:
            seen.append(progress.loss)

        fit_level(LEVEL, fibres, held_out, config(recipe=recipe), 0, FitContext(watch, device=device))
    assert losses["cuda"][:10] == pytest.approx(losses["cpu"][:10], abs=1e-3)
