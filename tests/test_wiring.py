"""Recipes to live objects: cards under options, and recipes that cannot be."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from realgen import pipeline
from realgen.core import config
from realgen.core.errors import ConfigError, DataError, InputError, ModelError
from realgen.core.spec import Machine, Plug
from realgen.hub import card as cards
from realgen.hub import plugs
from realgen.train.run import Run
from realgen.wiring import training, use
from scorers.factories import FACTORIES


@pytest.mark.parametrize("name", config.shipped("recipes"))
@pytest.mark.parametrize("profile", [None, *config.shipped("profiles")])
def test_every_recipe_checks_with_every_profile(name, profile):
    use.check(config.load(name, profile=profile))


def test_the_number_of_recipes_and_profiles_is_the_number_on_disk():
    from pathlib import Path

    root = Path(config.__file__).parents[1]
    assert len(config.shipped("recipes")) == len(list((root / "recipes").glob("*.yaml"))) >= 6
    assert len(config.shipped("profiles")) == len(list((root / "profiles").glob("*.yaml"))) >= 3


def test_card_options_lie_between_the_plugins_and_the_recipes():
    options = plugs.configure("generators", Plug(name="flux", card="tiny", options={"steps": 5}))
    assert options.steps == 5
    assert options.size == (128, 128)
    assert options.max_text_tokens == 64
    assert options.lora_scale == 1.0


def test_a_card_of_another_plugin_is_refused():
    with pytest.raises(ConfigError, match="is for generators/flux"):
        plugs.configure("generators", Plug(name="pretrained", card="tiny"))


def test_an_unknown_card_is_refused():
    with pytest.raises(ModelError, match="no card"):
        plugs.configure("generators", Plug(name="flux", card="flux9"))


def test_a_generator_from_a_folder(random_flux):
    recipe = config.load(
        "tiny",
        overrides=[
            "generator.card=null",
            f"generator.options={{model: '{random_flux}', steps: 1, size: [32, 32], max_text_tokens: 32}}",
        ],
    )
    generator = use.build_generator(recipe)
    assert generator.max_text_tokens == 32
    assert use.build_optimizer(recipe) is None


def test_training_without_data_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match="no photographs"):
        list(training.train(config.load("autoencoder-tiny"), tmp_path / "run", resume=False))


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ("{offload: model}", "machine.offload"),
        ("{quantize: nf4}", "quantised weights"),
        ("{processes: 2}", "trains in one process"),
        ("{shard: true}", "trains in one process"),
    ],
)
def test_a_machine_that_a_training_cannot_use_is_refused_before_anything_is_loaded(machine, said, tmp_path):
    recipe = config.load("flow-tiny", overrides=[f"machine={machine}"])
    with pytest.raises(ConfigError, match=said):
        list(training.train(recipe, tmp_path / "run", resume=False))
    assert not (tmp_path / "run").exists()


def test_a_training_that_torchrun_started_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="trains in one process"):
        list(training.train(config.load("categories"), tmp_path / "run", resume=False))


@pytest.mark.parametrize("size", ["[128, 96]", "[72, 72]", "[0, 0]"])
def test_a_flow_is_trained_on_squares_of_whole_tokens(size):
    with pytest.raises(ConfigError, match="cannot be trained"):
        config.load("flow-tiny", overrides=[f"size={size}"])


def test_resuming_keeps_the_recipe(tmp_path):
    Run.create(tmp_path, config.load("autoencoder-tiny").model_dump(mode="json"))
    assert training.recipe_of(tmp_path, ["machine.threads=1"]).machine.threads == 1
    with pytest.raises(ConfigError, match="keeps its recipe"):
        training.recipe_of(tmp_path, ["steps=3"])
    with pytest.raises(InputError, match="holds no run"):
        training.recipe_of(tmp_path / "other", [])


# ---- scorers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Options of a tiny detector."""
    return FACTORIES["image_classifier"](tmp_path_factory.mktemp("classifier"))


@pytest.fixture
def effort(tmp_path):
    """Options of a tiny detector that only evaluates."""
    return FACTORIES["effort"](tmp_path)


