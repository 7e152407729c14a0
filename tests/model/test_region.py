"""Nothing outside a region of interest reaches a score: not through a receptive field, not through smoothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from cflow_ray.config import DetectorConfig, EncoderConfig, FlowConfig
from cflow_ray.model.bank import DetectorBank
from cflow_ray.model.encoder import Encoder
from cflow_ray.model.features import encode
from cflow_ray.model.fitting import fit_detector
from cflow_ray.model.region import covered, cut_out, inside, read_from
from cflow_ray.model.tiling import Layout


def test_a_region_goes_where_its_image_is() -> None:
    """A detector on a GPU has its region there, and images come from the CPU; `meta` stands in for the GPU."""
    image_3HW = torch.full((3, 4, 4), 9, dtype=torch.uint8, device="meta")
    assert covered(image_3HW, torch.ones(4, 4, dtype=torch.bool)).device.type == "meta"


@pytest.mark.parametrize("smoothing", [0.0, 3.0])
def test_whatever_happens_outside_score_and_map_stay(
    lite0_state: dict[str, Tensor], photographs: Tensor, smoothing: float
):
    encoder = Encoder(EncoderConfig(strides=(8, 16)), lite0_state)
    flow = FlowConfig(blocks=2, condition_channels=8)
    config = DetectorConfig(encoder=encoder.config, flow=flow, input_size=64, recipe="fast", smoothing=smoothing)
    region_HW = torch.zeros(64, 64, dtype=torch.bool)
    region_HW[8:40, 8:40] = True
    layout = Layout((64, 64), (64, 64), ((0, 0),))
    features = encode(encoder, ((image, layout) for image in photographs), region_HW=region_HW)
    detector = fit_detector(features, config, 0, region_HW=region_HW).detector()
    bank = DetectorBank[str](lambda _: detector, lambda *_: encoder)
    image = photographs[0].clone()
    changed = torch.where(region_HW, image, torch.randint(0, 256, image.shape, dtype=torch.uint8))
    inner = image.clone()
    inner[:, 20:28, 20:28] = 255 - inner[:, 20:28, 20:28]
    finding, outside, within = bank.score_batch([image, changed, inner], ["", "", ""])
    assert outside.score == pytest.approx(finding.score, abs=1e-6)
    np.testing.assert_allclose(outside.map_HW, finding.map_HW, atol=1e-6)
    assert abs(within.score - finding.score) > 1e-4
    assert not finding.map_HW[~region_HW.numpy()].any()


@given(
    corner=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    extent=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_every_location_that_the_map_is_read_from_is_fitted(
    corner: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]
):
    """A location that counts would move the interpolated map somewhere inside the region."""
    region_HW = torch.zeros(60, 60, dtype=torch.bool)
    region_HW[corner[0] : corner[0] + extent[0], corner[1] : corner[1] + extent[1]] = True
    marks = torch.eye(size[0] * size[1]).view(-1, 1, *size)
    seen = functional.interpolate(marks, (60, 60), mode="bilinear", align_corners=True)[:, 0]
    counts = (seen * region_HW).flatten(1).amax(1).view(size) > 1e-5
    assert not (counts & ~read_from(region_HW, size)).any()
    assert not (inside(region_HW, size) & ~read_from(region_HW, size)).any()


def test_smoothing_uses_the_regions_own_values():
    region_HW = torch.zeros(40, 40, dtype=torch.bool)
    region_HW[10:30, 5:20] = True
    map_HW = torch.where(region_HW, 0.25, 0.9)
    smooth = cut_out(map_HW[None], region_HW, 4.0)[0]
    torch.testing.assert_close(smooth[region_HW], torch.full((300,), 0.25))
    assert not smooth[~region_HW].any()


def test_an_image_without_region_is_left_alone_and_a_cover_keeps_the_type():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert covered(image, None) is image
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:4] = True
    hidden = covered(image, half)
    assert hidden.dtype == torch.uint8
    assert torch.equal(hidden[:, :4], image[:, :4])
    assert hidden[:, 4:].unique().tolist() == [127]
