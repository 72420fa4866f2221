from __future__ import annotations

import doctest
import html
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import markdown
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trackhub.drawing
from trackhub.drawing import (
    MOST_BLOCKS,
    confusion_matrix_svg,
    confusion_matrix_table,
    histogram_table,
    markdown_table,
    roc_curve_svg,
    roc_curve_table,
)
from trackhub.values import encode_table

_SVG = "{http://www.w3.org/2000/svg}"


def texts_of(svg: str) -> list[str]:
    """What the texts of a drawing say, without tooltips."""
    root = ElementTree.fromstring(svg)
    return ["".join([text.text or "", *(child.tail or "" for child in text)]) for text in root.iter(f"{_SVG}text")]


def tooltips_of(svg: str) -> list[str]:
    return [tip.text or "" for tip in ElementTree.fromstring(svg).iter(f"{_SVG}title")]


def identity(count: int) -> list[list[float]]:
    return [[float(row == column) for column in range(count)] for row in range(count)]


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(trackhub.drawing).failed == 0


def test_drawing_imports_nothing_outside_the_standard_library() -> None:
    program = (
        "import sys, trackhub; before = set(sys.modules); import trackhub.drawing\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'trackhub'}\n"
        "assert new <= sys.stdlib_module_names, new\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_confusion_matrix_shows_its_labels_numbers_and_accuracy() -> None:
    texts = texts_of(confusion_matrix_svg(["cat", "dog"], [[8, 2], [1, 0.5]]))
    assert texts.count("cat") == texts.count("dog") == 2
    assert {"8", "2", "1", "0.5", "actual", "predicted"} <= set(texts)
    assert "Confusion matrix, accuracy 0.739" in texts


def test_a_cell_that_is_not_zero_has_a_tooltip_with_the_full_labels() -> None:
    long = "a label that is much longer than there is room for"
    svg = confusion_matrix_svg([long, "b"], [[5, 0], [3, 1]])
    assert f"actual b, predicted {long}: 3" in tooltips_of(svg)
    assert not any(tip.startswith(f"actual {long}, predicted b") for tip in tooltips_of(svg))
    assert all(len(text) < 40 for text in texts_of(svg))
    assert any("\u2026" in text for text in texts_of(svg))


@pytest.mark.parametrize("count", [1, 2, 10, 40, 100, 101, 450])
def test_a_matrix_of_any_size_stays_a_drawing_of_bounded_size(count: int) -> None:
    svg = confusion_matrix_svg([f"class {index}" for index in range(count)], identity(count))
    root = ElementTree.fromstring(svg)
    assert float(root.attrib["width"]) < 1200
    assert float(root.attrib["height"]) < 1200
    assert "Confusion matrix, accuracy 1.000" in texts_of(svg)
    cells = [tip for tip in tooltips_of(svg) if tip.startswith("actual")]
    assert len(cells) <= MOST_BLOCKS
    assert sum(int(tip.rsplit(" ", 1)[1]) for tip in cells) == count
    assert any("each cell sums" in text for text in texts_of(svg)) == (count > MOST_BLOCKS)


def test_a_matrix_of_zeros_is_drawn_without_an_accuracy() -> None:
    assert "Confusion matrix" in texts_of(confusion_matrix_svg(["a", "b"], [[0, 0], [0, 0]]))


@given(st.lists(st.text(), min_size=1, max_size=6), st.data())
def test_a_drawing_of_any_labels_and_numbers_is_well_formed(labels: list[str], data: st.DataObject) -> None:
    numbers = st.floats(0, 1e300) | st.integers(0, 10**6).map(float)
    row = st.lists(numbers, min_size=len(labels), max_size=len(labels))
    matrix = data.draw(st.lists(row, min_size=len(labels), max_size=len(labels)))
    root = ElementTree.fromstring(confusion_matrix_svg(labels, matrix).encode())
    assert {child.tag for child in root} <= {f"{_SVG}{tag}" for tag in ("title", "rect", "text", "path")}


def test_labels_cannot_bring_markup_into_the_drawing() -> None:
    hostile = "'/><script>alert(1)</script>&x;]]>"
    svg = confusion_matrix_svg([hostile, "b"], [[1, 1], [1, 1]])
    assert "<script" not in svg
    assert any(hostile in tip for tip in tooltips_of(svg))


def test_the_title_of_a_roc_curve_has_the_area_under_it() -> None:
    assert "ROC curve, AUC 1.0000" in texts_of(roc_curve_svg([0, 0, 1], [0, 1, 1]))
    assert "ROC curve, AUC 0.5000" in texts_of(roc_curve_svg([0, 1], [0, 1]))
    assert "ROC curve, AUC 0.7500" in texts_of(roc_curve_svg([1, 0.5, 0], [1, 1, 0]))


def test_the_area_is_the_one_scikit_learn_finds() -> None:
    from sklearn.metrics import auc

    fpr, tpr = [0, 0.1, 0.1, 0.4, 1], [0, 0.3, 0.6, 0.7, 1]
    assert f"ROC curve, AUC {auc(fpr, tpr):.4f}" in texts_of(roc_curve_svg(fpr, tpr))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=50))
