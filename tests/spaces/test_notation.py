"""Genotypes as JSON and in the published notations: round trips, and errors."""

import contextlib
import os
import string
import time
from pathlib import Path

import custom_models
import pytest
from hypothesis import given, settings, strategies as st
from omegaconf import OmegaConf

from nas.data.spec import ImageSpec
from nas.errors import GenotypeError
from nas.settings import configuration
from nas.spaces import darts_notation, nas_bench_201_notation
from nas.spaces.custom import Custom
from nas.spaces.darts import PUBLISHED, Darts
from nas.spaces.darts_imagenet import DartsImageNet
from nas.spaces.mbconv import MBConv
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.notation import LENGTH_LIMIT
from nas.spaces.published import NOTATIONS, from_text, resolve, to_text
from nas.supernet.genotype import SIZE_LIMIT, Genotype

SPEC = ImageSpec(name="tiny", input_shapes=((3, 8, 8),), class_names=("a", "b"), mean=(0.5,) * 3, std=(0.5,) * 3)

# As printed by the authors' code, and as written in it.
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
BEST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"


def load_ops(name):
    return configuration.build(OmegaConf.load(configuration.directory() / "ops" / f"{name}.yaml"))


OPTIONS = {
    "nas_bench_201": NasBench201(ops=load_ops("nas_bench_201"), channels=2, cells=1).options(SPEC),
    "nas_bench_201, 6 nodes": NasBench201(ops=load_ops("nas_bench_201"), channels=2, cells=1, nodes=6).options(SPEC),
    "darts": Darts(ops=load_ops("darts"), channels=2, cells=3).options(SPEC),
    "darts, 7 steps": Darts(ops=load_ops("darts"), channels=2, cells=3, steps=7).options(SPEC),
    **{
        f"darts, {name}": Darts(ops=load_ops(name), channels=2, cells=3).options(SPEC)
        for name in ("s1", "s2", "s3", "s4")
    },
    "darts, for ImageNet": DartsImageNet(ops=load_ops("darts"), channels=2, cells=3).options(SPEC),
    "mbconv": MBConv(ops=load_ops("mbconv"), widths=[4, 8], depths=[2, 2], strides=[1, 2]).options(SPEC),
    "custom": Custom(factory=custom_models.nested).options(SPEC),
}


def space_name(name):
    return name.split(",")[0]


@st.composite
def genotypes(draw, name):
    """Any genotype of the space: every choice decided, or dropped."""
    options = OPTIONS[name].items()
    return Genotype(space_name(name), {key: draw(st.sampled_from([*names, None])) for key, names in options})


@st.composite
def writable(draw, name):
    """Any genotype that the space's notation has words for."""
    options = OPTIONS[name]
    if space_name(name) == "nas_bench_201":
        return Genotype("nas_bench_201", {key: draw(st.sampled_from(names)) for key, names in options.items()})
    chosen = {}
    for kind in ("normal", "reduce"):
        for node in range(2, 2 + max(int(key.rsplit("-")[1]) for key in options) - 1):
            kept = draw(st.sets(st.integers(0, node - 1), min_size=2, max_size=2))
            for source in range(node):
                key = f"{kind}/{source}-{node}"
                chosen[key] = draw(st.sampled_from(options[key])) if source in kept else None
    return Genotype("darts", chosen)


# -- round trips


