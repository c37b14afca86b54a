"""The curl lines of the tutorial that many users come from, as they stand but for the names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.servers import Server

TUTORIAL = Path(__file__).parents[2] / "../shared/lmdeploy-tutorial.zh.md"


def curl_lines() -> list[str]:
    if not TUTORIAL.is_file():
        return []
    text = TUTORIAL.read_text(encoding="utf-8")
    return re.findall(r"^curl (?:.*\\\n)*(?:.*'\{\n(?:.*\n)*?  \}'|.*)$", text, re.MULTILINE)


@pytest.mark.skipif(not TUTORIAL.is_file(), reason="the tutorial is not beside this repository")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_four_lines(server: Server) -> None:
    lines = curl_lines()
    assert len(lines) == 4
    answers = []
    for line in lines:
        line = line.replace("http://localhost:23333", server.url)
        line = line.replace("internlm2_5-7b-chat", server.model_name)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert json.loads(answers[0])["data"][0]["id"] == server.model_name
    for answer in answers[1:3]:
        assert json.loads(answer)["choices"][0]["message"]["role"] == "assistant"
    events = answers[3].split("\n\n")
    assert events[-2] == "data: [DONE]" and len(events) > 3
    assert all("choices" in json.loads(event.removeprefix("data: ")) for event in events[:-2])
