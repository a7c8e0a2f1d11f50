"""What a student costs that answers the same at every place of every image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.distill.layouts import Layout
from kdcli.distill.mimickers.mimicker import Scaling, StepInfo
from kdcli.distill.standardize import Standardizer
from kdcli.distill.terms import TapPair, TapSide, Term, binding_of, constant_answer
from kdcli.losses import LOSSES, loss_of
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.training.guard import prove_losses
from tests.training.runs import SPEC, run_of, spec_of

FEATURES = (
    "mimic.cfgs={loss: {type: l2_loss, kwargs: {feat_norm: false, batch_mean: false}}}",
    "mimic.adapter=auto",
    "mimic.teacher0.mimic_name=[model.layer3]",
    "mimic.student.mimic_name=[model.layer3]",
)


def side(shape: tuple[int, ...]) -> TapSide:
    kinds: dict[int, Any] = {2: "vector", 3: "tokens", 4: "map"}
    layout = Layout(kind=kinds[len(shape)], channel_axis=2 if len(shape) == 3 else 1)
    return TapSide(name="x", tap="x", number=0, shape=torch.Size(shape), layout=layout)


def term_of(name: str, shape: tuple[int, ...], student: tuple[int, ...] | None = None, **kwargs: Any) -> Term:
    binding = binding_of(loss_of(name))
    facts = {"student_shape": student or shape, "teacher_shape": shape}
    return Term(
        "loss",
        name,
        [TapPair(student=side(student or shape), teacher=side(shape))],
        binding=binding,
        calls=[binding.make(facts, kwargs if binding.stateful else {})],
        teacher="teacher0",
        kwargs={} if binding.stateful else kwargs,
        loss_weight=2.0,
    )


def cost(term: Term, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> float:
    """The least that a constant answer costs, over the ways of scaling."""
    masks = None if mask is None else [mask]
    ways: tuple[Scaling, ...] = ("none", "image", "place")
    return min(float(term([student], [teacher], {}, StepInfo(), masks, constant=way)) for way in ways)


def test_the_answer_by_hand() -> None:
    """Of two vectors 0 and 2 the mean of all is on average as far as their unbiased variance, 2."""
    teacher = torch.tensor([[0.0], [2.0]])
    answer = constant_answer(teacher, 1, "none")
    assert float((answer - teacher).square().mean()) == pytest.approx(2.0)
    # A map: within an image the places differ by nothing that a mean over images could hide.
    places = torch.tensor([[[[0.0, 2.0]]], [[[4.0, 6.0]]]])
    answer = constant_answer(places, 1, "none")
    assert answer.shape == places.shape and bool((answer[..., 0] == answer[..., 1]).all())
    assert float((answer - places).square().mean()) == pytest.approx(1.0 + 8.0)


def test_the_answer_is_the_mean_of_the_places_under_the_mask() -> None:
    teacher = torch.full((100, 1, 2, 2), 5.0)
    teacher[:, :, 0, 0] = 1.0
    mask = torch.zeros(100, 1, 2, 2)
    mask[:, :, 0, 0] = 1.0
    mask[0] = 0.0  # an image without a box
    assert torch.allclose(constant_answer(teacher, 1, "none", mask), torch.ones(()))
    assert cost(term_of("l2_loss", (100, 1, 2, 2)), teacher, teacher, mask) == pytest.approx(0.0, abs=1e-6)


def test_of_unlike_sizes_the_teacher_is_averaged_as_the_loss_does_it() -> None:
    """AT averages the larger attention down: two by two places that are one to the student differ by nothing."""
    checked = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 2).expand(3, 5, 4, 4).contiguous()
    small = torch.rand(3, 2, 2, 2)
    assert cost(term_of("at", (3, 5, 4, 4), (3, 2, 2, 2)), small, checked) == pytest.approx(0.0, abs=1e-12)
    assert cost(term_of("at", (3, 5, 4, 4)), checked, checked) > 0.01


CASES = [(name, {}) for name, record in sorted(LOSSES.items()) if record.constant]
CASES += [("l2_loss", {"feat_norm": True})]


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_no_constant_costs_less(name: str, kwargs: dict[str, Any]) -> None:
    """The loss itself, minimised over one vector for all places of many images, ends at the cost."""
    draws = torch.Generator().manual_seed(0)
    teacher = torch.rand(64, 3, 2, 2, generator=draws) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    teacher = teacher * (0.5 + torch.rand(64, 1, 1, 1, generator=draws))
    term = term_of(name, tuple(teacher.shape), **kwargs)
    expected = cost(term, teacher, teacher)
    vector = nn.Parameter(torch.rand(3, generator=draws))
    optimizer = torch.optim.LBFGS([vector], max_iter=20, line_search_fn="strong_wolfe")
    call = term.calls[0]
    compare = call.of_answer if isinstance(call, StatefulLoss) else call

    def loss() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = 2.0 * compare(vector.view(1, 3, 1, 1).expand(teacher.shape), teacher, **term.kwargs)
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    # The mean of all images is not known: 64 of them lie nearer to their own.
    assert expected == pytest.approx(float(loss().detach()), rel=0.03)
    assert expected > 0


@pytest.mark.parametrize(("name", "kwargs"), [("cosine", {}), ("l2_loss", {"feat_norm": False})])
def test_of_standardised_features_it_costs_as_much_before_their_statistics_are_there(
    name: str, kwargs: dict[str, Any]
) -> None:
    """A batch without its own mean has none left: an answer moved away from each image would point away from it."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(2048, 24, generator=draws) * 3.0 + 5.0
    term = term_of(name, (64, 24), **kwargs)
    standardizer = Standardizer((64, 24), "mean_std", 2048)
    term.modules_of_teacher = nn.ModuleList([standardizer])
    before = cost(term, images[:64], images[:64])
    standardizer.prepare(images)
    standardizer.prepared()
    assert standardizer.is_ready
    after = cost(term, images[:64], images[:64])
    assert before == pytest.approx(after, rel=0.1)
    if name == "cosine":  # past the weight of 2: no direction is shared
        assert after == pytest.approx(2.0, rel=0.1)


