"""The progress of a quantization on a terminal, or as one line a block where there is none."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from awqkit.block_quantizer import SiteResult


class ProgressBar:
    """Block, site, error before and after, and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("Reading", total=None, detail="")
        #: Tenths of the sampling that were told, and one for the first word about it.
        self._told = 0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def sampled(self, done: int, total: int) -> None:
        """Tokens that each row has reached while the model samples its own text."""
        if not self._told:
            self._console.print(
                "Sampling calibration text from the model, which is in memory as a whole for that."
            )
        share = 10 * done // total
        if share > self._told - 1 and not self._console.is_terminal:
            self._console.print(f"sampled {10 * share} %", highlight=False)
        self._told = share + 1
        self._bar.update(self._task, description="Sampling", completed=done, total=total)

    def begin(self, blocks: int, *, done: int) -> None:
        """The blocks are about to be quantized; done: by an earlier process."""
        if done:
            self._console.print(f"Resuming after {done} of {blocks} blocks.", highlight=False)
        self._bar.remove_task(self._task)
        self._task = self._bar.add_task("Quantizing", total=blocks, completed=done, detail="")

    def site_done(self, result: SiteResult) -> None:
        """One site of a block is quantized."""
        errors = f"error {result.error_nearest:.1e} → {result.error:.1e}"
        line = f"block {result.layer} {result.site:8}{errors}"
        self._bar.update(self._task, detail=line)
        if not self._console.is_terminal:
            self._console.print(line, highlight=False)

    def block_done(self, layer: int) -> None:
        """A block is quantized and has been passed on."""
        self._bar.update(self._task, completed=layer + 1)

    def tuned(self, done: int, total: int) -> None:
        """Steps of the tuning of the whole model."""
        self._bar.update(
            self._task, description="Tuning", completed=done, total=total, detail="all blocks"
        )
        if done == 1 and not self._console.is_terminal:
            self._console.print(f"tuning all blocks in {total} steps", highlight=False)
