"""A temperature of the job: whose it is, and where it can be learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdcli.distill.build_terms import JobLoss, _standardization
from kdcli.distill.mimickers.mimicker import StepInfo
from kdcli.distill.terms import Term, keyword_names
from kdcli.errors import SpecError
from kdcli.losses import LOSSES
from kdcli.losses.crd import ContrastiveRepresentation
from kdcli.records import Step
from kdcli.spec.schema import Job, LossSpec
from kdcli.training.guard import prove_losses
from kdcli.training.train import train
from tests.distill.methods import METHODS, mimic_of
from tests.distill.specs import TEACHER, spec_with
from tests.training.runs import run_of

LEARNED = {"learned": True}
SOFTENED = sorted(name for name, record in LOSSES.items() if record.softened)


def term_of(run: Any, name: str) -> Term:
    term = run.trainee.mimickers["mimic_job0"].term_of(name)
    assert isinstance(term, Term)
    return term


def test_every_loss_with_a_temperature_of_its_distributions_says_so() -> None:
    with_t = {name for name in LOSSES if "T" in keyword_names(LOSSES[name].load())}
    assert with_t == {*SOFTENED, "crd", "fgd", "prototypes"}


def test_the_jobs_temperature_reaches_its_losses_and_not_crds_contrast() -> None:
    mimic = mimic_of("crd", TEACHER)
    mimic["cfgs"]["soft"] = {"type": "srd"}
    with run_of(spec_with({**mimic, "temperature": 4.0})) as run:
        contrast = term_of(run, "teacher0.loss").calls[0]
        assert isinstance(contrast, ContrastiveRepresentation) and contrast.T == 0.07
        assert term_of(run, "teacher0.soft").calls[0].T == 4.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["crd", "at"])
def test_a_temperature_that_no_loss_of_the_job_takes_is_told(name: str) -> None:
    with (
        pytest.raises(SpecError, match="`temperature` does nothing here") as caught,
        run_of(spec_with({**mimic_of(name, TEACHER), "temperature": 4.0})),
    ):
        pass
    assert caught.value.diagnostics[0].code == "KD452"


@pytest.mark.parametrize("name", SOFTENED)
def test_a_temperature_is_learned_where_a_function_takes_it(name: str) -> None:
    parsed = spec_with({**mimic_of(name, TEACHER), "temperature": LEARNED})
    if name in ("srd", "wkd_l"):
        with pytest.raises(SpecError, match="can't learn one") as caught, run_of(parsed):
            pass
        assert caught.value.diagnostics[0].code == "KD452"
        return
    with run_of(parsed) as run:
        theta = "mimickers.mimic_job0.terms.teacher0:loss.temperature.theta"
        if name == "tfkd_reg":
            theta = theta.replace("teacher0:", "")
        assert theta in prove_losses(run).reach[f"mimic_job0.{'' if name == 'tfkd_reg' else 'teacher0.'}loss"]
        assert theta in run.trainee.state_dict()
        assert not any("theta" in key for key in run.deployed.exported_state())


def test_training_moves_a_learned_temperature() -> None:
    with run_of(spec_with({**mimic_of("kd_loss", TEACHER), "temperature": LEARNED})) as run:
        term = term_of(run, "teacher0.loss")
        assert term.temperature is not None
        assert len([record for record in train(run) if isinstance(record, Step)]) == 4
        assert float(term.temperature.theta.detach()) != 1.0


def test_a_learned_temperature_rises_against_the_student() -> None:
    with run_of(spec_with({**mimic_of("kd_loss", TEACHER), "temperature": {**LEARNED, "start": 1.0}})) as run:
        term = term_of(run, "teacher0.loss")
        assert term.temperature is not None
        assert float(term.temperature(0.0).detach()) == pytest.approx(
            1 + 20 / (1 + 2.718281828**-1), rel=1e-5
        )
        batch = dict(next(run.train_loader.batches(0)))
        views = {"teacher0": run.teachers["teacher0"].view(batch)}
        theta = term.temperature.theta
        gradients = []
        for epoch in (0.0, 9.0):
            loss = run.trainee(batch, views, StepInfo(epoch=epoch))["mimic_job0.teacher0.loss"]
            gradients.append(float(torch.autograd.grad(loss, theta)[0]))
        # λ is (cos(π/10) − 1)/2 in the first epoch and −1 in the tenth.
        assert gradients[0] / gradients[1] == pytest.approx(0.0244717, rel=1e-3)


def test_standardising_is_for_logits() -> None:
    mimic = mimic_of("kd_loss", TEACHER)
    mimic["cfgs"]["other"] = {"type": "l2_loss"}
    with run_of(spec_with({**mimic, "standardize": True})) as run:
        assert term_of(run, "teacher0.loss").standardize and not term_of(run, "teacher0.other").standardize
    with (
        pytest.raises(SpecError, match="compares no logits") as caught,
        run_of(spec_with({**mimic_of("at", TEACHER), "standardize": True}, "saver.save_dir=b")),
    ):
        pass
    assert caught.value.diagnostics[0].code == "KD452"


def test_features_are_standardised_for_losses_that_compare_them() -> None:
    mimic = mimic_of("l2_loss", TEACHER)
    mimic["cfgs"]["soft"] = {"type": "kl_loss", "adapter": "auto"}
    with run_of(spec_with({**mimic, "standardize": "global"})) as run:
        assert [len(term_of(run, f"teacher0.{name}").standardizers) for name in ("loss", "soft")] == [1, 0]


@pytest.mark.parametrize(
    ("loss", "job", "why"),
    [
        ({"type": "kl_loss", "standardize": "phi_s", "adapter": "auto"}, {}, "takes the teacher's values as"),
        ({"type": "kl_loss", "adapter": "auto"}, {"standardize": "phi_s"}, "takes the teacher's values as"),
        ({"type": "logit_mse"}, {"standardize": "mean_std"}, "compares logits, which `standardize: true`"),
    ],
)
def test_other_losses_need_the_teachers_features_as_they_are(
    loss: dict[str, Any], job: dict[str, Any], why: str
) -> None:
    mimic = {**mimic_of("logit_mse" if loss["type"] == "logit_mse" else "kl_loss", TEACHER), **job}
    mimic["cfgs"] = {"loss": loss}
    with pytest.raises(SpecError, match=why) as caught, run_of(spec_with(mimic)):
        pass
    assert caught.value.diagnostics[0].code == "KD452"


def test_other_methods_compare_no_layers_as_they_are() -> None:
    job = Job(mimic_ins_type="FGD", standardize="phi_s")
    context: Any = SimpleNamespace(job=job, path=("mimic",))
    loss = JobLoss(context=context, name="loss", loss=LossSpec(type="l2_loss"), teacher="teacher0")
    with pytest.raises(SpecError, match=r"KD452.*`l2_loss` is computed by `FGD`") as caught:
        _standardization(loss)
    assert caught.value.diagnostics[0].path == ("mimic", "standardize")


def test_bce_without_logits_has_no_temperature_to_learn() -> None:
    mimic = {**mimic_of("bce_loss", TEACHER), "temperature": LEARNED}
    mimic["cfgs"]["loss"]["kwargs"] = {}
    assert METHODS["bce_loss"].kwargs == {"from_logits": True}
    with pytest.raises(SpecError, match="only with `from_logits: true`"), run_of(spec_with(mimic)):
        pass