def score_recipe(scorers, reward=None):
    plugs_of = {name: {"name": plugin, **fields} for name, (plugin, fields) in scorers.items()}
    machine = {"device": "cpu", "dtype": "float32"}
    values = {"kind": "score", "scorers": plugs_of, "reward": reward, "machine": machine}
    return config.from_mapping(values, where="mine")


def test_scorers_are_built_by_the_recipe_s_names(classifier):
    recipe = score_recipe({name: ("image_classifier", {"options": classifier}) for name in ("b", "a")})
    scorers = use.build_scorers(recipe)
    assert list(scorers) == ["b", "a"]
    images = [Image.new("RGB", (40, 40), "red"), Image.new("RGB", (20, 60), "blue")]
    scores = pipeline.score_images(images, ["", ""], scorers=scorers)
    assert [set(row) for row in scores] == [{"a", "b"}] * 2
    assert all(row["a"] == row["b"] and 0 <= row["a"].value <= 1 for row in scores)


def test_a_recipe_without_scorers_builds_none():
    assert use.build_scorers(config.load("tiny", overrides=["scorers=null", "reward=null"])) == {}


def test_every_scorer_s_options_are_checked_before_one_is_built(classifier, monkeypatch):
    monkeypatch.setattr(use, "build", lambda *_: pytest.fail("built"))
    good = ("image_classifier", {"options": classifier})
    recipe = score_recipe({"good": good, "bad": ("image_classifier", {"options": {"modell": "x"}})})
    with pytest.raises(ConfigError, match="modell"):
        use.build_scorers(recipe)
    nested = {"scorer": {"name": "image_classifier", "options": {"modell": "x"}}}
    with pytest.raises(ConfigError, match="modell"):
        use.check(score_recipe({"bad": ("augmented", {"options": nested})}))


def test_a_held_out_scorer_may_look_but_not_reward(classifier, effort):
    scorers = {"seen": ("image_classifier", {"options": classifier}), "held": ("effort", {"options": effort})}
    built = use.build_scorers(score_recipe(scorers, {"weights": {"seen": 1}}))
    assert [built[name].info.is_held_out for name in ("seen", "held")] == [False, True]


@pytest.mark.parametrize(
    "reward",
    [
        {"weights": {"held": 1}},
        {"weights": {"both": 1}, "ensembles": {"both": {"scorers": ["seen", "held"]}}},
        {"weights": {"seen": 1}, "constraints": {"held": {"low": 0.1}}},
        {"weights": {"seen": 1, "held": 0}},
    ],
    ids=["part", "ensemble", "constraint", "weight 0"],
)
def test_a_held_out_scorer_in_a_reward_is_refused(classifier, effort, reward):
    scorers = {"seen": ("image_classifier", {"options": classifier}), "held": ("effort", {"options": effort})}
    with pytest.raises(ConfigError, match="'held' is held out"):
        use.build_scorers(score_recipe(scorers, reward))


def test_wrapping_a_held_out_scorer_does_not_let_it_reward(effort):
    wrapped = ("augmented", {"options": {"scorer": {"name": "effort", "options": effort}}})
    with pytest.raises(ConfigError, match="'held' is held out"):
        use.build_scorers(score_recipe({"held": wrapped}, {"weights": {"held": 1}}))


def test_a_held_out_card_in_a_reward_is_refused_without_loading():
    with pytest.raises(ConfigError, match="'held' is held out"):
        use.check(score_recipe({"held": ("effort", {"card": "effort"})}, {"weights": {"held": 1}}))
    use.check(score_recipe({"held": ("effort", {"card": "effort"})}))


def test_a_card_says_the_licence_and_what_to_beware_of_and_may_hold_out_what_the_file_does_not(
    classifier, monkeypatch, tmp_path
):
    card = cards.read("omniaid-v2").model_copy(
        update={
            "plugin": "image_classifier",
            "licence": "CC-BY-4.0",
            "is_held_out": True,
            "caution": "blind",
            "options": {},
        }
    )
    monkeypatch.setattr(cards, "read", lambda _: card)
    recipe = score_recipe({"held": ("image_classifier", {"card": "mine", "options": classifier})})
    info = use.build_scorers(recipe)["held"].info
    assert (info.licence, info.is_held_out, info.caution) == ("CC-BY-4.0", True, "blind")


