import copy
import dataclasses
import enum
import json
import pickle

import numpy as np
import pytest

from nas.errors import GenotypeError
from nas.spaces.published import PUBLISHED, resolve
from nas.supernet.genotype import SIZE_LIMIT, Genotype

GENOTYPE = Genotype("nas_bench_201", {"cell/0-1": "skip_connect", "cell/0-2": None, "ключ": "é"})
GOOD = GENOTYPE.to_dict()


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("genotype", [GENOTYPE, *PUBLISHED.values()], ids=["made up", *PUBLISHED])
def test_round_trip(genotype, tmp_path):
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.from_dict(genotype.to_dict()) == genotype
    path = write(tmp_path / "genotype.json", genotype.to_json())
    assert Genotype.load(path) == genotype
    assert Genotype.load(str(path)) == genotype


@pytest.mark.parametrize("genotype", [GENOTYPE, *PUBLISHED.values()], ids=["made up", *PUBLISHED])
def test_json_is_stable_to_the_byte_through_a_round_trip(genotype):
    text = genotype.to_json()
    assert Genotype.from_json(text).to_json() == text


def test_json_is_what_it_has_always_been():
    # Files that people keep: a change here is a new version.
    assert Genotype("darts", {"normal/0-2": "sep_conv_3x3", "normal/1-2": None}).to_json() == (
        "{\n"
        '  "format": "nas-genotype",\n'
        '  "version": 1,\n'
        '  "space": "darts",\n'
        '  "choices": {\n'
        '    "normal/0-2": "sep_conv_3x3",\n'
        '    "normal/1-2": null\n'
        "  }\n"
        "}\n"
    )


def test_it_cannot_be_changed():
    original = {"a": "x"}
    genotype = Genotype("s", original)
    original["a"] = "y"
    assert genotype.choices["a"] == "x"
    with pytest.raises(TypeError):
        genotype.choices["a"] = "y"
    with pytest.raises(dataclasses.FrozenInstanceError):
        genotype.space = "t"


MALFORMED = {
    "wrong format": json.dumps({**GOOD, "format": "other"}),
    "no format": json.dumps({k: v for k, v in GOOD.items() if k != "format"}),
    "wrong version": json.dumps({**GOOD, "version": 2}),
    "version as text": json.dumps({**GOOD, "version": "1"}),
    "version true": json.dumps({**GOOD, "version": True}),
    "version with a fraction": json.dumps({**GOOD, "version": 1.0}),
    "no version": json.dumps({k: v for k, v in GOOD.items() if k != "version"}),
    "extra field": json.dumps({**GOOD, "extra": 1}),
    "no space": json.dumps({k: v for k, v in GOOD.items() if k != "space"}),
    "space no string": json.dumps({**GOOD, "space": 3}),
    "no choices": json.dumps({k: v for k, v in GOOD.items() if k != "choices"}),
    "choices a list": json.dumps({**GOOD, "choices": ["a"]}),
    "choice a number": json.dumps({**GOOD, "choices": {"a": 1}}),
    "choice a list": json.dumps({**GOOD, "choices": {"a": ["x"]}}),
    "list": "[]",
    "string": '"nas-genotype"',
    "number": "1",
    "null": "null",
    "empty": "",
    "not JSON": "{",
    "a cut file": GENOTYPE.to_json()[:-10],
    "text behind it": GENOTYPE.to_json() + "x",
    "deep lists": "[" * 100_000,
    "deep lists, closed": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep version": json.dumps({**GOOD, "version": 0}).replace('"version": 0', '"version": ' + "[" * 900 + "]" * 900),
    "endless number": "1" * 10_000,
    "too large": " " * (SIZE_LIMIT + 1),
    "binary": bytes(range(256)),
    "byte order mark": b"\xef\xbb\xbf" + GENOTYPE.to_json().encode(),
    "utf-16": GENOTYPE.to_json().encode("utf-16"),
}


@pytest.mark.parametrize(
    "content",
    [pytest.param(content, id=name) for name, content in MALFORMED.items()],
)
def test_whatever_is_malformed_is_a_genotype_error_that_names_the_file(content, tmp_path):
    path = write(tmp_path / "some genotype.json", content)
    with pytest.raises(GenotypeError) as error:
        Genotype.load(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert "; " in message  # what was got, then how to fix it


@pytest.mark.parametrize("where", ["missing.json", ".", "missing/genotype.json", "x" * 300])
def test_a_path_that_is_no_file(where, tmp_path):
    with pytest.raises(GenotypeError, match="no genotype can be read at") as error:
        Genotype.load(tmp_path / where)
    assert str(tmp_path / where) in str(error.value)


def test_a_file_of_just_the_size_limit_is_read(tmp_path):
    text = GENOTYPE.to_json()
    path = write(tmp_path / "g.json", text + " " * (SIZE_LIMIT - len(text.encode())))
    assert Genotype.load(path) == GENOTYPE


def test_from_dict_names_its_source():
    with pytest.raises(GenotypeError, match="the checkpoint is not a genotype"):
        Genotype.from_dict([], source="the checkpoint")


def test_differing_counts_choices():
    one = Genotype("s", {"a": "x", "b": None, "c": "y"})
    assert one.differing(None) == 3
    assert one.differing(one) == 0
    assert one.differing(Genotype("s", {"a": "x", "b": "x", "c": None})) == 2


def test_resolve_takes_a_name_or_a_file(tmp_path):
    assert resolve("DARTS_V2") is PUBLISHED["DARTS_V2"]
    path = write(tmp_path / "g.json", GENOTYPE.to_json())
    assert resolve(str(path)) == GENOTYPE
    with pytest.raises(GenotypeError, match=r"neither a file nor a published genotype; .*DARTS_V1, DARTS_V2"):
        resolve("DARTS_V3")
    with pytest.raises(GenotypeError, match="no genotype can be read at"):
        resolve("missing.json")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda genotype: pickle.loads(pickle.dumps(genotype))])
def test_a_genotype_is_copied_pickled_and_hashed(again):
    genotype = Genotype("mine", {"a": "x", "b": None})
    same = again(genotype)
    assert same == genotype
    assert hash(same) == hash(Genotype("mine", {"b": None, "a": "x"}))
    assert len({genotype, same, Genotype("mine", {"a": "y", "b": None})}) == 2
    with pytest.raises(TypeError):
        same.choices["a"] = "y"


@pytest.mark.parametrize("choices", [None, ["a"]])
def test_choices_that_are_no_mapping_are_refused(choices):
    with pytest.raises(GenotypeError, match="expected a dict of key -> candidate name; let the deriver return"):
        Genotype("mine", choices)


def test_choices_of_other_classes_of_texts_are_plain_texts():
    chosen = Genotype("x", {np.str_("a"): np.str_("b"), "c": enum.Enum("Names", {"D": "d"}, type=str).D}).choices
    assert [type(text) for pair in chosen.items() for text in pair] == [str] * 4
    assert dict(chosen) == {"a": "b", "c": "d"}
