"""awqkit-runtime: one group of commands."""

from __future__ import annotations

import click

import awqkit_runtime.openmp  # noqa: F401  (before torch)
from awqkit_runtime.commands.bench import bench
from awqkit_runtime.commands.chat import chat
from awqkit_runtime.commands.client import client
from awqkit_runtime.commands.generate import generate
from awqkit_runtime.commands.perplexity import perplexity
from awqkit_runtime.commands.plan import plan
from awqkit_runtime.commands.serve import serve
from awqkit_runtime.commands.webui import webui


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="awqkit")
def main() -> None:
    """Run chat models: 4-bit checkpoints of awqkit, and plain ones."""


for command in (serve, chat, client, generate, perplexity, plan, bench, webui):
    main.add_command(command)
