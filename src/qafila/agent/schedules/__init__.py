"""Work that begins by itself: at a time, before an event, when a file changes or something is announced."""
