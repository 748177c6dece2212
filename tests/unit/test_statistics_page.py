"""The order in which values are drawn, and the pictures of the page."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex

from afm_ctr.plots import PALE_GREY
from afm_ctr.statistics import DataStatistics, FieldStatistics, TopValue
from afm_ctr.statistics.order import in_order
from afm_ctr.statistics.pictures import field_figure


def field(values: list[str], kind: str = "categorical", complete: bool = True, **changes: object) -> FieldStatistics:
    """Values by falling frequency."""
    known = {
        "name": "f",
        "kind": kind,
        "encoding": "ids",
        "count": 100,
        "missing": 0,
        "distinct": len(values),
        "exact": True,
        "values": 100,
        "top": [TopValue(value, 50 - place, 10) for place, value in enumerate(values)],
        "complete": complete,
    }
    return FieldStatistics.model_validate({**known, **changes})


def statistics(one: FieldStatistics) -> DataStatistics:
    return DataStatistics(split="train", rows=100, positives=30, sampled=100, sampled_positives=30, fields=[one])


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        (["10", "9", "-1", "2.5"], ["-1", "2.5", "9", "10"]),
        (["25-34", "65+", "<18", "18-24"], ["<18", "18-24", "25-34", "65+"]),
        (["10 to 20", "> 20", "0 to 10"], ["0 to 10", "10 to 20", "> 20"]),
        (["3 days", "10 days", "1 day"], ["1 day", "3 days", "10 days"]),
        (["Wed", "Mon", "Sun"], ["Mon", "Wed", "Sun"]),
        (["march", "January"], ["January", "march"]),
        (["high", "low", "medium"], ["low", "medium", "high"]),
        (["XL", "S", "M"], ["S", "M", "XL"]),
    ],
)
def test_values_that_have_an_order_stand_in_it(values: list[str], ordered: list[str]) -> None:
    found = in_order(field(values))
    assert found is not None and [name for _, name in found] == ordered
    assert {top.value: top for top, _ in found} == {top.value: top for top in field(values).top}


@pytest.mark.parametrize("values", [["phone", "tablet"], ["10", "u7"], ["low", "10"], []])
def test_others_are_shown_by_frequency(values: list[str]) -> None:
    assert in_order(field(values)) is None


def test_a_list_that_lacks_values_is_shown_by_frequency() -> None:
    assert in_order(field(["10", "9"], complete=False)) is None


def test_parts_of_a_moment_have_names_and_the_baselines_values_their_places() -> None:
    days = field(["6", "0"], kind="time")
    assert [name for _, name in in_order(days, None, "weekday") or []] == ["Monday", "Sunday"]
    assert [name for _, name in in_order(days) or []] == ["0", "6"], "the part is not known"
    found = in_order(days, field(["3", "6"], kind="time"), "weekday")
    assert found is not None and [name for _, name in found] == ["Monday", "Thursday", "Sunday"]
    assert found[1][0] == TopValue("3", 0, 0)


def test_bars_are_in_order_next_to_the_baselines_with_the_share_of_positives() -> None:
    now = statistics(field(["23", "7", "0"], kind="time"))
    figure = field_figure(now.fields[0], now, statistics(field(["7", "23"], kind="time")), "hour")
    bars, rates = figure.axes
    assert [label.get_text() for label in bars.get_xticklabels()] == ["00 h", "07 h", "23 h"]
    heights = [round(float(bar.get_height()), 6) for bar in bars.patches]  # type: ignore[attr-defined]
    assert heights == [0.48, 0.49, 0.50, 0.0, 0.50, 0.49]
    assert {to_hex(bar.get_facecolor()) for bar in bars.patches[3:]} == {PALE_GREY}
    assert rates.lines[0].get_ydata().tolist() == [10 / 48, 10 / 49, 10 / 50]  # type: ignore[union-attr]


def test_a_dollar_is_no_formula_and_scales_write_none() -> None:
    many = field(["$1"], kind="numeric", complete=False, quantiles=[0.0] * 50 + [1.0] * 50 + [1e6])
    dollars: list[bool] = []
    for figure in (
        field_figure(many, statistics(many), None),
        field_figure(field(["$x_1$"]), statistics(field(["$x_1$"])), None),
    ):
        figure.draw_without_rendering()
        texts = [label for axis in figure.axes for label in (*axis.get_xticklabels(), *axis.get_yticklabels())]
        assert texts and not any("mathdefault" in label.get_text() for label in texts)
        dollars += [label.get_parse_math() for label in texts if "$" in label.get_text()]
    assert dollars and not any(dollars)
