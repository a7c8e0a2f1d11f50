"""A network's names for those of a weights file: spellings, prefixes, torchvision's detectors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from kdcli.models.module import ViewModule
from kdcli.models.weight_states import WRAPPERS

CLASSIFIER = re.compile(r"(?:fc|linear|head|classifier|heads\.head)(?:\.\d+)?\.(weight|bias)")
"""Names of the last layer in bare classifiers."""

DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
"""How torchvision's old DenseNet files spell norm1 and conv2: norm.1, conv.2."""

COUNTER = "num_batches_tracked"

DETECTOR = ("backbone.body.", "backbone.fpn.")
"""What names of torchvision's detectors with a feature pyramid begin with."""

ROWS: tuple[tuple[str, str], ...] = (
    (r"backbone\.body\.conv1\.(.*)", r"layer0.0.\1"),
    (r"backbone\.body\.bn1\.(.*)", r"layer0.1.\1"),
    (r"backbone\.body\.(layer\d.*)", r"\1"),
    (r"backbone\.fpn\.extra_blocks\.p(\d)\.(.*)", r"p\1_conv.\2"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"conv3x3.\1"),
    (r"rpn\.head\.cls_logits\.(.*)", r"conv_cls.\1"),
    (r"rpn\.head\.bbox_pred\.(.*)", r"conv_loc.\1"),
    (r"roi_heads\.box_head\.(fc[67]\..*)", r"\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.*)", r"fc_rcnn_cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.*)", r"fc_rcnn_loc.\1"),
    (r"head\.classification_head\.cls_logits\.(.*)", r"cls_subnet_pred.\1"),
    (r"head\.regression_head\.bbox_reg\.(.*)", r"box_subnet_pred.\1"),
)
"""torchvision's names in Faster R-CNN and RetinaNet, and United-Perception's within the module that has them."""

LEVELS = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?\.(weight|bias)")
STACKS = re.compile(r"head\.(classification|regression)_head\.conv\.(\d)(?:\.0)?\.(weight|bias)")

RETINA_LOGITS = "head.classification_head.cls_logits."
RETINA_DELTAS = "head.regression_head.bbox_reg.bias"


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to read a file's names.

    names: for a name of the file, that which is looked for in the network; names that are not in it are not read.
    prefix: what was taken off. anchors: of the RetinaNet whose logits lose the background, by the file's names.
    detector: torchvision's name for each one looked for. notices: what a user is told where the network is filled
    this way.
    """

    names: Mapping[str, str]
    prefix: str = ""
    anchors: Mapping[str, int] = field(default_factory=dict)
    detector: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a tensor of the file has in the network."""
        count = self.anchors.get(key)
        return shape if count is None else (shape[0] - count, *shape[1:])

    def tensor(self, key: str, tensor: Tensor) -> Tensor:
        """A tensor of the file as the network has it."""
        count = self.anchors.get(key)
        if count is None:
            return tensor
        # torchvision's column 0 of each anchor is the background, which sigmoid has not: it is never a target.
        return tensor.reshape(count, -1, *tensor.shape[1:])[:, 1:].flatten(0, 1)


def renamed(net: nn.Module, keys: Sequence[str]) -> dict[str, str]:
    """The network's name for each of a file's names; a name that has none stays as it is.

    Second spellings (`backbone.conv1` is `backbone.layer0.0`), names without their module
    (torchvision's own: `layer1.0.conv1.weight`, `fc.weight`) and numbers of layers that have names
    (`neck.p2_conv.1` is `neck.p2_conv.bn`) are brought to the network's. A name that only repeats
    another one's tensor is left out.
    """
    own = set(net.state_dict())
    result: dict[str, str] = {}
    taken = own.intersection(keys)
    for key in keys:
        target = key if key in own else _own_name(net, own, _modern(key))
        if target != key and target in taken:
            continue
        taken.add(target)
        result[key] = target
    return result


def spellings(net: nn.Module, shapes: Mapping[str, tuple[int, ...]], least: int) -> Iterator[Spelling]:
    """The ways to read a file's names, the plainest first.

    least: so many tensors must be left where a prefix is taken off.
    """
    plain = {key: key for key in shapes}
    unwrapped = {key: ".".join(p for p in key.split(".") if p not in WRAPPERS) for key in shapes}
    yield from _read_as(net, Spelling(plain), shapes)
    said: tuple[str, ...] = ()
    if unwrapped != plain and len(set(unwrapped.values())) == len(unwrapped):
        words = sorted(WRAPPERS.intersection(part for key in shapes for part in key.split(".")))
        said = tuple(f"`{word}.` is taken off the names of its tensors" for word in words)
        plain = unwrapped
        yield from _read_as(net, Spelling(plain, notices=said), shapes)
    for prefix in _prefixes(plain.values(), least):
        names = {key: n.removeprefix(prefix) for key, n in plain.items() if n.startswith(prefix)}
        notice = f"`{prefix}` is taken off the names of its tensors"
        if beside := [key for key, name in plain.items() if not name.startswith(prefix)]:
            count = "1 other is" if len(beside) == 1 else f"{len(beside)} others are"
            notice += f"; {count} not used: {', '.join(beside[:5])}" + (" ..." if len(beside) > 5 else "")
        yield from _read_as(net, Spelling(names, prefix, notices=(*said, notice)), shapes)


