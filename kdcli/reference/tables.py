"""Every table of names that a spec may use, in one object; torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.data import BATCH_FNS, DATASETS, EVALUATORS, IMAGE_READERS, SAMPLERS, TRANSFORMS
from kdcli.distill import ADAPTERS
from kdcli.distill.mimickers import MIMICKERS
from kdcli.losses import LOSSES
from kdcli.models import MODULES
from kdcli.spec.tables import Tables
from kdcli.tasks import TASKS


def tables(plugins: Sequence[str] = ()) -> Tables:
    """The tables of kdcli; plugins: packages whose code the command line allows."""
    return Tables(
        losses=LOSSES,
        mimickers=MIMICKERS,
        modules=MODULES,
        adapters=ADAPTERS,
        datasets=DATASETS,
        transforms=TRANSFORMS,
        batch_fns=BATCH_FNS,
        image_readers=IMAGE_READERS,
        samplers=SAMPLERS,
        evaluators=EVALUATORS,
        tasks=TASKS,
        plugins=plugins,
    )
