"""A WordNet dictionary: which things a noun names, in the files' own format."""

import pytest

from realgen.core.errors import DataError
from realgen.train.wordnet import LANDFORM, WordNet

DATA = """\
  1 This is a licence.
00000010 03 n 01 entity 0 000 | what is
00000020 03 n 01 object 0 001 @ 00000010 n 0000 | a thing
00000030 05 n 02 dog 0 domestic_dog 0 002 @ 00000020 n 0000 ~ 00000040 n 0000 | it barks
00000040 05 n 01 chihuahua 0 001 @ 00000030 n 0000 | a toy dog
00000050 15 n 01 Chihuahua 0 001 @i 00000020 n 0000 | a city
00000060 17 n 01 tundra 0 001 @ 00000020 n 0000 | a treeless plain
00000070 07 n 01 daintiness 0 001 @ 00000010 n 0000 | no thing
00000080 13 n 01 dainty 0 002 @ 00000020 n 0000 @ 00000010 n 0000 | something choice to eat; "caviar"
"""
INDEX = """\
  1 This is a licence.
chihuahua n 2 1 @ 2 0 00000050 00000040
delicacy n 2 1 @ 2 0 00000070 00000080
late n 4 1 @ 4 0 00000070 00000070 00000070 00000030
tundra n 1 2 @ ~ 1 0 00000060
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    return tmp_path


def names(senses):
    return [[sense.names for sense in kinds] for kinds in senses]


def test_a_sense_is_followed_by_its_kinds_and_what_has_a_name_of_its_own_is_left_out(folder):
    chain = [("chihuahua",), ("dog", "domestic dog"), ("object",), ("entity",)]
    assert names(WordNet(folder).senses("chihuahua")) == [chain]


def test_senses_that_nobody_can_photograph_are_left_out(folder):
    assert names(WordNet(folder).senses("delicacy")) == [[("dainty",), ("object",), ("entity",)]]
    assert names(WordNet(folder).senses("late")) == []  # its fourth sense is too rare
    assert names(WordNet(folder).senses("moggy")) == []


def test_landforms_are_told(folder):
    ((tundra, *_),) = WordNet(folder).senses("tundra")
    assert tundra.file == LANDFORM


def test_a_folder_without_a_dictionary_is_refused(folder):
    (folder / "index.noun").write_text("chihuahua n many\n")
    with pytest.raises(DataError, match="holds no WordNet"):
        WordNet(folder)
    (folder / "index.noun").write_text("chihuahua n 1 1 @ 1 0 00000099\n")
    with pytest.raises(DataError, match=r"names what data\.noun lacks"):
        WordNet(folder)
    with pytest.raises(DataError, match="holds no WordNet"):
        WordNet(folder / "nowhere")
