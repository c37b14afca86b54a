"""--help of every command."""

from __future__ import annotations

import pytest
from click import Option
from click.testing import CliRunner

from awqkit_runtime.cli import main


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_option_is_explained(name: str) -> None:
    options = [option for option in main.commands[name].params if isinstance(option, Option)]
    assert options and all(option.help for option in options)
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0
