"""Codes KD7xx: the run itself."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

RUN: dict[str, Explanation] = {
    "KD700": Explanation(
        "loss that gives the student no gradient",
        "Differentiated alone on real batches, the loss reaches no weight that trains: the run would not"
        " distil.",
        "wrong: a loss on frozen layers\nright: later layers, or frozen_layers: []",
    ),
    "KD701": Explanation(
        "loss that is not finite",
        "The loss or its gradient is infinite or no number on the very first batches.",
        "look at the teacher's weights, at fp16 and at a temperature of 0",
    ),
    "KD702": Explanation(
        "gradient that stays zero",
        "On up to 20 batches the loss never moved the student: equal networks, dead features, a mask that"
        " lets nothing through, or a detector's own loss without an object that an anchor matches.",
        "wrong: the student's own weights as its teacher",
    ),
    "KD703": Explanation(
        "teacher that is near chance",
        "On this data the teacher is hardly better than guessing: other normalisation, other label order, or"
        " weights that were not its own.",
        "if it is meant: teacher0: {allow_weak_teacher: true, ...}",
    ),
    "KD710": Explanation(
        "checkpoint that cannot be read",
        "The file is missing, unreadable, or the disk fails.",
        "kdcli train cfg.yaml --resume takes the newest one that is whole",
    ),
    "KD711": Explanation(
        "damaged checkpoint",
        "The bytes do not give the checksum in the file's name; the one before is tried.",
        "delete the file and resume again",
    ),
    "KD712": Explanation(
        "checkpoint that is not safe to load",
        "Only tensors and plain values are loaded; this file asks for code to run.",
        "load it where you trust it, and save its state_dict as safetensors",
    ),
    "KD713": Explanation(
        "checkpoint of another version",
        "The file is no checkpoint of this version of kdcli.",
        "finish the run with the version that began it: env.json names it",
    ),
    "KD714": Explanation(
        "stopped by a signal",
        "The run was told to stop; all that decides the next step is saved.",
        "kdcli train cfg.yaml --resume",
    ),
    "KD715": Explanation(
        "checkpoint of another spec",
        "A run is continued with the spec that began it; these keys differ.",
        "put them back, or --allow-changed trainer.max_epoch",
    ),
    "KD716": Explanation(
        "teacher with other weights",
        "The checkpoint was made with other weights of this teacher.",
        "put the file back, or --allow-changed teachers.teacher0",
    ),
    "KD717": Explanation(
        "another number of processes",
        "The order of the data depends on the number of processes, so a run keeps it.",
        "the same --gpus as before, or --allow-changed world_size",
    ),
    "KD718": Explanation(
        "nothing to resume",
        "The run folder holds no valid checkpoint, or what `--resume` or `saver.resume_model` names is not there.",
        "kdcli train cfg.yaml, without --resume",
    ),
    "KD719": Explanation(
        "no weights of the student",
        "There is nothing to evaluate yet.",
        "kdcli train cfg.yaml first, or kdcli eval cfg.yaml --weights student.safetensors",
    ),
    "KD720": Explanation(
        "more devices than there are",
        "The machine does not have as many CUDA devices as were asked for.",
        "kdcli train cfg.yaml --device cpu",
    ),
    "KD721": Explanation(
        "checkpoint that does not fit",
        "Its spec is the run's, and yet what it holds is not: other tensors, other counters, a part missing.",
        "kdcli train cfg.yaml --overwrite, or put back the code that made it",
    ),
    "KD722": Explanation(
        "another process died",
        "The processes of a run depend on each other: when one is gone, the others cannot go on.",
        "look for the first error above it, then: kdcli train cfg.yaml --resume",
    ),
    "KD723": Explanation(
        "process killed",
        "The system killed a process of the run, mostly for want of memory.",
        "fewer num_workers or a smaller batch_size, then: kdcli train cfg.yaml --resume",
    ),
    "KD724": Explanation(
        "out of memory",
        "The networks, their features and the batch do not fit together into the memory of the device or, on the CPU,"
        " of the machine.",
        "kdcli train cfg.yaml dataset.train.batch_sampler.kwargs.batch_size=32 trainer.accumulate_steps=2",
    ),
    "KD725": Explanation(
        "moving average of another meaning",
        "The checkpoint was made when `ema` had another formula: `exp` reached its decay within a few"
        " `inner_T` steps, `warmup` copied the weights, and buffers were copied. Its average would go on otherwise.",
        "kdcli train cfg.yaml --overwrite, or --resume --allow-changed trainer.ema",
    ),
    "KD726": Explanation(
        "a network that torch.compile refuses",
        "torch.compile needs a C++ compiler on the CPU and Triton on CUDA, and code that it can trace.",
        "kdcli train cfg.yaml runtime.compile=false",
    ),
    "KD730": Explanation(
        "numbers that are not finite",
        "A loss or a gradient became infinite or no number during the run; the batch is kept for a look.",
        "lower the lr, set trainer.clip_grad_norm, or trainer.on_nonfinite: skip",
    ),
    "KD733": Explanation(
        "checkpoint of other data",
        "Files came or went, changed their label or their size, or the pixels of those looked at are others. Sample 7"
        " of the checkpoint is then another image, and figures before and after can't be compared.",
        "put the files back, or --resume --allow-changed data.train (data.test, or data for both sides)",
    ),
    "KD734": Explanation(
        "other data that can't be accepted",
        "The number of training samples is another, and a loss (`crd`) keeps a row for each of them in the"
        " checkpoint: its rows can't be those of other samples.",
        "put the files back, or kdcli train cfg.yaml --overwrite",
    ),
    "KD740": Explanation(
        "file that cannot be written",
        "The disk is full, or the folder is read-only or somebody else's. The last checkpoint is whole.",
        "free some space, then: kdcli train cfg.yaml --resume\nor elsewhere: saver.save_dir=~/runs/digits",
    ),
    "KD741": Explanation(
        "finished run in the way",
        "The run folder holds a run that has come to its end; nothing is overwritten unasked.",
        "kdcli train cfg.yaml --overwrite, or kdcli train cfg.yaml saver.save_dir=runs/second",
    ),
    "KD742": Explanation(
        "unfinished run in the way",
        "The run folder holds checkpoints of a run that was stopped; say whether to go on or to start over.",
        "kdcli train cfg.yaml --resume, or kdcli train cfg.yaml --overwrite",
    ),
    "KD743": Explanation(
        "run folder is a link",
        "Clearing or filling a folder through a symbolic link may hit another place than was meant.",
        "name the real folder: saver.save_dir=/data/runs/digits",
    ),
    "KD744": Explanation(
        "training step on a single sample",
        "BatchNorm in training needs two values a channel, and on a map of 1x1 a batch of one sample has a single one."
        " Where the number of samples is known before training, KD480 says so at the start.",
        "dataset: {batch_sampler: {type: base, kwargs: {batch_size: 67, drop_last: true}}}",
    ),
    "KD745": Explanation(
        "reentrant checkpointing",
        "torch.utils.checkpoint with `use_reentrant=True` runs the block again in a backward pass of its own. It fails"
        " where single losses are differentiated, as before training, and where several processes share gradients.",
        "wrong: checkpoint(block, x, use_reentrant=True)\nright: checkpoint(block, x, use_reentrant=False)",
    ),
    "KD746": Explanation(
        "parameters without a gradient in some process",
        "Several processes add up the gradient of each parameter at each step. A block that one of them skips at"
        " random has none there, and the others would wait for it for ever.",
        "wrong: if torch.rand(()) < 0.5: x = x + block(x)\nright: x = x + (torch.rand(()) < 0.5) * block(x)",
    ),
    "KD747": Explanation(
        "index out of range on the device",
        "A kernel found a number that serves as an index out of range: a label beyond the classes, a token beyond the"
        " table. CUDA tells it late, and of another line.",
        "kdcli train cfg.yaml --device cpu",
    ),
    "KD748": Explanation(
        "number formats that do not go together",
        "Under `runtime.precision` bf16 or fp16 some layers give half precision. A module that makes tensors of its own"
        " has to make them in the format of what it reads.",
        "wrong: x @ self.table.float()\nright: x @ self.table.to(x.dtype)",
    ),
    "KD749": Explanation(
        "what was run has failed",
        "The network, the data, a loss, the optimizer or a library raised an error. The message says what was being"
        " done, the error's type and text, and the line that it comes from.",
        "kdcli train cfg.yaml --traceback shows how it came to that line",
    ),
    "KD750": Explanation(
        "not a run",
        "`report`, `compare`, `export` and `eval` read run folders: those that hold metrics.jsonl and"
        " spec.resolved.yaml.",
        "wrong: kdcli compare runs\nright: kdcli compare runs/digits_kd runs/digits_student",
    ),
    "KD751": Explanation(
        "run with nothing to show",
        "The folder is a run's, but not one step or evaluation has been recorded yet.",
        "kdcli report runs/digits_kd, once the first epoch is over",
    ),
    "KD752": Explanation(
        "broken or half-written file in a run",
        "A file of the run cannot be read as what it should be, mostly because its writer was killed.",
        "remove report_data.json, then: kdcli report runs/digits_kd",
    ),
    "KD753": Explanation(
        "run of another version",
        "The folder was written by a kdcli whose run format differs; guessing would show wrong numbers.",
        "read it with the version that env.json names",
    ),
    "KD755": Explanation(
        "no plotting library",
        "Curves are drawn with matplotlib, which only the extra `report` installs.",
        "pip install 'kdcli[report]'",
    ),
    "KD760": Explanation(
        "export without its libraries",
        "The format is written and proved with libraries that only an extra installs.",
        "pip install 'kdcli[onnx]', then: kdcli export runs/digits_kd --format onnx",
    ),
    "KD761": Explanation(
        "export that answers otherwise",
        "The file was read back and what it answers (logits, or boxes and scores) differs from the student's"
        " by more than rounding explains, so it was removed: a wrong file is worse than none.",
        "kdcli export runs/digits_kd --format torch-export, or allow more: --tolerance 1e-3",
    ),
    "KD762": Explanation(
        "student that cannot be exported",
        "Exporting follows the forward pass with symbols for values; a forward that branches on values, or"
        " turns a tensor into a Python number, can't be followed.",
        "wrong: if x.max() > 1: x = x / 255\nright: x = torch.where(x.amax() > 1, x / 255, x)",
    ),
    "KD763": Explanation(
        "detector that no graph can be made of",
        "ONNX and torch-export need boxes made in tensors of fixed sizes. kdcli knows how for its own modules"
        " (`rpn_post`, `retina_post`, `bbox_post`) and torchvision's Faster R-CNN and RetinaNet, not for others.",
        "kdcli export runs/my_detector --format safetensors",
    ),
    "KD764": Explanation(
        "logits without a class",
        "The exported file names its classes, and the student gives another number of logits. With too many some"
        " are never right; whoever reads the file can't know that.",
        "wrong: num_classes: 12 on ten classes\nright: num_classes: 10",
    ),
}
