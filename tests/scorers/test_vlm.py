import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Machine
from realgen.core.types import Score
from realgen.scorers import _vlm
from realgen.scorers._answers import Written
from tiny_vlm import MAX_PIXELS, MIN_PIXELS, TEMPLATE, save_tiny_vlm

FLOAT32 = Machine(device="cpu", dtype="float32", batch=3)
WORDS = ["real", "Real", "fake", "Fake"]
SIZES = [(64, 64), (60, 100), (200, 57), (300, 300), (1, 1), (9, 3)]  # the fourth is larger than max_pixels
QUESTION = "real or fake?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def viewer(folder):
    return _vlm.load(str(folder), FLOAT32)


def pictures(sizes=SIZES):
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def slow_size(width, height, max_pixels=MAX_PIXELS):
    """The size that an image is resized to: multiples of 28, between the bounds, of about its aspect."""
    wide, high = (round(side / 28) * 28 for side in (width, height))
    if wide * high > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        return tuple(max(28, math.floor(side / shrink / 28) * 28) for side in (width, height))
    if wide * high < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (width * height))
        return tuple(math.ceil(side * grow / 28) * 28 for side in (width, height))
    return wide, high


def slow_patches(image, merge=2):
    """Patches (P, 3 * 2 * 14 * 14) of an image, block by block of `merge` x `merge`, each twice in time."""
    resized = image.resize(slow_size(*image.size), Image.Resampling.BICUBIC)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = ((np.asarray(resized) / 255 - mean) / std).transpose(2, 0, 1)
    rows, columns = resized.height // 14, resized.width // 14
    patches = []
    for top in range(0, rows, merge):
        for left in range(0, columns, merge):
            for row in range(top, top + merge):
                for column in range(left, left + merge):
                    patch = pixels[:, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
                    patches.append(np.stack([patch, patch], axis=1).ravel())
    return torch.tensor(np.array(patches), dtype=torch.float32), rows, columns


def slow_ids(tokenizer, num_image_tokens, question=QUESTION):
    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    after = f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    image = [tokenizer.convert_tokens_to_ids("<|image_pad|>")] * num_image_tokens
    return [*tokenizer.encode(before), *image, *tokenizer.encode(after)]


def slow_positions(num_before, num_after, high, wide):
    """M-RoPE (3, 1, T): text counts up; an image keeps its time, counts rows and columns; text goes on after both."""
    triples = [(i, i, i) for i in range(num_before)]
    triples += [(num_before, num_before + y, num_before + x) for y in range(high) for x in range(wide)]
    start = num_before + max(high, wide)
    triples += [(start + i,) * 3 for i in range(num_after)]
    return torch.tensor(triples).T[:, None]


def slow_logits(model, tokenizer, image, written=()):
    """Logits (V,) of what follows the chat about one image and the tokens written so far: one plain forward pass."""
    patches, rows, columns = slow_patches(image)
    ids = [*slow_ids(tokenizer, rows * columns // 4), *written]
    first = ids.index(tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    positions = slow_positions(first, len(ids) - first - rows * columns // 4, rows // 2, columns // 2)
    grid = torch.tensor([[1, rows, columns]])
    with torch.no_grad():
        answer = model(input_ids=torch.tensor([ids]), position_ids=positions, pixel_values=patches, image_grid_thw=grid)
    return answer.logits[0, -1]


@pytest.fixture(scope="module")
def parts(folder):
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def test_the_logits_are_those_of_one_plain_forward_pass_an_image(viewer, parts):
    model, tokenizer = parts
    images = pictures()
    for image, weights in zip(images, viewer.weigh(images, QUESTION, words=WORDS), strict=True):
        logits = slow_logits(model, tokenizer, image)
        expected = [logits[tokenizer.convert_tokens_to_ids(word)].item() for word in WORDS]
        assert [weights[word] for word in WORDS] == pytest.approx(expected, abs=1e-4)


def test_the_answer_is_the_likeliest_token_after_the_other(viewer, parts):
    """The checkpoint's own settings ask for sampling at a temperature of 9: they are not heeded."""
    model, tokenizer = parts
    images = pictures()[:2]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    answers = viewer.write(images, QUESTION, max_tokens=5)
    assert torch.equal(torch.get_rng_state(), before)
    for image, answer in zip(images, answers, strict=True):
        written = []
        for _ in range(5):
            written.append(slow_logits(model, tokenizer, image, written).argmax().item())
        assert answer == Written(tokenizer.decode(written, skip_special_tokens=True), is_complete=False)


def test_an_answer_that_the_model_ends_is_complete(folder):
    viewer = _vlm.load(str(folder), FLOAT32)
    first = viewer._model.generate(**viewer._inputs(pictures()[:1], QUESTION), max_new_tokens=1)[0, -1].item()
    viewer._model.generation_config.eos_token_id = [first]
    assert viewer.write(pictures()[:1], QUESTION, max_tokens=9)[0].is_complete


def test_a_batch_of_different_sizes_is_the_same_as_its_images_alone_in_any_order(viewer):
    images = pictures()
    alone = [viewer.weigh([image], QUESTION, words=WORDS)[0] for image in images]
    together = viewer.weigh(images, QUESTION, words=WORDS)
    backwards = viewer.weigh(images[::-1], QUESTION, words=WORDS)[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-5)
        assert list(three.values()) == pytest.approx(list(one.values()), abs=1e-5)
    assert np.std([weights["real"] for weights in alone]) > 0.1, "the images must matter"
    written = viewer.write(images, QUESTION, max_tokens=4)
    assert written == [viewer.write([image], QUESTION, max_tokens=4)[0] for image in images]
    assert viewer.weigh([], QUESTION, words=WORDS) == viewer.write([], QUESTION, max_tokens=4) == []


def test_there_is_one_image_token_for_every_merged_patch(viewer):
    inputs = viewer._inputs(pictures(), QUESTION)
    image_token = viewer._model.config.image_token_id
    counted = (inputs["input_ids"] == image_token).sum(dim=1)
    assert counted.tolist() == (inputs["image_grid_thw"].prod(dim=1) // 4).tolist()
    grids = [[1, high // 14, wide // 14] for wide, high in (slow_size(*size) for size in SIZES)]
    assert inputs["image_grid_thw"].tolist() == grids
    assert inputs["attention_mask"][:, -1].all(), "padding is on the left"
    assert not inputs["attention_mask"][:, 0].all()


def test_the_patches_are_pillows(viewer):
    expected = torch.cat([slow_patches(image)[0] for image in pictures()])
    assert torch.allclose(viewer._inputs(pictures(), QUESTION)["pixel_values"], expected, atol=1e-5)


def test_max_pixels_is_the_checkpoints_or_the_options(folder, viewer):
    def tokens(viewer, size):
        return viewer._inputs(pictures([size]), "")["image_grid_thw"].prod().item() // 4

    assert tokens(viewer, (280, 280)) == 36  # 6 x 6 of at most 40 = MAX_PIXELS / 28²
    assert tokens(_vlm.load(str(folder), FLOAT32, max_pixels=28 * 28 * 120), (280, 280)) == 100
    assert tokens(_vlm.load(str(folder), FLOAT32, max_pixels=28 * 28 * 9), (280, 280)) == 9


def test_a_strip_that_the_processor_refuses_has_a_reason_and_the_others_an_answer(viewer):
    strip, whole = viewer.weigh(pictures([(2, 402), (60, 60)]), QUESTION, words=WORDS)
    assert isinstance(strip, Score)
    assert "200 times" in strip.reason
    assert set(whole) == set(WORDS)
    assert isinstance(viewer.weigh(pictures([(2, 400)]), QUESTION, words=WORDS)[0], dict)


def test_half_precision_is_near_and_weights_are_frozen(folder, viewer):
    half = _vlm.load(str(folder), Machine(device="cpu", dtype="bfloat16"))
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}
    assert not half._model.training
    assert not any(parameter.requires_grad for parameter in half._model.parameters())
    for rough, exact in zip(
        half.weigh(pictures(), QUESTION, words=WORDS), viewer.weigh(pictures(), QUESTION, words=WORDS), strict=True
    ):
        assert list(rough.values()) == pytest.approx(list(exact.values()), abs=0.2)


def test_torchvision_is_not_needed(viewer):
    assert viewer.weigh(pictures()[:1], QUESTION, words=WORDS)
    assert "torchvision" not in sys.modules


def test_a_word_of_several_tokens_is_refused(viewer):
    with pytest.raises(ConfigError, match="genuine: no token"):
        viewer.weigh(pictures()[:1], QUESTION, words=["genuine", "fake"])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", "no chat template for images"),
        ("{{ raise_exception('text only') }}", "text only"),
        (TEMPLATE.replace("<|image_pad|>", ""), "0 images"),
    ],
)
def test_a_template_without_images_is_refused(tmp_path, template, message):
    with pytest.raises(ModelError, match=message):
        _vlm.load(str(save_tiny_vlm(tmp_path / "m", template=template)), FLOAT32)


def test_a_model_in_a_folder_below_is_found(tmp_path, viewer):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[]")
    save_tiny_vlm(tmp_path / "Forensic-Chat")
    found = _vlm.load(str(tmp_path), FLOAT32).weigh(pictures(), QUESTION, words=WORDS)
    assert found == viewer.weigh(pictures(), QUESTION, words=WORDS)
    save_tiny_vlm(tmp_path / "Second")
    with pytest.raises(ModelError, match="holds 2 models"):
        _vlm.load(str(tmp_path), FLOAT32)


def test_bad_models_are_named(folder, tmp_path):
    with pytest.raises(ModelError, match="no model at"):
        _vlm.load(str(tmp_path / "nowhere"), FLOAT32)
    other = save_tiny_vlm(tmp_path / "other", model_type="qwen2")
    with pytest.raises(ModelError, match="type qwen2, not qwen2_5_vl") as caught:
        _vlm.load(str(other), FLOAT32)
    assert "server" in caught.value.hint
    config = save_tiny_vlm(tmp_path / "broken") / "config.json"
    config.write_text(config.read_text()[:-9])
    with pytest.raises(ModelError, match="cannot load"):
        _vlm.load(str(config.parent), FLOAT32)


def test_weights_that_are_missing_are_not_drawn_at_random(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    file = save_tiny_vlm(tmp_path / "m") / "model.safetensors"
    tensors = load_file(file)
    del tensors["visual.merger.mlp.0.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, such as .*merger\.mlp\.0\.bias"):
        _vlm.load(str(file.parent), FLOAT32)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="damaged"):
        _vlm.load(str(file.parent), FLOAT32)
