"""An object store that refuses: told in one line, with nothing written."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from cflow_ray.cli import main
from tests.stores import Place

pytestmark = pytest.mark.s3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"secret": "wrong"}, "credentials"), ({"key": "nobody"}, "credentials")],
)
def test_wrong_credentials_are_told(swift: Place, wrong: dict[str, str], says: str):
    options = swift.options | wrong
    flags = Place(swift.root, options).flags()
    result = CliRunner().invoke(main, ["fit", "--data", "s3://line/data", "--registry", "s3://line/none", *flags])
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0], errors


def test_a_bucket_that_is_not_there_is_told(moto: Place):
    result = CliRunner().invoke(
        main, ["fit", "--data", "s3://no-such-bucket/data", "--registry", "s3://line/none", *moto.flags()]
    )
    assert result.exit_code == 1, result.output
    assert "s3://no-such-bucket/data does not exist" in result.stderr
