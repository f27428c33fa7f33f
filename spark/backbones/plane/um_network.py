"""What the pyramid transformers of UM-MAE share: a stem of stride 4, stages in one flat list of blocks, timm's ways.

`embed`, `stem_norm` and `body` are the pieces that uniform masking works with; `forward` is the classifier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import Tensor, nn

from spark.backbones.plane.geometry import Layout, Whole

STRIDE = 4  # of the stem
HEAD_STD = 2e-5  # of a new classifier's weights


class PatchEmbed(nn.Module):
    """A convolution of one stride, and a norm."""

    def __init__(self, in_chans: int, width: int, norm: nn.Module) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, width, kernel_size=STRIDE, stride=STRIDE)
        self.norm = norm


class UMNetwork(nn.Module, ABC):
    """A pyramid transformer.

    Args:
        widths: of each stage.
        depths: blocks of each stage.
        img_size: side, or height and width, of the images that it is mostly used at.
        in_chans: channels of the images.
        num_classes: of the classifier; 0: the network ends with its norm, else with `fc_norm` over the mean and `head`.
        drop_path_rate: probability of the last block; it rises linearly.
        ignored: what `timm.create_model` passes to every network.
    """

    def __init__(
        self, widths: Sequence[int], depths: Sequence[int], *, img_size: int | Sequence[int] = 256, in_chans: int = 3,
        num_classes: int = 1000, drop_path_rate: float = 0.0, pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None, cache_dir: Any = None,
    ) -> None:
        super().__init__()
        self.widths, self.depths = list(widths), list(depths)
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.num_features = self.head_hidden_size = self.widths[-1]
        self.in_chans, self.num_classes = in_chans, num_classes
        self.pretrained_cfg = {
            "architecture": type(self).__name__, "input_size": (in_chans, *self.img_size), "classifier": "head",
        }
        self.patch_embed = PatchEmbed(in_chans, self.widths[0], self.build_stem_norm(self.widths[0]))
        rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        first = [0, *accumulate(depths)]
        self._stages = [range(start, end) for start, end in pairwise(first)]
        self.blocks = nn.ModuleList(
            self.build_block(stage, number - numbers.start, rates[number])
            for stage, numbers in enumerate(self._stages) for number in numbers
        )
        self.feature_info = [
            {"num_chs": width, "reduction": STRIDE << stage, "module": f"blocks.{numbers[-1]}"}
            for stage, (width, numbers) in enumerate(zip(self.widths, self._stages, strict=True))
        ]
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=1e-6)
        initialize_layers(self)
        self.reset_classifier(num_classes)

    @abstractmethod
    def build_stem_norm(self, width: int) -> nn.Module:
        """Return the norm after the stem."""

    @abstractmethod
    def build_block(self, stage: int, number: int, drop_path: float) -> nn.Module:
        """Return a block of a stage, with an attribute `downsample`: a module or None."""

    @abstractmethod
    def run_stage(self, x_BHWC: Tensor, blocks: Sequence[nn.Module], stride: int, layout: Layout) -> Tensor:
        """Run the blocks of a stage on its tokens, merged already."""

    def add_positions(self, x_BHWC: Tensor, layout: Layout) -> Tensor:
        """Add what tells tokens of the first stage where they are."""
        return x_BHWC

    def freeze_positions(self) -> None:
        """Fix what pre-training does not train, where there is such."""

    def check_plane(self, height: int, width: int, cell: int) -> None:
        """Make sure that a plane of height x width pixels, of cells of so many patches a side, is taken.

        Raises:
            UserError: it is not.
        """

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """Return the stem's tokens before its norm: [B, H / 4, W / 4, C]."""
        return self.patch_embed.proj(images_BCHW).permute(0, 2, 3, 1)

    def stem_norm(self, x_BHWC: Tensor) -> Tensor:
        """Normalize the stem's tokens, where it does."""
        return self.patch_embed.norm(x_BHWC)

    def stages(self, x_BHWC: Tensor, layout: Layout) -> list[Tensor]:
        """Return each stage's tokens [B, height, width, C], given the stem's."""
        x_BHWC = self.add_positions(x_BHWC, layout)
        outputs = []
        for stage, numbers in enumerate(self._stages):
            blocks = [self.blocks[number] for number in numbers]
            if stage:
                x_BHWC = cast(Any, blocks[0]).downsample(x_BHWC)
            x_BHWC = self.run_stage(x_BHWC, blocks, STRIDE << stage, layout)
            outputs.append(x_BHWC)
        return outputs

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, norm: bool = False, stop_early: bool = False,
        output_fmt: str = "NCHW", intermediates_only: bool = False,
    ) -> Any:
        """Return stages' maps [B, C, H, W], as timm's networks do; `norm` is of the last one."""
        maps = self.stages(self.stem_norm(self.embed(x)), Whole())
        last = self.norm(maps[-1])
        if norm:
            maps[-1] = last
        count = len(maps)
        wanted = range(count) if indices is None else (
            range(count - indices, count) if isinstance(indices, int) else indices
        )
        chosen = [maps[index].permute(0, 3, 1, 2) for index in wanted]
        return chosen if intermediates_only else (last.permute(0, 3, 1, 2), chosen)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's tokens, normalized where nothing else will do it: [B, H / 32, W / 32, C]."""
        return self.norm(self.stages(self.stem_norm(self.embed(x)), Whole())[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of tokens, or what the classifier reads."""
        pooled = self.fc_norm(x.mean((1, 2)))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of images."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the layer that classifies."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new classifier; without classes, it ends with the norm that pre-training uses."""
        width = self.num_features
        self.num_classes = num_classes
        if num_classes:
            self.norm = nn.Identity()
            self.fc_norm: nn.Module = nn.LayerNorm(width, eps=1e-6)
            self.head: nn.Module = nn.Linear(width, num_classes)
            trunc_normal_(self.head.weight, std=HEAD_STD)
            nn.init.zeros_(self.head.bias)
            return
        self.norm = nn.LayerNorm(width, eps=1e-6) if isinstance(self.norm, nn.Identity) else self.norm
        self.fc_norm, self.head = nn.Identity(), nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how parameters are grouped in layers: the stem, each block (coarse: each stage), the rest."""
        if coarse:
            stages = [
                ("|".join(rf"^blocks\.{number}\." for number in numbers), (stage,))
                for stage, numbers in enumerate(self._stages)
            ]
            return {"stem": r"^pos_embed|^patch_embed", "blocks": stages}
        return {"stem": r"^pos_embed|^patch_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that fine-tuning does not decay, beside vectors."""
        return {"pos_embed"}


def initialize_layers(network: nn.Module) -> None:
    """Initialize as UM-MAE does: Xavier for linear layers, He by fan-out for convolutions, Xavier again for stems."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
        elif isinstance(layer, nn.Conv2d) and name.endswith("patch_embed.proj"):
            nn.init.xavier_uniform_(layer.weight.view(len(layer.weight), -1))
        elif isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[:, 0].numel() // layer.groups
            nn.init.normal_(layer.weight, std=(2 / fan_out) ** 0.5)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
