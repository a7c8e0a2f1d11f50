"""Codes KD0xx and KD1xx: the command line, and the text as YAML."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

SYNTAX: dict[str, Explanation] = {
    "KD001": Explanation(
        "wrong usage",
        "The command line itself is wrong: a file that is not there, an option that does not exist.",
        "kdcli train no_such_file.yaml",
    ),
    "KD101": Explanation(
        "not YAML",
        "The text does not follow YAML's grammar, so nothing after this place can be read. Look at the"
        " indentation, at quotes and at brackets of this line and the one before.",
        "wrong: size: [224, 224\nright: size: [224, 224]",
    ),
    "KD102": Explanation(
        "tab in the indentation",
        "YAML is indented with spaces only; a tab has no width that two editors agree on.",
        "wrong: <tab>max_epoch: 10\nright: two spaces, then max_epoch: 10",
    ),
    "KD103": Explanation(
        "not UTF-8",
        "A spec is text in UTF-8. Another encoding would change names without anyone noticing.",
        "mend it: iconv -f latin1 -t utf-8 cfg.yaml > new.yaml",
    ),
    "KD104": Explanation(
        "control character",
        "An invisible character stands in the text, mostly from copying out of a terminal or a web page.",
        'wrong: name: a<U+0007>b\nright: name: ab, or name: "a\\ab" if it is meant',
    ),
    "KD105": Explanation(
        "key given twice",
        "One of the two values would win silently. Keep one. (Two building blocks at top level that both"
        " carry an anchor may share a name: KD604.)",
        "wrong: {lr: 0.1, lr: 0.2}\nright: {lr: 0.2}",
    ),
    "KD106": Explanation(
        "unknown tag",
        "A spec is data and runs no code; the tags are `!include` and YAML's own such as `!!str`.",
        "wrong: size: !!python/tuple [1, 2]\nright: size: [1, 2]",
    ),
    "KD107": Explanation(
        "alias without anchor",
        "`*name` repeats what `&name` marked earlier in the same file. There is no such mark above, or the"
        " alias stands inside the very block that it names.",
        "wrong: num_classes: *classes\nright: classes: &classes 10 (further up)",
    ),
    "KD108": Explanation(
        "nested too deeply",
        "No spec is nested so deeply; a bracket or an indentation has run away.",
        "wrong: [[[[[[... 65 levels",
    ),
    "KD109": Explanation(
        "too large",
        "Aliases of aliases multiply: a few lines can stand for billions of values. The text with all its"
        " aliases and includes written out is larger than any spec.",
        "wrong: b: &b [*a, *a, *a, *a] and so on, many times over",
    ),
    "KD110": Explanation(
        "second document",
        "One file is one spec; what follows `---` would be ignored.",
        "wrong: net: ...\n       ---\n       net: ...",
    ),
    "KD111": Explanation(
        "key is no name",
        "A key is a plain name. A list, a mapping or nothing cannot be one.",
        "wrong: ? [a, b] : 1\nright: a: 1",
    ),
    "KD112": Explanation(
        "merge of something else",
        "`<<` takes over the keys of a mapping, or of a list of mappings.",
        "wrong: <<: 4\nright: <<: *defaults",
    ),
    "KD113": Explanation(
        "not a spec",
        "The text is empty, or is not a mapping of keys such as `net`, `dataset` and `trainer`.",
        "wrong: - name: backbone\nright: net:\n         - name: backbone",
    ),
    "KD114": Explanation(
        "include cannot be read",
        "The file after `!include` is missing, empty or unreadable. Its path is relative to the file that"
        " includes it.",
        "dataset: !include data/cifar.yaml",
    ),
    "KD115": Explanation(
        "include outside the folder",
        "An include stays below the folder of the spec (symbolic links are followed first), so that a spec"
        " from elsewhere cannot read other files of yours.",
        "wrong: !include ../../secrets.yaml\nright: copy the file beside the spec",
    ),
    "KD116": Explanation(
        "includes in a circle",
        "A file includes itself, perhaps by way of others.",
        "a.yaml: x: !include b.yaml\nb.yaml: y: !include a.yaml",
    ),
    "KD117": Explanation(
        "include of a key that is not there",
        "`!include file.yaml//some.key` takes one part of a file; the file has no such key.",
        "net: !include nets.yaml//student",
    ),
    "KD118": Explanation(
        "value does not fit its form",
        "A number with a thousand digits, or a value that contradicts its own tag.",
        "wrong: epochs: !!int ten\nright: epochs: 10",
    ),
}
