"""Filler in which something said earlier must be used again: lists, codes, counting, dates.

Such text rewards attention to earlier tokens, so the small model learns heads of the kinds that are
known from larger ones (previous-token, duplicate-token and induction heads).
"""

import random

from jaxalign.demo.entities import OBJECTS, PEOPLE, PLACES, listed, with_article
from jaxalign.demo.facts_words import DAYS, MONTHS, NUMBERS
from jaxalign.demo.filler import fill
from jaxalign.demo.filler_words import LEXICON

_ORDINALS = listed("""
    first, second, third, fourth, fifth, sixth, seventh, eighth, ninth, tenth""")
_NOUNS = OBJECTS + LEXICON["thing"] + LEXICON["animal"]


def _person(rng: random.Random) -> dict[str, str]:
    person = rng.choice(PEOPLE)
    return {"n": person.name, "p": person.subject, "P": person.subject.capitalize()}


def repeated_list(rng: random.Random) -> str:
    """A list of words that is said twice."""
    items = rng.sample(_NOUNS, rng.randint(3, 7))
    listing = ", ".join(items)
    frames = (
        f"{{n}} wrote a list: {listing}. To be sure, {{p}} read it again: {listing}.",
        f"Learn these words: {listing}. Now say them: {listing}.",
        f"The [adjective] table was full: {listing}. {{n}} counted the things: {listing}.",
        f"{' '.join(items)} {' '.join(items)} {' '.join(items[: len(items) // 2])}",
        f'The [job] called out, "{listing}!" "{listing}!" the [group] repeated.',
    )
    return fill(rng, rng.choice(frames), **_person(rng))


def code(rng: random.Random) -> str:
    """Rooms, numbers or colours given to things, then asked for."""
    keys = rng.sample(_NOUNS, rng.randint(2, 4))
    values = rng.sample(range(1, 100), len(keys))
    given = [
        f"The number of the {key} is {value}." for key, value in zip(keys, values, strict=True)
    ]
    asked = rng.randrange(len(keys))
    if rng.random() < 0.5:
        colors = rng.sample(("red", "blue", "green", "yellow", "black", "white"), len(keys))
        given = [f"The {key} is {color}." for key, color in zip(keys, colors, strict=True)]
        ending = f"So the color of {{n}}'s {keys[asked]} is {colors[asked]}."
        text = " ".join(["{n} has " + _listing(keys) + ".", *given, ending])
        return fill(rng, text, **_person(rng))
    ending = f"Which number has the {keys[asked]}? It has the number {values[asked]}."
    return " ".join([*given, ending])


def _listing(nouns: list[str]) -> str:
    phrases = [with_article(noun) for noun in nouns]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def counting(rng: random.Random) -> str:
    """Numbers, days, months or letters in their order."""
    kind = rng.randrange(5)
    if kind == 0:
        start, step = rng.randint(0, 60), rng.choice((1, 1, 1, 2, 5, 10))
        return ", ".join(str(start + step * index) for index in range(rng.randint(5, 12))) + "."
    if kind == 1:
        start = rng.randint(0, 12)
        words = ", ".join(NUMBERS[start : start + rng.randint(4, 8)])
        return f"{words[0].upper()}{words[1:]}."
    if kind == 2:
        names = rng.choice((DAYS, MONTHS))
        start = rng.randrange(len(names))
        return ", ".join((names * 2)[start : start + rng.randint(3, 7)]) + "."
    if kind == 3:
        start = rng.randint(0, 18)
        return " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[start : start + rng.randint(5, 10)])
    count = rng.randint(3, 6)
    stops = rng.sample(PLACES, count)
    parts = [f"the {_ORDINALS[index]} is the {stop}" for index, stop in enumerate(stops)]
    return f"The bus has {NUMBERS[count]} stops: " + ", ".join(parts) + "."


def chronicle(rng: random.Random) -> str:
    """The history of a town, in years that grow."""
    year, town = rng.randint(1700, 1940), rng.choice(LEXICON["town"])
    events = (
        "the {place} of {town} was built by Mr. [surname].",
        "a fire destroyed [number] houses in {town}.",
        "the [group] of {town} opened a new {place}.",
        "[a adjective] [thing] was found near {town}.",
        "[surname] became mayor of {town}.",
        "the first train arrived in {town}.",
        "the winter was so cold that the {place} was closed.",
        "a doctor called [surname] came to {town}.",
    )
    lines = []
    for event in rng.sample(events, rng.randint(2, 4)):
        month = rng.choice(("", "", f" {rng.choice(MONTHS)}"))
        lines.append(fill(rng, f"In{month} {year}, {event}", town=town, place=rng.choice(PLACES)))
        year += rng.randint(1, 20)
    return " ".join(lines)


def sums(rng: random.Random) -> str:
    """A person has some things, gets or loses some, and counts again."""
    person, thing = (
        _person(rng),
        rng.choice(
            ("apples", "books", "coins", "stamps", "eggs", "letters", "cards", "stones", "shells")
        ),
    )
    have, change = rng.randint(2, 10), rng.randint(1, 10)
    if change < have and rng.random() < 0.5:
        verb, total = rng.choice(("lost", "sold", "gave away")), have - change
    else:
        verb, total = rng.choice(("found", "bought", "got")), have + change
    text = (
        f"{{n}} had {NUMBERS[have]} {thing}. [later], {{p}} {verb} {NUMBERS[change]}. "
        f"Now {{p}} had {NUMBERS[total]}."
    )
    return fill(rng, text, **person)


def shopping(rng: random.Random) -> str:
    """A conversation in a shop whose price returns at the end."""
    person, item = _person(rng), rng.choice(OBJECTS)
    price, paid = rng.randint(2, 19), 20
    text = (
        f"{{n}} went into [a look] shop to buy {with_article(item)}. "
        f'"How much is the {item}?" {{p}} asked. "It costs {price} dollars," said the '
        f"shopkeeper. {{n}} gave {paid} dollars and took the {item} home."
    )
    if rng.random() < 0.7:
        text += rng.choice(
            (f" It had cost {price} dollars.", f" {{P}} had {paid - price} dollars left.")
        )
    return fill(rng, text, **person)


def riddle(rng: random.Random) -> str:
    """Who is taller, older or faster, over three people known by their work."""
    word, reverse = rng.choice(
        (("taller", "shorter"), ("older", "younger"), ("faster", "slower"), ("richer", "poorer"))
    )
    one, two, three = rng.sample(LEXICON["job"], 3)
    text = f"The {one} is {word} than the {two}, and the {two} is {word} than the {three}."
    return rng.choice(
        (
            f"{text} So the {one} is {word} than the {three}.",
            f"{text} So the {three} is {reverse} than the {one}.",
            f"{text} Who is {reverse} than the {two}? The {three}.",
        )
    )
