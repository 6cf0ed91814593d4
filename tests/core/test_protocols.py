"""What the rooms promise, held against the classes that are handed about: the same members, the same words."""

import inspect

import pytest

from conftest import FLOAT32
from realgen.core import protocols
from realgen.core.protocols import FlowBackbone, Generator, PromptOptimizer
from realgen.generators import flux
from realgen.generators._flow import FlowGenerator
from realgen.generators.flux import FluxBackbone
from realgen.generators.pretrained import PretrainedGenerator
from realgen.generators.qwen_image import QwenImageBackbone
from realgen.generators.sd3 import SD3Backbone
from realgen.generators.z_image import ZImageBackbone
from realgen.prompt_optimizers.causal_lm import CausalLM
from realgen.prompt_optimizers.endpoint import Endpoint
from realgen.prompt_optimizers.template import Template

PAIRS = [
    (FlowBackbone, FluxBackbone),
    (FlowBackbone, QwenImageBackbone),
    (FlowBackbone, SD3Backbone),
    (FlowBackbone, ZImageBackbone),
    (Generator, FlowGenerator),
    (Generator, PretrainedGenerator),
    (PromptOptimizer, CausalLM),
    (PromptOptimizer, Endpoint),
    (PromptOptimizer, Template),
]
EACH = pytest.mark.parametrize(("promise", "kind"), PAIRS, ids=[kind.__name__ for _, kind in PAIRS])


def methods(promise):
    return {
        name: value
        for name, value in vars(promise).items()
        if inspect.isfunction(value) and (name == "__call__" or not name.startswith("_"))
    }


@EACH
def test_every_method_is_there_with_the_same_parameters(promise, kind):
    for name, promised in methods(promise).items():
        kept = inspect.signature(getattr(kind, name)).parameters
        asked = inspect.signature(promised).parameters
        assert list(kept)[: len(asked)] == list(asked), name
        for parameter in asked:
            assert kept[parameter].kind == asked[parameter].kind, (name, parameter)
            assert (kept[parameter].default is inspect.Parameter.empty) == (
                asked[parameter].default is inspect.Parameter.empty
            ), (name, parameter)


def test_every_promise_has_words():
    for promise in (FlowBackbone, Generator, PromptOptimizer):
        assert promise.__doc__
        assert all(method.__doc__ for method in methods(promise).values())


def test_a_built_flux_holds_every_attribute_that_is_promised(random_flux):
    options = flux.Options(model=str(random_flux), steps=1, size=(32, 32), max_text_tokens=32)
    generator = flux.build(options, FLOAT32)
    for promise, held in ((Generator, generator), (FlowBackbone, generator.backbone)):
        for name in (*promise.__annotations__, *methods(promise)):
            assert hasattr(held, name), name
    assert generator.backbone.module is generator.backbone.pipeline.transformer
    assert generator.max_text_tokens == generator.backbone.max_text_tokens == 32


def test_the_backbone_promises_what_the_sampler_needs():
    needed = {"num_text_tokens", "encode", "check_size", "noise", "sigmas", "velocity", "latents", "decode"}
    assert set(methods(FlowBackbone)) == needed | {"can_read", "remember"}
    assert set(FlowBackbone.__annotations__) == {"module", "lora_targets", "max_text_tokens"}


def test_seeds_are_given_by_name_alone():
    for promise in (Generator, PromptOptimizer):
        parameter = inspect.signature(promise.__call__).parameters["seeds"]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_a_size_is_width_and_height():
    assert protocols.Size == tuple[int, int]
