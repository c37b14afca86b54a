"""The page of --report: complete, self-contained, and right about what it draws."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from awqkit import QuantConfig, quantize
from awqkit.charts import BOTTOM, HEIGHT, TOP, Line, histogram, line_chart
from awqkit.conversion import _score_table as score_table
from awqkit.report import Report, read_report
from awqkit.report_page import render, verdict, write_html
from tests.tiny_models import write_tiny_model

#: Attributes by which a page asks for something outside of it.
FETCHING = {"src", "href", "srcset", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Collects tags and what they would fetch; knows whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [f"{tag} {name}={value}" for name, value in attrs if name in FETCHING]
        if tag not in ("meta", "polyline", "line", "rect", "circle", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("page")
    # A name that would break a page which does not escape it.
    source = write_tiny_model(folder / "a <b> & 'c'", dtype=torch.bfloat16)
    config = QuantConfig(calib_samples=9, calib_seqlen=32)
    return quantize(source, folder / "out", config, calib_dataset="self", device="cpu")


def test_page_is_self_contained_and_well_formed(report: Report) -> None:
    text = render(report)
    page = Page(text)
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.open == []
    assert "a &lt;b&gt; &amp; &#39;c&#39; in 4 bits" in text


def test_page_shows_everything(report: Report) -> None:
    text = render(report)
    sites = {site.site for site in report.sites}
    assert text.count("<svg") == 2 * len(sites) + 2
    for site in report.sites:
        assert f"<td>{site.layer} {site.site}</td>" in text
        assert f"{site.error:.2e}" in text and f"{site.picture.error_ranged:.2e}" in text
    for stage in ("moments", "rounding", "reading back"):
        assert f"<td>{stage}</td>" in text
    assert report.evaluation is not None
    assert f"{report.evaluation.quantized.kl:.5f}" in text
    assert f"{report.evaluation.quantized.perplexity:.3f}" in text
    assert "most memory" in text and report.calibration.digest[:16] in text
    assert "nan" not in text.lower().replace("nanum", "")


@pytest.mark.parametrize(
    ("kl", "said"),
    [(0.004, "hard to tell"), (0.05, "Try some of your own"), (0.3, "differs clearly")],
)
def test_the_verdict_follows_the_figures(report: Report, kl: float, said: str) -> None:
    evaluation = report.evaluation
    assert evaluation is not None
    quantized = replace(evaluation.quantized, kl=kl, agreement=0.931)
    better = replace(evaluation, quantized=quantized, nearest=replace(evaluation.nearest, kl=0.5))
    better_said = verdict(better, was_wanted=True)
    assert said in better_said and "93 of 100" in better_said
    assert "Plain rounding" not in better_said
    worse = replace(evaluation, quantized=quantized, nearest=replace(evaluation.nearest, kl=0.001))
    assert "Plain rounding would have lost less" in verdict(worse, was_wanted=True)
    assert verdict(evaluation, was_wanted=True) in html.unescape(render(report))


def test_a_comparison_that_there_is_not_has_its_reason(report: Report) -> None:
    assert "not known" in verdict(None, was_wanted=False)
    assert "--no-evaluate" in verdict(None, was_wanted=False)
    assert "--no-evaluate" not in verdict(None, was_wanted=True)
    page = html.unescape(render(replace(report, evaluation=None)))
    assert verdict(None, was_wanted=True) in page


def test_what_rounding_would_have_done_better_is_no_gap_closed(report: Report) -> None:
    evaluation = report.evaluation
    assert evaluation is not None and "is gone" in str(score_table(report).caption)
    worse = replace(evaluation, nearest=replace(evaluation.nearest, kl=evaluation.quantized.kl / 2))
    caption = str(score_table(replace(report, evaluation=worse)).caption)
    assert "%" not in caption and "calibration text" in caption


def test_blocks_are_counted_in_whole_steps(report: Report) -> None:
    labels = re.findall(r'text-anchor="middle">([^<]*)<', render(report))
    blocks = [label for label in labels if label not in ("−1", "−0.5", "0.5")]
    assert blocks and all(float(label).is_integer() for label in blocks)


def test_pictures_of_sites_are_consistent(report: Report) -> None:
    for site in report.sites:
        picture = site.picture
        assert sum(picture.histogram) == pytest.approx(1, abs=1e-3)
        assert -1 <= picture.low <= 0 <= picture.high <= 1
        assert 0 <= picture.clipped < 0.5
        assert list(picture.channels) == sorted(picture.channels)
        assert picture.channels[3] == pytest.approx(1, rel=0.1)  # the median over itself


def test_kl_by_position_averages_to_the_kl(report: Report) -> None:
    evaluation = report.evaluation
    assert evaluation is not None
    lengths = [point.last - point.first + 1 for point in evaluation.positions]
    assert sum(lengths) * 8 == evaluation.tokens
    mean = sum(p.quantized * n for p, n in zip(evaluation.positions, lengths, strict=True))
    assert mean / sum(lengths) == pytest.approx(evaluation.quantized.kl, rel=1e-6)
    spread = evaluation.spread
    assert 0 <= spread.median <= spread.ninth_decile <= spread.last_percentile <= spread.worst
    assert evaluation.original.agreement == 1 and 0 < evaluation.quantized.agreement <= 1


def test_page_without_evaluation_and_times(report: Report, tmp_path: Path) -> None:
    kept = read_report(Path(report.output))
    assert kept is not None and kept.seconds == {}
    write_html(kept, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "not kept in the checkpoint" in text
    assert Page(text).open == []


def test_charts_stay_inside_their_frame() -> None:
    values = [3e-5, 0.7, 0.02, 1e-3]
    for is_log in (False, True):
        chart = line_chart(
            [Line(name="written", values=values)],
            [0, 1, 2, 3],
            label="x",
            x_title="y",
            is_log=is_log,
        )
        (points,) = re.findall(r'points="([^"]+)"', chart)
        heights = [float(point.split(",")[1]) for point in points.split()]
        assert all(TOP <= height <= HEIGHT - BOTTOM for height in heights)
        assert sorted(range(4), key=lambda i: -heights[i]) == sorted(
            range(4), key=values.__getitem__
        )


@pytest.mark.parametrize("values", [[0.0], [5.0], [0.0, 0.0], [1e-3, 1e-3]])
@pytest.mark.parametrize("is_log", [False, True])
def test_charts_of_next_to_nothing(values: list[float], is_log: bool) -> None:
    lines = [Line(name="written", values=values)]
    chart = line_chart(lines, range(len(values)), label="x", x_title="y", is_log=is_log)
    assert "nan" not in chart and "inf" not in chart.replace("inside", "")


def test_histogram_tells_inside_from_outside() -> None:
    chart = histogram([0.25] * 4, low=-0.5, high=1.0, label="x", x_title="y")
    assert chart.count('class="inside"') == 3 and chart.count('class="outside"') == 1
