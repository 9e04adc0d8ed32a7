"""Texts that a parser takes for something else: numbers, dates, words of YAML, quotes, comments, lists."""

from __future__ import annotations

import unicodedata

HOSTILE = (
    *("007", "0", "010", "3", "1e4", "1_000", "0x1F", "0o17", "3.0", "+1", "1,5", "٣", "1e999", "Infinity"),
    *("2024-01-01", "12:30", "2024-01-01T10:00:00Z", "1:2:3"),
    *("yes", "No", "on", "off", "y", "true", "False", "null", "Null", "none", "None", "nan", "=", "<<"),
    *("'a'", '"a"', "it's", 'say "hi"', "''", "'null'"),
    *("#3", "x #2", "#", "a#b", "# a"),
    *("a: b", "{a: 1}", "[1, 2]", "[a", "&x", "*x", "!x", "!!int 3", "%x", "@x", "`x`", "|", ">", "? a", "a,b", "a;b"),
    *(unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"), "日本語", "🦊", "ﬁ", "a\u00a0b"),
    *("a b", "a  b", "a\tb", "a\\b", "$HOME", "*", "C:x"),
)
