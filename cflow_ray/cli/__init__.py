"""The command line: each command parses its flags, builds a configuration, makes one call and prints."""

from __future__ import annotations

import click

from cflow_ray import __version__
from cflow_ray.cli.data import data
from cflow_ray.cli.drift import drift
from cflow_ray.cli.fit import fit
from cflow_ray.cli.models import models
from cflow_ray.cli.results import results
from cflow_ray.cli.score import evaluate, pack, score
from cflow_ray.cli.serve import serve, token
from cflow_ray.cli.trial import benchmark, demo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cflow-ray")
def main() -> None:
    """Fit one anomaly detector per product category, score image archives, serve the best checkpoints.

    \b
    Example: cflow-ray demo
    """


for command in (data, fit, pack, score, results, evaluate, drift, serve, token, models, benchmark, demo):
    main.add_command(command)
