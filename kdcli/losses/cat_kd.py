"""Class attention transfer: for each class, where a network sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdcli.errors import RunError
from kdcli.losses.parts.directions import normalized
from kdcli.losses.parts.inputs import full_precision, only_maps, shown
from kdcli.losses.parts.stateful import StatefulLoss
from kdcli.spec.ranges import Count


class ClassAttention(StatefulLoss):
    """Mean squared error between class activation maps pooled to resolution × resolution (CAT-KD).

    With normalize each pooled map is divided by its L2 norm; one of zeros stays 0. The teacher's
    activation maps are its last map through the weights of its linear classifier; the student's its last
    map through a trained 1×1 convolution without bias, `student_classifier`. A tapped map with as many
    channels as there are classes is taken as activation maps as it is: in a network whose head is a 1×1
    convolution before pooling, as the authors build it, tap that convolution.
    Taps: the last map before pooling, or the 1×1 convolution that classifies before pooling.
    Source: "Class Attention Transfer Based Knowledge Distillation", arXiv:2304.12777.
    """

    teacher_weight: Tensor

    def __init__(
        self,
        student_shape: Sequence[int],
        teacher_shape: Sequence[int],
        teacher_classifier: nn.Module,
        *,
        resolution: Count = 2,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.resolution, self.normalize = resolution, normalize
        weight = weight_of(teacher_classifier)
        classes = len(weight)
        s_channels, t_channels = only_maps(student_shape, "cat_kd")[1], only_maps(teacher_shape, "cat_kd")[1]
        if t_channels not in (classes, weight.shape[1]):
            raise RunError.of(
                "KD450",
                f"`cat_kd`: the teacher's classifier takes {weight.shape[1]} channels, "
                f"and the tapped map is {shown(teacher_shape)}",
                "name the teacher's last map before pooling",
            )
        self.teacher_is_activation = t_channels == classes
        self.register_buffer("teacher_weight", weight.detach().clone(), persistent=False)
        self.student_classifier = (
            nn.Identity() if s_channels == classes else nn.Conv2d(s_channels, classes, 1, bias=False)
        )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """A scalar, averaged over batch, classes and positions."""
        if not self.teacher_is_activation:
            teacher = F.conv2d(teacher, self.teacher_weight.to(teacher.dtype))
        s, t = self._pooled(self.student_classifier(student)), self._pooled(teacher)
        if self.normalize:
            s, t = normalized(s, t, (2, 3))
        return F.mse_loss(s, t)

    def _pooled(self, activation: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(activation, self.resolution)


def weight_of(classifier: nn.Module) -> Tensor:
    """The weights [K, C, 1, 1] of the one linear layer or 1×1 convolution in a classifier."""
    layers = [m for m in classifier.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    if len(layers) == 1:
        weight: Tensor = layers[0].weight
        if weight.dim() == 2:
            return weight[:, :, None, None]
        if weight.shape[2:] == (1, 1):
            return weight
    raise RunError.of(
        "KD450",
        "`cat_kd` reads the weights of the teacher's one linear classifier, and it has none or several",
        "choose a teacher that ends in pooling and a linear layer",
    )