def _prefixes(names: Iterable[str], least: int) -> list[str]:
    """What at least so many names begin with, up to three parts long, the shortest first."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:length]) + "." for length in range(1, min(4, len(parts))))
    return sorted((p for p, count in counts.items() if count >= least), key=lambda p: p.count("."))


def _read_as(net: nn.Module, spelling: Spelling, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Spelling]:
    """The spelling, and the other ways to read the names that it gives."""
    yield spelling
    if any(name.startswith(DETECTOR) for name in spelling.names.values()):
        yield _of_torchvision_detector(spelling, shapes)
    if (whole := _whole(net)) is not None and any(n.startswith("backbone.") for n in spelling.names.values()):
        names = {key: _in_one(name, whole) for key, name in spelling.names.items()}
        notice = "its `backbone.*` and `head.*` are read as one whole model's names"
        yield Spelling(names, spelling.prefix, notices=(*spelling.notices, notice))


def _of_torchvision_detector(spelling: Spelling, shapes: Mapping[str, tuple[int, ...]]) -> Spelling:
    """torchvision's names of Faster R-CNN and RetinaNet in United-Perception's, without the modules' own names."""
    names = spelling.names
    known = set(names.values())
    # torchvision's RetinaNet begins its pyramid at layer2, Faster R-CNN at layer1.
    start = 3 if "backbone.fpn.extra_blocks.p6.weight" in known else 2
    boxes = next((shapes[key] for key, name in names.items() if name == RETINA_DELTAS), ())
    anchors = boxes[0] // 4 if boxes else 0
    logits = [key for key, name in names.items() if name.startswith(RETINA_LOGITS)]
    notice = (
        "torchvision's names are read as United-Perception's: `backbone.body.*` as the backbone's, "
        "`backbone.fpn.*` as the neck's"
    )
    if anchors and logits:
        notice += ", `head.*` as the head's without the background's logits, which sigmoid has not"
        if any(not shapes[key] or shapes[key][0] % anchors for key in logits):
            logits = []
    else:
        notice += ", `rpn.head.*` as the RPN's, `roi_heads.*` as the box head's"
    read_as = {key: _detectors_name(name, start) for key, name in names.items()}
    return Spelling(
        read_as,
        spelling.prefix,
        {key: anchors for key in logits if anchors},
        {name: names[key] for key, name in read_as.items()},
        (*spelling.notices, notice),
    )


def _detectors_name(name: str, start: int) -> str:
    if level := LEVELS.fullmatch(name):
        number = start + int(level[2])
        layer = f"c{number}_lateral" if level[1] == "inner" else f"p{number}_conv"
        return f"{layer}.{level[3]}"
    if stack := STACKS.fullmatch(name):
        subnet = "box_subnet" if stack[1] == "regression" else "cls_subnet"
        return f"{subnet}.{2 * int(stack[2])}.{stack[3]}"
    for pattern, replacement in ROWS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _whole(net: nn.Module) -> nn.Module | None:
    """The whole model that is the network's only module, e.g. a classifier of torchvision."""
    children = list(net.children())
    return children[0] if len(children) == 1 and not isinstance(children[0], ViewModule) else None


def _in_one(name: str, whole: nn.Module) -> str:
    """A whole model's name for one of a backbone or a classifier's head, in United-Perception's and others' lists."""
    name = re.sub(r"^backbone\.layer0\.([01])\.", lambda m: ("conv1.", "bn1.")[int(m[1])], name)
    if (last := last_layer(whole)) and name.startswith("head."):
        inner = CLASSIFIER.fullmatch(name.removeprefix("head."))
        return name if inner is None else f"{last}.{inner[1]}"
    return name.removeprefix("backbone.")


def last_layer(net: nn.Module) -> str:
    """Path of the layer that makes the logits: the last linear one."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else ""


def _own_name(net: nn.Module, own: set[str], key: str) -> str:
    for name, child in net.named_children():
        for candidate in (key, f"{name}.{key}"):
            if candidate in own:
                return candidate
            for alias, real in getattr(child, "aliases", {}).items():
                if candidate.startswith(f"{name}.{alias}."):
                    other = f"{name}.{real}{candidate.removeprefix(f'{name}.{alias}')}"
                    if other in own:
                        return other
    for name, _ in net.named_children():
        # Bare (`fc.weight`), or in the module's own list of another program (mmcls: `head.fc.weight`).
        last = CLASSIFIER.fullmatch(key) or CLASSIFIER.fullmatch(key.removeprefix(f"{name}."))
        if last is not None and f"{name}.classifier.{last[1]}" in own:
            return f"{name}.classifier.{last[1]}"
    named = _by_name(net, key)
    return named if named in own else key


def _by_name(net: nn.Module, key: str) -> str:
    """The key with its layers named where it numbers those of a Sequential, as an FPN's once were."""
    parts: list[str] = []
    module: nn.Module | None = net
    for part in key.split("."):
        children = {} if module is None else dict(module.named_children())
        if isinstance(module, nn.Sequential) and part not in children:
            # Not by int(part): a file may hold any name. Not named_children: it shows a repeated layer once.
            part = {str(place): name for place, name in enumerate(module._modules)}.get(part, part)
        parts.append(part)
        module = children.get(part)
    return ".".join(parts)


def _modern(key: str) -> str:
    old = DENSENET.fullmatch(key)
    return old[1] + old[2] if old else key
