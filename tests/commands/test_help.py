"""--help of every command."""

from __future__ import annotations

import pytest
from click import Option
from click.testing import CliRunner

from awqkit.version import VERSION
from awqkit_runtime.cli import main


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_is_explained(name: str) -> None:
    options = [option for option in main.commands[name].params if isinstance(option, Option)]
    assert options and all(option.help for option in options)
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_the_list_of_commands_has_whole_sentences() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80).stdout
    listed = shown.partition("Commands:")[2]
    assert all(name in listed for name in main.commands) and "..." not in listed


def test_it_knows_its_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).stdout.endswith(f", version {VERSION}\n")
