"""The arguments of one call, as JSON text while they are being written: JSON passed on, or made of Python literals."""

from __future__ import annotations

import json
import re

_JSON_PLAIN = re.compile(r'[^"{}\[\]\\]+')
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0", "\n": ""}
_HEX = {"x": 2, "u": 4, "U": 8}
_WORDS = {"True": "true", "False": "false", "None": "null"}


class JSONArguments:
    """Passes a JSON object on, up to its end."""

    def __init__(self) -> None:
        self._depth = 0
        self._text = False
        self._escaped = False
        self.done = False

    def push(self, text: str) -> tuple[str, int]:
        """Take more text; the object's next piece, and where in the text it ends."""
        position = 0
        while position < len(text) and not self.done:
            plain = None if self._escaped else _JSON_PLAIN.match(text, position)
            if plain is not None:
                position = plain.end()
                continue
            self._character(text[position])
            position += 1
        return text[:position], position

    def _character(self, character: str) -> None:
        if self._text:
            if self._escaped or character == "\\":
                self._escaped = not self._escaped
            elif character == '"':
                self._text = False
        elif character == '"':
            self._text = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.done = not self._depth


class PythonArguments:
    """Makes a JSON object of the keyword arguments of a call, up to its closing bracket.

    Text is passed on by the character; a number or a word when it is complete.
    """

    def __init__(self) -> None:
        self._out = ["{"]
        self._quote = ""
        self._escape = ""
        self._word = ""
        self._open = 0
        self._comma = False
        self.done = False

    def push(self, text: str) -> tuple[str, int]:
        """As `JSONArguments.push`, the piece being JSON."""
        position = 0
        while position < len(text) and not self.done:
            if self._quote:
                position = self._inside(text, position)
                continue
            self._outside(text[position])
            position += 1
        piece = "".join(self._out)
        self._out.clear()
        return piece, position

    def _outside(self, character: str) -> None:
        if character in "\"'":
            self._between()
            self._quote = character
            self._out.append('"')
            return
        if character.isalnum() or character in "_.+-":
            self._word += character
            return
        word, self._word = self._word, ""
        if character == "=":
            self._between()
            self._out.append(f"{json.dumps(word, ensure_ascii=False)}: ")
            return
        if word:
            self._between()
            self._out.append(_WORDS.get(word, word))
        if character in "[{":
            self._between()
            self._open += 1
            self._out.append(character)
        elif character in "]}":
            self._comma = False  # of a trailing comma, JSON has none
            self._open -= 1
            self._out.append(character)
        elif character == ")" and not self._open:
            self._out.append("}")
            self.done = True
        elif character == ":":
            self._out.append(": ")
        elif character == ",":
            self._comma = True

    def _between(self) -> None:
        """Write the comma before a value, now that there is one."""
        if self._comma:
            self._out.append(", ")
            self._comma = False

    def _inside(self, text: str, position: int) -> int:
        if self._escape:
            self._escape += text[position]
            self._unescape()
            return position + 1
        end = position
        while end < len(text) and text[end] not in ("\\", self._quote):
            end += 1
        self._write(text[position:end])
        if end < len(text):
            if text[end] == "\\":
                self._escape = "\\"
            else:
                self._out.append('"')
                self._quote = ""
            end += 1
        return end

    def _unescape(self) -> None:
        kind, digits = self._escape[1], self._escape[2:]
        if kind in _HEX:
            if len(digits) == _HEX[kind]:
                self._escape = ""
                self._write(chr(int(digits, 16)))
            return
        self._escape = ""
        self._write(_ESCAPES.get(kind, kind if kind in "\\'\"" else f"\\{kind}"))

    def _write(self, text: str) -> None:
        self._out.append(json.dumps(text, ensure_ascii=False)[1:-1])
