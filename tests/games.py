"""The items of the local lab, and the table that holds them in the order of a scan.

The same games are made on every start.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

Json = dict[str, Any]
MB = 1024 * 1024


def to_json(document: Json) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


# --- Sizes (Developer Guide, "DynamoDB item sizes and formats") -----------------------


def item_size(item: Json) -> int:
    """The bytes of an item: the names of its attributes and their values."""
    return sum(len(name.encode()) + value_size(value) for name, value in item.items())


def value_size(value: Json) -> int:
    """The bytes of a value. Games have strings, whole numbers and lists of these."""
    if "S" in value:
        return len(value["S"].encode())
    if "N" in value:
        return number_size(value["N"])
    return 3 + sum(1 + value_size(element) for element in value["L"])


def number_size(digits: str) -> int:
    """The bytes of a number: one, and one for each two significant digits.

    The guide says "approximately". As in dynalite, the digits are paired from the
    right, and pairs of zeros at the end are left out: 120 is 01 20, and 1000000 is 01.
    """
    if len(digits) % 2 == 1:
        digits = "0" + digits
    while digits.endswith("00"):
        digits = digits[:-2]
    return 1 + len(digits) // 2


# --- Games ----------------------------------------------------------------------------

GAMES_PER_PLAYER = 25
# A season is 25 games. Only so many different seasons are made, and players share them.
# So a large table is made in a moment.
SEASONS = 97
START = 1_735_689_600  # 2025-01-01
WEEK = 7 * 24 * 3600
YEAR = 365 * 24 * 3600
FIRST_NAMES = [
    "Ada",
    "Grace",
    "Zoë",
    "Linus",
    "Barbara",
    "Alan",
    "Søren",
    "Radia",
    "Ken",
    "Margaret",
]
LAST_NAMES = ["Hopper", "Ng", "Lovelace", "Turing", "Perlman", "Thompson", "Liskov"]
MODES = ["solo", "duo", "squad", "ranked", "tournament"]
ACHIEVEMENTS = [
    "first_blood",
    "flawless",
    "comeback",
    "sharpshooter",
    "speed_run",
    "collector",
]


class Game(NamedTuple):
    """A game without its player."""

    game_id: str
    json: bytes
    size: int


def make_game(week: int, chance: random.Random) -> Game:
    """A player's game in one week."""

    def below(limit: int) -> int:
        # Unlike randrange(), random() gives the same numbers in every Python.
        return int(chance.random() * limit)

    game_id = f"game_{week + 1:06d}"
    played = START + week * WEEK + below(WEEK)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(played))
    first = below(len(ACHIEVEMENTS))
    score = below(100_000)
    duration = 60 + below(3_540)
    achieved = ACHIEVEMENTS[first : first + below(4)]
    mode = MODES[below(len(MODES))]
    attributes = {
        "game_id": {"S": game_id},
        "game_date": {"S": stamp[:10]},
        "score": {"N": str(score)},
        "game_duration": {"N": str(duration)},
        "achievements": {"L": [{"S": name} for name in achieved]},
        "game_mode": {"S": mode},
        "expiration_time": {"N": str(played + YEAR)},
        "last_updated": {"S": stamp},
    }
    return Game(game_id, to_json(attributes), item_size(attributes))


def make_player(number: int, player_id: str) -> Json:
    """The attributes that all games of a player share."""
    first = FIRST_NAMES[number % len(FIRST_NAMES)]
    last = LAST_NAMES[number * 3 % len(LAST_NAMES)]
    return {"player_id": {"S": player_id}, "player_name": {"S": f"{first} {last}"}}


# --- The table, in the order of a Scan ------------------------------------------------


HASHES_PER_SLOT = 4096
SLOTS = 4096


def hash_of(player_id: str) -> int:
    """A number of 24 bits that places a player. As in dynalite, to the letter."""
    digest = hashlib.md5(b"Outliers" + player_id.encode(), usedforsecurity=False)
    return int(digest.hexdigest()[:6], 16)


def lowest_hash(segment: int, total_segments: int) -> int:
    """Where a segment begins. As in dynalite, that is where one of the slots begins."""
    return math.ceil(SLOTS * segment / total_segments) * HASHES_PER_SLOT


def is_in_segment(player_id: str, segment: int, total_segments: int) -> bool:
    low = lowest_hash(segment, total_segments)
    high = lowest_hash(segment + 1, total_segments)
    return low <= hash_of(player_id) < high


@dataclass(frozen=True)
class Page:
    """A page of items, by their positions in the table."""

    first: int
    end: int  # one after the last
    size: int  # of all its items, in bytes
    has_last_key: bool  # because it ended by 1 MB or by Limit

    @property
    def count(self) -> int:
        return self.end - self.first


class GameTable:
    """All items, in the order of a scan. The three lists have an entry for each."""

    def __init__(self, items: int) -> None:
        self.keys: list[tuple[int, str, str]] = []  # hash, player_id, game_id
        self.items: list[bytes] = []  # JSON texts
        self.sizes: list[int] = []  # bytes, by DynamoDB's rules
        chance = random.Random(25)  # any number would do, but always the same
        weeks = range(GAMES_PER_PLAYER)
        seasons = [[make_game(week, chance) for week in weeks] for _ in range(SEASONS)]
        players = []
        for number in range(math.ceil(items / GAMES_PER_PLAYER)):
            player_id = f"player_{number:06d}"
            players.append((hash_of(player_id), player_id, number))
        for player_hash, player_id, number in sorted(players):
            player = make_player(number, player_id)
            player_json = to_json(player)
            player_size = item_size(player)
            games = seasons[number % SEASONS]
            # The player with the highest number may have fewer.
            for game in games[: items - number * GAMES_PER_PLAYER]:
                self.keys.append((player_hash, player_id, game.game_id))
                # {player} and {game} become {player,game}
                self.items.append(player_json[:-1] + b"," + game.json[1:])
                self.sizes.append(player_size + game.size)

    def start_of(self, segment: int, total_segments: int) -> int:
        """The position of a segment's first item. If it is empty: of the next item."""
        # (hash,) sorts before all keys with this hash.
        return bisect_left(self.keys, (lowest_hash(segment, total_segments),))

    def after(self, player_id: str, game_id: str) -> int:
        """The position of the first item after a key, which need not exist."""
        return bisect_right(self.keys, (hash_of(player_id), player_id, game_id))

    def key(self, position: int) -> Json:
        """The primary key of an item, as LastEvaluatedKey gives it."""
        _, player_id, game_id = self.keys[position]
        return {"player_id": {"S": player_id}, "game_id": {"S": game_id}}

    def page(self, first: int, end_of_segment: int, limit: int) -> Page:
        """The page that begins at a position."""
        end = first
        size = 0
        while end < end_of_segment and size < MB and end - first < limit:
            size += self.sizes[end]
            end += 1
        return Page(first, end, size, has_last_key=size >= MB or end - first == limit)


@lru_cache(maxsize=8)
def game_table(items: int) -> GameTable:
    """The table of so many items. It never changes, so it can be served many times."""
    return GameTable(items)
