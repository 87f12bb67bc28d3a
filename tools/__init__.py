"""Programs for those who work on this tree; not part of the wheel."""