def test_a_roc_curve_of_any_rates_is_well_formed_and_ends_where_it_should(points: list[tuple[float, float]]) -> None:
    root = ElementTree.fromstring(roc_curve_svg([x for x, _ in points], [y for _, y in points]))
    line = next(path for path in root.iter(f"{_SVG}path") if path.get("stroke-linejoin")).attrib["d"]
    x, y = (float(number) for number in line.rsplit("L", 1)[1].split())
    assert abs(x - (64 + 420 * points[-1][0])) < 0.01
    assert abs(y - (48 + 420 * (1 - points[-1][1]))) < 0.01


def test_a_roc_curve_of_very_many_points_is_thinned_to_what_can_be_seen() -> None:
    rates = [index / 200_000 for index in range(200_001)]
    assert len(roc_curve_svg(rates, rates)) < 60_000


def test_the_tables_have_a_row_per_cell_threshold_and_bin() -> None:
    assert confusion_matrix_table(["a", "b"], [[1, 2], [3, 4]]) == (
        ["actual", "predicted", "count"], [["a", "a", 1], ["a", "b", 2], ["b", "a", 3], ["b", "b", 4]],
    )  # fmt: skip
    assert roc_curve_table([0, 1], [0.5, 1], [float("inf"), 0]) == (
        ["threshold", "fpr", "tpr"], [[float("inf"), 0, 0.5], [0, 1, 1]],
    )  # fmt: skip
    assert histogram_table([0, 1, 3], [5, 6]) == (["from", "to", "count"], [[0, 1, 5], [1, 3, 6]])


def test_the_tables_can_be_encoded_as_tables() -> None:
    columns, rows = roc_curve_table([0, 1], [0.5, 1], [float("inf"), 0])
    assert encode_table(rows, "r", columns).row_count == 2


def test_rows_that_do_not_fit_are_an_error_rather_than_cut() -> None:
    with pytest.raises(ValueError, match="zip"):
        histogram_table([0, 1], [5, 6])
    with pytest.raises(ValueError, match="zip"):
        confusion_matrix_table(["a"], [[1, 2]])


def cells_of(page: str) -> list[list[str]]:
    """The cells of the one table in a page, as a reader sees them."""
    table = ElementTree.fromstring(page.replace("<br>", "&#10;").replace("<br />", "&#10;"))
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufffe\uffff"))


@settings(max_examples=300)
@given(
    st.lists(
        st.lists(_TEXT | st.text("|\\`*_~[]()<>&!#-+.:$ab 1") | st.just("a\nb"), min_size=2, max_size=2),
        min_size=2,
        max_size=4,
    )
)
def test_a_markdown_table_shows_every_cell_as_it_is(rows: list[list[str]]) -> None:
    page = markdown.markdown(markdown_table(rows[0], rows[1:]), extensions=["tables"])
    seen = cells_of(page)
    assert [[" ".join(cell.split()) for cell in row] for row in seen] == [
        [" ".join(cell.split()) for cell in row] for row in rows
    ]


@given(st.lists(st.lists(st.text(), min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_markdown_table_has_one_line_per_row_whatever_the_cells(rows: list[list[str]]) -> None:
    text = markdown_table(["a"], rows)
    assert len(text.splitlines()) == 2 + len(rows)
    text.encode()


def test_html_in_cells_is_text() -> None:
    text = markdown_table(["<b>"], [["<script>alert(1)</script>"]])
    assert "<" not in text
    assert "<script>alert(1)</script>" in html.unescape(text)


def test_rows_beyond_the_limit_are_counted() -> None:
    rows: list[list[Any]] = [[index] for index in range(5)]
    assert markdown_table(["n"], rows, limit=3).endswith("| 2 |\n\n2 more of 5 rows are not shown.\n")
    assert "more" not in markdown_table(["n"], rows, limit=5)


def test_no_value_is_an_empty_cell_and_numbers_are_written_in_full() -> None:
    assert markdown_table(["a", "b"], [[None, 0.1234567890123]]).endswith("|  | 0.1234567890123 |\n")
