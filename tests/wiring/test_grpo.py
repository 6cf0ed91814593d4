"""A recipe of kind flow_grpo through wiring and the command line, on a random FLUX.1 and an untrained classifier."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from diffusers import FluxPipeline

from generators.factories import FACTORIES
from realgen.core import config
from realgen.core.errors import ConfigError, InputError
from realgen.core.spec import Machine
from realgen.wiring import grpo, plan, policy, processes, training, use
from untrained import save_classifier


@pytest.fixture
def recipe(random_flux, tmp_path):
    """Path of a recipe whose steps take a fraction of a second."""
    save_classifier(tmp_path / "classifier", seed=0)
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n# no prompt\na cat\nthe sea\n", encoding="utf-8")
    classifier = {"name": "image_classifier", "options": {"model": str(tmp_path / "classifier"), "real_label": "real"}}
    options = {"model": str(random_flux), "steps": 3, "size": [32, 32], "max_text_tokens": 24, "guidance": 3.0}
    values = {
        "kind": "flow_grpo",
        "generator": {"name": "flux", "options": options},
        "scorers": {"real": classifier},
        "reward": {"weights": {"real": 1}},
        "prompts": str(tmp_path / "prompts.txt"),
        "eval_prompts": str(tmp_path / "prompts.txt"),
        "num_prompts": 2,
        "group": 2,
        "updates": 2,
        "steps": 4,
        "window": {"length": 2},
        "clip": 1e-3,
        "learning_rate": 1e-3,
        "lora": {"rank": 2, "alpha": 4},
        "evaluate_every": 2,
        "snapshots": [0.5],
        "save_minutes": 1e-9,
        "machine": {"device": "cpu", "dtype": "float32", "batch": 2, "threads": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def run(*words, **environment):
    command = [sys.executable, "-m", "realgen.apps.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_a_run_leaves_what_the_docs_say_and_its_lora_loads_into_a_stock_pipeline(recipe, random_flux, tmp_path):
    merged = config.load(recipe)
    steps = list(training.train(merged, tmp_path / "run", resume=False))
    assert [step for step, _ in steps] == [0, 1, 2, 3, 4]
    assert {"score_real", "groups_dropped", "kl", "sharpness"} <= steps[1][1].keys()
    for evaluated in (0, 2, 4):
        assert {"eval_real", "eval_total", "eval_sharpness"} <= steps[evaluated][1].keys()
    folder = tmp_path / "run"
    assert json.loads((folder / "circumstances.json").read_text())["threads"] == 1
    assert json.loads((folder / "self_checks.json").read_text())["ratio_drift"] == 0
    kept = json.loads((folder / "texts.json").read_text())
    assert kept["train"] == [[one, one] for one in ("a cat", "a dog", "the sea")]
    assert json.loads((folder / "best.json").read_text())["figure"] == "eval_total"
    assert sorted(file.name for file in (folder / "samples").iterdir()) == [f"000000{step}.png" for step in (0, 2, 4)]
    assert (folder / "snapshots/050/pytorch_lora_weights.safetensors").is_file()
    pipeline = FluxPipeline.from_pretrained(random_flux)
    pipeline.load_lora_weights(folder / "model")
    assert pipeline.get_active_adapters()


def test_a_prompt_optimiser_writes_the_texts_once(recipe):
    merged = config.load(recipe, overrides=["prompt_optimizer={name: template, options: {pattern: 'x {prompt}'}}"])
    found = grpo.texts_of(merged, policy.build_generator(merged))
    assert found["train"] == found["eval"] == [(one, f"x {one}") for one in ("a cat", "a dog", "the sea")]


def test_a_text_that_is_too_long_is_an_error_before_anything_is_drawn(recipe, tmp_path):
    (tmp_path / "prompts.txt").write_text("a very long prompt that does not fit\n", encoding="utf-8")
    merged = config.load(recipe)
    with pytest.raises(InputError, match="24"):
        grpo.texts_of(merged, policy.build_generator(merged))


@pytest.mark.parametrize(
    ("overrides", "said", "hint"),
    [
        (["window.last=2"], "may reach step 4, and there are 3", "window.last=1"),
        (
            ["sampler=cps", "ratio=plain", "window.last=1"],
            "may reach step 3, and there are 2",
            "window.last=0",
        ),
    ],
)
def test_generators_that_cannot_be_trained_so(recipe, overrides, said, hint):
    with pytest.raises(ConfigError, match=said) as error:
        policy.build_generator(config.load(recipe, overrides=overrides))
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("group=1", "group must be at least 2"),
        ("reward=null", "no reward"),
        ("updates=3", "nearest: updates=2"),
        ("steps=5", "nearest: steps=4"),
        ("window={first: 3, last: 1}", "at the earliest"),
        ("clipp=1", "unknown key 'clipp'"),
    ],
)
def test_recipes_that_make_no_sense_say_what_would(recipe, override, said):
    with pytest.raises(ConfigError) as error:
        config.load(recipe, overrides=[override])
    assert said in f"{error.value.message} {error.value.hint}"


def test_micro_batches_that_do_not_divide_name_what_would(recipe):
    merged = config.load(recipe, overrides=["group=3", "machine.batch=2"])
    with pytest.raises(ConfigError) as error:
        grpo.geometry_of(merged, 1)
    assert "machine.batch=1" in error.value.hint


def test_full_training_exports_a_pipeline(recipe, tmp_path):
    merged = config.load(recipe, overrides=["lora=null", "kl_weight=0.1", "evaluate_every=0"])
    list(training.train(merged, tmp_path / "run", resume=False))
    FluxPipeline.from_pretrained(tmp_path / "run/model")


def test_the_average_the_weights_as_they_are_and_all_merged_are_exported(recipe, random_flux, tmp_path):
    folder = tmp_path / "run"
    list(training.train(config.load(recipe, overrides=["evaluate_every=0"]), folder, resume=False))
    outs = {name: tmp_path / name for name in ("average", "raw", "merged")}
    policy.export(folder, outs["average"], is_raw=False, is_merged=False)
    policy.export(folder, outs["raw"], is_raw=True, is_merged=False)
    policy.export(folder, outs["merged"], is_raw=False, is_merged=True)
    lora = {name: out / "pytorch_lora_weights.safetensors" for name, out in outs.items()}
    assert lora["average"].read_bytes() == (folder / "model" / lora["average"].name).read_bytes()
    assert lora["raw"].read_bytes() != lora["average"].read_bytes()
    stock, merged = FluxPipeline.from_pretrained(random_flux), FluxPipeline.from_pretrained(outs["merged"])
    stock.load_lora_weights(outs["average"])
    pictures = [
        one("a cat", height=32, width=32, num_inference_steps=2, max_sequence_length=24, output_type="pt", **seeded())
        for one in (stock, merged)
    ]
    assert (pictures[0].images - pictures[1].images).abs().max() < 1e-4
    with pytest.raises(InputError, match="is not an empty folder"):
        policy.export(folder, outs["raw"], is_raw=True, is_merged=False)


def seeded():
    return {"generator": torch.Generator().manual_seed(0)}


def test_what_cannot_be_exported_says_so(recipe, tmp_path):
    from realgen.train.run import Run

    Run.create(tmp_path / "empty", config.load(recipe).model_dump(mode="json"))
    with pytest.raises(InputError, match="no checkpoint yet"):
        policy.export(tmp_path / "empty", tmp_path / "out", is_raw=False, is_merged=False)
    Run.create(tmp_path / "other", config.load("categories").model_dump(mode="json"))
    with pytest.raises(InputError, match="kind classifier"):
        policy.export(tmp_path / "other", tmp_path / "out", is_raw=False, is_merged=False)


def test_resuming_with_another_recipe_is_refused_with_the_difference(recipe, tmp_path):
    realgen_run = tmp_path / "run"
    list(training.train(config.load(recipe), realgen_run, resume=False))
    done = run("train", "--resume", realgen_run, "learning_rate=1")
    assert done.returncode == 2
    assert "learning_rate=1" in done.stderr
    assert "0.001" in done.stderr


def test_a_recipe_that_was_edited_in_the_folder_is_noticed(recipe, tmp_path):
    folder = tmp_path / "run"
    list(training.train(config.load(recipe), folder, resume=False))
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("learning_rate: 0.001", "learning_rate: 0.5"))
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.5"):
        list(training.train(training.recipe_of(folder, []), folder, resume=True))


def test_prompts_that_changed_do_not_change_a_run(recipe, tmp_path):
    folder = tmp_path / "run"
    started = training.train(config.load(recipe), folder, resume=False)
    for _ in range(3):
        next(started)
    started.close()
    (tmp_path / "prompts.txt").write_text("something else\n", encoding="utf-8")
    list(training.train(training.recipe_of(folder, []), folder, resume=True))
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_folder_in_which_another_process_trains_is_refused(recipe, tmp_path):
    folder = tmp_path / "run"
    started = training.train(config.load(recipe), folder, resume=False)
    next(started)
    with pytest.raises(InputError, match="another process trains in"):
        next(training.train(training.recipe_of(folder, []), folder, resume=True))
    started.close()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("machine.dtype=float16", "underflows"),
        ("machine.compile=true", "not for GRPO"),
        ("machine.offload=sequential", "come and go"),
        ("machine.shard=true lora=null", "trains LoRA only"),
        ("machine.quantize=nf4 lora=null", "quantised weights"),
        ("generator.options.lora=x", "switched off"),
    ],
)
def test_machines_that_cannot_train_so(recipe, override, said):
    with pytest.raises(ConfigError, match=said):
        policy.build_generator(config.load(recipe, overrides=override.split()))


@pytest.mark.parametrize("name", ["sd3", "z_image", "qwen_image"])
def test_every_backbone_trains_with_the_same_loop(recipe, name, tmp_path):
    (tmp_path / "model").mkdir()
    options = FACTORIES[name](tmp_path / "model") | {"steps": 3, "size": [32, 32], "guidance": 2.0}
    plug = json.dumps({"name": name, "options": options})
    overrides = ["generator=null", f"generator={plug}", "evaluate_every=4", "kl_weight=0.1", "snapshots=[]"]
    merged = config.load(recipe, overrides=overrides)
    steps = [metrics for _, metrics in training.train(merged, tmp_path / "run", resume=False)]
    assert steps[1]["log_ratio"] == 0
    assert all(metrics["grad_norm"] > 0 for metrics in steps[1:])
    assert (tmp_path / "run/model/pytorch_lora_weights.safetensors").is_file()


def test_in_bfloat16_with_all_weights(recipe, tmp_path):
    overrides = ["lora=null", "machine.dtype=bfloat16", "clip=0.5", "evaluate_every=4", "snapshots=[]"]
    steps = list(training.train(config.load(recipe, overrides=overrides), tmp_path / "run", resume=False))
    assert steps[-1][1]["eval_total"] > 0


@pytest.mark.parametrize(
    ("name", "processes"), [("flux", 7), ("flux-paper", 7), ("sd3", 7), ("z-image", 8), ("qwen-image", 8)]
)
def test_shipped_recipes_can_be_shared_by_as_many_gpus_as_published(name, processes):
    merged = config.load(f"flow-grpo-{name}", profile="gpus-8")
    assert grpo.geometry_of(merged, processes).num_accumulated == 12


def test_figures_go_to_tensorboard_as_well(recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["trackers=[tensorboard]", "evaluate_every=0", "snapshots=[]"]
    list(training.train(config.load(recipe, overrides=overrides), tmp_path / "run", resume=False))
    events = EventAccumulator(str(next((tmp_path / "run/tracker").rglob("*tfevents*")).parent)).Reload()
    assert [event.step for event in events.Scalars("kl")] == [1, 2, 3, 4]


def test_a_tracker_that_is_not_installed_is_an_error_at_once(recipe, monkeypatch):
    monkeypatch.setattr(policy, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="wandb is not installed"):
        policy.build_generator(config.load(recipe, overrides=["trackers=[wandb]"]))


def test_the_plan_counts_and_times(recipe):
    rows = dict(plan.plan(config.load(recipe)))
    assert rows["images a rollout"] == "4 (2 prompts x 2)"
    assert rows["processes x accumulated micro-batches x micro-batch"] == "1 x 1 x 2"
    assert rows["denoiser evaluations a rollout: drawn"] == "12"
    assert rows["denoiser evaluations a rollout: replayed, with gradient"] == "8"
    assert float(rows["seconds an optimiser step, about"]) >= 0
    assert rows["memory of transformer"].endswith("MiB")


def test_the_command_line_plans_only_grpo(recipe):
    done = run("check", "tiny", "--plan")
    assert done.returncode == 2
    assert "kind: flow_grpo" in done.stderr


def test_one_process_where_the_profile_wants_more():
    with pytest.raises(ConfigError, match=r"machine\.processes=8"):
        processes.join(Machine(processes=8))
    with pytest.raises(ConfigError, match="nobody to share with"):
        processes.join(Machine(shard=True))
    assert processes.join(Machine()).size == 1


def test_two_processes_through_the_command_line_write_one_run(recipe, tmp_path):
    words = ["--standalone", "--nproc-per-node", "2", "-m", "realgen.apps.cli", "train", recipe]
    more = ["--out", tmp_path / "run", "machine.processes=2", "machine.batch=1"]
    command = [sys.executable, "-m", "torch.distributed.run", *words, *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "run/circumstances.json").read_text())["processes"] == 2


def test_a_held_out_scorer_cannot_be_rewarded():
    merged = config.load("flow-grpo-flux", overrides=["reward.weights.held_out=1"])
    with pytest.raises(ConfigError, match="held out"):
        use.check(merged)
    wrapped = "scorers.held_out={name: augmented, card: null, options: {scorer: {name: effort, card: effort}}}"
    merged = config.load("flow-grpo-flux", overrides=["reward.weights.held_out=1", wrapped])
    with pytest.raises(ConfigError, match="held out"):
        use.check(merged)


def test_shipped_prompts_do_not_overlap():
    lists = {name: grpo.read_prompts(f"tiny-{name}") for name in ("train", "validation", "test")}
    assert len(lists["train"]) == 250
    together = [prompt for prompts in lists.values() for prompt in prompts]
    assert len(set(together)) == len(together)
