"""Whether a probe chooses the best student; torch-free."""

from __future__ import annotations

from kdcli.losses import loss_of
from kdcli.spec.check.labels import is_unlabelled, reads_labels
from kdcli.spec.schema import Spec


def chosen_by_probe(spec: Spec) -> bool:
    """Whether the best student is the one with the best probe: the run has a probe and trains no classifier.

    A classifier is trained by the task's loss, and by a loss that compares logits or gives the student another end.
    """
    if spec.dataset.probe is None or spec.mimic is None or not spec.distils:
        return False
    if is_unlabelled(spec.dataset.train) or is_unlabelled(spec.dataset.test):
        return True
    if reads_labels(spec):
        return False
    for job in spec.mimic.jobs.values():
        records = [loss_of(loss.type) for loss in job.losses.values()]
        if "logits" in job.student.mimic_name or any(r.kind == "logit" or r.replaces_end for r in records):
            return False
    return True
