"""Pictures of architectures: what they show, and that names cannot become markup."""

import io
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image

from nas.cli.report import show_search
from nas.drawing.architecture import parted
from nas.drawing.architecture_picture import draw_architecture
from nas.drawing.canvas import COLOURS, kind
from nas.drawing.heat_map import draw_heat_map
from nas.drawing.png import to_png
from nas.drawing.svg import to_svg
from nas.drawing.text import draw_cells
from nas.drawing.timeline import draw_timeline
from nas.spaces.published import PUBLISHED
from nas.supernet.genotype import Genotype

V2 = PUBLISHED["DARTS_V2"].choices
ODD = {"a<b>/&": 'x"</text><script>', "\x00\x1b": "\ufffe", "head": None}
TINY = {"cell/0-1": "conv", "cell/0-2": None, "cell/1-2": "max_pool"}


def texts(svg):
    return [one.text for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_every_edge_that_is_kept_is_labelled():
    shown = texts(to_svg(draw_architecture(V2, title="v2")))
    for name in set(V2.values()) - {None}:
        assert shown.count(name) == list(V2.values()).count(name)
    assert [one for one in shown if one.endswith("cell")] == ["normal cell", "reduction cell"]
    assert shown.count("out") == 2


def test_cells_lie_side_by_side_or_one_below_the_other():
    beside, stacked = (draw_architecture(V2, title="v2", stacked=one) for one in (False, True))
    assert beside.width > 1.6 * stacked.width
    assert stacked.height > 1.6 * beside.height


def test_lines_are_as_wide_as_the_operation_is_probable():
    def width(p):
        drawn = draw_architecture(TINY, title="", probabilities={"cell/0-1": {"conv": p}})
        return next(one.width for one in drawn.shapes if getattr(one, "colour", "") == "convolution line")

    assert width(0.9) - width(0.5) == pytest.approx(width(0.5) - width(0.1)) == pytest.approx(2.0)


@pytest.mark.parametrize("choices", [ODD, {}, {"x/0-2": "猫"}, {f"l{n}": "conv" for n in range(200)}, {"0-900": "a"}])
def test_any_model_gives_a_picture(choices):
    svg = to_svg(draw_architecture(choices, title="<title>"))
    shown = texts(svg)
    assert "<script>" not in svg
    assert all(name in shown for name in choices.values() if name and name.isprintable())
    png, width, height = to_png(draw_architecture(choices, title="<title>"))
    assert Image.open(io.BytesIO(png)).size == (width, height)


def test_a_reader_of_light_and_dark_gets_other_colours():
    svg = to_svg(draw_architecture(TINY, title=""))
    light, dark = svg.split("@media(prefers-color-scheme:dark)")
    assert COLOURS["ink"][0] in light
    assert COLOURS["ink"][1] in dark
    assert "@media" not in to_svg(draw_architecture(TINY, title=""), theme="dark")


@pytest.mark.parametrize("name", ["skip", "pool", "separable", "dilated", "convolution", "none", "other"])
def test_labels_can_be_read_on_the_colour_of_every_kind(name):
    def luminance(colour):
        parts = (part / 255 for part in bytes.fromhex(colour[1:]))
        red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in COLOURS[name])  # WCAG 2.1, AA


def test_kinds_are_told_from_names():
    names = ("none", "skip_connect", "max_pool_3x3", "sep_conv_5x5", "dil_conv_3x3", "nor_conv_1x1", "mlp")
    assert [kind(name) for name in names] == [
        "none", "skip", "pool", "separable", "dilated", "convolution", "other",
    ]  # fmt: skip


def test_the_heat_map_marks_what_is_derived():
    picture = draw_heat_map(
        {"cell/0-1": {"a": 0.25, "b": 0.75}, "act": {"<c>": float("nan")}}, title="", chosen={"cell/0-1": "b"}
    )
    heat = {box.title: box for box in picture.shapes if getattr(box, "colour", "") == "heat"}
    assert [(title, box.opacity, box.border) for title, box in heat.items()] == [
        ("cell/0-1: a 0.250", 0.25, ""), ("cell/0-1: b 0.750, derived", 0.75, "mark"), ("act: <c> nan", 0.0, ""),
    ]  # fmt: skip
    assert {"25", "75", "nan"} < set(texts(to_svg(picture)))


def test_the_timeline_shows_who_leads_and_when_another_was_derived():
    nan = float("nan")
    history = {"cell/0-1": {"a": [0.6, 0.4, nan], "b": [0.4, 0.6, 0.9]}, "act": {"<c>": [1.0, 1.0, 1.0]}}
    derived = [(1, {"cell/0-1": "a", "act": "<c>"}), (30, {"cell/0-1": None, "act": "<c>"})]
    picture = draw_timeline(history, epochs=[10, 20, 30], title="", derived=derived)
    bars = {box.title: box for box in picture.shapes if "leads" in getattr(box, "title", "")}
    assert list(bars) == [
        "cell/0-1: a leads from epoch 10 to 10", "cell/0-1: b leads from epoch 20 to 30",
        "act: <c> leads from epoch 10 to 30",
    ]  # fmt: skip
    first, second, _ = bars.values()
    assert second.x == pytest.approx(first.x + first.width)
    assert second.width == pytest.approx(1.1 * first.width)  # 20 to 30 and one epoch more
    assert [box.title for box in picture.shapes if "changed" in getattr(box, "title", "")] == [
        "cell/0-1 changed, epoch 30"
    ]
    assert {"dropped", "<c>", "epoch 10", "epoch 30"} <= set(texts(to_svg(picture)))
    assert "derived" not in texts(to_svg(draw_timeline(history, epochs=[10, 20, 30], title="")))


def test_cells_as_characters():
    cells, _ = parted(TINY | {"cell/1-2": "max_pool", "cell/0-2": "conv"})
    assert draw_cells(cells, width=80).split("\n") == [
        "cell",
        "  in 0 ─ conv ───────▶ 1",
        "  in 0 ─ conv ─────┐",
        "     1 ─ max_pool ─┴─▶ 2 (out)",
    ]
    plain = draw_cells(cells, width=80, encoding="ascii")
    assert plain.split("\n")[3] == "     1 - max_pool -+-> 2 (out)"
    pair, _ = parted(V2)
    assert draw_cells(pair, width=80).startswith("normal cell      ")
    assert draw_cells(pair, width=60).startswith("normal cell\n")


def test_the_end_of_a_search_shows_cells_and_other_choices(capsys):
    show_search(Genotype("mine", TINY | {"head": "mlp"}), 1234)
    shown = capsys.readouterr().out
    assert "1 ─ max_pool ─" in shown
    assert "head" in shown
    assert "1,234 parameters when retrained" in shown


def test_drawing_needs_neither_torch_nor_numpy():
    names = ("architecture_picture", "heat_map", "png", "svg", "text", "timeline")
    code = f"import sys, {', '.join(f'nas.drawing.{name}' for name in names)}; "
    code += "assert not {'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