def test_tokens_and_vectors_have_their_channels_last() -> None:
    tokens = torch.randn(32, 4, 3, generator=torch.Generator().manual_seed(1))
    as_map = tokens.transpose(1, 2).reshape(32, 3, 2, 2)
    of_tokens = cost(term_of("l2_loss", (32, 4, 3)), tokens, tokens)
    assert of_tokens == pytest.approx(cost(term_of("l2_loss", (32, 3, 2, 2)), as_map, as_map), rel=1e-5)


def test_the_guard_measures_it_at_the_full_weight() -> None:
    with run_of(spec_of(SPEC, *FEATURES, "mimic.loss_weight=3", "mimic.warm_up_iters=50")) as run:
        state = {name: value.clone() for name, value in run.trainee.state_dict().items()}
        found = prove_losses(run)
        batch = next(iter(run.train_loader.batches(0)))
        feature = run.teachers["teacher0"].view(batch).features["model.layer3"]
        assert isinstance(feature, Tensor)
        assert all(torch.equal(state[name], value) for name, value in run.trainee.state_dict().items())
    of_image = feature.mean((2, 3), keepdim=True)
    between = (of_image - of_image.mean(0)).square().mean() * len(feature) / (len(feature) - 1)
    within = (feature - of_image).square().mean()
    assert found.constants == {
        "mimic_job0.teacher0.loss": pytest.approx(3 * float(between + within), rel=1e-4)
    }


@pytest.mark.parametrize(
    "loss",
    ["{type: kd_loss}", "{type: rkd}", "{type: itrd}", "{type: sp}"],
    ids=["logits", "rkd", "itrd", "sp"],
)
def test_a_loss_without_a_meaning_for_it_has_none(loss: str) -> None:
    changes = ("mimic.teacher0.mimic_name=[logits]", "mimic.student.mimic_name=[logits]")
    with run_of(spec_of(SPEC, *changes, f"mimic.cfgs={{loss: {loss}}}")) as run:
        assert prove_losses(run).constants == {}


def test_a_batch_of_one_image_has_no_mean() -> None:
    changes = (
        "dataset.batch_sampler.kwargs.batch_size=1",
        "mimic.adapter={type: auto, kwargs: {norm: none}}",
    )
    with run_of(spec_of(SPEC, *FEATURES, *changes, "net.kwargs.widths=[2, 2, 4, 4]")) as run:
        assert prove_losses(run).constants == {}
