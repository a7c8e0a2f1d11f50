"""Time and memory of `kdcli validate` and `kdcli inspect-features`: ResNet-152 to ResNet-50 at 224x224.

    python tests/benchmarks/validate_time.py [ROUNDS]

Each round is a fresh process on one thread, after one that compiles the sources. Processor time is what
counts (user and system), as other work on the machine stretches the wall clock; the least of the rounds is
shown beside its limit. Fails where a limit is broken. About a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

NETWORK = """
  - name: backbone
    type: resnet{depth}
    kwargs: {{out_layers: [1, 2, 3, 4], out_strides: [4, 8, 16, 32], normalize: {{type: solo_bn}}}}
  - name: head
    type: base_cls_head
    kwargs: {{num_classes: 1000}}
"""
PART = """
    dataset:
      type: cls
      kwargs:
        meta_file: list.txt
        image_reader: {type: fs_pillow, kwargs: {image_dir: images, color_mode: RGB}}
        transformer: [{type: torch_random_resized_crop, kwargs: {size: 224}}, {type: to_tensor}]
"""
LAYERS = "[backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]"
SPEC = f"""
runtime: {{runner: {{type: kd}}, task_names: kd_cls}}
net: {NETWORK.format(depth=50)}
teacher0: {NETWORK.format(depth=152)}
mimic:
  mimic_as_jobs: true
  mimic_job0:
    cfgs: {{loss: {{type: kd_loss, kwargs: {{T: 4}}}}}}
    teacher0: {{mimic_name: [head.classifier], teacher_weight: resnet152.safetensors}}
    student: {{mimic_name: [head.classifier]}}
  mimic_job1:
    cfgs: {{loss: {{type: l2_loss, kwargs: {{feat_norm: true}}}}}}
    teacher0: {{mimic_name: {LAYERS}}}
    student: {{mimic_name: {LAYERS}}}
dataset:
  train: {PART}
  test: {PART}
  batch_sampler: {{kwargs: {{batch_size: 64}}}}
trainer:
  max_epoch: 100
  optimizer: {{type: SGD, kwargs: {{lr: 0.1, momentum: 0.9}}}}
  lr_scheduler:
    type: CosineAnnealingLR
    warmup_register_type: no_scale_lr
    kwargs: {{T_max: 100}}
"""
WRONG = SPEC.replace("kd_loss", "kd_los")

# what: arguments, exit code, seconds, gigabytes
LIMITS = {
    "validate, before the build stage": (["validate", "wrong.yaml"], 1, 0.5, 0.2),
    "validate, in full": (["validate", "right.yaml"], 0, 6.0, 1.5),
    "inspect-features, ResNet-152": (["inspect-features", "teacher.yaml"], 0, 5.0, 1.5),
    "--help": (["--help"], 0, 0.4, 0.2),
}


def measured(arguments: list[str], folder: str, code: int) -> tuple[float, float]:
    """Processor seconds and gigabytes of one command."""
    program = [sys.executable, "-c", "from kdcli.cli import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(Path(folder, "compiled"))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen(program, cwd=folder, stdout=subprocess.DEVNULL, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code, (arguments, process.returncode)
    scale = 1 if sys.platform == "darwin" else 1024
    return used.ru_utime + used.ru_stime, used.ru_maxrss * scale / 1e9


def main(rounds: int) -> int:
    """Measure all of it; 1 where a limit is broken."""
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "right.yaml").write_text(SPEC)
        Path(folder, "wrong.yaml").write_text(WRONG)
        Path(folder, "teacher.yaml").write_text(f"teacher0: {NETWORK.format(depth=152)}")
        for what, (arguments, code, seconds, gigabytes) in LIMITS.items():
            found = [measured(arguments, folder, code) for _ in range(rounds + 1)][1:]
            time, memory = min(one[0] for one in found), min(one[1] for one in found)
            over = time > seconds or memory > gigabytes
            broken += over
            print(
                f"{what:34} {time:5.2f} s of {seconds:.1f}   {memory:5.2f} GB of {gigabytes:.1f}"
                f"{'   TOO MUCH' if over else ''}"
            )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
