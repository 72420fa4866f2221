from __future__ import annotations

import dataclasses
import doctest
import io
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import trackhub.values
from trackhub.values import (
    confusion_matrix_of,
    encode_figure,
    encode_image,
    encode_table,
    histogram_of,
    roc_curve_of,
)


def decoded(data: bytes) -> Any:
    """The picture as an array, by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def strictly_parsed(data: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(data.decode("utf-8"), parse_constant=refuse)


def picture(image_format: str, mode: str = "RGB", size: tuple[int, int] = (7, 5), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(trackhub.values).failed == 0


# --- images


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([(), (1,), (3,), (4,)])).flatmap(
        lambda sizes: arrays.arrays(np.uint8, (sizes[0], sizes[1], *sizes[2]))
    )
)
def test_pixels_survive_the_png_exactly(pixels: Any) -> None:
    image = encode_image(pixels, "x")
    assert (image.media_type, image.suffix) == ("image/png", ".png")
    assert (image.height, image.width) == pixels.shape[:2]
    assert np.array_equal(decoded(image.data).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_first(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (channels, 6, 9), dtype=np.uint8)
    image = encode_image(pixels, "x")
    assert (image.width, image.height) == (9, 6)
    assert np.array_equal(decoded(image.data).reshape(6, 9, channels), pixels.transpose(1, 2, 0))


def test_where_both_ends_could_be_channels_the_last_is_taken() -> None:
    assert encode_image(np.zeros((3, 8, 3)), "x").height == 3
    assert encode_image(np.zeros((3, 8, 5)), "x").height == 8


def test_views_and_read_only_and_foreign_byte_order_arrays_are_encoded() -> None:
    base = np.arange(48, dtype=">i4").reshape(6, 8)
    base.flags.writeable = False
    for view in (base[::2, ::-1], base.T, np.asfortranarray(base)):
        assert np.array_equal(decoded(encode_image(view, "x").data), view)
    assert base[0, 1] == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floats_in_0_to_1_and_bools_span_black_to_white(dtype: Any) -> None:
    assert decoded(encode_image(np.array([[0, 0.5, 1]], dtype=dtype), "x").data).tolist() == [[0, 128, 255]]
    assert decoded(encode_image(np.array([[False, True]]), "x").data).tolist() == [[0, 255]]


def test_the_array_is_left_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    before = pixels.copy()
    encode_image(pixels, "x")
    assert np.array_equal(pixels, before)


def test_torch_images_are_encoded() -> None:
    torch = pytest.importorskip("torch")
    expected = [[0, 128, 255]]
    tensor = torch.tensor([[0, 0.5, 1]], requires_grad=True)
    assert encode_image(torch.zeros(3, 8, 5), "x").height == 8
    for value in (tensor, tensor.bfloat16(), tensor.to_sparse(), tensor.double(), tensor[None].expand(2, 1, 3)[0]):
        assert decoded(encode_image(value, "x").data).tolist() == expected
    with pytest.raises(TypeError, match="meta device"):
        encode_image(torch.empty(2, 2, device="meta"), "x")


def test_bfloat16_arrays_as_jax_gives_them_are_encoded() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert decoded(encode_image(np.array([[0, 1]], dtype=ml_dtypes.bfloat16), "x").data).tolist() == [[0, 255]]
    assert histogram_of(np.array([0, 1], dtype=ml_dtypes.bfloat16), "h", bins=2).counts == [1, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((2, 2), 255.0), r"float64 pixels from 255 to 255; floats must be in 0\.\.1: divide by 255"),
        (np.array([[-0.5, 0.5]]), r"from -0\.5 to 0\.5"),
        (np.array([[0, np.inf]]), "from 0 to inf"),
        (np.array([[0, np.nan]]), "has NaN pixels"),
        (np.ma.masked_equal(np.array([[0, 1]]), 1), "has NaN pixels"),
        (np.array([[0, 256]]), r"int64 pixels from 0 to 256; scale it to 0\.\.255"),
        (np.array([[-1, 0]], dtype=np.int8), "from -1 to 0"),
        (np.zeros((2, 8, 8, 3)), r"not \(2, 8, 8, 3\); log the images of a batch one by one"),
        (np.zeros((8, 8, 2)), r"not \(8, 8, 2\)"),
        (np.zeros(8), r"not \(8,\)"),
        (np.zeros((0, 8)), r"no pixels: its shape is \(0, 8\)"),
        (b"GIF89a", "neither a PNG nor a JPEG"),
        (b"", "neither a PNG nor a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (b"\xff\xd8\xff\xe0", "damaged JPG"),
        ("/nowhere/x.png", "cannot read '/nowhere/x.png': No such file"),
        (Image.new("F", (2, 2)), r"has no mode 'F'"),
        (Image.new("RGB", (0, 2)), "no pixels"),
    ],
)
def test_an_image_that_cannot_be_shown_as_it_is_is_refused_saying_what_was_found(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"image 'val/x'.*{message}"):
        encode_image(value, "val/x")


@pytest.mark.parametrize("value", [None, 1, [[0, 1]], np.array([["a"]]), np.array([[1j]]), np.ndarray, object()])
def test_what_is_not_an_image_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="image 'val/x'"):
        encode_image(value, "val/x")


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG"),
        picture("PNG", "P"),
        picture("JPEG"),
        picture("JPEG", "L"),
        picture("JPEG", progressive=True),
        picture("JPEG", "CMYK"),
        picture("JPEG", comment=b"x" * 5000, exif=Image.Exif().tobytes()),
    ],
)
def test_files_are_kept_as_they_are(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(data)
    for value in (data, bytearray(data), memoryview(data), path, str(path)):
        image = encode_image(value, "x")
        assert image.data == data
        assert (image.width, image.height) == (7, 5)
        assert image.media_type == ("image/png" if data[:1] == b"\x89" else "image/jpeg")
        assert image.suffix == (".png" if data[:1] == b"\x89" else ".jpg")


@given(st.binary(max_size=40), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_have_a_size_or_are_refused(data: bytes, start: bytes) -> None:
    try:
        image = encode_image(start + data, "x")
    except ValueError:
        return
    assert image.width > 0
    assert image.height > 0


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "La", "CMYK", "YCbCr", "HSV", "I;16"]
)
def test_pillow_images_become_png(mode: str) -> None:
    image = encode_image(Image.new(mode, (7, 5)), "x")
    assert (image.width, image.height, image.media_type) == (7, 5, "image/png")
    assert decoded(image.data).shape[:2] == (5, 7)


def test_a_broken_file_behind_a_pillow_image_is_refused() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, format="PNG")
    with (
        Image.open(io.BytesIO(buffer.getvalue()[:-600])) as image,
        pytest.raises(ValueError, match="image 'x' cannot be saved as PNG"),
    ):
        encode_image(image, "x")


# --- figures


@pytest.fixture
def pyplot() -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_a_figure_its_axes_and_pyplot_give_the_same_png(pyplot: Any) -> None:
    figure, (axes, _) = pyplot.subplots(1, 2, figsize=(4, 3), dpi=50)
    axes.plot([1, 2])
    encoded = encode_figure(figure, "f")
    assert (encoded.media_type, encoded.suffix) == ("image/png", ".png")
    assert decoded(encoded.data).shape == (150, 200, 4)
    assert encode_figure(axes, "f") == encode_figure(pyplot, "f") == encoded
    assert pyplot.get_fignums() == [figure.number]
    assert figure.dpi == 50


def test_a_figure_without_pyplot_and_axes_in_subfigures_are_drawn() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=100)
    axes = figure.subfigures(1, 2)[0].subfigures(1, 2)[1].subplots()
    assert decoded(encode_figure(axes, "f").data).shape == (100, 200, 4)


def test_pyplot_without_a_figure_is_refused_and_none_is_made(pyplot: Any) -> None:
    pyplot.close("all")
    with pytest.raises(ValueError, match="figure 'f': pyplot has no open figure"):
        encode_figure(pyplot, "f")
    assert pyplot.get_fignums() == []


def test_a_figure_that_cannot_be_drawn_is_refused(pyplot: Any) -> None:
    figure = pyplot.figure()
    figure.text(0, 0, r"$\undefined$")
    with pytest.raises(ValueError, match="figure 'f' cannot be drawn"):
        encode_figure(figure, "f")


def test_a_plotly_figure_becomes_a_page_that_needs_no_network() -> None:
    import plotly.graph_objects as go

    encoded = encode_figure(go.Figure(go.Scatter(y=[1, 2], name="ünï")), "f")
    page = encoded.data.decode()
    assert (encoded.media_type, encoded.suffix) == ("text/html", ".html")
    assert page.lower().lstrip().startswith(("<!doctype html", "<html"))
    assert page.rstrip().endswith("</html>")
    assert '<script src="http' not in page
    assert len(page) > 1_000_000


@pytest.mark.parametrize("value", [None, "figure.png", np.zeros((2, 2)), math, Image.new("L", (1, 1)), [1]])
def test_what_is_not_a_figure_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="figure 'f' must be a matplotlib Figure or Axes, or a plotly figure"):
        encode_figure(value, "f")


# --- tables


def rows_of(value: object, columns: Any = None) -> tuple[list[str], list[list[Any]]]:
    table = encode_table(value, "t", columns)
    parsed = strictly_parsed(table.data)
    assert parsed["columns"] == table.columns
    assert len(parsed["data"]) == table.row_count
    assert (table.media_type, table.suffix) == ("application/json", ".json")
    return parsed["columns"], parsed["data"]


@pytest.mark.parametrize(
    ("value", "columns"),
    [
        ([{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], None),
        ({"a": [1, 2], "b": ("x", "y")}, None),
        ({"a": np.array([1, 2]), "b": pd.Series(["x", "y"])}, None),
        ({"a": pl.Series([1, 2]), "b": np.array(["x", "y"])}, None),
        ([[1, "x"], (2, "y")], ["a", "b"]),
        ([[1, "x"], (2, "y")], np.array(["a", "b"])),
        (np.array([[1, "x"], [2, "y"]], dtype=object), ["a", "b"]),
        (np.array([(1, "x"), (2, "y")], dtype=[("a", int), ("b", "U1")]), None),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), None),
        (pl.DataFrame({"a": [1, 2], "b": ["x", "y"]}), None),
    ],
)
def test_every_shape_of_table_gives_the_same(value: object, columns: object) -> None:
    assert rows_of(value, columns) == (["a", "b"], [[1, "x"], [2, "y"]])


@pytest.mark.parametrize(
    "value",
    [[{"b": 2, "a": 1, "c": 3}], {"c": [3], "b": [2], "a": [1]}, pd.DataFrame({"a": [1], "b": [2], "c": [3]})],
)
def test_columns_choose_and_order_the_columns_of_named_data(value: object) -> None:
    assert rows_of(value, ["c", "a"]) == (["c", "a"], [[3, 1]])
    with pytest.raises(ValueError, match=r"table 't' has no column 'z'"):
        encode_table(value, "t", ["z"])


def test_a_missing_key_is_null_and_keys_come_in_order_of_appearance() -> None:
    assert rows_of([{"b": 1}, {"a": 2, "b": 3}]) == (["b", "a"], [[1, None], [3, 2]])


def test_cells_are_strict_json() -> None:
    @dataclasses.dataclass
    class Point:
        x: float

    cells = [
        (math.nan, None), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (np.float32("nan"), None),
        (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (np.str_("é"), "é"),
        (np.datetime64("NaT"), None), (np.datetime64("2026-01-02"), "2026-01-02"), (pd.NaT, None), (pd.NA, None),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"), (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4), "03:04:00"), (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"), (Decimal("0.10"), "0.10"),
        (Decimal("NaN"), None), (2**70, str(2**70)), (2**60, 2**60), (b"a", "b'a'"), (Path("/x"), "/x"),
        ([math.nan, {"k": math.inf}], [None, {"k": "Infinity"}]), ({"k": date(2026, 1, 2)}, {"k": "2026-01-02"}),
        (np.array([1.0, np.nan]), [1.0, None]), (Point(math.nan), {"x": None}), ("<&\"\n\0", "<&\"\n\0"),
    ]  # fmt: skip
    _, rows = rows_of([[value] for value, _ in cells], ["x"])
    assert [row[0] for row in rows] == [expected for _, expected in cells]


def test_torch_cells_and_tables_are_plain() -> None:
    torch = pytest.importorskip("torch")
    assert rows_of([{"a": torch.tensor(0.5), "b": torch.tensor(math.nan)}])[1] == [[0.5, None]]
    assert rows_of(torch.tensor([[1, 2], [3, 4]]), ["a", "b"])[1] == [[1, 2], [3, 4]]
    assert rows_of({"a": torch.tensor([1.5, math.inf])})[1] == [[1.5], ["Infinity"]]


def test_missing_values_of_data_frames_are_null() -> None:
    frame = pd.DataFrame(
        {
            "int": pd.array([1, None], dtype="Int64"),
            "time": pd.to_datetime(["2026-01-02", None]),
            "float": [0.5, math.nan],
            "category": pd.Categorical(["x", None]),
        }
    )
    columns, rows = rows_of(frame)
    assert columns == ["int", "time", "float", "category"]
    assert rows == [[1, "2026-01-02T00:00:00", 0.5, "x"], [None, None, None, None]]
    assert rows_of({"int": frame["int"], "time": frame["time"]})[1] == [row[:2] for row in rows]
    polar = pl.DataFrame({"int": [1, None], "day": [date(2026, 1, 2), None], "list": [[1, 2], None]})
    assert rows_of(polar)[1] == [[1, "2026-01-02", [1, 2]], [None, None, None]]


def test_nanosecond_times_in_arrays_stay_times() -> None:
    times = np.array(["2026-01-02T03:04:05.000000006", "NaT"], dtype="datetime64[ns]")
    expected = [["2026-01-02T03:04:05.000000006"], [None]]
    assert rows_of({"t": times})[1] == expected
    assert rows_of(times[:, None], ["t"])[1] == expected


def test_a_pandas_index_is_a_column_only_if_it_has_a_name() -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])
    assert rows_of(frame) == (["a"], [[1], [2]])
    assert rows_of(frame.rename_axis("id")) == (["id", "a"], [["x", 1], ["y", 2]])
    pairs = pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["id", None])
    assert rows_of(frame.set_index(pairs)) == (["id", "level_1", "a"], [["x", 1, 1], ["y", 2, 2]])
    with pytest.raises(ValueError, match="more than one column or index level named 'a'"):
        encode_table(frame.rename_axis("a"), "t")


def test_empty_tables_are_tables() -> None:
    assert rows_of([]) == ([], [])
    assert rows_of([], ["a"]) == (["a"], [])
    assert rows_of({}) == ([], [])
    assert rows_of({"a": []}) == (["a"], [])
    assert rows_of(pd.DataFrame({"a": []})) == (["a"], [])
    assert rows_of(pl.DataFrame({"a": []})) == (["a"], [])


@pytest.mark.parametrize(
    ("value", "columns", "message"),
    [
        ([[1, 2], [3]], ["a", "b"], "row 1 has 1 cells, but there are 2 columns"),
        ([[1, 2]], None, r"give columns=\[\.\.\.\]"),
        ([[1, 2]], ["a", "a"], "more than one column named 'a'"),
        ([{1: 1, "1": 2}], None, "more than one column named '1'"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), None, "named 'a'"),
        ({"a": [1, 2], "b": [1]}, None, "column 'b' has 1 cells, but 'a' has 2"),
        (np.zeros(3), ["a"], "two-dimensional"),
        (np.zeros((2, 2)), None, "columns="),
        ([{"a": "\ud800"}], None, "row 0 is not valid Unicode"),
        ([{"\ud800": 1}], None, "not valid Unicode"),
        ([{"a": {1: 1, "1": 2}}], None, "two keys are the same"),
    ],
)
def test_a_table_that_would_lose_something_is_refused(value: object, columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        encode_table(value, "val/t", columns)
    assert "table 'val/t'" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "columns", "message"),
    [
        (None, None, "must be a list of dicts"),
        ("abc", None, "must be a list of dicts"),
        (iter([{"a": 1}]), None, "must be a list of dicts"),
        (["ab", "cd"], ["x", "y"], "row 0 must be a sequence"),
        ([1, 2], ["x"], "row 0 must be a sequence"),
        ([{"a": 1}, [1]], None, "row 1 is a list"),
        ([[1], {"a": 1}], ["a"], "row 1 is a mapping"),
        ({"a": 1}, None, "column 'a' must be a sequence"),
        ({"a": "xyz"}, None, "column 'a' must be a sequence"),
        ([[1]], "a", "columns must be a sequence"),
        (pl.LazyFrame({"a": [1]}), None, r"lazy; \.collect\(\) it"),
        (pd.DataFrame, None, "must be a list of dicts"),
    ],
)
def test_what_is_not_a_table_is_refused(value: object, columns: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        encode_table(value, "val/t", columns)
    assert "table 'val/t'" in str(caught.value)


def test_a_cell_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="contains itself"):
        encode_table([{"a": loop}], "t")


_CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=2),
    max_leaves=5,
)


@given(st.lists(st.lists(_CELLS, min_size=2, max_size=2), max_size=5))
def test_any_plain_cells_make_a_table_that_a_strict_parser_reads(rows: list[list[object]]) -> None:
    parsed = rows_of(rows, ["a", "b"])[1]
    for row, back in zip(rows, parsed, strict=True):
        for cell, cell_back in zip(row, back, strict=True):
            if isinstance(cell, str | bool | None) or (isinstance(cell, float) and math.isfinite(cell)):
                assert cell_back == cell


# --- histograms

_SAMPLES = st.lists(st.floats(), min_size=1, max_size=30)


@settings(max_examples=300)
@given(
    _SAMPLES | st.lists(st.floats(0, 1e-300), min_size=1) | st.lists(st.floats(1, 1 + 1e-15), min_size=1),
    st.integers(1, 70),
)
def test_every_sample_is_in_its_bin_or_counted_as_left_out(samples: list[float], bins: int) -> None:
    edges, counts, left_out = histogram_of(samples, "h", bins)
    assert len(edges) == bins + 1
    assert all(math.isfinite(edge) for edge in edges)
    assert all(low < high for low, high in itertools.pairwise(edges))
    assert sum(counts) + left_out == len(samples)
    finite = [sample for sample in samples if math.isfinite(sample)]
    assert left_out == len(samples) - len(finite)
    for place in range(bins):
        last = place == bins - 1
        inside = [x for x in finite if edges[place] <= x and (x < edges[place + 1] or (last and x == edges[bins]))]
        assert counts[place] == len(inside)


@given(_SAMPLES, st.integers(1, 70))
def test_arrays_and_sequences_are_counted_alike(samples: list[float], bins: int) -> None:
    assert histogram_of(np.array(samples), "h", bins) == histogram_of(samples, "h", bins)


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.integers(1, 20))
def test_integers_are_counted_as_numpy_counts_them(samples: list[int], bins: int) -> None:
    counts, edges = np.histogram(samples, bins)
    ours = histogram_of(np.array(samples), "h", bins)
    assert np.allclose(ours.edges, edges, atol=1e-9)
    assert sum(ours.counts) == counts.sum()


@pytest.mark.parametrize(
    "value",
    [
        [0, 1, 1, 2],
        (0, 1, 1, 2),
        [[0, 1], [1, 2]],
        [[0], [1, 1, 2]],
        [np.array([0, 1]), np.array([[1], [2]])],
        np.array([[0, 1], [1, 2]], dtype=np.uint8),
        np.array([0, 1, 1, 2], dtype=np.float16),
        pd.Series([0, 1, 1, 2]),
        pl.Series([0, 1, 1, 2]),
        [np.float32(0), True, 1, Decimal(2)],
    ],
)
def test_samples_of_any_shape_are_counted(value: object) -> None:
    assert histogram_of(value, "h", bins=2) == ([0.0, 1.0, 2.0], [1.0, 3.0], 0)


def test_torch_samples_are_counted() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.tensor([[0.0, 1.0], [1.0, 2.0]], requires_grad=True)
    for value in (weights, weights.bfloat16(), [weights[0], weights[1]], weights.to_sparse()):
        assert histogram_of(value, "h", bins=2) == ([0.0, 1.0, 2.0], [1.0, 3.0], 0)
    counted = torch.histogram(weights.detach(), 2)
    assert histogram_of(counted, "h") == ([0.0, 1.0, 2.0], [1.0, 3.0], 0)


def test_equal_samples_get_a_bin_around_them() -> None:
    assert histogram_of([3, 3], "h", bins=2) == ([2.5, 3.0, 3.5], [0.0, 2.0], 0)
    assert sum(histogram_of(np.array([True, True]), "h").counts) == 2


def test_samples_that_are_all_nan_are_counted_as_left_out() -> None:
    for value in ([math.nan, math.inf], np.array([np.nan, -np.inf])):
        assert histogram_of(value, "h", bins=2) == ([0.0, 0.5, 1.0], [0.0, 0.0], 2)


def test_masked_samples_are_left_out() -> None:
    assert histogram_of(np.ma.masked_equal(np.array([0, 1, 9]), 9), "h", bins=1) == ([0.0, 1.0], [2.0], 1)


@pytest.mark.parametrize("value", [([1, 3], [0, 1, 2]), np.histogram([0, 1, 1, 2], 2), (np.array([1, 3]), [0, 1, 2])])
def test_counts_and_edges_as_numpy_returns_them_are_kept(value: object) -> None:
    assert histogram_of(value, "h") == ([0.0, 1.0, 2.0], [1.0, 3.0], 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no samples"),
        ([[], []], "no samples"),
        (np.array([]), "no samples"),
        (([], [0]), "no bins"),
        (([-1], [0, 1]), "counts must be finite and not negative"),
        (([math.nan], [0, 1]), "counts must be finite"),
        (([1, 1], [0, 1, 1]), "edges must be finite and increasing"),
        (([1], [0, math.inf]), "edges must be finite"),
        ([10**400], "beyond the range"),
    ],
)
def test_a_histogram_of_nothing_or_of_bad_bins_is_refused(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        histogram_of(value, "val/h")
    assert "histogram 'val/h'" in str(caught.value)


@pytest.mark.parametrize(
    "value", [None, 1.5, "123", b"123", {"a": 1}, ["1"], [None], np.array(["1"]), np.array([1j]), [[1], "2"]]
)
def test_what_is_not_samples_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="histogram 'val/h'"):
        histogram_of(value, "val/h")


@pytest.mark.parametrize("bins", [0, -1, 1.5, True, "auto"])
def test_bins_must_be_a_positive_integer(bins: Any) -> None:
    with pytest.raises(ValueError, match="bins must be a positive integer"):
        histogram_of([1], "h", bins)


# --- confusion matrices and ROC curves


@pytest.mark.parametrize(
    ("labels", "matrix"),
    [
        (["a", "b"], [[1, 2], [3, 4]]),
        (("a", "b"), np.array([[1, 2], [3, 4]])),
        (np.array(["a", "b"]), np.array([[1, 2], [3, 4]], dtype=np.uint8)),
        (pd.Index(["a", "b"]), pd.DataFrame([[1, 2], [3, 4]])),
        (["a", "b"], [np.array([1, 2]), (3, np.float32(4))]),
    ],
)
def test_a_confusion_matrix_becomes_plain_lists(labels: object, matrix: object) -> None:
    assert confusion_matrix_of(labels, matrix, "c") == (["a", "b"], [[1.0, 2.0], [3.0, 4.0]])


def test_labels_that_are_not_texts_become_texts() -> None:
    assert confusion_matrix_of(np.array([0, 1]), np.eye(2), "c")[0] == ["0", "1"]


@pytest.mark.parametrize(
    ("labels", "matrix", "message"),
    [
        ([], [], "no labels"),
        (["a", "a"], [[1, 0], [0, 1]], "more than one label 'a'"),
        ([1, "1"], [[1, 0], [0, 1]], "more than one label '1'"),
        (["a", "b"], [[1, 2, 3], [4, 5, 6]], "must be 2 x 2.*one of 3 cells"),
        (["a", "b"], [[1, 2]], "must be 2 x 2.*it has 1 rows"),
        (["a"], [[-1]], "not negative"),
        (["a"], [[math.nan]], "finite"),
        (["a"], np.zeros((1, 1, 1)), "two dimensions"),
        (["\ud800"], [[1]], "not valid Unicode"),
    ],
)
def test_a_matrix_that_is_none_of_confusion_is_refused(labels: object, matrix: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        confusion_matrix_of(labels, matrix, "val/c")
    assert "confusion matrix 'val/c'" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "matrix"),
    [("ab", [[1, 0], [0, 1]]), (None, [[1]]), (["a"], None), (["a"], [1]), (["a"], [["1"]]), (["a"], ["1"])],
)
def test_what_is_not_labels_and_matrix_is_refused(labels: object, matrix: object) -> None:
    with pytest.raises(TypeError, match="confusion matrix 'val/c'"):
        confusion_matrix_of(labels, matrix, "val/c")


def test_what_scikit_learn_returns_is_taken_as_it_is() -> None:
    from sklearn.metrics import confusion_matrix, roc_curve

    actual, scores = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    assert confusion_matrix_of([0, 1], confusion_matrix(actual, [0, 1, 1, 1]), "c")[1] == [[1, 1], [0, 2]]
    fpr, tpr, thresholds = roc_curve(actual, scores)
    plain = roc_curve_of(fpr, tpr, thresholds, "r")
    assert plain == (fpr.tolist(), tpr.tolist(), thresholds.tolist())
    assert plain[2][0] == math.inf


def test_a_torch_roc_curve_is_taken_and_rounding_is_brought_back_into_range() -> None:
    torch = pytest.importorskip("torch")
    rates = torch.tensor([0.0, 1.0000001])
    assert roc_curve_of(rates, rates, torch.tensor([math.inf, 0.0]), "r") == ([0, 1], [0, 1], [math.inf, 0])


@pytest.mark.parametrize(
    ("fpr", "tpr", "thresholds", "message"),
    [
        ([0, 1], [0, 1], [1], r"one length, at least 2; got \[2, 2, 1\]"),
        ([0], [0], [1], "at least 2"),
        ([], [], [], "at least 2"),
        ([0, 1.1], [0, 1], [1, 0], r"fpr\[1\] is 1.1"),
        ([0, 1], [-0.1, 1], [1, 0], r"tpr\[0\] is -0.1"),
        ([0, 1], [0, math.nan], [1, 0], r"tpr\[1\] is nan.*only one class"),
        ([0, 1], [0, 1], [1, math.nan], "threshold that is NaN"),
        (np.zeros((2, 2)), [0, 1], [1, 0], "one dimension"),
    ],
)
def test_rates_that_make_no_curve_are_refused(fpr: object, tpr: object, thresholds: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        roc_curve_of(fpr, tpr, thresholds, "val/r")
    assert "ROC curve 'val/r'" in str(caught.value)


def test_the_users_lists_are_left_as_they_were() -> None:
    rates = [0.0, 1.0 + 1e-9]
    roc_curve_of(rates, rates, [1, 0], "r")
    assert rates == [0.0, 1.0 + 1e-9]


def test_arrays_without_numpy_installed_are_refused_with_the_reason() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from trackhub.values import histogram_of\n"
        "class Array: shape, dtype = (2,), 'float32'\n"
        "try: histogram_of(Array(), 'h')\n"
        "except TypeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "histogram 'h': arrays need NumPy, which is not installed; give Python lists\n"
