"""One wrong spec for every code of this layer; golden.txt holds what is said about it."""

from __future__ import annotations

from tests.spec.specs import BASE, changed

DEEP = "x-deep: " + "[" * 70 + "]" * 70 + "\n"
LAUGH = "x-a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x-{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)
STAGES = ("  student:\n    mimic", "  stages:\n    - {STAGE}\n  student:\n    mimic")


TWO_JOBS = changed(
    (BASE[BASE.index("mimic:\n") : BASE.index("dataset:\n")], "{MIMIC}\n"),
    (
        "{MIMIC}\n",
        """\
mimic:
  mimic_as_jobs: true
  mimic_job0: &job
    cfgs: {loss: {type: kd_loss}}
    teacher0: {mimic_name: [head.classifier], teacher_weight: teacher.pth}
    student: {mimic_name: [head.classifier]}
  mimic_job1:
    <<: *job
    teacher0: {mimic_name: [head.classifier], teacher_weight: other.pth}

""",
    ),
)


PROBE = "{dataset: {type: fake}}"
UNLABELLED = ("        num_samples: 64\n", "        num_samples: 64\n        labels: none\n")
CLIPPER = "{type: grad_clipper, kwargs: {mode: pre_defined, norm_type: 2, max_norm: 35}}"
OWN_WORKERS = changed(
    ("  train:\n", "  train:\n    dataloader: {type: base, kwargs: {num_workers: 2}}\n"),
    ("  test:\n", "  test:\n    dataloader: {type: base, kwargs: {num_workers: 2}}\n"),
)


def stage(text: str) -> str:
    """The spec with one stage."""
    return changed(STAGES, ("{STAGE}", text))


CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    # code: (text, assignments)
    "KD101": (changed(("[4]", "[4")), ()),
    "KD102": (changed(("  max_epoch", "\tmax_epoch")), ()),
    "KD104": (changed(("kd_cls", "kd\x07cls")), ()),
    "KD105": (changed(("max_epoch: 10", "max_epoch: 10\n  max_epoch: 20")), ()),
    "KD106": (changed(("type: resnet18", "type: !!python/name resnet18")), ()),
    "KD107": (changed(("[*crop,", "[*corp,")), ()),
    "KD108": (DEEP + BASE, ()),
    "KD109": (LAUGH + BASE, ()),
    "KD110": (BASE + "---\nnet: []\n", ()),
    "KD111": (changed(("kd_cls", "kd_cls\n  ? [a]\n  : 1")), ()),
    "KD112": (changed(("max_epoch: 10", "max_epoch: 10\n  <<: 3")), ()),
    "KD113": ("- net\n", ()),
    "KD114": (changed(("saver:\n  save_dir: runs/it", "saver: !include saver.yaml")), ()),
    "KD118": (changed(("max_epoch: 10", "max_epoch: !!int ten")), ()),
    "KD201": (changed(("saver:", "savr:")), ()),
    "KD202": (changed(("max_epoch: 10", "max_epoch: 10\n  test_frq: 2")), ()),
    "KD203": (changed(("optimizer: {type: SGD, ", "optimizer: {")), ()),
    "KD204": (changed(("max_epoch: 10", "max_epoch: 12a"), ("pin_memory: false", "pin_memory: no")), ()),
    "KD205": (changed(("warmup_type: linear", "warmup_type: linaer")), ()),
    "KD206": (changed(("max_epoch: 10", "max_epoch: 0")), ()),
    "KD207": (BASE, ("trainer.max_epoch",)),
    "KD208": (BASE, ("net.bakbone.kwargs.out_layers=[3]",)),
    "KD209": (BASE, ("net.2.type=resnet18", "trainer.max_epoch.x=1")),
    "KD210": (BASE, ("mimic=null",)),
    "KD211": (changed(("  runner: {type: kd}\n", "")), ()),
    "KD212": (changed(("  max_epoch: 10\n", "")), ()),
    "KD213": (changed(("mimic:\n", "mimic:\n  mimic_job0: {}\n")), ()),
    "KD216": (BASE, ("runtime.fp16=true", "runtime.precision=bf16")),
    "KD288": (BASE, ("runtime.deterministic=true", "runtime.cudnn_benchmark=true")),
    "KD217": (changed(("kwargs: {milestones", "kwargs: {warmup_iter: 9, milestones")), ()),
    "KD218": (BASE, ("mimic.start_iter=10", "mimic.end_iter=5")),
    "KD219": (stage("{name: a, max_epoch: 1}\n    - {name: a, max_epoch: 2}"), ()),
    "KD220": (BASE, ("net=[]",)),
    "KD225": (
        changed(
            ("x-note: anything at all", "ema: {enable: true}"),
            ("max_epoch: 10", "max_epoch: 10\n  ema: {enable: true, kwargs: {decay: 0.99}}"),
        ),
        (),
    ),
    "KD226": (BASE, ("mimic.teacher0.classes={cat: 281, dog: 281}",)),
    "KD227": (BASE, ("net.backbone.outputs=[logits, logits]", "net.head.outputs=[a.b, _]")),
    "KD301": (changed(("  teacher0:\n    mimic", "  teacher1:\n    mimic")), ()),
    "KD302": (BASE, ("mimic.teacher0.mimic_name=[backbone.layer4, head.classifier]",)),
    "KD303": (changed(("    teacher_weight: teacher.pth\n", "")), ()),
    "KD304": (TWO_JOBS, ()),
    "KD557": (BASE, ("mimic.teacher0.teacher_weight=hf-hub:timm/resnet18.a1_in1k",)),
    "KD556": (
        changed(("    teacher_weight: teacher.pth\n", "    allow_random: true\n    weight_key: a.b\n")),
        ("saver.weight_key=a.b",),
    ),
    "KD305": (stage("{name: a, max_epoch: 1, jobs: [mimic_job1]}"), ()),
    "KD306": (BASE, ("mimic.cfgs.loss.type=kd_lss",)),
    "KD307": (changed(("mimic_ins_type: base", "mimic_ins_type: bse")), ()),
    "KD308": (changed(("type: resnet18", "type: resnet81")), ()),
    "KD309": (changed(("type: resnet18", "type: my_nets.tiny:Tiny")), ()),
    "KD310": (changed(("type: fake", "type: fakr")), ()),
    "KD311": (changed(("&crop {type: crop", "&crop {type: corp")), ()),
    "KD312": (BASE, ("dataset.train.dataloader.kwargs.batch_fn={type: mixup}",)),
    "KD313": (changed(("{type: reader", "{type: raeder")), ()),
    "KD314": (changed(("sampler: {type: dist}", "sampler: {type: dits}")), ()),
    "KD315": (changed(("type: imagenet", "type: imgnet")), ()),
    "KD316": (changed(("type: SGD", "type: sgd")), ()),
    "KD317": (changed(("type: MultiStepLR", "type: MultistepLR")), ()),
    "KD318": (BASE, ("mimic.adapter=atuo",)),
    "KD319": (
        changed(
            ("mimic_ins_type: base", "mimic_ins_type: FRS"),
            ("    loss:\n", "    lvels: [0]\n    neck_los:\n"),
        ),
        (),
    ),
    "KD320": (changed(("T: 4.0", "Temp: 4.0")), ()),
    "KD321": (BASE, ("mimic.cfgs.loss={type: bank}",)),
    "KD322": (changed(("T: 4.0", "T: four"), ("out_layers: [4]", "out_layers: [4, x]")), ()),
    "KD323": (changed(("T: 4.0", "T: 4.0, temperature: 4.0")), ()),
    "KD324": (changed(("prev: backbone", "prev: bakbone")), ()),
    "KD325": (changed(("name: head", "name: backbone")), ()),
    "KD326": (
        BASE,
        ("mimic.cfgs.loss={type: dkd}", "dataset.train.dataloader.kwargs.batch_fn={type: batch_mixup}"),
    ),
    "KD327": (
        changed(("  teacher0:\n    mimic_name: [head.classifier]\n    teacher_weight: teacher.pth\n", "")),
        (),
    ),
    "KD221": (BASE, ("runtime.fold_bn=true", "mimic.teacher0.teacher_bn_mode=train")),
    "KD222": (BASE, ("runtime.compile=true", "trainer.parallel=fsdp")),
    "KD223": (
        changed(("T: 4.0", "T: .nan"), ("milestones: [4, 8]", "milestones: [4, 1e999]")),
        (f"runtime.random_seed={2**64}",),
    ),
    "KD228": (
        changed(
            ("  loss_weight: 1.0\n", "  loss_weight: -1\n"), ("T: 4.0, loss_weight: 1.0", "loss_weight: -2")
        ),
        (),
    ),
    "KD328": (changed(("T: 4.0", "T: 0")), ()),
    "KD550": (BASE, ("mimic.teacher0.teacher_bn_mode=train", "mimic.teacher0.cache={}")),
    "KD551": (
        changed(("\nmimic:", "\nteacher1: [{name: a, type: resnet18}]\n\nmimic:")),
        (
            "mimic.teacher0.cache={views: 2}",
            "mimic.teacher1={mimic_name: [a.layer4], allow_random: true, cache: {views: 3}}",
        ),
    ),
    "KD601": (changed(("x-note: anything at all", "flip: {type: flip}")), ()),
    "KD602": (changed(("runner: {type: kd}", "runner: {type: base}")), ()),
    "KD603": (
        changed(("    warmup_iter: 5\n", ""), ("kwargs: {milestones", "kwargs: {warmup_iter: 9, milestones")),
        (),
    ),
    "KD604": (changed(("x-note: anything at all", "crop: &big {type: crop, kwargs: {size: 64}}")), ()),
    "KD605": (changed(("\nmimic:", "\nteacher1: [{name: a, type: resnet18}]\n\nmimic:")), ()),
    "KD606": (changed(("type: kd_loss\n      kwargs: {T: 4.0, ", "type: kl_loss\n      kwargs: {")), ()),
    "KD607": (changed(("milestones: [4, 8]", "milestones: [4, 12]")), ()),
    "KD608": (BASE, ("trainer.max_iter=4",)),
    "KD609": (changed(("teacher.pth", "path/to/teacher.pth")), ()),
    "KD610": (
        changed(("      normalize: {type: solo_bn}\n  - name: head\n    prev", "  - name: head\n    prev")),
        (),
    ),
    "KD611": (changed(("    warmup_iter: 5\n", ""), ("batch_size: 8", "batch_size: 64")), ()),
    "KD645": (
        BASE,
        (
            "dataset.test.dataset.kwargs.transformer=[{type: torchvision.Normalize, kwargs: {mean: [1], std: [1]}}]",
        ),
    ),
    "KD646": (
        BASE,
        (
            "dataset.train.dataset={type: cls, kwargs: {root: a}}",
            "dataset.test.dataset={type: cls, kwargs: {root: a}}",
        ),
    ),
    "KD668": (
        changed(
            (
                "transformer: [{type: to_tensor}]",
                "transformer: [{type: to_tensor}, {type: torchvision.Normalize, kwargs: {mean: [78], std: [96]}}]",
            )
        ),
        (),
    ),
    "KD612": (changed(("type: auto_save_best", "type: auto_sav_best")), ()),
    "KD613": (changed(("x-note: anything at all", "traner: &t {max_epoch: 3}")), ()),
    "KD614": (
        changed(
            ("    type: head\n", "    type: BboxFC_Pre\n"),
            ("kwargs: {num_classes: *classes}", "kwargs: {with_drp: false}"),
        ),
        (),
    ),
    "KD615": (
        changed(
            (
                "{num_classes: *classes}\n\nmimic:",
                "{num_classes: *classes}\n  - {name: head, type: head, kwargs: {num_classes: 10}}\n\nmimic:",
            ),
        ),
        (),
    ),
    "KD619": (changed(("x-note: anything at all", "ema: {kwargs: {decay: 0.99, warmup: 0}}")), ()),
    "KD616": (BASE, ("mimic.cfgs.loss.type=ft", "mimic.cfgs.loss.kwargs=null")),
    "KD630": (changed(("{lr: 0.1}", "{lr: 0}")), ()),
    "KD631": (
        changed(
            ("  loss_weight: 1.0\n", "  loss_weight: 0\n"), ("T: 4.0, loss_weight: 1.0", "loss_weight: 0")
        ),
        (),
    ),
    "KD632": (changed(("{lr: 0.1}", "{lr: 0.1, weight_decay: 50}")), ("trainer.optimizer.kwargs.lr=1000",)),
    "KD633": (changed(("{lr: 0.1}", "{lr: 0.1, maximize: true}")), ()),
    "KD634": (changed(("milestones: [4, 8]", "milestones: [4, 8], gamma: 10")), ()),
    "KD353": (changed(("{lr: 0.1}", "{lr: 0.1, momentum: 0.9}")), ("trainer.optimizer.type=FusedFP16SGD",)),
    "KD354": (
        BASE,
        (
            "dataset.train.dataset.kwargs.transformer=[{type: torch_cutmix_mixup, kwargs: {num_classes: 10}}]",
            "dataset.test.dataset.kwargs.transformer=[{type: torch_cutmix_mixup}]",
            "dataset.test.dataloader={kwargs: {batch_fn: {type: batch_mixup}}}",
        ),
    ),
    "KD240": (changed(UNLABELLED, ("  loss_weight: 1.0\n", "  loss_weight: 1.0\n  task_loss: true\n")), ()),
    "KD241": (changed(UNLABELLED, ("{type: kd}", "{type: base}")), ()),
    "KD242": (
        changed(
            UNLABELLED,
            ("type: kd_loss\n      kwargs: {T: 4.0, loss_weight: 1.0}", "type: dkd"),
            (
                "  test:\n    dataset:\n      type: fake\n      kwargs:\n",
                "  test:\n    dataset:\n      type: fake\n      kwargs:\n        labels: none\n",
            ),
            ("  loss_weight: 1.0\n", "  loss_weight: 1.0\n  teacher_weighting: confidence\n"),
        ),
        (),
    ),
    "KD229": (changed(("runner: {type: kd}", "runner: {type: quant}"), ("[4]", "[fuor]")), ()),
    "KD230": (changed(("optimizer: {type: SGD,", "optimizer: {register_type: yolov5, type: SGD,")), ()),
    "KD267": (
        BASE,
        (f"dataset.probe={{train: {PROBE}, test: {PROBE}}}", "dataset.probe.feature={teacher: layer4}"),
    ),
    "KD232": (OWN_WORKERS, ("dataset.dataloader.kwargs.num_workers=4",)),
    "KD233": (
        changed(("x-note: anything at all", "fp16: true"), ("runtime:\n", "runtime:\n  fp16: false\n")),
        (),
    ),
    "KD234": (
        BASE,
        (
            "dataset.train.dataset.kwargs.has_mask=true",
            "dataset.test.dataset.kwargs.has_mask=true",
            "dataset.test.dataset.kwargs.evaluator={type: imagenet, kwargs: {multilabel: true}}",
        ),
    ),
    "KD641": (
        changed(
            ("x-note: anything at all", "fp16: {scale_factor: dynamic}\niter_base: true"),
            ("runtime:\n", "runtime:\n  rank_init: true\n"),
            ("pin_memory: false", "pin_memory: false, worker_init: true, pad_type: batch_pad"),
            ("hooks:\n", f"hooks:\n  - {CLIPPER}\n  - type: gradient_collector\n"),
        ),
        (),
    ),
    "KD642": (changed(("x-note: anything at all", "optimizer: &optimizer {type: SGD}")), ()),
    "KD643": (changed(("hooks:\n", f"hooks:\n  - {CLIPPER.replace('pre_defined', 'average')}\n")), ()),
    "KD644": (
        changed(("  test:\n", "  test:\n    dataloader: {type: base, kwargs: {num_workers: 2}}\n")),
        ("dataset.dataloader.kwargs.num_workers=4",),
    ),
    "KD635": (BASE, ("trainer.lr_scheduler={type: CosineAnnealingLR, kwargs: {T_max: 9}}",)),
    "KD648": (stage("{name: only, max_epoch: 3}"), ()),
    "KD270": (
        changed(("x-note: anything at all", "sweep: {mimic.loss_weight: {low: 0, high: 1, log: true}}")),
        (),
    ),
    "KD272": (changed(("x-note: anything at all", "sweep: {runtime.random_seed: [1, 2]}")), ()),
}
ELSEWHERE = frozenset(
    {
        *("KD001", "KD103", "KD115", "KD116", "KD117", "KD413", "KD414", "KD505", "KD621", "KD622"),
        *("KD350", "KD351", "KD352", "KD496", "KD231", "KD266"),
        "KD870",  # what Python gives: tests/api
    }
)
"""Codes that need bytes, files or a command line: test_source.py, test_include.py, test_parse.py, test_places.py;
and those of own code that is imported and built: tests/check/golden.txt, tests/plugins."""
