"""Codes KD5xx: data, annotation and weight files."""

from __future__ import annotations

from kdcli.codes.explanation import Explanation

FILES: dict[str, Explanation] = {}
