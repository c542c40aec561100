"""Names, numbers and tree shapes, each of them either for training or held out.

What a thing is used for follows from a hash of the thing itself, so the two
sides cannot meet whatever the seeds are. Names are pairs of words: the words
are shared (a token that was never trained could not be copied), the pairs are
not.
"""

from __future__ import annotations

import hashlib
import random
from enum import StrEnum
from typing import Final

_ADJECTIVES = (
    "amber ancient azure bitter black blue bold brass brave bright broad bronze calm clear clever "
    "coastal cold copper coral crimson curly daring dark deep dusty eager early eastern empty "
    "faded fair fancy fast fierce flat fresh frosty gentle giant glad golden grand gray green "
    "hidden hollow humble icy idle inner ivory jolly keen large late lazy light little lively "
    "lone lost loud lucky lunar mellow merry mild misty modern narrow neat noble northern odd "
    "olive outer pale patient plain polar proud purple quick quiet rapid rare red rough round "
    "royal rusty salty scarlet secret sharp shiny short silent silver sleepy slim slow small "
    "smooth snowy soft solar solid spare steady steep still stormy strong sunny sweet swift tall "
    "tame tidy tiny true vast velvet violet warm western white wide wild windy wise young"
)
_NOUNS = (
    "acorn anchor apple arrow badger bakery bamboo barn basin beach beacon bear beaver bell birch "
    "bison boat bottle bridge brook bucket cabin camel candle canyon castle cedar cherry cliff "
    "clock cloud clover comet copse cottage crane creek cricket crow crystal dairy deer delta "
    "desert dolphin dragon drum eagle elm engine falcon farm feather fern ferry field finch fjord "
    "flame forest fountain fox garden garnet gate geyser glacier goose grove gull hammer harbor "
    "hawk hazel hedge heron hill honey horse island jacket jungle kettle kite ladder lagoon lake "
    "lamp lantern lark lemon library lion lizard lotus magnet maple marsh meadow mill mirror "
    "moose mountain museum needle nest oak ocean orchard otter owl paddle palace panda paper "
    "parrot pebble pepper pigeon pine planet plum pond pony prairie quarry rabbit raven reef "
    "river robin rocket rose sail salmon seal shell shore sparrow spruce squirrel stable star "
    "stone summit swan temple thistle tiger tower trail tulip tunnel turtle valley village walnut "
    "whale willow wolf wren"
)
ADJECTIVES: Final = tuple(_ADJECTIVES.split())
NOUNS: Final = tuple(_NOUNS.split())
HELD_OUT_OF: Final = 5  # one thing in five is held out


class Split(StrEnum):
    """What a name, number or tree shape may be used for."""

    TRAIN = "train"
    HELD_OUT = "held_out"


def split_of(kind: str, value: str) -> Split:
    """The one split that `value`, used as a `kind`, belongs to."""
    digest = hashlib.blake2b(f"{kind}/{value}".encode(), digest_size=4).digest()
    return Split.TRAIN if int.from_bytes(digest) % HELD_OUT_OF else Split.HELD_OUT


class Namer:
    """Draws things of one split. Within one namer a name is given out once."""

    def __init__(self, split: Split, rng: random.Random) -> None:
        self._split = split
        self._rng = rng
        self._taken: set[str] = set()

    def name(self, kind: str) -> str:
        """A pair of words, such as `amber-falcon`, new to this namer."""
        while True:
            name = f"{self._rng.choice(ADJECTIVES)}-{self._rng.choice(NOUNS)}"
            if name not in self._taken and split_of(kind, name) is self._split:
                self._taken.add(name)
                return name

    def number(self) -> int:
        """A number of four digits."""
        while True:
            number = self._rng.randrange(1000, 10000)
            if split_of("number", str(number)) is self._split:
                return number

    def tree_shape(self) -> tuple[int, ...]:
        """Files per directory: two to four directories of one to four files."""
        while True:
            folders = self._rng.randint(2, 4)
            shape = tuple(self._rng.randint(1, 4) for _ in range(folders))
            if split_of("shape", "-".join(map(str, shape))) is self._split:
                return shape
