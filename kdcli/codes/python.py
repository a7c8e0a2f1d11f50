"""KD87x: networks and data that Python gives to `kdcli.train`, `validate`, `evaluate` and `load_student`."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

PYTHON: dict[str, Explanation] = {
    "KD870": Explanation(
        "object of Python's not given",
        "A run that was given a network or data from Python names it by the type `from_python`: the object itself is in"
        " no file. A command line can't have it, and in Python it is given again.",
        "wrong: kdcli eval runs/mine\nright: kdcli.evaluate('runs/mine', student=Net(), data={'test': test})",
    ),
    "KD871": Explanation(
        "another network than the run's",
        "The module that was given has other layers or other shapes of weights than the one that the run was made with,"
        " so that its weights would not fit.",
        "wrong: kdcli.load_student(run, student=Net(width=32))\nright: kdcli.load_student(run, student=Net(width=16))",
    ),
    "KD872": Explanation(
        "network that can't be copied",
        "kdcli trains a copy of the module that it is given, so that yours stays as it is. A layer whose weight is"
        " computed by an old hook can't be copied, and one without a shape yet has no weights.",
        "wrong: torch.nn.utils.weight_norm(layer)\nright: torch.nn.utils.parametrizations.weight_norm(layer)",
    ),
    "KD873": Explanation(
        "key that given data would not follow",
        "The spec says how images are transformed, mixed or loaded, and the data in memory is past that: a DataLoader"
        " makes its batches itself, and float images are taken as they are.",
        "wrong: transformer: [...] with data={'train': DataLoader(...)}\nright: data={'train': dataset of PIL images}",
    ),
    "KD874": Explanation(
        "given data that can't be used",
        "Data in memory is a Dataset of (image, label), of images alone, or a DataLoader of such batches: images"
        " channels first, uint8 or PIL's for the spec's transforms, or floats that are normalised; labels whole numbers"
        " from 0 on."
        " For a detector it is a Dataset of (image, {boxes, labels}): x1, y1, x2, y2 in pixels, labels from 1 on.",
        "wrong: images [B, H, W, C]\nright: images.permute(0, 3, 1, 2)",
    ),
    "KD875": Explanation(
        "DataLoader in several processes",
        "Each process would go through all the batches of the DataLoader. Of a Dataset kdcli shares out the items.",
        "wrong: torchrun script.py with data={'train': DataLoader(train)}\nright: data={'train': train}",
    ),
    "KD877": Explanation(
        "pixels as large as 0..255",
        "Float images that are given from Python are taken as they are. Networks expect them normalised, to a few units"
        " around 0; with values up to 255 a pretrained teacher sees nothing that it knows.",
        "wrong: torch.from_numpy(image).float()\nright: (torch.from_numpy(image).float() / 255 - mean) / std",
    ),
    "KD878": Explanation(
        "student asked of another process",
        "Of several processes the first one writes the run folder and has the student in its Result.",
        "if result.rank == 0: torch.save(result.student.state_dict(), 'student.pth')",
    ),
}