@pytest.mark.parametrize("name", OPTIONS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_every_genotype_survives_json(name, data):
    genotype = data.draw(genotypes(name))
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert from_text(genotype.to_json()) == genotype


@pytest.mark.parametrize("name", [name for name in OPTIONS if space_name(name) in NOTATIONS])
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_every_genotype_that_can_be_written_survives_its_notation(name, data):
    genotype = data.draw(writable(name))
    assert genotype.choices.keys() == OPTIONS[name].keys()
    text = to_text(genotype)
    assert from_text(text) == genotype
    assert to_text(from_text(text)) == text


@given(text=st.text(alphabet=st.sampled_from(string.printable + "é½"), max_size=80) | st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_text_does_anything_but_fail_or_be_a_genotype(text):
    for prefix in ("", "|", "Genotype(", "{", "|a~0|+", "Genotype(normal=[('a', 0), "):
        with contextlib.suppress(GenotypeError):
            genotype = from_text(prefix + text)
            assert from_text(to_text(genotype)) == genotype


@given(data=st.data(), name=st.sampled_from(["nas_bench_201", "darts"]))
@settings(max_examples=100, deadline=None)
def test_a_text_with_one_character_changed_is_refused_or_names_something_else(data, name):
    genotype = data.draw(writable(name))
    text = to_text(genotype)
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.sampled_from(string.printable))
    try:
        changed = from_text(text[:position] + character + text[position + 1 :])
    except GenotypeError:
        return
    # White space may stand between the tokens of the DARTS notation, and either quotes.
    assert (changed != genotype) or character == text[position] or text[position] == " " or character in "'\""


def test_all_nas_bench_201_texts_map_to_their_index_and_back():
    from nas.spaces.nas_bench_201_table import NasBench201Table

    root = os.environ.get("NAS_DATA")
    if not root:
        pytest.skip("needs nas_bench_201/accuracy.csv: set NAS_DATA to the directory of the data sets")
    path = Path(root) / "nas_bench_201" / "accuracy.csv"
    table = NasBench201Table(table=str(path))
    lines = path.read_text().splitlines()[1:]
    assert len(lines) == len(table) == 15_625
    for line in lines:
        index, text, *_ = line.split(",")
        genotype = from_text(text)
        assert table.index(genotype) == int(index)
        assert table.genotype(int(index)) == genotype
        assert to_text(genotype) == text


# -- the published texts


@pytest.mark.parametrize(
    "text",
    [
        DARTS_V2,
        DARTS_V2.replace("[2, 3, 4, 5]", "range(2, 6)"),
        DARTS_V2.replace("'", '"'),
        DARTS_V2.replace(" ", ""),
        DARTS_V2.replace("=[", " = [\n\t").replace(")]", "),\n]").replace("5])", "5],\n)\n"),
        f"\n  {DARTS_V2}  \n",
    ],
)
def test_darts_v2_as_it_circulates(text):
    assert from_text(text) == PUBLISHED["DARTS_V2"]


def test_the_text_of_darts_v1():
    text = to_text(PUBLISHED["DARTS_V1"])
    assert text == (  # as published, but for the order of the two edges of a node, which means nothing
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
        "('skip_connect', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('skip_connect', 2)], "
        "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
        "('skip_connect', 2), ('max_pool_3x3', 0), ('skip_connect', 2), ('avg_pool_3x3', 0), ('skip_connect', 2)], "
        "reduce_concat=range(2, 6))"
    )


def test_the_best_cell_of_nas_bench_201():
    genotype = from_text(f" {BEST}\n")
    assert genotype.space == "nas_bench_201"
    assert genotype.choices == {
        "cell/0-1": "nor_conv_3x3",
        "cell/0-2": "nor_conv_3x3",
        "cell/1-2": "nor_conv_3x3",
        "cell/0-3": "skip_connect",
        "cell/1-3": "nor_conv_3x3",
        "cell/2-3": "nor_conv_1x1",
    }
    assert to_text(genotype) == BEST


# -- malformed texts: ¶ is in front of what is wrong, {made} a file that must not be made

D = "Genotype(normal=[('a', 0), ('b', 1)], normal_concat=range(2, 3), reduce=[('a', 0), ('b', 1)], reduce_concat=[2])"


def spoilt(old, new):
    """D with the first `old` replaced."""
    assert old in D
    return D.replace(old, new, 1)


MALFORMED = {
    "no notation": ("¶hello (world)", "'{' (JSON) or 'Genotype(' or '|', got 'hello (world)'"),
    "malicious": ("¶__import__('os').system('touch {made}')", "'{' (JSON) or 'Genotype(' or '|', got"),
    "malicious, in DARTS": (spoilt("1", "¶__import__('os').system('touch {made}')"), "a number, got"),
    "malicious, as an operation": (spoilt("'b'", "¶open('{made}', 'w')"), "an operation in quotes, got"),
    "malicious, behind": (D + "¶; open('{made}', 'w')", "the end, got"),
    "malicious, in a range": (spoilt("3)", "¶exec('{made}'))"), "a number, got"),
    "malicious, as a cell": ("|a~0|+|b~0|¶{0.__class__}~1|", "an operation, got '{0.__class__}~1|'"),
    "malicious, behind a cell": ("|a~0| ¶+ open('{made}', 'w')", "the end, got"),
    "spaces in a cell": ("|a¶ ~0|", "'~0|', got ' ~0|'"),
    "a cell over lines": ("|a~0|+¶\n|b~0|b~1|", r"'|', got '\n|b~0|b~1|'"),
    "a cut cell": ("|a~0|+|b~0|¶", "an operation, got the end"),
    "a cell with a wrong source": ("|a~0|+|b¶~1|b~1|", "'~0|', got '~1|b~1|'"),
    "a cell with an edge too many": ("|a~0|¶b~1|", "the end, got 'b~1|'"),
    "a cell without an operation": ("|¶~0|", "an operation, got '~0|'"),
    "letters of another script": ("|¶\N{CYRILLIC SMALL LETTER A}~0|", "an operation, got"),
    "cut DARTS": (D[: D.index("('b'")] + "¶", "'(', got the end"),
    "a quote too few": (spoilt("'b'", "¶'b"), "an operation in quotes, got"),
    "unequal quotes": (spoilt("'b'", "¶'b\""), "an operation in quotes, got"),
    "one pair for a node": (spoilt(", ('b', 1)]", "¶]"), "two pairs for node 2, got"),
    "three pairs for two nodes": (spoilt("1)]", "1), ('a', 2)¶]"), "two pairs for node 3, got"),
    "no nodes": (spoilt("('a', 0), ('b', 1)", "¶"), "two pairs for node 2, got"),
    "a later source": (spoilt("1", "¶2"), "a node before node 2, got"),
    "one source twice": (spoilt("1", "¶0"), "another source than 0, which node 2 has already, got"),
    "a negative source": (spoilt("1", "¶-1"), "a number, got"),
    "a fraction": (spoilt("1", "1¶.5"), "')', got"),
    "an endless number": (spoilt("1", "¶" + "9" * 5000), "a number, got '99999"),
    "digits of another script": (spoilt("1", "¶\N{ARABIC-INDIC DIGIT ONE}"), "a number, got"),
    "fewer nodes concatenated": (spoilt("[2]", "¶[]"), "all nodes, range(2, 3), got '[])'"),
    "more nodes concatenated": (spoilt("range(2, 3)", "¶range(2, 999999)"), "all nodes, range(2, 3), got"),
    "no reduction cell": (D.split(", reduce=")[0] + "¶)", "',', got ')'"),
    "cells of two sizes": (
        spoilt(" reduce=[", " ¶reduce=[('a', 0), ('b', 1), ").replace("[2]", "[2, 3]"),
        "2 pairs as in the normal cell instead of 4, got",
    ),
    "another order": (spoilt("normal=", "¶reduce="), "'normal', got"),
    "a comma too many": (spoilt("),", "),¶,"), "'(', got"),
    "the second line": (spoilt(" reduce", "\n\treduce").replace("[2]", "¶2"), "'[', got '2)'"),
    "deep lists": ("Genotype(normal=[¶" + "[" * 10_000, "'(', got '[[[["),
    "deep brackets": ("¶" + "(" * 10_000, "'{' (JSON)"),
}


@pytest.mark.parametrize(("marked", "what"), MALFORMED.values(), ids=MALFORMED)
@pytest.mark.parametrize("as_file", [False, True])
def test_malformed_texts_are_refused_where_they_are_wrong(marked, what, as_file, tmp_path):
    made = tmp_path / "made"
    marked = marked.replace("{made}", str(made))
    before, text = marked.split("¶")[0], marked.replace("¶", "")
    where = f"line {before.count(chr(10)) + 1}, column {len(before.splitlines()[-1] if before else '') + 1}"
    source = "the genotype"
    if as_file:
        source = str(tmp_path / "genotype.txt")
        Path(source).write_text(text, encoding="utf-8")
    with pytest.raises(GenotypeError) as error:
        resolve(source if as_file else text)
    message = str(error.value)
    assert message.startswith(f"{source} is malformed at {where}: expected {what}")
    assert "; write it as " in message
    assert "\n" not in message
    assert not made.exists()


def test_an_empty_file(tmp_path):
    (tmp_path / "genotype.txt").touch()
    with pytest.raises(GenotypeError, match=r"is malformed at line 1, column 1: expected '{' \(JSON\) .* got the end"):
        resolve(str(tmp_path / "genotype.txt"))


@pytest.mark.parametrize(
    "text", ["|" + "a" * 10**6, D + " " * 10**6, "(" * 10**6, "|a~0|+" * 10**6, "Genotype(" * 10**6]
)
def test_huge_texts_are_refused_at_once(text, tmp_path):
    started = time.perf_counter()
    with pytest.raises(GenotypeError, match=rf"has {len(text)} characters, expected at most {LENGTH_LIMIT}; write it"):
        resolve(text)
    path = tmp_path / "genotype.txt"
    path.write_text(text)
    with pytest.raises(GenotypeError, match=rf"{SIZE_LIMIT}|{LENGTH_LIMIT}"):
        resolve(str(path))
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "{" + "[" * 10**5])
def test_deeply_nested_json_is_refused_at_once(text):
    started = time.perf_counter()
    with pytest.raises(GenotypeError):
        resolve(text)
    assert time.perf_counter() - started < 0.5


