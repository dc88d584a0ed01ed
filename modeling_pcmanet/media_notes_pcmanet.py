"""What was done to make the best of odd media, said once and to everybody who may want to know it."""

import logging
from collections import Counter


logger = logging.getLogger(__name__)


class MediaNotes:
    """What was done to use one source although it is odd; `str()` of it is what messages call the source.

    A note goes to the log of this module when it is made, as a warning: whoever runs a program sees it, and
    `logging.getLogger("modeling_pcmanet").setLevel(logging.ERROR)` silences it. What the file itself asks for (turn the
    picture, stretch its pixels) is no warning but information.

    Args:
        name: What messages call the source.

    Attributes:
        texts: The notes made so far, each once, in order.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []
        self._counts: Counter[str] = Counter()

    def __str__(self) -> str:
        return self.name

    def add(self, text: str, level: int = logging.WARNING) -> None:
        """Makes a note, unless it is made already."""
        if text not in self.texts:
            self.texts.append(text)
            logger.log(level, "%s: %s", self.name, text)

    def count(self, what: str) -> None:
        """Counts something that is to be noted with its number, once, when all is read."""
        self._counts[what] += 1

    def has_counted(self, what: str) -> bool:
        """Tells whether something was counted since the last [`finish`]."""
        return self._counts[what] > 0

    def finish(self) -> None:
        """Makes the notes of what was counted."""
        for what, number in self._counts.items():
            self.add(f"{what}: {number}")
        self._counts.clear()
