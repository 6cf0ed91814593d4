"""Seconds and memory of GRPO on a FLUX.1-dev-shaped model of random weights, which needs no download.

    python benchmarks/flux_shaped.py FOLDER --batch 4 --batch 1        one GPU of 80 GB, 24 GB of disk
    python benchmarks/flux_shaped.py FOLDER --layers 1 2 --heads 2     to see that it runs, anywhere

Transformer and autoencoder have FLUX.1-dev's shapes; T5 and CLIP have its widths and 2 layers, since texts are encoded
once and these weights then leave. Tokenizers are the embedded model's. The recipe is flow-grpo-flux on 2 prompts of 4
images with 6 steps, a window of 2 and LoRA 64, scored by a fresh residual detector: a rollout and two optimiser steps.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from realgen.core import config
from realgen.core.spec import Machine
from realgen.hub.device import pick_device
from realgen.scorers.residual import ResidualNet
from realgen.train.loop import FlowGrpoTrainer
from realgen.wiring import training
from realgen.wiring.materials import embedded

PROMPTS = ("a red apple on a table", "a dog runs on the beach", "a portrait of an old man", "a house in the snow")


def write_model(folder: Path, *, layers: tuple[int, int], heads: int, device: torch.device) -> None:
    """A FLUX.1 folder of random bfloat16 weights: `layers` double and single blocks, `heads` heads of 128."""
    tiny = Path(embedded())
    tokenizers = [AutoTokenizer.from_pretrained(tiny / name) for name in ("tokenizer", "tokenizer_2")]
    clip = json.loads((tiny / "text_encoder" / "config.json").read_text())
    wide = heads == 24
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        transformer = FluxTransformer2DModel(
            num_layers=layers[0],
            num_single_layers=layers[1],
            num_attention_heads=heads,
            joint_attention_dim=4096 if wide else 64,
            guidance_embeds=True,
        )
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512) if wide else (32, 32, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        text_encoder = CLIPTextModel(CLIPTextConfig(**{**clip, "hidden_size": 768, "num_attention_heads": 12}))
        text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=8192,
                d_model=4096 if wide else 64,
                num_heads=64 if wide else 2,
                d_ff=10240 if wide else 128,
                num_layers=2,
                feed_forward_proj="gated-gelu",
            )
        )
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, max_image_seq_len=4096)
    FluxPipeline(
        scheduler, autoencoder, text_encoder, tokenizers[0], text_encoder_2, tokenizers[1], transformer
    ).save_pretrained(folder)


def measure(folder: Path, *, batch: int, size: int) -> dict[str, float]:
    """Seconds of the rollout and of the second update, and peaks of memory in GiB."""
    overrides = [
        f"generator.options={{model: {folder / 'model'}, size: [{size}, {size}], steps: 6, max_text_tokens: 64}}",
        f"prompts={folder / 'prompts.txt'}",
        f"eval_prompts={folder / 'prompts.txt'}",
        "scorers=null",
        f"scorers.cheap={{name: residual, options: {{model: {folder / 'scorer'}, temperature: 0.1}}}}",
        "reward=null",
        "reward.weights.cheap=1",
        "num_prompts=2",
        "group=4",
        "steps=2",
        "window={length: 2, first: 0, last: 0}",
        "evaluate_every=0",
        "machine.device=auto",
        "machine.dtype=bfloat16",
        f"machine.batch={batch}",
    ]
    run = folder / f"run-{batch}"
    shutil.rmtree(run, ignore_errors=True)
    found: dict[str, float] = {"batch": batch}
    update = FlowGrpoTrainer.update

    def watched(trainer: FlowGrpoTrainer, *args: object) -> dict[str, float]:
        found.setdefault("peak_rollout", _peak())
        figures = update(trainer, *args)
        found["peak_update"] = _peak()
        return figures

    FlowGrpoTrainer.update = watched
    try:
        for _ in training.train(config.load("flow-grpo-flux", overrides=overrides), run, resume=False):
            pass
    finally:
        FlowGrpoTrainer.update = update
    first, *_, last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return found | {"seconds_rollout": first["seconds_rollout"], "seconds_update": last["seconds_update"]}


def _peak() -> float:
    """GiB that tensors took at most since it was asked last; 0 where there is no GPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def main() -> None:
    """Write the model where it is not there yet, then measure each size of micro-batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, action="append", help="images of a micro-batch; may be given again")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--layers", type=int, nargs=2, default=(19, 38))
    parser.add_argument("--heads", type=int, default=24)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    ResidualNet().save_pretrained(options.folder / "scorer")
    if not (options.folder / "model" / "model_index.json").exists():
        device = pick_device(Machine())
        write_model(options.folder / "model", layers=tuple(options.layers), heads=options.heads, device=device)
    for batch in options.batch or [4]:
        found = measure(options.folder, batch=batch, size=options.size)
        print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