def test_the_largest_texts_are_read_quickly():
    cell = "+".join("|" + "".join(f"a~{source}|" for source in range(node)) for node in range(1, 86))
    steps = 180
    pairs = [("a", source) for node in range(2, 2 + steps) for source in (0, node - 1)]
    concat = f"range(2, {2 + steps})"
    text = f"Genotype(normal={pairs}, normal_concat={concat}, reduce={pairs}, reduce_concat={concat})"
    started = time.perf_counter()
    for large in (cell, text.replace(" ", "")):
        assert len(large) < LENGTH_LIMIT
        assert to_text(from_text(large)).replace(" ", "") == large
    assert time.perf_counter() - started < 2


# -- what cannot be written


@pytest.mark.parametrize(
    ("notation", "genotype", "message"),
    [
        (darts_notation, Genotype("nas_bench_201", {}), "of the space 'nas_bench_201', expected 'darts'"),
        (nas_bench_201_notation, PUBLISHED["DARTS_V1"], "of the space 'darts', expected 'nas_bench_201'"),
        (darts_notation, Genotype("darts", {}), r"keeps \[\] into node normal/2, expected two operations"),
        (darts_notation, Genotype("darts", {"normal/0-2": "a"}), r"keeps \[\('a', 0\)\] into node normal/2"),
        (
            darts_notation,
            Genotype("darts", {f"{kind}/{i}-2": "a.b" for kind in ("normal", "reduce") for i in (0, 1)}),
            r"keeps \[\('a\.b', 0\)",
        ),
        (
            darts_notation,
            Genotype("darts", {**from_text(D).choices, "normal/0-9": None}),
            r"keeps \[\] into node normal/3",
        ),
        (nas_bench_201_notation, Genotype("nas_bench_201", {}), "has None on the edge cell/0-1"),
        (nas_bench_201_notation, Genotype("nas_bench_201", {"cell/0-1": None}), "has None on the edge cell/0-1"),
        (nas_bench_201_notation, Genotype("nas_bench_201", {"cell/0-1": "a|b"}), r"has 'a\|b' on the edge cell/0-1"),
        (
            nas_bench_201_notation,
            Genotype("nas_bench_201", {"cell/0-1": "a", "x": "a"}),
            "has None on the edge cell/0-2",
        ),
    ],
)
def test_genotypes_that_the_notation_has_no_words_for(notation, genotype, message):
    with pytest.raises(GenotypeError, match=message):
        notation.to_text(genotype)


