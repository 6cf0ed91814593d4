"""The smallest model that each generator's file can load: plug-in -> (an empty folder) -> its options.

A new file in the room needs an entry here; the contract tests fail without one. Classes and layouts are those of the
published checkpoints; widths, depths and vocabularies are not, and the weights are random.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from conftest import letter_tokenizers, save_random_flux
from lasting import lasting
from qwen3 import SPECIALS, TEMPLATE, words_of

# Words of the text that Qwen-Image puts before every prompt: with them its beginning has 34 tokens, as in the original.
INSTRUCTION = (
    "system user assistant Describe the image by detailing the color shape size texture quantity text spatial "
    "relationships of the objects and background"
)


def flux(folder: Path):
    save_random_flux(folder)
    return {"model": str(folder), "max_text_tokens": 32}


def pretrained(folder: Path):
    save_random_flux(folder)
    return {"model": str(folder)}


def sd3(folder: Path):
    save_random_sd3(folder)
    return {"model": str(folder), "max_text_tokens": 32}


def z_image(folder: Path):
    save_random_z_image(folder)
    return {"model": str(folder), "max_text_tokens": 96}


def qwen_image(folder: Path):
    save_random_qwen_image(folder)
    return {"model": str(folder), "max_text_tokens": 96}


FACTORIES = {
    "flux": flux,
    "pretrained": pretrained,
    "qwen_image": qwen_image,
    "sd3": sd3,
    "z_image": z_image,
}


@cache
def options_of(name: str):
    """Options of the plug-in's tiny model, which is made once a session and must not be written to."""
    return FACTORIES[name](Path(lasting.enter_context(TemporaryDirectory())))


def save_random_sd3(folder: Path, *, seed: int = 0) -> None:
    """As SD3.5: normalised queries and keys, a second attention in the first block, three text encoders."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    tokenizer, t5 = letter_tokenizers(folder)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": len(tokenizer)}
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    encoders = [CLIPTextModelWithProjection(CLIPTextConfig(projection_dim=wide, **ends, **size)) for wide in (6, 10)]
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(),
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=24, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.1)
        ),
        tokenizer_3=t5,
        transformer=SD3Transformer2DModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
    ).save_pretrained(folder)


def save_random_z_image(folder: Path, *, seed: int = 0, **scheduler) -> None:
    """As Z-Image: Qwen3, refiners before the layers, one static shift."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = word_tokenizer()
    torch.manual_seed(seed)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
        vae=autoencoder(),
        text_encoder=Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), head_dim=8, **language_size())),
        tokenizer=tokenizer,
        transformer=transformer,
    ).save_pretrained(folder)


def save_random_qwen_image(folder: Path, *, seed: int = 0) -> None:
    """As Qwen-Image: Qwen2.5-VL, an autoencoder of films, the published schedule."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = word_tokenizer()
    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {"vocab_size": len(tokenizer), "rope_parameters": rope, **language_size()}
    sight = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 16}
    torch.manual_seed(seed)
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
        ),
        vae=AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.7, 0.1, 0.9, 0.0],
            latents_std=[2.8, 1.4, 0.8, 1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    ).save_pretrained(folder)


def autoencoder():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.7,
        shift_factor=0.1,
    )


def language_size():
    return {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.5,
    }


def word_tokenizer():
    """Qwen's tokenizer of bytes and of the instruction's words, with a chat template."""
    from transformers import Qwen2Tokenizer

    vocabulary, merges = words_of(INSTRUCTION)
    for word in INSTRUCTION.split():  # at a line's beginning, without the space before it
        for length in range(2, len(word) + 1):
            if word[:length] not in vocabulary:
                vocabulary[word[:length]] = len(vocabulary)
                merges.append((word[: length - 1], word[length - 1]))
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=merges, extra_special_tokens=SPECIALS[1:], model_max_length=4096
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
