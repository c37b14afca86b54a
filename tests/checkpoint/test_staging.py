from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from awqkit.checkpoint import OutputError, refuse_occupied
from awqkit.checkpoint.staging import staged_folder

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_at_the_end_and_under_its_name_alone(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out) as stage:
        (stage / "a").write_text("1")
        assert stage.parent == out.parent
        assert stage.name.startswith(".")
        assert not out.exists()
    assert names(out.parent) == ["out"]
    assert names(out) == ["a"]


def test_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_after_an_early_end(tmp_path: Path, error: type[BaseException]) -> None:
    def stage_and_stop() -> None:
        with staged_folder(tmp_path / "out") as stage:
            (stage / "a").write_text("1")
            raise error

    with pytest.raises(error):
        stage_and_stop()
    assert names(tmp_path) == []


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refuse_occupied(tmp_path / "out")
    with staged_folder(tmp_path / "out") as stage:
        (stage / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]


def test_occupied_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".hidden").touch()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(OutputError, match=name):
            refuse_occupied(tmp_path / name)
        with pytest.raises(OutputError), staged_folder(tmp_path / name):
            pass
    refuse_occupied(tmp_path / "new")


def test_folder_that_fills_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stage_while_somebody_writes() -> None:
        with staged_folder(out):
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(OutputError):
        stage_while_somebody_writes()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["theirs"]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="could not be written"),
        staged_folder(tmp_path / "file" / "out"),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_parent_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), staged_folder(tmp_path / "out"):
        pass


SLEEPER = """
    import sys, time
    from pathlib import Path
    from awqkit.checkpoint.staging import staged_folder
    with staged_folder(Path(sys.argv[1])) as stage:
        (stage / "model.safetensors").write_text("half")
        print(stage.name, flush=True)
        time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process in the middle of writing tmp_path/out."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLEEPER), str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stage_name = process.stdout.readline().strip()  # type: ignore[attr-defined]
    yield process
    process.kill()
    process.wait()


def test_killed_run_looks_unfinished_and_the_next_cleans_up(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert names(tmp_path) == [writer.stage_name]  # type: ignore[attr-defined]
    with staged_folder(tmp_path / "out") as stage:
        assert names(tmp_path) == [stage.name]
    assert names(tmp_path) == ["out"]


def test_live_run_is_left_alone(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    with staged_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [writer.stage_name, "out"]  # type: ignore[attr-defined]
