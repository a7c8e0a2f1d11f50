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
        "teacher that knows nothing of this data",
        "On this data the teacher is hardly better than guessing, or has one answer for every image (which scores"
        " high where most images are of one class): other normalisation, other label order, or weights that were not"
        " its own.",
        "if it is meant: teacher0: {allow_weak_teacher: true, ...}",
    ),
    "KD704": Explanation(
        "loss that pulls far too hard",
        "Its gradient on the student is over 10,000 times the task's, and out of scale to the weights: one plain SGD"
        " step along it, at the lr that the warm-up reaches, would change them by more than their own norm.",
        "wrong: loss_weight: 1e6\nright: the `loss_weight` that the message names, or allow_strong_pull: true",
    ),
    "KD705": Explanation(
        "first step that changes no weight",
        "The optimizer had a gradient and an lr, and every weight is what it was: what was added is lost in rounding.",
        "wrong: lr: 1.0e-12\nright: lr: 1.0e-3",
    ),
    "KD706": Explanation(
        "first step to weights that are not finite",
        "With finite gradients the optimizer made a weight infinite or no number.",
        "wrong: lr: 1.0e+38\nright: lr: 0.1",
    ),
    "KD707": Explanation(
        "first step that follows the gradient",
        "An update has to oppose the gradient: their inner product is negative. This one drives the loss up. It is a"
        " warning where the two are not nearly parallel.",
        "wrong: optimizer: {type: SGD, kwargs: {lr: 0.1, maximize: true}}",
    ),
    "KD708": Explanation(
        "negatives of other classes without labels",
        "`crd` draws what it contrasts a sample with from the other classes: it needs the label of every sample before"
        " the first step, and two classes.",
        "right: crd: {type: crd, kwargs: {negatives: all}}",
    ),
    "KD709": Explanation(
        "own loss that does not read its teacher",
        "The loss was computed twice on one batch, the second time with other values in place of what the teacher"
        " shows, and was the same bit for bit. What it teaches does not come from the teacher.",
        "wrong: def forward(self, student, teacher): return student.square().mean()",
    ),
    "KD710": Explanation(
        "checkpoint that cannot be read",
        "The file is missing, unreadable, or the disk fails.",
        "kdcli train cfg.yaml --resume takes the newest one that is whole",
    ),
    "KD711": Explanation(
        "damaged checkpoint",
        "The bytes do not give the checksum inside the file, or the one in its name; or the name says another step"
        " than the file holds. Where the newest is looked for, the one before is tried.",
        "delete the file and resume again: kdcli train cfg.yaml --resume",
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
        "A run is continued with the spec that began it; these keys differ. A larger `max_epoch` or `max_iter` alone is"
        " no reason: the run is made longer.",
        "put them back, or --allow-changed trainer.optimizer.kwargs.lr",
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
    "KD727": Explanation(
        "processes that were started differently",
        "Before training the processes of a run compare their spec with all overrides, the options, the versions of"
        " kdcli and torch, and the data. With another lr or other images in one of them, the weights would be those"
        " of no spec.",
        "wrong: torchrun ... with files that differ by machine\nright: the same spec, options and installation for all",
    ),
    "KD728": Explanation(
        "processes that did not come",
        "A process of the run did not start, or can't reach the address where all meet. The others wait for it for"
        " two minutes, or as long as the variable KDCLI_MEETING_SECONDS says.",
        "look at what the missing process says; KDCLI_MEETING_SECONDS=600 where a machine takes long to start",
    ),
    "KD729": Explanation(
        "meeting place of another run",
        "Another run uses the address at which this run's processes meet, or a process of the same number is there"
        " already. Two runs that met would train with each other.",
        "MASTER_PORT=29512, the same for all processes of one run and another for each run",
    ),
    "KD730": Explanation(
        "numbers that are not finite",
        "A loss or a gradient became infinite or no number during the run; the batch is kept for a look.",
        "lower the lr, set trainer.clip_grad_norm, or trainer.on_nonfinite: skip",
    ),
    "KD731": Explanation(
        "Slurm task that does not know how many there are",
        "Slurm says which task this is, and not of how many (SLURM_STEP_NUM_TASKS, SLURM_NTASKS). Each task would"
        " train by itself in one folder.",
        "right: srun --ntasks=8 kdcli train cfg.yaml\nin a container: hand on the variables SLURM_*",
    ),
    "KD732": Explanation(
        "variables of a launcher that are wrong",
        "RANK and WORLD_SIZE say that this is one of several processes; where they meet (MASTER_ADDR, MASTER_PORT) or"
        " how long they wait for each other (KDCLI_MEETING_SECONDS) is missing or no number.",
        "right: MASTER_ADDR=gpu01 MASTER_PORT=29511 RANK=0 WORLD_SIZE=2 kdcli train cfg.yaml",
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
    "KD735": Explanation(
        "other code of a plugin after a resume",
        "What a run imports of its plugins is recorded by a digest. Half a run with one loss or network and half with"
        " another is neither.",
        "kdcli train cfg.yaml --plugin mylab --resume --allow-changed code.mylab",
    ),
    "KD736": Explanation(
        "parameters that the student does not list",
        "The student's forward pass reads parameters that `student.parameters()` doesn't have, as those of layers in a"
        " plain Python list. They are drawn anew whenever the network is built, nothing trains them, and no file has"
        " them.",
        "right: self.layers = nn.ModuleList([nn.Linear(10, 10)])",
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
        " in torch.autograd.grad, and where several processes share the gradient of a parameter that it makes twice.",
        "wrong: checkpoint(block, x, use_reentrant=True)\nright: checkpoint(block, x, use_reentrant=False)",
    ),
    "KD746": Explanation(
        "parameters without a gradient in some process",
        "Several processes add up the gradient of each parameter at each step. A block that one of them skips at"
        " random has none there, and the others would wait for it for ever.",
        "wrong: if torch.rand(()) < 0.5: x = x + block(x)\nright: x = x + (torch.rand(()) < 0.5) * block(x)",
    ),
    "KD747": Explanation(
        "index out of range",
        "A number that serves as an index is out of range: a label beyond the classes, a token beyond the table. On a"
        " GPU the kernel finds it; CUDA tells it late, and of another line.",
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
    "KD756": Explanation(
        "epoch without a batch",
        "The data said how many batches it has and gave none: going on would be a loop that never ends.",
        "wrong: an own dataset over a generator, which is empty the second time",
    ),
    "KD760": Explanation(
        "export without its libraries",
        "The format is written and proved with libraries that only an extra installs.",
        "pip install 'kdcli[onnx]', then: kdcli export runs/digits_kd --format onnx",
    ),
    "KD761": Explanation(
        "export that answers otherwise",
        "The file was read back and what it answers (logits, or boxes and scores) differs from the student's"
        " by more than rounding explains (a share of the largest value), so it was removed: a wrong file is worse than"
        " none.",
        "kdcli export runs/digits_kd --format torch-export, or allow more: --tolerance 1e-3",
    ),
    "KD762": Explanation(
        "student that cannot be exported",
        "Exporting follows the forward pass with symbols for values; a forward that branches on values, or"
        " turns a tensor into a Python number, can't be followed. Some that can be followed have an operation that"
        " torch can't write as ONNX; the message says which of the two it is.",
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
    "KD817": Explanation(
        "process that is stuck",
        "The run is to stop, after Ctrl-C or because another process died, and a process does nothing that could end:"
        " its main thread has run no Python for six seconds (a step may take thrice the longest so far), in a call of a"
        " library, of the system or of a driver. Nobody waits for it longer; the last checkpoint is whole. After"
        " Ctrl-C an evaluation, a checkpoint and a first step may take ten minutes, after a death only a checkpoint.",
        "look at what it was at, which the message names; then: kdcli train cfg.yaml --resume",
    ),
    "KD880": Explanation(
        "file that does not say how it is used",
        "`kdcli predict` asks a file alone how images become its input, which outputs it has and, of weights, which"
        " network they are of: its metadata say so, unless an older kdcli wrote it. Guessing would give wrong answers"
        " without a word.",
        "kdcli predict runs/digits_kd a.png, or: kdcli export runs/digits_kd, then predict with the new file",
    ),
    "KD881": Explanation(
        "no student to ask",
        "`kdcli predict` reads a run folder, the spec of a run, or what `kdcli export` wrote: .safetensors, .onnx,"
        " .pt2. A .pth file has no metadata: name the run, and the file with `--weights`.",
        "wrong: kdcli predict student.pth a.png\nright: kdcli predict runs/digits_kd --weights student.pth a.png",
    ),
    "KD882": Explanation(
        "image without an answer",
        "The file is not there, no image, damaged, or does not fit the student's transforms. The other images are"
        " answered all the same, and the exit code is 1.",
        "kdcli predict runs/digits_kd photos/",
    ),
    "KD883": Explanation(
        "nothing to predict",
        "A folder or a pattern stands for the images that it has, and it has none.",
        "wrong: kdcli predict runs/digits_kd 'photos/*.jpgg'\nright: kdcli predict runs/digits_kd 'photos/*.jpg'",
    ),
    "KD770": Explanation(
        "run folder in use",
        "One run writes to a folder at a time: with two, checkpoints would be mixed and one run's results lost. `.lock`"
        " in the folder names the process that holds it; once that has ended, however it ended, the folder is free.",
        "kdcli train cfg.yaml saver.save_dir=runs/second, or runtime.random_seed=2, which has a folder of its own",
    ),
    "KD771": Explanation(
        "folder that is no run's",
        "The folder holds files, and nothing says that a run has made them: training would replace those of the same"
        " name (env.json, spec.yaml, metrics.jsonl) and mix its own with the rest.",
        "wrong: saver.save_dir=~/project\nright: saver.save_dir=~/project/runs/digits",
    ),
    "KD772": Explanation(
        "run folder gone",
        "The run folder, or its metrics.jsonl, was deleted, moved or replaced while the run wrote there, or its disk"
        " went away: what came after would be saved nowhere.",
        "kdcli train cfg.yaml --resume, once the folder is back in its place",
    ),
    "KD773": Explanation(
        "run folder taken over",
        "The folder's lock belongs to another run now: `.lock` was deleted while this run held it, or this process"
        " stood still for so long that it was taken for dead. Only one of both may go on writing.",
        "kdcli train cfg.yaml --resume, once the other run has ended",
    ),
    "KD780": Explanation(
        "loss far above its start",
        "Over two windows of 20 steps a loss stayed many times as high as before the first update: the steps are too"
        " large, and the student is thrown about instead of taught.",
        "kdcli train cfg.yaml trainer.optimizer.kwargs.lr=0.01 trainer.clip_grad_norm=5",
    ),
    "KD781": Explanation(
        "nothing learnt for an epoch",
        "For an epoch (of 100 steps at least, after the warm-up) the task's loss is what a network gets that answers"
        " every image with how frequent the classes are: ln C for C equal ones, more with label smoothing.",
        "kdcli train cfg.yaml trainer.optimizer.kwargs.lr=0.01, and look whether labels fit the images",
    ),
    "KD782": Explanation(
        "outputs that do not differ between images",
        "The student answers every image the same: it has collapsed, mostly by steps that were too large.",
        "kdcli train cfg.yaml --overwrite trainer.optimizer.kwargs.lr=0.01 trainer.lr_scheduler.warmup_iter=200",
    ),
    "KD783": Explanation(
        "dead units of the last feature",
        "Nearly all units that the student's classifier reads are the same for every image, as a ReLU gives zero for"
        " all: no gradient comes through them any more.",
        "kdcli train cfg.yaml --overwrite trainer.optimizer.kwargs.lr=0.01 trainer.lr_scheduler.warmup_iter=200",
    ),
    "KD784": Explanation(
        "updates that change no weight",
        "The optimizer's steps are so small that the weights stay what they are: an lr or a schedule at nothing, or a"
        " gradient that is clipped away.",
        "wrong: lr: 1.0e-12\nright: lr: 0.05",
    ),
    "KD785": Explanation(
        "updates larger than the weights",
        "A single step changed the weights by more than their own norm: what they knew before is gone.",
        "kdcli train cfg.yaml trainer.optimizer.kwargs.lr=0.05 trainer.lr_scheduler.warmup_iter=200",
    ),
    "KD786": Explanation(
        "moving average that holds its start",
        "With this `decay` the run is too short for the moving average: at its end a good part of it still is the"
        " student from before the training, and the average is what is measured and exported.",
        "wrong: ema: {kwargs: {decay: 0.9999}} for 900 steps\nright: ema: {kwargs: {decay: 0.99}}",
    ),
    "KD787": Explanation(
        "moving average far from the weights",
        "The run ends with a moving average that is another network than the one that was trained.",
        "ema: {kwargs: {decay: 0.99}}, or an lr that falls to the end (CosineAnnealingLR)",
    ),
    "KD788": Explanation(
        "student at chance",
        "The run has ended, and its student is hardly better than one that guesses.",
        "look at the alarms before it, at the lr and at the labels; or train for longer",
    ),
    "KD789": Explanation(
        "gradient far from its median",
        "A loss pulls a hundred times as hard as it mostly did in this run, so that it drowns all others.",
        "lower its `loss_weight` or the lr, or set trainer.clip_grad_norm",
    ),
    "KD790": Explanation(
        "no better than a constant",
        "A loss on features has, after half of its steps, never been much below what a student costs that answers "
        "the teacher's mean at every place of every image (`constant` in the table at the start): it has taught that "
        "mean and no more. This alarm never stops a run.",
        "wrong: l2_loss with `feat_norm` behind `adapter: {type: auto, kwargs: {norm: bn}}`, or an lr far too low\n"
        "right: the loss that `kdcli inspect-features --pairs` proposes, `adapter: auto`, a higher lr",
    ),
    "KD795": Explanation(
        "the training waits for its data",
        "For more than a tenth of the time no batch was there, and the device had nothing to do. The message says how"
        " many data workers would read fast enough, as measured in this run: batches are the same bits for any"
        " number of them. Reading itself gets cheaper where the files hold no more pixels than the training sees.",
        "kdcli train cfg.yaml --resume dataset.train.dataloader.kwargs.num_workers=8",
    ),
    "KD796": Explanation(
        "a `view` of a tensor whose memory lies in another order",
        "`.view(...)` only works where the numbers lie in memory as the new shape has them. With"
        " `runtime.channels_last` (the default on a GPU) maps do not lie so, nor do they after `permute`."
        " `.reshape(...)` and `.flatten(1)` copy where they have to, and give the same values.",
        "wrong: return self.head(maps.view(maps.size(0), -1))\nright: return self.head(maps.flatten(1))",
    ),
    "KD797": Explanation(
        "a package that can't be imported",
        "One of the packages that kdcli is made of fails as it is imported, or is not installed: mostly a torchvision"
        " made for another torch (`operator torchvision::nms does not exist`), or CUDA libraries of another version"
        " (`undefined symbol`). What pip installs in one go fits.",
        "python -m venv new && new/bin/pip install kdcli",
    ),
    "KD791": Explanation(
        "an operation that is not deterministic",
        "`runtime.deterministic: true` asks for the same bits at each run, and on this device torch has no"
        " deterministic version of an operation that this run uses.",
        "wrong: runtime: {deterministic: true} with a layer that torch can't run so\n"
        "right: leave it out, or take another layer: torch's page on `use_deterministic_algorithms` lists them",
    ),
}
