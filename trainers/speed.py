"""What changes how fast a run is, and its results by no more than rounding."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from torch import Tensor
from yacs.config import CfgNode

from clip.model import CLIP, VisualTransformer

log = logging.getLogger(__name__)

CPU_MICRO_BATCH = 10  # ViT-B/32's widest activations then stay under the size that glibc maps afresh each time
# Compiling takes about a minute; it pays beyond so much work, in FLOP. On a CPU it saved nothing measurable (ViT-B/32,
# batch 50, fp32: 6.12 s a step instead of 6.16); the figure for CUDA is an estimate
WORTH_COMPILING = {"cuda": 4e16}


def micro_batches(batch: dict[str, Tensor], size: int = 0) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of `size` images, the last one perhaps smaller. `size` 0: 10 on a CPU, all elsewhere.

    The parts' gradients, each times its share of the batch, add up to the batch's, in a part of its memory; on a CPU
    smaller parts are faster too.
    """
    images = next(batch[name] for name in ("strong", "weak") if name in batch)
    size = size or (CPU_MICRO_BATCH if images.device.type == "cpu" else len(images))
    for start in range(0, len(images), size):
        yield {name: column[start:start + size] for name, column in batch.items()}


def image_flops(visual: VisualTransformer, prompts: int = 0) -> float:
    """About the floating-point operations of one image's forward pass: 24 width² per token and block, and attention."""
    width, layers = visual.class_embedding.numel(), visual.transformer.layers
    tokens = len(visual.positional_embedding) + prompts
    return layers * tokens * (24 * width ** 2 + 4 * tokens * width)


def prepare_blocks(clip_model: CLIP, cfg: CfgNode, images: int) -> None:
    """Set MODEL.CHECKPOINT_GRADIENTS, and compile the image tower's blocks as MODEL.COMPILE says.

    `images` is how many images the run trains on in all, each epoch's counted: `auto` compiles where that much work
    is worth the wait, which depends on the settings and the kind of device alone, so that a run can be repeated. The
    compiled code is kept between runs by torch (TORCHINDUCTOR_CACHE_DIR). Where compiling fails, for want of a
    compiler as a rule, a line says so and the blocks stay as they are.
    """
    visual = clip_model.visual
    visual.transformer.checkpoint = cfg.MODEL.CHECKPOINT_GRADIENTS
    device = visual.proj.device
    work = 3 * images * image_flops(visual)  # the student forwards and backwards, the teacher forwards
    if cfg.MODEL.COMPILE == "off" or cfg.MODEL.COMPILE == "auto" and work < WORTH_COMPILING.get(device.type, torch.inf):
        return
    blocks = visual.transformer.resblocks
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 32)  # with and without gradients
    for block in blocks:
        block.compile()
    try:
        blocks[0](torch.zeros(2, len(visual.positional_embedding), visual.class_embedding.numel(), device=device,
                              dtype=visual.conv1.weight.dtype))
    except RuntimeError as error:  # torch's compile errors are of this kind
        log.info("the blocks are not compiled (%s)", " ".join(str(error).split("\n\n")[0].split()))
        for block in blocks:
            block._compiled_call_impl = None
