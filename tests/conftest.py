"""Fixtures that more than one part of the tests uses."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.stores", "tests.miniature"]


@pytest.fixture(scope="session")
def inspection_data() -> Path:
    """The folder of real inspection images beside the checkout; their licences forbid shipping them."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real inspection data at {folder.parent.name}/{folder.name} beside the checkout")
    return folder
