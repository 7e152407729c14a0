"""A data set in an object store: read by its layout, checked, and read back from the table of the check."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cflow_ray.cli import main
from cflow_ray.config import DataConfig
from cflow_ray.data.datasets import read_data_set
from cflow_ray.data.images import encode_png
from cflow_ray.store.storage import Storage
from tests.stores import Place

pytestmark = pytest.mark.s3


@pytest.fixture
def juice(moto: Place) -> Storage:
    """A miniature of MVTec LOCO with a folder of two masks."""
    root = Storage("s3://line/loco", moto.options)
    places = ("train/good/0", "test/good/0", "test/logical_anomalies/0")
    masks = (f"ground_truth/logical_anomalies/0/{number}" for number in (0, 1))
    for number, path in enumerate((*places, *masks)):
        root.write(f"juice/{path}.png", encode_png(np.full((4, 6), number, np.uint8)))
    return root


def test_a_layout_is_read_checked_and_read_back(moto: Place, juice: Storage):
    found = read_data_set(DataConfig(data=juice.uri, layout="mvtec_loco"), moto.options)
    assert {sample.image: sample.mask for sample in found.samples} == {
        "juice/train/good/0.png": None,
        "juice/test/good/0.png": None,
        "juice/test/logical_anomalies/0.png": "juice/ground_truth/logical_anomalies/0/",
    }
    table = "s3://line/tables/loco.parquet"
    arguments = ["data", "check", "--data", juice.uri, "--layout", "mvtec_loco", "--write-table", table, "--json"]
    result = CliRunner().invoke(main, [*arguments, *moto.flags()])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["findings"] == {}
    again = read_data_set(DataConfig(data=table, layout="table", root=juice.uri), moto.options)
    assert (again.root.uri, list(again.samples)) == (juice.uri, list(found.samples))
