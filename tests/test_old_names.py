"""Names that users import stay where they were."""

from __future__ import annotations

import utils.losses


def test_the_names_of_the_models_the_losses_and_the_set_up():
    from clip.model import CLIP, MultiLayerTransformer, VisualTransformer, build_model  # noqa: F401
    from trainers.LaFTer_multilayer import (  # noqa: F401
        MultiLayerLaFTer,
        MultiStageConsistencyLoss,
        NeighborhoodGaussianAggregation,
    )
    from utils.utils import (  # noqa: F401
        ConstantWarmupScheduler,
        DualTaskLoss,
        setup_lafter_training_utils,
        setup_text_training_utils,
    )

    assert DualTaskLoss is utils.losses.DualTaskLoss
    assert MultiStageConsistencyLoss is utils.losses.MultiStageConsistencyLoss