# ---- trainings ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of six small photographs of two categories in two splits."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = []
    for index in range(12):
        category, colour = (("people", (200, 90, 60)), ("plants", (30, 160, 40)))[index % 2]
        file, split = f"{index}.png", "train" if index < 6 else "test"
        Image.new("RGB", (32, 32), (colour[0] + index, colour[1], colour[2])).save(folder / file)
        rows.append({"file": file, "split": split, "category": category, "cls": "rose", "captions": ["x"]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


CLASSIFIER = ["categories=[people, plants]", "steps=2", "batch=2", "evaluate_every=0"]


@pytest.fixture
def small_network(monkeypatch):
    """A network of four narrow layers in place of the yardstick's."""
    from transformers import ResNetConfig, ResNetForImageClassification

    from realgen.train import classifier

    def build(categories):
        labels = dict(enumerate(categories))
        numbers = {category: index for index, category in labels.items()}
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(**sizes, id2label=labels, label2id=numbers))

    monkeypatch.setattr(classifier, "build_classifier", build)


def classifier_recipe(folder, *overrides):
    return config.load("categories", overrides=[f"data={folder}", *CLASSIFIER, *overrides])


def test_a_classifier_s_trainer_from_its_recipe(small_network, photographs, tmp_path):
    recipe = classifier_recipe(photographs, "learning_rate=0.5", "ema_decay=0.25", "seed=5")
    trainer = training.build_trainer(recipe, tmp_path)
    assert trainer.model.config.id2label == {0: "people", 1: "plants"}
    assert trainer.labels.tolist() == trainer.held_out[1].tolist() == [0, 1] * 3
    assert (trainer.steps, trainer.batch, trainer.learning_rate, trainer.seed) == (2, 2, 0.5, 5)
    assert trainer.ema.decay == 0.25


def test_a_trainer_s_first_weights_follow_from_the_recipe_s_seed(small_network, photographs, tmp_path):
    first, same, other = (
        training.build_trainer(classifier_recipe(photographs, f"seed={seed}"), tmp_path).model.classifier[1].weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_training_runs_and_a_cut_one_is_resumed_to_the_same_weights(small_network, photographs, tmp_path):
    recipe = classifier_recipe(photographs)
    told = list(training.train(recipe, tmp_path / "whole", resume=False))
    assert [step for step, _ in told] == [2]
    weights = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        list(training.train(recipe, tmp_path / "whole", resume=False))

    run = Run.create(tmp_path / "cut", recipe.model_dump(mode="json"))
    trainer = training.build_trainer(recipe, run.folder)
    trainer.step(0)
    run.save(1, trainer.state_dict())
    again = list(training.train(training.recipe_of(run.folder, []), run.folder, resume=True))
    assert [step for step, _ in again] == [2]
    assert (run.folder / "model" / "model.safetensors").read_bytes() == weights


def test_a_run_is_trained_by_one_process_at_a_time(small_network, photographs, tmp_path):
    list(training.train(classifier_recipe(photographs), tmp_path / "run", resume=False))
    with Run.open(tmp_path / "run").locked(), pytest.raises(InputError, match="another process trains"):
        list(training.train(classifier_recipe(photographs), tmp_path / "run", resume=True))


def test_resuming_where_nothing_was_started_is_refused(photographs, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        list(training.train(classifier_recipe(photographs), tmp_path / "none", resume=True))


def flow_recipe(model, folder, *overrides):
    small = ["size=[32, 32]", "max_text_tokens=32", "steps=1", "batch=2", "evaluate_every=0", "snapshots=[]"]
    float32 = "machine={device: cpu, dtype: float32}"
    return config.load("flow-tiny", overrides=[f"model='{model}'", f"data='{folder}'", float32, *small, *overrides])


def test_a_flow_s_trainer_from_its_recipe(random_flux, photographs, tmp_path):
    trainer = training.build_trainer(flow_recipe(random_flux, photographs), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latents-test.pt", "latents-train.pt"]
    assert (len(trainer.data.photographs), len(trainer.held_out.photographs)) == (6, 6)
    assert set(trainer.optimizers) == {"flow", "texts"}
    assert trainer.teacher is None
    assert all(parameter.requires_grad for parameter in trainer.backbone.module.parameters())
    assert not any(parameter.requires_grad for parameter in trainer.backbone.pipeline.vae.parameters())


def test_distilling_has_a_frozen_teacher_of_its_own(random_flux, photographs, tmp_path):
    recipe = flow_recipe(random_flux, photographs, "distil_guidance=[1, 5]", "text_learning_rate=0")
    trainer = training.build_trainer(recipe, tmp_path)
    assert trainer.distil_guidance == (1.0, 5.0)
    assert set(trainer.optimizers) == {"flow"}
    assert trainer.teacher.module is not trainer.backbone.module
    trained = {id(parameter) for parameter in trainer.module.parameters()}
    assert not any(id(parameter) in trained for parameter in trainer.teacher.module.parameters())


def test_a_distilled_flow_may_lead_away_from_a_weaker_model_and_read_longer_texts(random_flux, photographs, tmp_path):
    (tmp_path / "prompts.txt").write_text("A harbour at dawn, soft light, two boats\n")
    recipe = flow_recipe(
        random_flux,
        photographs,
        "distil_guidance=[1, 5]",
        f"weaker='{random_flux}'",
        f"elaborations=['{tmp_path / 'prompts.txt'}']",
        "elaborated=1",
    )
    trainer = training.build_trainer(recipe, tmp_path)
    assert trainer.weaker.module is not trainer.teacher.module
    assert all(text.startswith("a, ") for text in trainer.elaborate(["a"] * 4, 0))
    assert trainer.step(0)["loss"] > 0


@pytest.mark.parametrize("lesson", ["weaker=somewhere", "teacher=somewhere"])
def test_what_is_for_a_pupil_needs_a_teacher(lesson):
    with pytest.raises(ConfigError, match="distil_guidance"):
        config.load("flow-tiny", overrides=["data=photos", lesson])


def test_unseen_words_from_their_recipe(random_flux, photographs, tmp_path, monkeypatch):
    from realgen.train import text_distillation

    class Sense:
        width = 2

        def __init__(self, folder):
            del folder

        def __call__(self, texts):
            return torch.tensor([[1.0, 0.0]]).expand(len(texts), 2)

    monkeypatch.setattr(text_distillation, "SentenceTeacher", Sense)
    (tmp_path / "words.txt").write_text("moggy\nphoto\nchalet\nsoftly\n")
    (tmp_path / "data.noun").write_text("10 05 n 01 moggy 0 000 | a cat\n20 06 n 01 chalet 0 000 | a house\n")
    (tmp_path / "index.noun").write_text("moggy n 1 0 1 0 10\nchalet n 1 0 1 0 20\n")
    overrides = [f"model='{random_flux}'", f"data='{photographs}'", f"words=['{tmp_path / 'words.txt'}']"]
    overrides += [f"wordnet='{tmp_path}'"]
    trainer = training.build_trainer(
        config.load("words-tiny", overrides=[*overrides, "steps=1", "batch=4", "export_dtype=bfloat16"]), tmp_path
    )
    assert [word for word, _ in trainer.meanings] == ["moggy", "chalet"]
    assert trainer.step(0)["t5_words"] > 0
    trainer.export(tmp_path / "model")
    assert (tmp_path / "model/model_index.json").is_file()


def test_a_flow_training_exports_a_folder_that_a_generator_opens(random_flux, photographs, tmp_path):
    list(training.train(flow_recipe(random_flux, photographs), tmp_path / "run", resume=False))
    options = (
        f"generator.options={{model: '{tmp_path / 'run' / 'model'}', steps: 1, size: [32, 32], max_text_tokens: 32}}"
    )
    recipe = config.load("tiny", overrides=["generator.card=null", options])
    drawn = [item for item in use.build_generator(recipe)(["a"], seeds=[1]) if isinstance(item, Image.Image)]
    assert [image.size for image in drawn] == [(32, 32)]


def test_a_lora_training_exports_what_flux_loads(random_flux, photographs, tmp_path):
    recipe = flow_recipe(random_flux, photographs, "lora_rank=2", "text_learning_rate=0", "preview_prompts=[]")
    list(training.train(recipe, tmp_path / "run", resume=False))
    assert len(list((tmp_path / "run" / "model").iterdir())) == 1
    options = f"generator.options={{model: '{random_flux}', lora: '{tmp_path / 'run' / 'model'}', size: [32, 32]}}"
    generator = use.build_generator(config.load("tiny", overrides=["generator.card=null", options]))
    assert generator.backbone.pipeline.get_list_adapters() == {"transformer": ["lora"]}


def test_a_start_that_fails_leaves_the_folder_free(tmp_path):
    with pytest.raises(ConfigError, match="no photographs"):
        list(training.train(config.load("autoencoder-tiny"), tmp_path / "run", resume=False))
    assert not (tmp_path / "run" / "recipe.yaml").exists()


# ---- detectors and the alignment scorer -----------------------------------------------------------------

DETECTORS = {"detector-semantic": "coco", "detector-residual": "coco", "detector-heldout": "bsds"}
"""Recipes, and a source that each takes."""


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """Twelve photographs of 64 pixels of each of three sources, and four to test on."""
    folder = tmp_path_factory.mktemp("textures")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(40):
        colour, source = rng.uniform(60, 200, 3), ("coco", "bsds", "elsewhere")[index % 3]
        pixels = rng.normal(colour, 30, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        file, split = f"{index}.png", "train" if index < 36 else "test"
        Image.fromarray(pixels).save(folder / file)
        words = {"category": ("people", "plants")[index % 2], "cls": "rose", "captions": ["a rose", "one rose"]}
        rows.append({"file": file, "split": split, "source": source, **words})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small_recipe(name, folder, *overrides):
    """Two steps of two samples."""
    small = ["steps=2", "batch=2", "evaluate_every=2", "side=64", "machine={device: cpu, dtype: float32, batch: 4}"]
    return config.load(name, overrides=[f"data='{folder}'", *small, *overrides])


def detector_recipe(name, model, folder, *overrides):
    families = [f"fakes.{family}={{model: '{model}', count: 5, steps: 1}}" for family in config.load(name).fakes]
    return small_recipe(name, folder, *families, *overrides)


def alignment_recipe(model, folder, *overrides):
    return small_recipe("alignment-tiny", folder, f"text_model='{model}'", *overrides)


def scores_of(plugin, folder, textures, **options):
    plug = Plug(name=plugin, options={"model": str(folder), **options})
    scorer = plugs.build("scorers", plug, Machine(device="cpu", dtype="float32"))
    images = [Image.open(textures / f"{index}.png") for index in range(3)]
    return [score.value for score in scorer(images, ["a rose", "a cat", "a bus"])]


def weights_of(run):
    return (run / "model" / "model.safetensors").read_bytes()


def resumed(recipe, folder):
    """A run that was killed after its first step, taken to its end."""
    run = Run.create(folder, recipe.model_dump(mode="json"))
    trainer = training.build_trainer(recipe, run.folder)
    trainer.step(0)
    run.save(1, trainer.state_dict())
    torch.rand(3)  # a new process draws from another state
    list(training.train(training.recipe_of(run.folder, []), run.folder, resume=True))
    return folder


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_s_recipe_chooses_its_network_photographs_and_fakes(name, random_flux, textures, tmp_path):
    recipe = detector_recipe(name, random_flux, textures, "seed=5", "learning_rate=0.25", "ema_decay=0.5")
    trainer = training.build_trainer(recipe, tmp_path)
    classes = {
        "pvt": "PvtV2ForImageClassification",
        "residual": "ResidualNet",
        "convnext": "ConvNextForImageClassification",
    }
    assert type(trainer.model).__name__ == classes[recipe.network]
    assert (len(trainer.photographs), len(trainer.held_out_photographs)) == (10, 2)  # every tenth is apart
    assert [fakes.family for fakes in trainer.held_out_fakes] == list(recipe.fakes)
    assert len(trainer.fakes) == 5 * len(recipe.fakes)
    assert [len(fakes.pixels) for fakes in trainer.held_out_fakes] == [1] * len(recipe.fakes)
    own = {
        Image.open(textures / f"{index}.png").tobytes()
        for index in range(36)
        if index % 3 == (name == "detector-heldout")
    }
    pools = [*trainer.photographs, *trainer.held_out_photographs]
    assert {pixels.tobytes() for pixels in pools} == own
    assert (trainer.seed, trainer.learning_rate, trainer.ema.decay) == (5, 0.25, 0.5)


def test_redrawn_fakes_look_like_their_partners(random_flux, tiny_weights, textures, tmp_path):
    """The embedded autoencoder gives a picture back."""
    recipe = detector_recipe("detector-residual", random_flux, textures, f"fakes.redrawn.model='{tiny_weights}'")
    trainer = training.build_trainer(recipe, tmp_path)
    start = 5 * list(recipe.fakes).index("redrawn")
    colours = trainer.photographs.mean((1, 2))
    for pixels, partner in trainer.fakes[start : start + 5]:
        distances = np.abs(colours - pixels.mean((0, 1))).sum(1)
        assert distances.argmin() == partner


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_s_training_runs_is_resumed_and_opens_as_a_scorer(name, random_flux, textures, tmp_path):
    recipe = detector_recipe(name, random_flux, textures)
    ((step, metrics),) = training.train(recipe, tmp_path / "whole", resume=False)
    assert step == 2
    assert {f"auroc_{family}" for family in recipe.fakes} < set(metrics)
    kept = sorted(file.name for file in (tmp_path / "whole").glob("fakes-*"))
    assert kept == sorted(f"fakes-{part}-{family}.npz" for part in ("train", "apart") for family in recipe.fakes)
    assert weights_of(resumed(recipe, tmp_path / "cut")) == weights_of(tmp_path / "whole")
    plugin, options = ("residual", {}) if recipe.network == "residual" else ("image_classifier", {"real_label": "real"})
    values = scores_of(plugin, tmp_path / "whole" / "model", textures, **options)
    assert all(0 <= value <= 1 for value in values)
    assert len(values) == 3


def test_fakes_are_made_once_a_run(random_flux, textures, tmp_path, monkeypatch):
    from realgen.train import fakes

    recipe = detector_recipe("detector-residual", random_flux, textures)
    first = training.build_trainer(recipe, tmp_path)
    made = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("fakes-*")}
    for maker in ("drawn", "redrawn"):
        monkeypatch.setattr(fakes, maker, None)
    again = training.build_trainer(recipe, tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("fakes-*")} == made
    for (pixels, partner), (other, others) in zip(first.fakes, again.fakes, strict=True):
        assert np.array_equal(pixels, other)
        assert partner == others
    with pytest.raises(TypeError, match="not callable"):  # another seed's are others
        training.build_trainer(detector_recipe("detector-residual", random_flux, textures, "seed=1"), tmp_path)


def test_a_detector_without_a_photograph_of_its_sources_says_so(random_flux, textures, tmp_path):
    recipe = detector_recipe("detector-residual", random_flux, textures, "sources=[nowhere]")
    with pytest.raises(DataError, match="no photograph of 64 x 64 from nowhere"):
        training.build_trainer(recipe, tmp_path)


def test_an_alignment_s_trainer_from_its_recipe(random_flux, textures, tmp_path):
    from transformers import CLIPTextModel

    recipe = alignment_recipe(random_flux, textures, "seed=5", "learning_rate=0.25", "ema_decay=0.5")
    trainer = training.build_trainer(recipe, tmp_path)
    assert (len(trainer.photographs), len(trainer.held_out)) == (36, 4)
    assert trainer.pixels.shape == (36, 64, 64, 3)
    assert (trainer.seed, trainer.learning_rate, trainer.ema.decay) == (5, 0.25, 0.5)
    source = CLIPTextModel.from_pretrained(random_flux / "text_encoder").state_dict()
    copied = trainer.model.text_model.state_dict()
    assert all(torch.equal(value, copied[name.removeprefix("text_model.")]) for name, value in source.items())
    assert list(tmp_path.iterdir()) == []


def test_an_alignment_training_runs_is_resumed_and_opens_as_a_scorer(random_flux, textures, tmp_path):
    recipe = alignment_recipe(random_flux, textures)
    ((step, metrics),) = training.train(recipe, tmp_path / "whole", resume=False)
    assert step == 2
    assert {"loss", "recall_1", "recall_5", "zero_shot"} <= set(metrics)
    assert weights_of(resumed(recipe, tmp_path / "cut")) == weights_of(tmp_path / "whole")
    values = scores_of("dual_encoder", tmp_path / "whole" / "model", textures)
    assert all(-1 <= value <= 1 for value in values)
    assert len(set(values)) == 3
