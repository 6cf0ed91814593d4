import shutil

import pytest

from realgen.core.recipes import ScoreRecipe
from realgen.core.spec import Machine, Plug
from realgen.wiring import serving, use
from serving import Brightness


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "one"
    (made / "inner").mkdir(parents=True)
    (made / "weights.safetensors").write_bytes(b"weights")
    (made / "inner" / "config.json").write_text("{}")
    return made


def classifier(model, **options):
    return Plug(name="image_classifier", options={"model": str(model), "real_label": "real", **options})


def test_a_fingerprint_names_the_plugin_and_does_not_depend_on_the_place(folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "elsewhere" / "two")
    one = serving.fingerprint(classifier(folder))
    assert one.startswith("image_classifier@")
    assert one == serving.fingerprint(classifier(there)) == serving.fingerprint(classifier(folder))


@pytest.mark.parametrize("file", ["weights.safetensors", "inner/config.json", "more.json"])
def test_a_fingerprint_depends_on_every_byte_of_the_model(folder, file):
    before = serving.fingerprint(classifier(folder))
    (folder / file).write_bytes(b"weightS")
    assert serving.fingerprint(classifier(folder)) != before


def test_a_model_in_the_home_folder_is_read_too(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert serving.fingerprint(classifier(f"~/{folder.name}")) == serving.fingerprint(classifier(folder))


def test_a_fingerprint_depends_on_options_and_program(folder, monkeypatch):
    found = {
        serving.fingerprint(classifier(folder)),
        serving.fingerprint(classifier(folder, temperature=2.0)),
        serving.fingerprint(classifier("owner/hub-id")),
    }
    monkeypatch.setattr(serving, "__version__", "99")
    found.add(serving.fingerprint(classifier(folder)))
    assert len(found) == 4


def test_a_folder_that_is_called_like_a_label_does_not_count(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = serving.fingerprint(classifier(folder))
    (tmp_path / "real").mkdir()
    (tmp_path / "real/photograph.jpg").write_bytes(b"pixels")
    assert serving.fingerprint(classifier(folder)) == before == serving.fingerprint(classifier("one"))


def test_what_is_left_to_the_default_counts_as_what_it_is(folder):
    assert serving.fingerprint(classifier(folder)) == serving.fingerprint(classifier(folder, temperature=1.0))


def test_the_files_of_a_card_within_count(folder, monkeypatch):
    wrapped = Plug(name="augmented", options={"scorer": {"name": "image_classifier", "card": "some"}})
    monkeypatch.setattr(serving, "configure", lambda room, plug: Dumped(plug.options))
    monkeypatch.setattr(serving.cards, "read", lambda name: name)
    monkeypatch.setattr(serving.fetch, "locate", lambda card: folder)
    before = serving.fingerprint(wrapped)
    (folder / "weights.safetensors").write_bytes(b"others!")
    assert serving.fingerprint(wrapped) != before


class Dumped(dict):
    def model_dump(self, **_):
        return self


def test_a_manifest_with_its_times_does_not_count(folder):
    before = serving.fingerprint(classifier(folder))
    (folder / "manifest.json").write_text("{}")
    assert serving.fingerprint(classifier(folder)) == before


def test_scorers_are_loaded_with_their_fingerprints(folder, monkeypatch):
    scorer = Brightness()
    monkeypatch.setattr(serving, "build_scorers", lambda recipe: dict.fromkeys(recipe.scorers, scorer))
    recipe = ScoreRecipe(kind="score", scorers={"a": classifier(folder)}, machine=Machine(device="cpu"))
    assert serving.load(recipe) == {"a": (scorer, serving.fingerprint(recipe.scorers["a"]))}
    assert use.build_scorers is not serving.build_scorers
