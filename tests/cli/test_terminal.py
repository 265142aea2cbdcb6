"""What a model writes cannot command the terminal."""

from __future__ import annotations

import pytest

from qafila.cli import terminal


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_escape_sequences_are_shown_and_not_obeyed(on_a_terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: on_a_terminal)
    hostile = "\x1b]0;mine\x07hello\x9b2J\r\x7f\t\u202eسلام\u200f\n"
    terminal.show(hostile)
    shown = capsys.readouterr().out
    # A file gets what the model wrote, byte for byte; a terminal gets no control characters.
    assert shown == ("\ufffd]0;mine\ufffdhello\ufffd2J\ufffd\ufffd\t\ufffdسلام\u200f\n" if on_a_terminal else hostile)


def test_the_direction_is_asked_for_on_a_terminal_and_given_back(capsys, monkeypatch):
    with terminal.direction_from_text():
        pass
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(ValueError, match="inside"), terminal.direction_from_text():
        raise ValueError("inside")
    assert capsys.readouterr().out == "\x1b[?2501h\x1b[?2501l"
