"""A page's own server: there while it is needed, and gone with it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from awqkit_runtime.errors import ServerError
from awqkit_runtime.webui.own_server import own_server
from tests.serve.servers import DEMO


def test_it_serves_and_ends_with_the_page() -> None:
    with own_server(str(DEMO), ["--session-len", "64"]) as server:
        assert server.alive()
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=60) as response:
            assert json.load(response)["data"][0]["max_model_len"] == 64
    assert not server.alive()


def test_a_server_that_cannot_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="ended"), own_server(str(tmp_path), []):
        pass