def test_a_space_without_a_notation():
    with pytest.raises(
        GenotypeError, match="genotypes of mbconv have no published text form, only those of darts, nas"
    ):
        to_text(Genotype("mbconv", {"stage0/layer0": "skip_connect"}))


# -- what a user may give


def test_resolve_takes_names_files_and_texts(tmp_path):
    assert resolve("DARTS_V2") is PUBLISHED["DARTS_V2"]
    assert resolve(DARTS_V2) == PUBLISHED["DARTS_V2"]
    assert resolve(PUBLISHED["DARTS_V2"].to_json()) == PUBLISHED["DARTS_V2"]
    assert resolve(BEST) == from_text(BEST)
    for name, content in (
        ("a.json", PUBLISHED["DARTS_V1"].to_json()),
        ("b.txt", to_text(PUBLISHED["DARTS_V1"]) + "\n"),
    ):
        (tmp_path / name).write_text(content)
        assert resolve(str(tmp_path / name)) == PUBLISHED["DARTS_V1"]


def test_a_file_may_be_called_like_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("|mine|").write_text(BEST)
    assert resolve("|mine|") == from_text(BEST)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DARTS_V3", "'DARTS_V3' is neither a file nor a published genotype; .*DARTS_V1, DARTS_V2"),
        (
            "6111",
            "the genotype 6111 is a benchmark index, but no benchmark table.*benchmark=nas_bench_201 benchmark.table=",
        ),
        ("runs/x/genotype.json", "no genotype can be read at runs/x/genotype.json"),
        ("x" * 70_000, "'x{60}' is neither a file nor a published genotype"),
        ("1" * 5000, "'1{60}' is neither a file nor a published genotype"),
        ("a\0b", "is neither a file nor a published genotype"),
        ("", "'' is neither a file nor a published genotype"),
    ],
)
def test_what_resolve_cannot_find(text, message):
    with pytest.raises(GenotypeError, match=message):
        resolve(text)
