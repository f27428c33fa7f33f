"""Fine-tuning on few labels: a share of each class's images, or some of each, as the seed chooses them.

It is `spark-eval finetune` with `labels.fraction` or `labels.per_class`. Of the seeds that `labels.seeds` lists, the
subsets are part of the protocol, so that runs of these seeds may be averaged; a subset of more images contains that
of fewer with the same seed. Which images a run had is written to its `labelled_images.txt`.
"""

from __future__ import annotations

from eval_suite.classification.finetune_config import FinetuneConfig
from eval_suite.task import Cost, Work
from eval_suite.tasks.imagenet_finetune import FEW_SHOT, VERSIONS, ImagenetFinetune
from spark.errors import UserError


class FewShot(ImagenetFinetune):
    """`spark-eval finetune` with limited labels."""

    name, version = FEW_SHOT, VERSIONS[FEW_SHOT]
    purpose = "fine-tune on 1 %, 10 % or k labels of each class, for listed seeds; top-1 and top-5 accuracy"

    def read(self, work: Work) -> FinetuneConfig:
        """Read the recipe.

        Raises:
            UserError: it is unsound, or limits no labels.
        """
        config = super().read(work)
        if not config.labels.limited:
            raise UserError(f"{work.recipe}: the task {FEW_SHOT} needs labels.fraction or labels.per_class")
        return config

    def cost(self, work: Work, images: int | None) -> Cost | None:
        """Count as for fine-tuning, on fewer images; of k per class, it is not known before how many that are."""
        fraction = self.read(work).labels.fraction
        return super().cost(work, round(images * fraction)) if images and fraction else None
